"""Every parameter is what plain numpy makes of the files, on one device and on shards."""

import jax
import ml_dtypes
import numpy as np
import pytest

from minillm.core.sharding import MeshConfig, make_mesh
from minillm.model.functional import ModelFunction
from minillm.teachers import pieces
from minillm.teachers.loading import load_weights
from minillm.teachers.safetensors_files import TensorFiles
from tests.teachers.folders import TINY, llama_map, llama_params, random_tensors, write_files


@pytest.fixture(scope="module")
def tensors():
    return random_tensors(TINY)


def load(directory, *, dtype="float32", plus=0.0, ignored=(), mesh=None):
    mesh = mesh or make_mesh(MeshConfig(), jax.devices()[:1])
    abstract = ModelFunction(TINY).abstract(mesh, dtype)
    return load_weights(TensorFiles(directory), llama_map(TINY, plus), abstract, ignored=ignored)


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
