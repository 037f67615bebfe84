"""Ids as transformers gives them for the same folders, and folders as its classes write them."""

import json

import pytest
from hypothesis import given, settings

from minillm.data.load_tokenizer import load_tokenizer
from minillm.data.tokenizer_protocol import beginning
from minillm.data.vocabulary import Verdict, compare
from tests.data import foreign
from tests.data.test_load_tokenizer import STORIES

pytestmark = pytest.mark.reference
transformers = pytest.importorskip("transformers")

LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
FROM_MODEL = {
    "LlamaTokenizer": (foreign.llama2_model, "tokenizer.model", LLAMA),
    "GemmaTokenizer": (
        # What transformers makes of a model calls all of its user's pieces special, white space
        # too; the released JSON does not.
        lambda: foreign.gemma_model(foreign.GEMMA_SYMBOLS[:2]),
        "tokenizer.model",
        {**LLAMA, "pad_token": "<pad>"},
    ),
    "T5Tokenizer": (
        foreign.t5_model,
        "spiece.model",
        {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "extra_ids": 0},
    ),
}


def from_model(folder, name):
    """A folder with a SentencePiece model and the settings of a transformers class."""
    train, file, names = FROM_MODEL[name]
    folder.mkdir()
    (folder / file).write_bytes(train())
    config = {"tokenizer_class": name, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def from_pieces(folder, name):
    """A folder that a transformers class made of a vocabulary and merges has written."""
    own = foreign.qwen2(folder.with_suffix(".pieces"))
    model = json.loads((own / "tokenizer.json").read_text())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    made = getattr(transformers, name)(vocab=model["vocab"], merges=merges, **names)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """By kind: transformers' tokenizer of a folder, and ours."""
    root = tmp_path_factory.mktemp("folders")
    folders = {kind: make(root / kind) for kind, make in foreign.JSON.items()}
    for name in FROM_MODEL:
        written = transformers.AutoTokenizer.from_pretrained(from_model(root / f"{name}.in", name))
        written.save_pretrained(root / name)
        folders[name] = root / name
    for name in ("Qwen2Tokenizer", "GPT2Tokenizer"):
        folders[name] = from_pieces(root / name, name)
    return {
        kind: (transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder))
        for kind, folder in folders.items()
    }


KINDS = [*foreign.JSON, *FROM_MODEL, "Qwen2Tokenizer", "GPT2Tokenizer"]
EACH = pytest.mark.parametrize("kind", KINDS)


@EACH
@settings(max_examples=100, deadline=None)
@given(text=foreign.TEXTS)
def test_ids_of_text_are_those_of_transformers(pairs, kind, text):
    theirs, ours = pairs[kind]
    if kind in ("unigram", "T5Tokenizer"):
        # transformers takes "</s>" in a text for the end, even when told to split special tokens:
        # the library's Unigram finds any piece.
        for name in ("<s>", "</s>", "<unk>", "<pad>"):
            text = text.replace(name, "")
    wanted = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ours.encode(text) == wanted
    assert ours.decode(wanted) == theirs.decode(
        wanted, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


@EACH
def test_size_roles_and_names_are_those_of_transformers(pairs, kind):
    theirs, ours = pairs[kind]
    assert ours.vocab_size == len(theirs)
    whole = theirs("the sum")["input_ids"]
    ids = ours.encode("the sum")
    assert whole[: whole.index(ids[0])] == beginning(ours)
    assert ours.eos_id == theirs.eos_token_id
    assert ours.bos_id == theirs.bos_token_id
    if theirs.pad_token_id is not None:
        assert ours.pad_id == theirs.pad_token_id
    assert [ours.token_name(i) for i in range(ours.vocab_size)] == theirs.convert_ids_to_tokens(
        list(range(len(theirs)))
    )
    for i in theirs.all_special_ids:
        assert ours.token_bytes(i) is None


@pytest.mark.parametrize(
    "kind", ["gpt2", "smollm2", "llama3", "qwen2", "Qwen2Tokenizer", "GPT2Tokenizer"]
)
def test_bytes_of_every_piece_are_those_of_the_byte_alphabet(pairs, kind):
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    theirs, ours = pairs[kind]
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    for i, piece in enumerate(theirs.convert_ids_to_tokens(list(range(len(theirs))))):
        if i not in theirs.added_tokens_decoder:
            assert ours.token_bytes(i) == bytes(letters[letter] for letter in piece)


@pytest.mark.parametrize("kind", ["smollm2", "qwen2", "phi3", "gemma"])
def test_bytes_of_added_tokens_that_are_not_special_are_what_transformers_decodes(pairs, kind):
    theirs, ours = pairs[kind]
    added = [i for i, token in theirs.added_tokens_decoder.items() if not token.special]
    assert added
    for i in added:
        # Between two others: at the beginning, a space may be cut off.
        around = [theirs.convert_tokens_to_ids("x")] * 2
        shown = theirs.decode([around[0], i, around[1]], clean_up_tokenization_spaces=False)
        assert ours.token_bytes(i) == shown.removeprefix("x").removesuffix("x").encode()


@pytest.mark.parametrize("name", FROM_MODEL)
def test_a_model_and_what_transformers_makes_of_it_are_the_same_vocabulary(pairs, tmp_path, name):
    model = load_tokenizer(from_model(tmp_path / name, name))
    converted = pairs[name][1]
    assert compare(model, converted, converted.vocab_size).verdict in (
        # transformers gives Gemma a token of its own, for masks.
        (Verdict.PADDED,) if name == "GemmaTokenizer" else (Verdict.SAME,)
    )


def test_the_story_models_tokenizer_is_the_same_as_what_transformers_makes_of_it(tmp_path):
    if not STORIES.exists():
        pytest.skip("the model stories260k is not here")
    model = load_tokenizer(STORIES)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "tokenizer.model").write_bytes((STORIES / "tokenizer.model").read_bytes())
    config = {"tokenizer_class": "LlamaTokenizer", **LLAMA}
    (tmp_path / "in" / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "in")
    theirs.save_pretrained(tmp_path / "out")
    converted = load_tokenizer(tmp_path / "out")
    assert compare(model, converted, 512).verdict is Verdict.SAME
    assert compare(converted, model, 512).verdict is Verdict.SAME
    text = "Once upon a time, there was a little girl. 🎉 x³\n"
    wanted = theirs(text)["input_ids"]
    assert [*beginning(model), *model.encode(text)] == wanted
    assert [*beginning(converted), *converted.encode(text)] == wanted
