"""Tokenizers of other models, beside the libraries that made them."""

import json
import pickle
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings

from minillm.core.errors import UserError
from minillm.data.json_tokenizer import JsonTokenizer
from minillm.data.load_tokenizer import load_tokenizer
from minillm.data.sentencepiece_tokenizer import SentencePieceTokenizer
from minillm.data.tokenizer import BPETokenizer
from minillm.data.tokenizer_protocol import beginning
from tests.data import foreign

STORIES = Path(__file__).parents[3] / "shared" / "data" / "stories260k"
NORMALISED = {"unigram": "NFKC", "qwen2": "NFC", "t5": "NFKC"}
# Without bytes to fall back on, what they have no piece for is lost.
LOSSY = {"unigram", "t5"}


class Beside(NamedTuple):
    """A tokenizer, and how the library encodes and decodes."""

    tokenizer: Any
    encode: Any
    decode: Any

    def __repr__(self) -> str:
        # The library shows every piece, which buries the text that failed.
        return type(self.tokenizer).__name__


@pytest.fixture(scope="session")
def loaded(tmp_path_factory):
    """By kind."""
    found = {}
    for kind, make in foreign.JSON.items():
        folder = make(tmp_path_factory.mktemp(kind))
        raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        raw.encode_special_tokens = True
        found[f"json {kind}"] = Beside(
            load_tokenizer(folder),
            lambda text, raw=raw: raw.encode(text, add_special_tokens=False).ids,
            lambda ids, raw=raw: raw.decode(ids),
        )
    for kind, train in foreign.MODELS.items():
        folder = tmp_path_factory.mktemp(kind)
        (folder / "tokenizer.model").write_bytes(train())
        raw = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        found[f"model {kind}"] = Beside(load_tokenizer(folder), raw.encode, raw.decode)
    return found


KINDS = [*(f"json {kind}" for kind in foreign.JSON), *(f"model {kind}" for kind in foreign.MODELS)]
EACH = pytest.mark.parametrize("kind", KINDS)


@EACH
def test_the_file_decides_about_the_kind(loaded, kind):
    expected = JsonTokenizer if kind.startswith("json") else SentencePieceTokenizer
    assert type(loaded[kind][0]) is expected


def special_in(tokenizer, ids):
    return [i for i in ids if tokenizer.token_bytes(i) is None]


@EACH
@settings(max_examples=150, deadline=None)
@given(text=foreign.TEXTS)
def test_ids_and_text_are_the_librarys(loaded, kind, text):
    tokenizer, encode, decode = loaded[kind]
    ids = tokenizer.encode(text)
    theirs = encode(text)
    # The library takes a special token's name in a text for the token where it is a piece.
    if len(special_in(tokenizer, theirs)) == len(special_in(tokenizer, ids)):
        assert ids == theirs
    else:
        assert any(tokenizer.token_name(i) in text for i in special_in(tokenizer, theirs))
    if kind.split()[1] not in LOSSY:
        assert tokenizer.decode(ids) == decode(ids)


@EACH
@settings(max_examples=150, deadline=None)
@given(text=foreign.TEXTS)
def test_ends_rise_to_the_length_and_cut_where_the_library_decodes_the_beginning(
    loaded, kind, text
):
    tokenizer, _, decode = loaded[kind]
    ids, ends = tokenizer.encode_with_ends(text)
    data = text.encode()
    assert ids == tokenizer.encode(text)
    assert len(ends) == len(ids) and sorted(ends) == ends
    if ids:
        assert ends[0] >= 0 and ends[-1] == len(data)
    if kind.split()[1] in LOSSY:
        return
    for count, end in enumerate(ends[:-1], start=1):
        try:
            before = data[:end].decode()
        except UnicodeDecodeError:
            continue
        if count < len(ids) and ends[count] == end:
            continue
        form = NORMALISED.get(kind.split()[1])
        if form and decode(ids[:count]).endswith("\ufffd"):
            # A part of a character that was joined from several: its end is a share of them.
            continue
        if form and unicodedata.combining(data[end:].decode()[0]):
            # Accents may have changed places.
            continue
        expected = unicodedata.normalize(form, before) if form else before
        shown = expected.replace("▁", " ") if kind.split()[1] in MARKED else expected
        # What this kind cuts off is the first space, be it its own or the text's.
        assert decode(ids[:count]) == (shown.removeprefix(" ") if kind in FIRST_SPACE else shown)


# Those that read "▁" in a text as a space.
MARKED = {"llama2", "phi3", "metaspace", "gemma"}
FIRST_SPACE = {"json metaspace"}


@EACH
@settings(max_examples=100, deadline=None)
@given(text=foreign.TEXTS)
def test_slices_of_the_text_are_the_tokens_bytes_where_nothing_is_normalised(loaded, kind, text):
    name = kind.split()[1]
    tokenizer = loaded[kind][0]
    if name in LOSSY or (name in NORMALISED and unicodedata.normalize("NFC", text) != text):
        return
    text = text.replace("▁", "")
    data = text.encode()
    ids, ends = tokenizer.encode_with_ends(text)
    starts = [0, *ends][: len(ends)]
    slices = [data[a:b] for a, b in zip(starts, ends, strict=True)]
    pieces = [tokenizer.token_bytes(i) for i in ids]
    if pieces and slices[0] != pieces[0]:
        assert pieces[0] == b" " + slices[0]
        slices[0] = pieces[0]
    if "<think>" not in text:
        assert slices == pieces


@EACH
def test_a_special_tokens_name_in_a_text_is_text(loaded, kind):
    tokenizer = loaded[kind][0]
    named = {i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) is None}
    assert tokenizer.eos_id in named
    known = len(special_in(tokenizer, tokenizer.encode("a  b")))
    for i in named:
        ids = tokenizer.encode(f"a {tokenizer.token_name(i)} b")
        if kind.split()[1] in LOSSY:
            # An unknown letter gives the unknown token: the only special one a text can give.
            assert {tokenizer.token_name(j) for j in special_in(tokenizer, ids)} <= {"<unk>"}
        else:
            assert len(special_in(tokenizer, ids)) == known == 0
            assert tokenizer.token_name(i) in tokenizer.decode(ids)


@EACH
def test_special_ids_decode_to_nothing_and_ids_outside_are_refused(loaded, kind):
    tokenizer = loaded[kind][0]
    ids = tokenizer.encode("a b")
    assert tokenizer.decode([tokenizer.eos_id, *ids, tokenizer.pad_id]) == tokenizer.decode(ids)
    with pytest.raises(UserError, match=f"ids: got {tokenizer.vocab_size};"):
        tokenizer.decode([tokenizer.vocab_size])
    with pytest.raises(UserError, match=r"lone surrogate U\+D800"):
        tokenizer.encode("a\ud800")


@EACH
def test_copies_and_saved_folders_are_equal_tokenizers(loaded, kind, tmp_path):
    tokenizer = loaded[kind][0]
    tokenizer.save(tmp_path)
    for other in (pickle.loads(pickle.dumps(tokenizer)), load_tokenizer(tmp_path)):
        assert other.fingerprint == tokenizer.fingerprint
        assert (other.bos_id, other.adds_bos, other.eos_ids, other.pad_id) == (
            tokenizer.bos_id,
            tokenizer.adds_bos,
            tokenizer.eos_ids,
            tokenizer.pad_id,
        )
        assert other.encode("a <s> b\n") == tokenizer.encode("a <s> b\n")


def test_fingerprints_name_content_and_not_the_files_bytes(loaded, tmp_path):
    assert len({tokenizer.fingerprint for tokenizer, _, _ in loaded.values()}) == len(loaded)
    folder = foreign.qwen2(tmp_path)
    before = load_tokenizer(folder).fingerprint
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    merges = document["model"]["merges"]
    document["model"]["merges"] = [" ".join(pair) for pair in merges]
    path.write_text(json.dumps(document, sort_keys=True))
    assert load_tokenizer(folder).fingerprint == before
    document["model"]["merges"] = [merges[1], merges[0], *merges[2:]]
    path.write_text(json.dumps(document))
    assert load_tokenizer(folder).fingerprint != before


def test_roles_are_what_the_files_say(loaded):
    def roles(kind):
        tokenizer = loaded[kind][0]
        ends = [tokenizer.token_name(i) for i in tokenizer.eos_ids]
        begin = [tokenizer.token_name(i) for i in beginning(tokenizer)]
        return begin, ends, tokenizer.token_name(tokenizer.pad_id)

    assert roles("json gpt2") == ([], ["<|im_end|>"], "<|im_end|>")
    assert roles("json llama3") == (
        ["<|begin_of_text|>"],
        ["<|eot_id|>", "<|end_of_text|>"],
        "<|eot_id|>",
    )
    assert roles("json qwen2") == ([], ["<|im_end|>"], "<|endoftext|>")
    assert roles("json llama2") == (["<s>"], ["</s>"], "</s>")
    assert roles("json metaspace") == (["<s>"], ["</s>"], "</s>")
    assert roles("json unigram") == ([], ["</s>"], "<pad>")
    assert roles("model llama2") == (["<s>"], ["</s>"], "</s>")
    assert roles("model gemma") == (["<s>"], ["</s>"], "<pad>")
    assert roles("model t5") == ([], ["</s>"], "<pad>")


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("make", [foreign.llama2_json, foreign.gpt2])
def test_the_flag_of_the_configuration_decides_about_the_beginning(tmp_path, make, flag):
    folder = make(tmp_path)
    foreign.edit(folder, "tokenizer_config.json", lambda c: c.update(add_bos_token=flag))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.adds_bos is flag and tokenizer.bos_id is not None
    assert len(beginning(tokenizer)) == flag


def test_the_story_models_tokenizer_is_sentencepieces():
    if not STORIES.exists():
        pytest.skip("the model stories260k is not here")
    raw = sentencepiece.SentencePieceProcessor(model_file=str(STORIES / "tokenizer.model"))
    tokenizer = load_tokenizer(STORIES)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids) == (512, 1, (2,))
    assert tokenizer.adds_bos
    story = "Once upon a time, there was a little girl. 🎉 x³\r\n"
    ids, ends = tokenizer.encode_with_ends(story)
    assert ids == raw.encode(story) and tokenizer.decode(ids) == story
    data = story.encode()
    starts = [0, *ends[:-1]]
    slices = [data[a:b] for a, b in zip(starts, ends, strict=True)]
    assert slices[0] == b"Once" and b"\xf0" in slices and slices[-4:-2] == [b"\xc2", b"\xb3"]


def test_own_tokenizers_are_loaded_as_what_they_are(tmp_path):
    own = BPETokenizer(420, only_seen_commands=True).train([foreign.TEXT])
    own.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.model"):
        again = load_tokenizer(path)
        assert type(again) is BPETokenizer and again.fingerprint == own.fingerprint
    text = " ▁x³ \\frac{1}{2}\x00 🎉"
    ids, ends = own.encode_with_ends(text)
    slices = np.split(np.frombuffer(text.encode(), np.uint8), ends[:-1])
    assert [part.tobytes() for part in slices] == [own.token_bytes(i) for i in ids]
    assert own.token_bytes(own.eos_id) is None


def test_a_users_piece_that_the_configuration_calls_special_is_not_found_in_text(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(foreign.gemma_model())
    plain = load_tokenizer(tmp_path)
    turn, table = 4, 5
    assert [plain.token_name(i) for i in (turn, table)] == ["<start_of_turn>", "<table>"]
    assert plain.encode("<start_of_turn><table>") == [turn, table]
    names = {"additional_special_tokens": ["<start_of_turn>"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    told = load_tokenizer(tmp_path)
    ids = told.encode("<start_of_turn><table>")
    assert turn not in ids and ids[-1] == table and told.token_bytes(turn) is None
    assert told.decode(ids) == "<start_of_turn><table>" and told.decode([turn]) == ""
    assert told.fingerprint != plain.fingerprint


def test_special_tokens_beyond_a_sentencepiece_model_have_ids_and_no_text(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(foreign.llama2_model())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[PAD]": 500}))
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"pad_token": {"content": "[PAD]"}, "eos_token": "</s>"})
    )
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (501, 500)
    assert tokenizer.token_bytes(500) is None and tokenizer.decode([500]) == ""
    assert 500 not in tokenizer.encode("[PAD]")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[PAD]": 500, "<tool>": 501}))
    with pytest.raises(UserError, match=r"'<tool>', which stands for text; wanted a tokenizer\.js"):
        load_tokenizer(tmp_path)


def test_the_json_is_taken_of_two_and_a_model_with_other_tokens_is_said(tmp_path, caplog):
    folder = foreign.llama2_json(tmp_path)
    (folder / "tokenizer.model").write_bytes(foreign.llama2_model())
    assert type(load_tokenizer(folder)) is JsonTokenizer and not caplog.records
    (folder / "tokenizer.model").write_bytes(foreign.gemma_model())
    assert type(load_tokenizer(folder)) is JsonTokenizer
    assert "tokenizer.model hold other tokens" in caplog.text
    (folder / "tokenizer.model").write_bytes(b"nothing")
    assert type(load_tokenizer(folder)) is JsonTokenizer
    assert "cannot be read" in caplog.text


def test_a_beginning_that_is_never_put_there_makes_no_other_tokenizer(tmp_path):
    folder = foreign.qwen2(tmp_path)
    alone = load_tokenizer(folder)
    bos = alone.encode("a")[0]
    (folder / "config.json").write_text(json.dumps({"bos_token_id": bos}))
    beside_its_model = load_tokenizer(folder)
    assert (alone.bos_id, beside_its_model.bos_id) == (None, bos)
    assert beside_its_model.fingerprint == alone.fingerprint
    assert beside_its_model.decode(beside_its_model.encode("a")) == "a"
