"""A folder with something wrong is one error that names it, before anything is written."""

import json
import os
import re
import shutil

import numpy as np
import pytest

from minillm.core.errors import UserError
from minillm.stages.precompute import PrecomputeConfig, rows_for
from minillm.teachers import load_teacher
from tests.teachers.folders import DESCRIPTION, WHOLE, random_tensors, write_files, write_folder

INDEX = "model.safetensors.index.json"
FIRST, SECOND = (f"model-{n:05}-of-00002.safetensors" for n in (1, 2))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("whole") / "teacher")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "teacher")


def described(folder, **change):
    (folder / "config.json").write_text(json.dumps({**DESCRIPTION, **change}))


def indexed(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def cut(path, size):
    with path.open("rb+") as stream:
        stream.truncate(size)


def without_weights(folder):
    for path in folder.glob("model*"):
        path.unlink()


def truncated(folder):
    cut(folder / SECOND, (folder / SECOND).stat().st_size - 4)


def cut_in_the_header(folder):
    cut(folder / SECOND, 100)


def empty(folder):
    cut(folder / FIRST, 0)


def pointer(folder):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 18\n"
    (folder / FIRST).write_text(text)


def pickled(folder):
    without_weights(folder)

    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {folder.parent / 'exploded'}",)

    import pickle

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def no_index(folder):
    (folder / INDEX).unlink()


def one_part(folder):
    rewritten(folder, lambda tensors: None)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")


def part_of_two(folder):
    no_index(folder)
    (folder / SECOND).unlink()


def adapter(folder):
    without_weights(folder)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(b"")


def adapter_alone(folder):
    adapter(folder)
    (folder / "config.json").unlink()


def bad_index(folder):
    (folder / INDEX).write_text("{")


def index_without_map(folder):
    (folder / INDEX).write_text('{"metadata": {}}')


def file_not_there(folder):
    (folder / SECOND).unlink()


def index_leads_elsewhere(folder):
    indexed(folder, lambda names: names.update({"lm_head.weight": f"../teacher/{SECOND}"}))


def index_names_the_wrong_file(folder):
    indexed(folder, lambda names: names.update({"lm_head.weight": FIRST}))


def index_names_what_is_not_there(folder):
    indexed(folder, lambda names: names.update({"model.extra": FIRST}))


def tensor_in_both_files(folder):
    shutil.copy(folder / FIRST, folder / SECOND)


def rewritten(folder, change):
    without_weights(folder)
    tensors = random_tensors(WHOLE)
    change(tensors)
    write_files(folder, tensors)


def tensor_missing(folder):
    rewritten(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))


def tensor_too_many(folder):
    bias = {"model.layers.1.mlp.up_proj.bias": np.zeros(24, np.float32)}
    rewritten(folder, lambda tensors: tensors.update(bias))


def wrong_shape(folder):
    norm = {"model.norm.weight": np.zeros(17, np.float32)}
    rewritten(folder, lambda tensors: tensors.update(norm))


def quantised(folder):
    norm = {"model.norm.weight": np.zeros(16, np.int8)}
    rewritten(folder, lambda tensors: tensors.update(norm))


def other_tokenizer(folder):
    """Of 20 tokens more than the model has rows."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    last = content["added_tokens"][-1]
    content["added_tokens"] += [
        {**last, "id": last["id"] + n, "content": f"word{n}", "special": False}
        for n in range(1, WHOLE.vocab_size + 20 - last["id"])
    ]
    path.write_text(json.dumps(content))


def small_tokenizer(folder):
    """As another model's would be beside a table of 5,200."""
    described(folder, vocab_size=5200)
    without_weights(folder)
    tensors = random_tensors(WHOLE)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = np.zeros((5200, 16), np.float32)
    write_files(folder, tensors)


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def broken_tokenizer(folder):
    cut(folder / "tokenizer.json", 1000)


def no_config(folder):
    (folder / "config.json").unlink()


def bad_config(folder):
    (folder / "config.json").write_text('{"model_type": ')


def nothing(folder):
    shutil.rmtree(folder)


def empty_folder(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("model")


def pipeline(folder):
    no_config(folder)
    (folder / "model_index.json").write_text("{}")


def weights_are_a_folder(folder):
    without_weights(folder)
    (folder / "model.safetensors").mkdir()


def with_config(**change):
    def describe(folder):
        described(folder, **change)

    return describe


TABLE = {
    "no weights": (without_weights, r"teacher: got no weights; wanted model\.safetensors"),
    "truncated": (truncated, rf"{SECOND}: got [\d,]+ bytes that are no whole safetensors file"),
    "cut in the header": (cut_in_the_header, rf"{SECOND}: got 100 bytes that are no whole"),
    "empty file": (empty, rf"{FIRST}: got an empty file"),
    "LFS pointer": (pointer, rf"{FIRST}: got a Git LFS pointer"),
    "pickle": (pickled, r"a pickle checkpoint \(pytorch_model\.bin\)"),
    "weights are a folder": (weights_are_a_folder, r"model\.safetensors: got .*[Dd]"),
    "no index": (no_index, rf"got {FIRST}, {SECOND}, without an index"),
    "one part of one": (
        one_part,
        r"00001\.safetensors, without an index;.* rename it to model\.safetensors",
    ),
    "one part of two": (part_of_two, rf"got {FIRST}, without an index;.* download {INDEX}"),
    "adapter": (adapter, "teacher: got an adapter.* merge the adapter into its base model"),
    "adapter alone": (adapter_alone, "teacher: got an adapter.* merge the adapter into its base"),
    "broken index": (bad_index, rf"{INDEX}: got Expecting"),
    "index without a map": (index_without_map, rf"{INDEX}: got no weight_map"),
    "index names a file not there": (file_not_there, rf"{INDEX}: got .*not there: {SECOND}"),
    "index leads elsewhere": (index_leads_elsewhere, "wanted the name of a file in the same"),
    "index names the wrong file": (index_names_the_wrong_file, rf"lm_head.weight: got {FIRST}"),
    "index names no tensor": (index_names_what_is_not_there, r"model\.extra: got .*not hold it"),
    "tensor in both files": (tensor_in_both_files, "got a second one of that name"),
    "tensor missing": (tensor_missing, r"got no model\.layers\.1\.mlp\.up_proj\.weight"),
    "tensor too many": (tensor_too_many, r"mlp\.up_proj\.bias, for which the model has no place"),
    "wrong shape": (wrong_shape, r"model\.norm\.weight: got shape \[17\]; wanted \[16\]"),
    "quantised": (quantised, r"model\.norm\.weight: got values of type I8"),
    "unknown activation": (with_config(hidden_act="swish2"), r"hidden_act: got 'swish2'"),
    "unknown rope": (with_config(rope_scaling={"rope_type": "spiral"}), "rope_type: got 'spiral'"),
    "unknown family": (with_config(model_type="llamma"), r"model_type: got 'llamma'.*is llama"),
    "other sizes": (with_config(hidden_size=32), r"shape \[520, 16\]; wanted \[520, 32\]"),
    "too many layers": (with_config(num_hidden_layers=3), r"got no model\.layers\.2\."),
    "too few layers": (with_config(num_hidden_layers=1), r"model\.layers\.1\..* no place"),
    "broken config": (bad_config, r"config\.json: got no JSON"),
    "no config": (no_config, "a folder that is no model"),
    "pipeline": (pipeline, "model_index|pipeline|FLUX"),
    "no folder": (nothing, "no such folder"),
    "empty folder": (empty_folder, "a folder that is no model"),
    "a file": (a_file, "got .*a file"),
    "tokenizer of another vocabulary": (other_tokenizer, "tokenizer: got 540 tokens; wanted about"),
    "tokenizer of a smaller one": (small_tokenizer, r"tokenizer: got \d+ tokens; wanted about 5,2"),
    "no tokenizer": (no_tokenizer, "tokenizer"),
    "broken tokenizer": (broken_tokenizer, r"tokenizer\.json"),
}


@pytest.mark.parametrize("case", TABLE)
def test_a_bad_folder_is_one_error_before_anything_is_written(folder, tmp_path, case):
    change, words = TABLE[case]
    change(folder)
    (tmp_path / "texts.txt").write_text("One and one make two.\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=words) as raised:
        load_teacher(folder)
    error = raised.value
    assert all(str(part) for part in (error.field, error.got, error.wanted, error.fix))
    assert "\n" not in str(error)
    # The stage says the same, where it would otherwise begin to pack rows for the teacher.
    with pytest.raises(UserError, match=re.escape(str(error))):
        rows_for(
            str(tmp_path / "texts.txt"),
            PrecomputeConfig(),
            teacher=str(folder),
            tokenizer_path=None,
            packed=tmp_path / "rows",
        )
    assert sorted(tmp_path.rglob("*")) == before
