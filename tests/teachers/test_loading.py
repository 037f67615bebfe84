"""Every parameter is what plain numpy makes of the files, on one device and on shards."""

import json
import os
import socket
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

from minillm.core.errors import UserError
from minillm.core.sharding import MeshConfig, make_mesh
from minillm.model.functional import ModelFunction
from minillm.teachers import loading, pieces
from minillm.teachers.safetensors_files import TensorFiles
from minillm.teachers.shards import DeviceShards, HostShards
from tests.teachers.folders import TINY, llama_map, llama_params, random_tensors, write_files


@pytest.fixture(scope="module")
def tensors():
    return random_tensors(TINY)


def load(directory, *, dtype="float32", plus=0.0, ignored=(), mesh=None):
    mesh = mesh or make_mesh(MeshConfig(), jax.devices()[:1])
    abstract = ModelFunction(TINY).abstract(mesh, dtype)
    return loading.load_weights(
        TensorFiles(directory), llama_map(TINY, plus), abstract, ignored=ignored
    )


def assert_same(params, expected):
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for (path, found), wanted in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(found), wanted, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("piece", [100, 700, pieces.PIECE_BYTES])
def test_parameters_are_those_of_plain_numpy_whatever_the_pieces(
    tmp_path, monkeypatch, tensors, files, piece
):
    monkeypatch.setattr(pieces, "PIECE_BYTES", piece)
    write_files(tmp_path, tensors, files)
    assert_same(load(tmp_path, plus=1.0), llama_params(TINY, tensors, plus=1.0))


@pytest.mark.parametrize("stored", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matrices_take_the_dtype_asked_for_and_norms_stay_float32(tmp_path, stored, dtype):
    tensors = random_tensors(TINY, stored)
    write_files(tmp_path, tensors)
    params = load(tmp_path, dtype=dtype)
    expected = llama_params(TINY, tensors)
    assert (
        params["blocks"]["mlp_norm"]["scale"].dtype
        == params["final_norm"]["scale"].dtype
        == "float32"
    )
    for leaf in (params["embedding"], params["head"], params["blocks"]["attention"]["qkv"]):
        assert leaf.dtype == dtype
    expected = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), expected, params)
    assert_same(params, expected)


def test_accelerators_are_filled_with_the_same(tmp_path, monkeypatch, tensors):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 700)
    monkeypatch.setattr(loading, "_shards", DeviceShards)
    write_files(tmp_path, tensors)
    for dtype in ("float32", "bfloat16"):
        params = load(tmp_path, dtype=dtype, plus=1.0)
        expected = llama_params(TINY, tensors, plus=1.0)
        expected = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), expected, params)
        assert_same(params, expected)


def test_every_device_of_a_mesh_has_its_block(tmp_path, tensors):
    write_files(tmp_path, tensors, files=2)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-m", "tests.teachers.run_loading_on_mesh", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 8
    for name, of_mesh in found.items():
        assert of_mesh["blocks"] == 9 * 4
        assert of_mesh["difference"] == 0, name
        split = {"data": 1, "fsdp": 4, "tensor": 2, "both": 4}[name.split()[0]]
        assert of_mesh["split"] == split, name


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("way", [HostShards, DeviceShards])
def test_a_value_that_is_not_finite_names_its_tensor(tmp_path, monkeypatch, tensors, value, way):
    monkeypatch.setattr(loading, "_shards", way)
    name = "model.layers.1.self_attn.k_proj.weight"
    broken = tensors[name].copy()
    broken[3, 5] = value
    write_files(tmp_path, {**tensors, name: broken})
    with pytest.raises(UserError, match=rf"no number, in {name};"):
        load(tmp_path)


def test_a_value_too_large_for_bfloat16_is_refused_and_taken_in_float32(tmp_path, tensors):
    name = "lm_head.weight"
    large = tensors[name].copy()
    large[0, 0] = np.finfo(np.float32).max
    write_files(tmp_path, {**tensors, name: large})
    assert load(tmp_path)["head"][0, 0] == large[0, 0]
    with pytest.raises(UserError, match="lm_head.weight; .* or load them in float32"):
        load(tmp_path, dtype="bfloat16")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.norm.weight": None, "lm_head.weight": None}, "no model.norm.weight, lm_head"),
        ({"extra.weight": np.zeros(2, np.float32)}, "extra.weight, for which"),
        ({"model.norm.weight": np.zeros(15, np.float32)}, r"shape \[15\]; wanted \[16\]"),
        ({"model.norm.weight": np.zeros(16, np.int8)}, "values of type I8; wanted F64 or F32"),
    ],
)
def test_tensors_that_do_not_fit_the_map_are_named_before_any_is_read(
    tmp_path, monkeypatch, tensors, change, words
):
    changed = {**tensors, **change}
    write_files(tmp_path, {name: value for name, value in changed.items() if value is not None})
    monkeypatch.setattr(TensorFiles, "read", None)
    with pytest.raises(UserError, match=words):
        load(tmp_path)


def test_what_a_family_ignores_may_stay_unread(tmp_path, tensors):
    write_files(tmp_path, {**tensors, "layers.0.rotary.inv_freq": np.zeros(2, np.int32)})
    assert load(tmp_path, ignored=["*.inv_freq"])


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (("blocks", "mlp", "gate_up"), slice(0, 1)),
        (("blocks", "attention", "qkv"), slice(1, 3)),
        (("blocks", "attention", "qkv"), slice(0, 0)),
    ],
)
def test_a_map_that_leaves_a_part_of_a_parameter_unfilled_is_an_error(path, source):
    made = llama_map(TINY)
    made[path] = made[path][source]
    leaves = loading._leaves(ModelFunction(TINY).abstract(make_mesh(MeshConfig())))
    loading._require_whole(llama_map(TINY), leaves)
    with pytest.raises(ValueError, match=path[-1]):
        loading._require_whole(made, leaves)


@pytest.mark.slow
def test_each_of_two_hosts_reads_its_own_part_and_both_refuse_what_one_sees(tmp_path, tensors):
    write_files(tmp_path / "good", tensors)
    # The second half of the rows is the second host's.
    head = tensors["lm_head.weight"].copy()
    head[-1, 0] = np.nan
    write_files(tmp_path / "broken", {**tensors, "lm_head.weight": head})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PLATFORMS": "cpu"}
    folders = [str(tmp_path / name) for name in ("good", "broken")]
    pair = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.teachers.run_loading_two_hosts", *folders],
            env={**os.environ, **shared, "JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]
    size = sum(tensor.nbytes for tensor in tensors.values())
    # Read whole by both: norms, and the matrices whose columns the mesh cuts.
    shared_size = sum(
        tensor.nbytes
        for name, tensor in tensors.items()
        if "norm" in name or "o_proj" in name or "down_proj" in name
    )
    for process in pair:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        found = json.loads(out.splitlines()[-1])
        assert found["difference"] == 0
        assert found["read"] == shared_size + (size - shared_size) // 2
        assert "in lm_head.weight;" in found["error"]
