"""A Hugging Face folder as a teacher: logits, tokenizer, and what its fingerprint follows."""

import json
import shutil

import jax
import numpy as np
import pytest

from minillm.teachers import describe_teacher, huggingface, load_teacher
from tests.teachers.folders import DESCRIPTION, WHOLE, random_tensors, write_files, write_folder
from tests.tolerances import TOLERANCES

TOKENS = np.random.default_rng(0).integers(0, WHOLE.vocab_size, (2, 20)).astype(np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("whole") / "teacher")


@pytest.fixture(scope="module")
def teacher(folder):
    return load_teacher(folder)


@pytest.mark.reference
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_those_of_transformers(folder, dtype):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS).long(), output_hidden_states=True)
    teacher = load_teacher(folder, dtype=dtype)
    logits, hidden = teacher.logits(TOKENS), teacher.hidden_states(TOKENS)
    assert (logits.dtype, hidden.dtype) == ("float32", dtype)
    assert teacher.model.embedding[...].dtype == dtype
    tolerance = TOLERANCES[dtype].logits
    np.testing.assert_allclose(logits, expected.logits.numpy(), rtol=0, atol=tolerance)
    if dtype == "float32":
        last = expected.hidden_states[-1].numpy()
        np.testing.assert_allclose(hidden, last, rtol=0, atol=tolerance)


def test_it_is_described_without_its_weights_as_it_is_loaded(folder, teacher, monkeypatch):
    monkeypatch.setattr("minillm.teachers.huggingface.load_weights", None)
    config, tokenizer = describe_teacher(folder)
    assert config == teacher.config
    assert tokenizer.fingerprint == teacher.tokenizer.fingerprint
    text = "Two and two\n make x³."
    assert teacher.tokenizer.decode(teacher.tokenizer.encode(text)) == text


def test_the_fingerprint_follows_weights_configuration_and_dtype(folder, teacher, tmp_path):
    same = shutil.copytree(folder, tmp_path / "same")
    for path in same.glob("*.safetensors"):
        path.touch()
    assert load_teacher(same).fingerprint == teacher.fingerprint
    assert load_teacher(folder, dtype="bfloat16").fingerprint != teacher.fingerprint

    config = {**DESCRIPTION, "rms_norm_eps": 1e-3}
    (same / "config.json").write_text(json.dumps(config))
    assert load_teacher(same).fingerprint != teacher.fingerprint

    tensors = random_tensors(WHOLE)
    tensors["model.norm.weight"][3] += 1e-3
    other = shutil.copytree(folder, tmp_path / "other")
    write_files(other, tensors, files=2)
    assert load_teacher(other).fingerprint != teacher.fingerprint


def test_files_are_read_for_the_fingerprint_only_when_it_is_asked_for(folder, monkeypatch):
    read = []
    digest = huggingface.file_sha256
    monkeypatch.setattr(huggingface, "file_sha256", lambda path: read.append(path) or digest(path))
    teacher = load_teacher(folder)
    jax.block_until_ready(teacher.logits(TOKENS))
    assert not read
    assert teacher.fingerprint == teacher.fingerprint
    assert [path.name for path in read] == sorted(path.name for path in folder.glob("model-*"))
