import io
import itertools
import pickle
import string

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.core.errors import UserError
from minillm.data.corpus import builtin_text_path
from minillm.data.tokenizer import BPETokenizer
from minillm.data.tokenizer_training import LATEX_COMMANDS

TEXT = builtin_text_path().read_text(encoding="utf-8")
NASTY = [
    "",
    " ",
    "   ",
    "  two  spaces  inside and after  ",
    "\n",
    "\r\n",
    "\n\n\t \r",
    "\x00",
    "a\x00b\x01\x1f\x7f\x80\x9f",
    "▁",
    "a▁b ▁▁ c▁",
    "▅ ⁇ \ufffd \ufeff",
    "<s> </s> <pad> <unk> <0x41> <0x0A>",
    "x³ − 2x² + ½ ≤ √2 · π ∫∑∂",
    "e\u0301 \u0301 \u200d \u202e",
    "👩‍👩‍👧 🇩🇪 \U0010ffff",
    "中文 кириллица עברית हिन्दी",
    "\\frac\\fraction\\int\\integral\\in",
    "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}",
    "\u00a0\u2003\u3000\x85\u2028",
]
# Characters that mean something to the machinery, and ones that mean something to nobody.
TEXTS = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from(" ▁\\{}<>0123456789\n\r\t\x00aeinrt"),
    )
) | st.lists(st.sampled_from([*NASTY, *LATEX_COMMANDS, " the", "12", "<s>"])).map("".join)


@pytest.fixture(scope="module")
def small() -> BPETokenizer:
    return BPETokenizer(420, only_seen_commands=True).train([TEXT])


@pytest.fixture(scope="module")
def large() -> BPETokenizer:
    return BPETokenizer(1200).train([TEXT, *NASTY])


@pytest.mark.parametrize("text", NASTY)
def test_nasty_text_comes_back_exactly(small, large, text):
    for tokenizer in (small, large):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_any_text_comes_back_exactly(large, text):
    ids = large.encode(text)
    assert large.decode(ids) == text
    assert not {large.pad_id, large.bos_id, large.eos_id, large.unk_id} & set(ids)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_merging_step_by_step_ends_in_the_pieces_of_encode(large, text):
    steps = large.merges(text)
    assert list(steps[-1].pieces) == large.pieces(text)
    assert all(len(a.pieces) > len(b.pieces) for a, b in itertools.pairwise(steps))


def test_merging_starts_from_single_characters_and_whole_commands(large):
    first = large.merges(r"the \frac 12")[0]
    assert first.pieces == ("t", "h", "e", "▁", r"\frac", "▁", "1", "2")


@given(st.integers(0, 10**30), st.integers(0, 10**30))
@settings(max_examples=50, deadline=None)
def test_every_digit_is_a_token_of_its_own(large, a, b):
    digits = set("0123456789")
    pieces = large.pieces(f"{a} + {b}={a}x^{{{b}}}")
    assert all(len(piece) == 1 for piece in pieces if digits & set(piece))


def test_no_learned_piece_holds_a_digit_and_something_else_or_two_operators(large):
    for index in range(4 + len(LATEX_COMMANDS), large.vocab_size):
        piece = large._sp.id_to_piece(index)
        if large._sp.is_byte(index):
            continue
        body = piece.removeprefix("▁")
        assert len(piece) == 1 or not any(c.isdigit() for c in piece), piece
        assert len(body) <= 1 or not set(string.punctuation) & set(body), piece


@pytest.mark.parametrize("command", LATEX_COMMANDS)
def test_latex_commands_are_one_token_each(large, command):
    assert large.pieces(command) == [command]
    assert large.pieces(f"2{command}3") == ["2", command, "3"]


def test_only_seen_commands_leaves_out_the_others_and_keeps_those_there(small):
    assert small.pieces(r"\frac") == [r"\frac"]
    assert len(small.pieces(r"\oint")) > 1
    assert small.vocab_size == 420


def test_a_character_the_text_never_had_is_written_in_bytes(small):
    assert small.pieces("€") == ["<0xE2>", "<0x82>", "<0xAC>"]


def test_special_ids_decode_to_nothing(small):
    ids = small.encode("a b")
    assert small.decode([small.bos_id, *ids, small.eos_id, small.pad_id]) == "a b"


def test_broken_utf8_decodes_to_replacement_characters(small):
    assert small.decode(small.encode("€")[:2]) == "\ufffd\ufffd"


def test_saving_and_loading_keeps_every_piece(small, tmp_path):
    file = small.save(tmp_path / "deep" / "tok.model")
    folder = small.save(tmp_path)
    assert folder == tmp_path / "tokenizer.model"
    for path in (file, folder, tmp_path, str(tmp_path)):
        loaded = BPETokenizer.load(path)
        assert loaded.fingerprint == small.fingerprint
        assert loaded.encode(TEXT) == small.encode(TEXT)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "tokenizer.model"]


def test_pickling_keeps_every_piece(small):
    copy = pickle.loads(pickle.dumps(small))
    assert copy.fingerprint == small.fingerprint
    assert [copy.encode(text) for text in NASTY] == [small.encode(text) for text in NASTY]


def test_training_is_deterministic_and_blind_to_the_order_of_texts(small, tmp_path):
    lines = TEXT.splitlines(keepends=True)
    again = BPETokenizer(420, only_seen_commands=True).train(reversed(lines))
    assert again.fingerprint == small.fingerprint
    first, second = small.save(tmp_path / "a"), again.save(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()


def test_fingerprint_changes_with_the_pieces(small, large):
    other = BPETokenizer(421, only_seen_commands=True).train([TEXT])
    assert len({small.fingerprint, large.fingerprint, other.fingerprint}) == 3


def test_a_text_too_small_for_the_vocabulary_gives_the_largest_there_is(caplog):
    tokenizer = BPETokenizer(5000, only_seen_commands=True).train(["a small text"])
    assert 262 < tokenizer.vocab_size < 400
    assert "5000" in caplog.text and str(tokenizer.vocab_size) in caplog.text
    assert tokenizer.decode(tokenizer.encode("another")) == "another"


def test_a_vocabulary_too_small_for_bytes_and_commands_is_refused_before_reading():
    def texts():
        raise AssertionError("read the text first")
        yield ""

    with pytest.raises(UserError, match=r"vocab_size: got 300; wanted at least \d+"):
        BPETokenizer(300).train(texts())
    with pytest.raises(UserError, match="vocab_size"):
        BPETokenizer(261, only_seen_commands=True).train([TEXT])


def test_the_smallest_vocabulary_allowed_trains_and_keeps_text():
    tokenizer = BPETokenizer(262, only_seen_commands=True).train(["abab abab"])
    assert tokenizer.vocab_size <= 262
    assert tokenizer.decode(tokenizer.encode("abc▁ x")) == "abc▁ x"


@pytest.mark.parametrize("texts", [[], [""], ["\n\t\x00"]])
def test_training_on_nothing_is_refused(texts):
    with pytest.raises(UserError, match="training text"):
        BPETokenizer(500).train(texts)


@pytest.mark.parametrize("text", ["a\ud800", "\udfff"])
def test_a_lone_surrogate_is_refused_with_its_place(small, text):
    with pytest.raises(UserError, match=f"at character {len(text) - 1}"):
        small.encode(text)
    with pytest.raises(UserError, match="surrogate"):
        BPETokenizer(500).train([text])


def test_wrong_ids_files_and_states_are_refused_by_name(small, tmp_path):
    with pytest.raises(UserError, match="got 420"):
        small.decode([420])
    with pytest.raises(UserError, match="does not exist"):
        BPETokenizer.load(tmp_path / "none")
    (tmp_path / "bad.model").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"bad\.model"):
        BPETokenizer.load(tmp_path / "bad.model")
    with pytest.raises(UserError, match="train"):
        BPETokenizer(500).encode("a")


def test_a_model_that_folds_text_is_refused(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=model,
        vocab_size=400,
        model_type="bpe",
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        byte_fallback=True,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    with pytest.raises(UserError, match="do not keep every character"):
        BPETokenizer.load(tmp_path)
