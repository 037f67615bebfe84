import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.core.errors import UserError
from minillm.data.corpus import Example, builtin_text_path, problem_prompt
from minillm.data.packing import Document, cut, pack, tokenize
from minillm.data.tokenizer import BPETokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer(500, only_seen_commands=True).train([builtin_text_path().read_text()])


def _documents(lengths):
    """Documents of numbered tokens, so that each token of each document is another one."""
    numbers = iter(range(1, 1 + sum(lengths)))
    made = []
    for length in lengths:
        mask = np.ones(length, np.uint8)
        mask[: max(1, length // 2)] = 0
        tokens = np.fromiter((next(numbers) for _ in range(length)), np.int32, length)
        made.append(Document(tokens, mask))
    return made


LENGTHS = st.lists(st.integers(1, 16), max_size=60)


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(1, 8))
def test_every_document_stands_once_whole_in_one_segment_with_its_mask(lengths, open_rows):
    documents = _documents(lengths)
    rows = list(pack(documents, 16, open_rows=open_rows))
    found = {}
    for row in rows:
        assert all(len(field) == 16 for field in vars(row).values())
        for segment in range(1, row.segment_ids.max() + 1):
            (span,) = np.nonzero(row.segment_ids == segment)
            # Without a gap, and counted from 0.
            np.testing.assert_array_equal(span, np.arange(span[0], span[-1] + 1))
            np.testing.assert_array_equal(row.positions[span], np.arange(len(span)))
            found[row.tokens[span[0]]] = (row.tokens[span], row.loss_mask[span])
    assert len(found) == len(documents)
    for document in documents:
        tokens, mask = found[document.tokens[0]]
        np.testing.assert_array_equal(tokens, document.tokens)
        np.testing.assert_array_equal(mask, document.loss_mask)


@settings(max_examples=100, deadline=None)
@given(LENGTHS)
def test_padding_stands_at_the_end_and_counts_for_nothing(lengths):
    for row in pack(_documents(lengths), 16, pad_id=0):
        segments = row.segment_ids[row.segment_ids > 0]
        assert (np.diff(segments) >= 0).all() and segments[0] == 1
        padding = slice(len(segments), None)
        for field in vars(row).values():
            assert not field[padding].any()


@settings(max_examples=100, deadline=None)
@given(LENGTHS)
def test_with_all_rows_open_no_two_rows_could_be_one(lengths):
    rows = pack(_documents(lengths), 16, open_rows=10**6)
    filled = [np.count_nonzero(row.segment_ids) for row in rows]
    # What first fit promises: a later row was opened because no earlier one had room for its
    # first document, so two rows are never both at most half full.
    assert sum(tokens <= 8 for tokens in filled) <= 1


def test_first_fit_fills_the_earliest_gap_and_closes_the_fullest_row():
    def spans(lengths, **options):
        rows = pack(_documents(lengths), 10, **options)
        return [np.bincount(row.segment_ids, minlength=2)[1:].tolist() for row in rows]

    assert spans([6, 7, 4, 3]) == [[6, 4], [7, 3]]
    assert spans([6, 7, 5, 4], open_rows=2) == [[7], [6, 4], [5]]
    assert spans([10, 1]) == [[10], [1]]
    assert spans([]) == []


def test_packing_the_same_documents_gives_the_same_rows():
    lengths = np.random.default_rng(0).integers(1, 17, 200).tolist()
    first, second = (list(pack(_documents(lengths), 16)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        for x, y in zip(vars(a).values(), vars(b).values(), strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_document_longer_than_a_row_is_refused_by_pack():
    with pytest.raises(UserError, match="row_length: got 4; wanted at least 5"):
        list(pack(_documents([5]), 4))


def test_problems_learn_the_solution_and_the_end_only(tokenizer):
    document = tokenize(Example(problem_prompt("1 + 1?"), "It is 2."), tokenizer)
    ids = document.tokens.tolist()
    assert ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id
    assert tokenizer.decode(ids) == "Problem: 1 + 1?\nSolution:\nIt is 2."
    learned = document.tokens[document.loss_mask == 1].tolist()
    assert learned == [*tokenizer.encode("It is 2."), tokenizer.eos_id]


def test_plain_text_learns_everything_but_the_beginning(tokenizer):
    document = tokenize(Example("", "Some text."), tokenizer)
    assert document.loss_mask.tolist() == [0] + [1] * (len(document.tokens) - 1)


@given(st.integers(1, 40), st.integers(1, 12))
def test_cutting_keeps_every_token_and_predicts_none_from_the_piece_before(length, row_length):
    tokens = np.arange(length, dtype=np.int32)
    pieces = cut(Document(tokens, np.ones(length, np.uint8)), row_length)
    np.testing.assert_array_equal(np.concatenate([p.tokens for p in pieces]), tokens)
    assert all(len(p.tokens) <= row_length for p in pieces)
    assert all(p.loss_mask[0] == 0 and p.loss_mask[1:].all() for p in pieces)
