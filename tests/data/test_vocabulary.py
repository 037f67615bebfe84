"""Vocabularies compared by what their ids mean."""

import json

import pytest
from tokenizers import Tokenizer

from minillm.core.errors import UserError
from minillm.data.load_tokenizer import load_tokenizer
from minillm.data.tokenizer import BPETokenizer
from minillm.data.vocabulary import Verdict, compare
from tests.data import foreign


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return foreign.qwen2(tmp_path_factory.mktemp("qwen"))


def changed(folder, target, **names):
    """A copy of a folder whose tokens have other names."""
    text = (folder / "tokenizer.json").read_text()
    config = (folder / "tokenizer_config.json").read_text()
    for old, new in names.values():
        text, config = text.replace(old, new), config.replace(old, new)
    target.mkdir()
    (target / "tokenizer.json").write_text(text)
    (target / "tokenizer_config.json").write_text(config)
    return load_tokenizer(target)


def test_a_tokenizer_is_the_same_as_itself_and_padded_logits_are_cut_and_said(qwen):
    tokenizer = load_tokenizer(qwen)
    size = tokenizer.vocab_size
    same = compare(tokenizer, tokenizer, size)
    assert (same.verdict, same.kept, same.note("teacher T")) == (Verdict.SAME, size, None)
    padded = compare(tokenizer, tokenizer, size + 8).require_same("T")
    assert (padded.verdict, padded.kept) == (Verdict.PADDED, size)
    assert f"{size + 8} ids, the rows' tokenizer {size}: the 8 beyond" in padded.note("teacher T")


def test_fewer_logits_than_ids_are_refused(qwen):
    tokenizer = load_tokenizer(qwen)
    size = tokenizer.vocab_size
    with pytest.raises(UserError, match=f"got {size - 1} logits for {size} ids"):
        compare(tokenizer, tokenizer, size - 1)


@pytest.mark.parametrize(
    ("train", "convert"),
    [(foreign.llama2_model, foreign.llama2_json), (foreign.gemma_model, foreign.gemma_json)],
)
def test_a_model_and_its_converted_json_are_the_same(tmp_path, train, convert):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.model").write_bytes(train())
    model = load_tokenizer(tmp_path / "model")
    converted = load_tokenizer(convert(tmp_path / "json"))
    assert model.fingerprint != converted.fingerprint
    for pair in ((model, converted), (converted, model)):
        assert compare(*pair, 500).verdict is Verdict.SAME
    text = "def f(x):\n    return  x\n\n"
    assert converted.encode_with_ends(text) == model.encode_with_ends(text)


def test_another_token_of_the_same_id_is_a_difference_that_is_shown(qwen, tmp_path):
    tokenizer = load_tokenizer(qwen)
    other = load_tokenizer(foreign.gpt2(tmp_path / "gpt2"))
    found = compare(tokenizer, other, 600)
    assert found.verdict is Verdict.DIFFERENT and 1 < len(found.differences) <= 5
    raw = [Tokenizer.from_file(str(f / "tokenizer.json")) for f in (qwen, tmp_path / "gpt2")]
    first = next(i for i in range(600) if raw[0].id_to_token(i) != raw[1].id_to_token(i))
    assert found.differences[0].startswith(f"id {first} is ")
    with pytest.raises(UserError, match=f"teacher T: got another vocabulary .* id {first} is"):
        found.require_same("T")


def test_tokenizers_of_the_same_size_and_other_pieces_are_different():
    one = BPETokenizer(420, only_seen_commands=True).train([foreign.TEXT])
    two = BPETokenizer(420, only_seen_commands=True).train([foreign.TEXT.upper()])
    assert one.vocab_size == two.vocab_size
    assert compare(one, two, 420).verdict is Verdict.DIFFERENT


def test_special_tokens_may_have_other_names_unless_they_stand_in_rows(qwen, tmp_path):
    tokenizer = load_tokenizer(qwen)
    size = tokenizer.vocab_size
    unused = changed(qwen, tmp_path / "unused", a=("<|im_start|>", "<|reserved|>"))
    assert compare(tokenizer, unused, size).verdict is Verdict.SAME
    end = changed(qwen, tmp_path / "end", a=("<|im_end|>", "<|other_end|>"))
    found = compare(tokenizer, end, size)
    assert found.verdict is Verdict.DIFFERENT
    assert "special '<|im_end|>' for the rows, special '<|other_end|>'" in found.differences[0]


def test_tokens_the_teacher_alone_has_are_cut_where_special_and_else_a_difference(qwen, tmp_path):
    tokenizer = load_tokenizer(qwen)
    size = tokenizer.vocab_size
    document = json.loads((qwen / "tokenizer.json").read_text())
    for special, verdict in ((True, Verdict.PADDED), (False, Verdict.DIFFERENT)):
        folder = tmp_path / str(special)
        folder.mkdir()
        more = {**document["added_tokens"][-1], "id": size, "content": "<new>", "special": special}
        tokens = [*document["added_tokens"], more]
        (folder / "tokenizer.json").write_text(json.dumps({**document, "added_tokens": tokens}))
        (folder / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
        larger = load_tokenizer(folder)
        found = compare(tokenizer, larger, size + 1)
        assert (found.verdict, found.kept) == (verdict, size)
        # The other way round the rows have an id that the teacher knows nothing of.
        assert compare(larger, tokenizer, size + 1).verdict is Verdict.DIFFERENT
