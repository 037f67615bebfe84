"""A store that is there already: finished, of another teacher, or damaged."""

import dataclasses
import json
import shutil

import pytest

from minillm.core.errors import UserError
from minillm.core.manifest import read_manifest
from minillm.stages import precompute as stage
from minillm.stages.precompute import PrecomputeConfig, precompute, rows_for
from minillm.stages.preparation import RowsConfig
from minillm.teachers import fingerprint_of_files, load_teacher
from tests.stages.precompute_inputs import write_inputs
from tests.teachers.folders import WHOLE, random_tensors, write_files, write_folder

CONFIG = PrecomputeConfig(candidates=4, rows_per_shard=2, rows=RowsConfig(row_length=64))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A Hugging Face teacher, rows for it, and a store of candidates and one of spans."""
    root = tmp_path_factory.mktemp("work")
    write_folder(root / "teacher")
    (root / "texts.txt").write_text("hello world. this is text\n\n" * 20)
    rows_for(
        str(root / "texts.txt"),
        CONFIG,
        teacher=str(root / "teacher"),
        tokenizer_path=None,
        packed=root / "rows",
    )
    for kind in ("candidates", "spans"):
        run(root, root / kind, root / "teacher")
    return root


def run(work, output, teacher):
    kind = "spans" if output.name.startswith("spans") else "candidates"
    config = dataclasses.replace(CONFIG, targets=kind)
    options = {"rows": work / "rows", "tokenizer": work / "teacher"}
    return precompute(output, config, teacher=str(teacher), **options)


@pytest.fixture
def forbid(monkeypatch):
    def stop(*names):
        def called(*args, **options):
            raise AssertionError(f"one of {names} was called")

        for name in names:
            monkeypatch.setattr(stage, name, called)

    return stop


@pytest.fixture
def other(work, tmp_path):
    """The same folder with other weights."""
    folder = shutil.copytree(work / "teacher", tmp_path / "other")
    for path in folder.glob("model*"):
        path.unlink()
    write_files(folder, random_tensors(WHOLE, seed=9), 2)
    return folder


@pytest.mark.parametrize("kind", ["candidates", "spans"])
def test_a_finished_store_is_skipped_without_compiling_or_loading(work, forbid, kind):
    forbid("load_teacher", "compile_scorer")
    assert run(work, work / kind, work / "teacher") == read_manifest(work / kind)


@pytest.mark.parametrize("kind", ["candidates", "spans"])
@pytest.mark.parametrize("complete", [True, False])
def test_a_store_of_another_teacher_is_refused_before_that_is_loaded(
    work, other, tmp_path, forbid, kind, complete
):
    output = shutil.copytree(work / kind, tmp_path / kind)
    manifest = json.loads((output / "manifest.json").read_text())
    manifest["complete"] = complete
    (output / "manifest.json").write_text(json.dumps(manifest))
    forbid("load_teacher", "compile_scorer")
    with pytest.raises(UserError, match=r"inputs\.teacher was '\w+', now '\w+'"):
        run(work, output, other)


@pytest.mark.parametrize("kind", ["candidates", "spans"])
def test_a_damaged_file_of_a_finished_store_is_written_anew(work, tmp_path, kind):
    output = shutil.copytree(work / kind, tmp_path / kind)
    damaged = sorted(output.glob("*.array_record"))[1]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert run(work, output, work / "teacher").complete
    assert damaged.read_bytes() == whole


def test_a_finished_store_of_a_checkpoint_is_compared_without_compiling(tmp_path, forbid):
    write_inputs(tmp_path)
    config = dataclasses.replace(CONFIG, rows_per_shard=8)
    options = {"teacher": str(tmp_path / "teacher"), "rows": tmp_path / "rows"}
    made = precompute(tmp_path / "store", config, **options)
    forbid("compile_scorer")
    assert precompute(tmp_path / "store", config, **options) == made


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_fingerprint_of_files_is_that_of_the_teacher_loaded(work, other, dtype):
    found = fingerprint_of_files(work / "teacher", dtype)
    assert found == load_teacher(work / "teacher", dtype=dtype).fingerprint
    assert found != fingerprint_of_files(other, dtype)
