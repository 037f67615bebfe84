"""The loop's step on eight simulated devices does what it does on one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

MESHES = {
    "data": {"data": 8},
    "fsdp": {"data": 1, "fsdp": 8},
    "tensor": {"data": 4, "tensor": 2},
    "context": {"data": 4, "context": 2},
    "mixed": {"data": 2, "fsdp": 2, "tensor": 2},
}
# Sums over devices add in another order; five AdamW steps pass that on, about tenfold.
LOSS_TOLERANCE = 1e-5
# How far each weight moved in five steps: AdamW divides by the gradient's own size, so that the
# few gradients near zero come out with a larger relative error.
STEP_TOLERANCE = 1e-3


@pytest.fixture(scope="module", params=["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def runs(request):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.run_on_mesh", json.dumps(MESHES), request.param],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("mesh", MESHES)
def test_losses_and_weights_on_a_mesh_are_those_of_one_device(runs, mesh):
    np.testing.assert_allclose(runs[mesh]["losses"], runs["one"]["losses"], rtol=LOSS_TOLERANCE)
    for name in ("gradient_norms", "moved"):
        np.testing.assert_allclose(runs[mesh][name], runs["one"][name], rtol=STEP_TOLERANCE)


@pytest.mark.parametrize("mesh", MESHES)
def test_attention_called_by_each_device_on_its_part_is_that_of_one_device(runs, mesh):
    wanted = runs["one"]["attention"]
    assert len(wanted) == 4
    np.testing.assert_allclose(runs[mesh]["attention"], wanted, rtol=LOSS_TOLERANCE)


@pytest.mark.parametrize("mesh", [name for name in MESHES if name != "context"])
def test_generation_on_a_mesh_is_that_of_one_device(runs, mesh):
    assert any(runs["one"]["generated"])
    assert runs[mesh]["generated"] == runs["one"]["generated"]


def test_training_on_the_same_rows_lowers_the_loss_every_step(runs):
    losses = runs["one"]["losses"]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.01


@pytest.mark.parametrize(("mesh", "parts"), [("data", 1), ("fsdp", 8), ("tensor", 2), ("mixed", 4)])
def test_weights_and_moments_are_split_as_the_table_says(runs, mesh, parts):
    assert runs[mesh]["split"] == runs[mesh]["moments_split"] == parts
