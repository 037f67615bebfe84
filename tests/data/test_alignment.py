"""Alignment by bytes, against sets of offsets and by hand."""

import io
import random

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.data.alignment import align_ends, align_row, align_segment, whole_characters
from minillm.data.corpus import Example, builtin_text_path
from minillm.data.packing import cut, pack, tokenize
from minillm.data.sentencepiece_tokenizer import SentencePieceTokenizer
from minillm.data.special_tokens import Declarations
from minillm.data.tokenizer import BPETokenizer

TEXT = builtin_text_path().read_text(encoding="utf-8")
TEXTS = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]), st.sampled_from(" ▁\\{}<>0129\n\taeinrtüé中")
    ),
    max_size=40,
) | st.sampled_from([TEXT[:200], "x³ − 2x² + ½ ≤ √2", "👩‍👩‍👧 中文 ▁▁", "\\frac{1}{2}", ""])


@pytest.fixture(scope="module")
def small() -> BPETokenizer:
    return BPETokenizer(380, only_seen_commands=True).train([TEXT])


@pytest.fixture(scope="module")
def large() -> BPETokenizer:
    return BPETokenizer(900).train([TEXT, "Ein Wörterbuch für größere Übungen. 中文 中文"])


class RandomCuts:
    """A tokenizer that cuts anywhere, within characters too, and has tokens without text."""

    bos_id, eos_id = 1, 2

    def __init__(self, seed, adds_bos=True):
        self.seed, self.adds_bos = seed, adds_bos

    def encode_with_ends(self, text):
        size = len(text.encode())
        rng = random.Random(f"{self.seed}/{text}")
        ends = sorted(rng.choices(range(size + 1), k=rng.randint(0, 2 * size)))
        ends += [size] if size else []
        return [rng.randint(3, 99) for _ in ends], ends


def bytes_of(tokenizer, tokens):
    return [tokenizer.token_bytes(int(token)) or b"" for token in tokens]


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.integers(0, 5), st.integers(0, 5), st.booleans())
def test_spans_end_exactly_where_both_end_and_hold_every_token(small, text, one, two, real):
    ours = small.encode_with_ends(text)[1] if real else RandomCuts(one).encode_with_ends(text)[1]
    theirs = RandomCuts(two).encode_with_ends(text)[1]
    spans = align_ends(ours, theirs)
    common = sorted((set(ours) & set(theirs)) - {0})
    for stops, ends in ((spans.student_stop, ours), (spans.teacher_stop, theirs)):
        assert [ends[stop - 1] for stop in stops] == common
        assert all(ends[stop] > ends[stop - 1] for stop in stops if stop < len(ends))
    for starts, stops, ends in (
        (spans.student_start, spans.student_stop, ours),
        (spans.teacher_start, spans.teacher_stop, theirs),
    ):
        assert list(starts) == [0, *stops[:-1]][: len(stops)]
        assert not len(text) or stops[-1] == len(ends)


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_equal_tokenizers_align_at_every_token(large, text):
    ids, ends = large.encode_with_ends(text)
    spans = align_ends(ends, ends)
    every = list(range(len(ids)))
    assert list(spans.student_start) == list(spans.teacher_start) == every
    assert list(spans.student_stop) == list(spans.teacher_stop) == [i + 1 for i in every]
    document = tokenize(Example("", text), large)
    aligned = align_segment(document.tokens, document.loss_mask, large, large)
    assert aligned.tokens.tolist() == document.tokens.tolist()
    assert list(aligned.spans.student_start) == list(range(1, len(document.tokens)))
    assert list(aligned.spans.teacher_stop) == list(range(2, len(document.tokens) + 1))


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.integers(0, 3))
def test_a_whole_document_is_in_spans_of_equal_bytes_its_end_included(small, text, seed):
    teacher = RandomCuts(seed)
    document = tokenize(Example("", text), small)
    aligned = align_segment(document.tokens, document.loss_mask, small, teacher)
    ids, ends = teacher.encode_with_ends(text)
    assert aligned.tokens.tolist() == [1, *ids, 2]
    spans = aligned.spans
    assert spans.student_start[0] == spans.teacher_start[0] == 1
    assert spans.student_stop[-1] == len(document.tokens)
    assert spans.teacher_stop[-1] == len(aligned.tokens)
    assert (spans.student_start[-1], spans.teacher_start[-1]) == (
        len(document.tokens) - 1,
        len(aligned.tokens) - 1,
    )
    offsets = [0, 0, *ends, ends[-1] if ends else 0]  # before each of the teacher's tokens
    parts = bytes_of(small, document.tokens)
    for a, b, c, d in list(zip(*spans, strict=True))[:-1]:
        assert b"".join(parts[a:b]) == text.encode()[offsets[c] if c > 1 else 0 : offsets[d]]


@pytest.mark.parametrize(
    ("data", "text", "skipped"),
    [
        (b"abc", "abc", 0),
        ("é".encode()[1:] + b"x", "x", 1),
        ("中".encode()[1:] + "é".encode(), "é", 2),
        ("x中".encode()[:-1], "x", 0),
        ("👩".encode()[1:], "", 3),
        ("👩".encode()[:3], "", 0),
        (b"", "", 0),
    ],
)
def test_text_begins_and_ends_with_whole_characters(data, text, skipped):
    assert whole_characters(data) == (text, skipped)


def test_bytes_that_are_no_text_are_an_error():
    with pytest.raises(UnicodeDecodeError):
        whole_characters(b"a\xffb")


def test_only_spans_of_targets_that_count_are_kept(small, large):
    document = tokenize(Example("Problem: 1 + 1\nSolution:\n", "It is the number 2."), small)
    aligned = align_segment(document.tokens, document.loss_mask, small, large)
    prompt = int(np.argmax(document.loss_mask))
    assert prompt > 5
    assert aligned.spans.student_start.min() >= prompt
    parts = bytes_of(small, document.tokens)
    covered = b"".join(
        b"".join(parts[a:b])
        for a, b in zip(aligned.spans.student_start, aligned.spans.student_stop, strict=True)
    )
    assert covered == b"It is the number 2."


def test_a_span_across_the_beginning_of_the_completion_does_not_count(small):
    class OneToken(RandomCuts):
        def encode_with_ends(self, text):
            return [7], [len(text.encode())]

    document = tokenize(Example("ask", "answer"), small)
    spans = align_segment(document.tokens, document.loss_mask, small, OneToken(0)).spans
    # The end alone.
    assert [part.tolist() for part in spans] == [
        [len(document.tokens) - 1], [len(document.tokens)], [2], [3],
    ]  # fmt: skip


def test_a_teacher_without_a_beginning_has_no_likelihood_of_its_first_token(small):
    teacher = RandomCuts(1, adds_bos=False)
    document = tokenize(Example("", "some words to be cut"), small)
    aligned = align_segment(document.tokens, document.loss_mask, small, teacher)
    assert aligned.tokens.tolist() == [*teacher.encode_with_ends("some words to be cut")[0], 2]
    assert aligned.spans.teacher_start.min() > 0
    assert aligned.spans.student_stop.max() == len(document.tokens)


def test_a_space_that_the_rows_tokenizer_puts_before_a_text_is_not_read_to_the_teacher(large):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=model,
        vocab_size=500,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    llama = SentencePieceTokenizer(model.getvalue(), Declarations(place="here"))
    text = "Two words"
    ids = [llama.bos_id, *llama.encode(text), llama.eos_id]
    assert b"".join(bytes_of(llama, ids)) == b" Two words"
    aligned = align_segment(np.array(ids), np.arange(len(ids)) > 0, llama, large)
    assert large.decode(aligned.tokens.tolist()) == text
    assert aligned.spans.student_start[0] == 1
    assert aligned.spans.student_stop[-1] == len(ids)


@pytest.mark.parametrize("length", [5, 7, 11, 23])
def test_next_to_a_cut_nothing_counts(small, large, length):
    text = "Größere Übungen über 中文 und ähnliches, for example."
    pieces = cut(tokenize(Example("", text), small), length)
    assert len(pieces) > 2
    for number, piece in enumerate(pieces):
        aligned = align_segment(piece.tokens, piece.loss_mask, small, large)
        whole, skipped = whole_characters(b"".join(bytes_of(small, piece.tokens)))
        assert aligned.tokens[0] == large.bos_id
        assert large.decode(aligned.tokens.tolist()) == whole
        spans = aligned.spans
        if number:
            # The first span begins behind the first token that ends in both.
            assert not len(spans.student_start) or spans.student_start[0] > 0
            assert not len(spans.teacher_start) or spans.teacher_start[0] > 1
        if number < len(pieces) - 1:
            assert not len(spans.teacher_stop) or spans.teacher_stop[-1] < len(aligned.tokens)
        parts = bytes_of(small, piece.tokens)
        theirs = bytes_of(large, aligned.tokens)
        for a, b, c, d in zip(*spans, strict=True):
            assert b"".join(parts[a:b]) == b"".join(theirs[c:d])
            assert len(b"".join(parts[:a])) - skipped == len(b"".join(theirs[:c]))


def test_a_rows_documents_are_aligned_each_by_itself(small, large):
    examples = [Example("Ask 12", " = 12"), Example("", "Über the hill"), Example("", "x")]
    documents = [tokenize(example, small) for example in examples]
    (packed,) = pack(documents, 64)
    row = {name: getattr(packed, name) for name in ("tokens", "segment_ids", "loss_mask")}
    aligned = align_row(row, small, large)
    student_at = teacher_at = 0
    expected = []
    for number, document in enumerate(documents, start=1):
        one = align_segment(document.tokens, document.loss_mask, small, large)
        here = slice(teacher_at, teacher_at + len(one.tokens))
        assert aligned.tokens[here].tolist() == one.tokens.tolist()
        assert set(aligned.segment_ids[here]) == {number}
        assert aligned.positions[here].tolist() == list(range(len(one.tokens)))
        expected += zip(*one.spans.shifted(student_at, teacher_at), strict=True)
        student_at, teacher_at = student_at + len(document.tokens), here.stop
    assert list(zip(*aligned.spans, strict=True)) == expected
    assert len(aligned.tokens) == teacher_at


def test_a_row_of_padding_has_no_tokens_and_no_spans(small, large):
    nothing = {name: np.zeros(8, np.int32) for name in ("tokens", "segment_ids", "loss_mask")}
    aligned = align_row(nothing, small, large)
    assert [len(part) for part in (*aligned[:3], *aligned.spans)] == [0] * 7


def test_beyond_what_the_teacher_reads_there_are_no_tokens_and_no_spans(small, large):
    document = tokenize(Example("", TEXT[:300]), small)
    whole = align_segment(document.tokens, document.loss_mask, small, large)
    short = align_segment(document.tokens, document.loss_mask, small, large, max_length=20)
    assert short.tokens.tolist() == whole.tokens[:20].tolist()
    kept = whole.spans.teacher_stop <= 20
    assert 0 < kept.sum() < len(kept)
    for part, all_of_it in zip(short.spans, whole.spans, strict=True):
        assert part.tolist() == all_of_it[kept].tolist()
