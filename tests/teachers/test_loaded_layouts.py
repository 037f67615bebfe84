"""Each way in which a family lays out its tensors, through the loader, against transformers."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.data.foreign import gpt2
from tests.teachers.family_cases import SMALL
from tests.teachers.reference import random_model
from tests.tolerances import TOLERANCES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.reference

# What the loader has to do for it, and the fields that make the model have it.
LAYOUTS = {
    # Biases, in parts and whole; how a training split its matrix products changes no sum.
    "Llama": {"attention_bias": True, "mlp_bias": True, "pretraining_tp": 2},
    "Phi3": {},  # rows of one fused tensor
    "Olmo2": {},  # a norm over all heads, which are split over devices
    "Qwen3": {"head_dim": 12},  # a norm over the head size, which are not
    "Gemma2": {"head_dim": 12, "sliding_window": 7},  # scales that are stored less one, a tied head
    "Gemma3": {"head_dim": 12, "sliding_window": 7},  # the same on the norms within attention
}
MESHES = ("one", "2x2")


@pytest.fixture(scope="module")
def differences(tmp_path_factory):
    """By layout and mesh, of the logits that the loaded teacher and transformers have."""
    work = tmp_path_factory.mktemp("layouts")
    for family, fields in LAYOUTS.items():
        write_model(work / family, family, {**SMALL, "vocab_size": 520, **fields})
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-m", "tests.teachers.run_layouts_on_mesh", str(work)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def write_model(folder, family, fields):
    settings = "Gemma3Text" if family == "Gemma3" else family
    config = getattr(transformers, f"{settings}Config")(**fields, attn_implementation="eager")
    model = random_model(getattr(transformers, f"{family}ForCausalLM"), config)
    model.save_pretrained(folder)
    gpt2(folder)
    tokens = np.random.default_rng(0).integers(0, fields["vocab_size"], (4, 24))
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens), use_cache=False).logits.numpy()
    assert np.abs(logits).max() > 1
    np.savez(folder / "expected.npz", tokens=tokens.astype(np.int32), logits=logits)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("family", LAYOUTS)
def test_logits_of_a_loaded_teacher_are_those_of_transformers(differences, family, mesh):
    assert differences[f"{family} {mesh}"] < TOLERANCES["float32"].logits
