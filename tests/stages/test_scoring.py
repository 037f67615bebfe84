"""A teacher's targets: the same on every mesh, of each document alone, in batches that fit."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from minillm.core.errors import UserError
from minillm.core.sharding import MeshConfig, make_mesh
from minillm.data.rows import RowsReader
from minillm.stages import scoring
from minillm.stages.scoring import compile_scorer, placed, targets_of
from minillm.teachers import load_teacher
from tests.stages.precompute_inputs import MODEL, stacked, write_inputs
from tests.tolerances import TOLERANCES

MESHES = {
    "one": (1, {"data": 1}),
    "data": (8, {"data": 8}),
    "fsdp": (8, {"data": 1, "fsdp": 8}),
    "tensor": (8, {"data": 2, "tensor": 4}),
    "context": (8, {"data": 4, "context": 2}),
    "mixed": (8, {"data": 2, "fsdp": 2, "tensor": 2}),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    directory = tmp_path_factory.mktemp("work")
    write_inputs(directory)
    return directory


@pytest.fixture(scope="module")
def rows(work):
    return RowsReader(work / "rows")


@pytest.fixture(scope="module")
def by_mesh(work):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", "tests.stages.run_scoring", str(work), json.dumps(MESHES)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name: np.load(work / f"{name}.npz") for name in MESHES}


def assert_same_targets(found, wanted, tolerance):
    """Log-probabilities by rank, the tail, and the ids wherever ranks are clear."""
    ids, log_probs, tail = found
    wanted_ids, wanted_log_probs, wanted_tail = wanted
    np.testing.assert_allclose(log_probs, wanted_log_probs, atol=tolerance, rtol=0)
    np.testing.assert_allclose(tail, wanted_tail, atol=tolerance, rtol=0)
    gaps = -np.diff(np.asarray(wanted_log_probs), axis=-1)
    # A rank is clear where both neighbours are; the last one's next is not there to compare with.
    first = np.ones_like(gaps[..., :1], bool)
    clear = (gaps > 2 * tolerance) & np.concatenate([first, gaps > 2 * tolerance], -1)[..., :-1]
    assert clear.mean() > 0.9
    assert np.array_equal(ids[..., :-1][clear], np.asarray(wanted_ids)[..., :-1][clear])


@pytest.mark.parametrize("mesh", [name for name in MESHES if name != "one"])
def test_targets_on_a_mesh_are_those_of_one_device(by_mesh, mesh):
    found, wanted = (
        [file[f"arr_{i}"] for i in range(3)] for file in map(by_mesh.get, (mesh, "one"))
    )
    assert wanted[0].shape == (8, 64, 8)
    assert_same_targets(found, wanted, TOLERANCES["float32"].logits)


@pytest.mark.parametrize(
    ("mesh", "parts"), [("data", 1), ("fsdp", 8), ("tensor", 4), ("mixed", 4), ("context", 1)]
)
def test_weights_are_split_as_the_mesh_says(by_mesh, mesh, parts):
    assert by_mesh[mesh]["split"] == parts


def test_each_document_is_scored_as_if_alone_at_positions_from_zero(work, rows):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    teacher = load_teacher(work / "teacher", mesh=mesh)
    scorer = compile_scorer(
        teacher.config,
        mesh,
        row_length=rows.row_length,
        rows=len(rows),
        candidates=8,
        vocab_size=teacher.config.vocab_size,
        batch_size=2,
    )
    batch = stacked(rows, [0, 1])
    params = placed(nnx.to_pure_dict(nnx.state(teacher.model)), mesh)
    ids, log_probs, tail = scorer(params, batch)
    documents = 0
    for row in range(2):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            (places,) = np.nonzero(batch["segment_ids"][row] == segment)
            alone = np.zeros((1, rows.row_length), np.int32)
            alone[0, : len(places)] = batch["tokens"][row][places]
            logits = np.asarray(teacher.logits(alone), np.float64)[0, : len(places)]
            dense = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            order = np.argsort(-dense, axis=-1, kind="stable")
            best = np.take_along_axis(dense, order, -1)
            wanted = order[:, :8], best[:, :8], np.log(np.exp(best[:, 8:]).sum(-1))
            found = ids[row][places], log_probs[row][places], tail[row][places]
            assert_same_targets(found, wanted, TOLERANCES["float32"].logits)
            documents += 1
    assert documents > 4


@pytest.mark.parametrize("at_a_time", [1, 7, 64, 100])
def test_positions_in_turns_give_what_all_at_once_give_and_padded_vocabularies_are_cut(
    work, rows, at_a_time
):
    model = load_teacher(work / "teacher").model
    batch = stacked(rows, [0, 1])
    hidden = model.hidden(batch["tokens"], segment_ids=batch["segment_ids"])
    found = targets_of(model, hidden, 5, at_a_time, 200)
    wanted = scoring.top_candidates(model.logits(hidden)[..., :200], 5)
    assert found.candidate_ids.shape == wanted.candidate_ids.shape
    assert_same_targets(found, wanted, TOLERANCES["float32"].output)


def find(config=MODEL, **changes):
    options = {"row_length": 64, "rows": 1000, "candidates": 4, "batch_size": None}
    options["vocab_size"] = config.vocab_size
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return compile_scorer(config, mesh, **{**options, **changes})


def test_a_batch_takes_what_pays_where_memory_is_no_matter():
    assert find().batch_size == scoring.ENOUGH_TOKENS["cpu"] // 64


def test_a_batch_is_no_larger_than_the_rows_need():
    assert find(rows=5).batch_size == 8


def test_the_largest_batch_that_fits_is_found_by_compiling():
    needs = {size: find(batch_size=size).needed for size in (4, 8)}
    assert needs[8] > needs[4]
    assert find(memory=needs[8]).batch_size == 8
    assert find(memory=needs[8] - 1).batch_size == 4


def test_bytes_needed_are_at_least_weights_inputs_and_outputs():
    weights = 4 * MODEL.num_params()
    row = 64 * 4 * (3 + 4 + 4 + 1)
    assert find(batch_size=2).needed >= weights + 2 * row


def test_bfloat16_takes_half_the_weights():
    wide = dataclasses.replace(MODEL, vocab_size=4096, hidden_size=256)
    narrow = dataclasses.replace(wide, compute_dtype="bfloat16")
    weights = 4 * wide.num_params()
    saved = find(wide, batch_size=1).needed - find(narrow, batch_size=1).needed
    assert 0.4 * weights < saved


def test_what_fits_in_no_batch_is_one_error_with_both_sizes_and_what_to_do():
    with pytest.raises(UserError) as caught:
        find(memory=100_000)
    message = str(caught.value)
    assert message.startswith("memory: got ")
    assert "batches of 1 rows of 64 tokens" in message
    assert "100,000 bytes" in message
    for advice in ("mesh.fsdp", "mesh.tensor", "dtype=bfloat16", "shorter rows"):
        assert advice in message


def test_a_batch_that_was_asked_for_and_does_not_fit_is_named():
    with pytest.raises(UserError, match="batch_size: got .* batches of 16 rows .*smaller"):
        find(batch_size=16, memory=100_000)


def test_layers_on_cpu_are_views_of_the_stacks(work):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    params = nnx.to_pure_dict(nnx.state(load_teacher(work / "teacher", mesh=mesh).model))
    stack, layers = params["blocks"]["mlp"]["down"], placed(params, mesh)["blocks"]["mlp"]["down"]
    assert len(layers) == MODEL.num_layers
    size = stack.nbytes // MODEL.num_layers
    first = stack.unsafe_buffer_pointer()
    assert [layer.unsafe_buffer_pointer() - first for layer in layers] == [0, size, 2 * size]
    assert all(np.array_equal(layer, stack[at]) for at, layer in enumerate(layers))


@pytest.mark.parametrize(("batch_size", "row_length"), [(1, 60), (2, 64), (8, 50), (256, 8)])
def test_no_vocabulary_is_sorted_on_cpu(batch_size, row_length):
    # A sort takes thirty times as long as the selection that XLA has for `top_k`.
    text = find(batch_size=batch_size, row_length=row_length).compiled.as_text()
    assert "TopK" in text and " sort(" not in text
