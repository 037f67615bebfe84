"""Broken and mutated tokenizer files: one clear error, or a tokenizer that works."""

import errno
import json

import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.core.errors import UserError
from minillm.data.load_tokenizer import load_tokenizer
from tests.data import foreign

BAD = {
    "no end": (
        "tokenizer_config.json",
        lambda c: c.pop("eos_token"),
        "got no end among its tokens",
    ),
    "an end that is no token": (
        "tokenizer_config.json",
        lambda c: c.update(eos_token="<gone>"),
        "got no end among its tokens",
    ),
    "an end outside": (
        "generation_config.json",
        lambda c: c.update(eos_token_id=[9999]),
        "eos_token_id: got 9999; wanted an id of the tokenizer",
    ),
    "an end that is no number": (
        "config.json",
        lambda c: c.update(eos_token_id="2"),
        "wanted an integer",
    ),
    "a beginning that is a list": (
        "tokenizer_config.json",
        lambda c: c.update(bos_token=["<s>"]),
        "bos_token in tokenizer_config.json",
    ),
    "no flag": (
        "tokenizer_config.json",
        lambda c: c.update(add_bos_token="yes"),
        "wanted true or false",
    ),
    "words": (
        "tokenizer.json",
        lambda c: c["model"].update(type="WordPiece"),
        r"model.type: got WordPiece; wanted BPE or Unigram",
    ),
    "no model": ("tokenizer.json", lambda c: c.pop("model"), "model: got NoneType"),
    "an id twice": (
        "tokenizer.json",
        lambda c: c["model"]["vocab"].update(a=7),
        "two pieces of one id",
    ),
    "a gap": (
        "tokenizer.json",
        lambda c: c["added_tokens"][-1].update(id=900),
        "got id .*; wanted ids without a gap",
    ),
    "merges of other pieces": (
        "tokenizer.json",
        lambda c: c["model"]["merges"].insert(0, ["zzzz", "yyyy"]),
        "the library tokenizers does not read",
    ),
    "no decoder": (
        "tokenizer.json",
        lambda c: c.update(decoder=None),
        "wanted pieces that hold a text's bytes",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_error_that_names_them(tmp_path, name):
    folder = foreign.qwen2(tmp_path)
    file, change, message = BAD[name]
    foreign.edit(folder, file, change)
    with pytest.raises(UserError, match=message):
        load_tokenizer(folder)


def test_a_path_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer_path: got .*none, which does not exist"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(UserError, match="a folder without; wanted a folder with tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match=r"a folder with vocab\.json; .*AutoTokenizer"):
        load_tokenizer(tmp_path)
    for name, data in {
        "tokenizer.model": b"\x00\x01",
        "tokenizer.json": b"{",
        "x.json": b"",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError):
            load_tokenizer(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_a_folder_where_a_file_should_be_is_one_error_that_names_it(tmp_path, name):
    folder = foreign.qwen2(tmp_path)
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    with pytest.raises(UserError, match=rf"{name}: got Is a directory; wanted a file that can be"):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_may_not_be_read_is_one_error_that_names_it(tmp_path, name, monkeypatch):
    folder = foreign.qwen2(tmp_path)
    real = type(epath.Path(folder)).read_bytes

    def read_bytes(path):
        if path.name == name:
            # By hand: a test that runs as root may read every file.
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(type(epath.Path(folder)), "read_bytes", read_bytes)
    with pytest.raises(UserError, match=rf"{name}: got Permission denied"):
        load_tokenizer(folder)


def places(value, path=()):
    """Every place inside a JSON value, up to eight entries of a list or object each."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(entries)[:8]:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


@pytest.fixture(scope="session")
def documents(tmp_path_factory):
    """The JSON files of three kinds of tokenizer, as one JSON text each."""
    found = []
    for make in (foreign.qwen2, foreign.llama2_json, foreign.unigram):
        folder = make(tmp_path_factory.mktemp("whole"))
        names = ("tokenizer.json", "tokenizer_config.json")
        found.append(json.dumps({name: json.loads((folder / name).read_text()) for name in names}))
    return found


# As texts, so that no two places share a list.
JUNK = ["null", "true", "-1", "3", "1000000000000", "1e300", '""', '"x"', "[]", "{}", "[[]]"]
JUNK += ['{"id": 1}', '"\\ud800"']


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_mutated_files_load_or_are_refused_with_one_error(documents, tmp_path_factory, data):
    files = json.loads(documents[data.draw(st.integers(0, 2))])
    for _ in range(data.draw(st.integers(1, 3))):
        *above, last = data.draw(st.sampled_from(list(places(files))[2:]))
        holder = files
        for key in above:
            holder = holder[key]
        if data.draw(st.booleans()):
            holder[last] = json.loads(data.draw(st.sampled_from(JUNK)))
        else:
            del holder[last]
        if not all(isinstance(content, dict) for content in files.values()):
            break
    folder = tmp_path_factory.mktemp("mutated")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    try:
        tokenizer = load_tokenizer(folder)
    except UserError:
        return
    text = "Solve 2x = 4, é 🎉"
    ids, ends = tokenizer.encode_with_ends(text)
    assert tokenizer.eos_id < tokenizer.vocab_size and all(i < tokenizer.vocab_size for i in ids)
    assert sorted(ends) == ends and (not ends or ends[-1] == len(text.encode()))
    tokenizer.decode(range(tokenizer.vocab_size))


@pytest.fixture(scope="session")
def models():
    return [foreign.llama2_model(), foreign.t5_model()]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damaged_models_load_or_are_refused_with_one_error(models, tmp_path_factory, data):
    whole = models[data.draw(st.integers(0, 1))]
    # Pieces fill the file but for the settings at its end.
    at = len(whole) - data.draw(st.integers(1, 600) | st.integers(1, len(whole)))
    kept = at + data.draw(st.sampled_from([0, 1, 1, 100, len(whole)]))
    path = tmp_path_factory.mktemp("damaged") / "tokenizer.model"
    path.write_bytes(whole[:at] + data.draw(st.binary(max_size=2)) + whole[kept:])
    try:
        tokenizer = load_tokenizer(path)
    except UserError:
        return
    text = "Solve 2x = 4, é 🎉"
    ids, ends = tokenizer.encode_with_ends(text)
    assert len(ids) == len(ends) and sorted(ends) == ends
    assert not ends or ends[-1] == len(text.encode())
    tokenizer.decode(range(tokenizer.vocab_size))
