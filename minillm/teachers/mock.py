"""A teacher of random weights: for tests, and to try the pipeline without a model."""

import dataclasses

import jax
from jax.sharding import Mesh

from minillm.model.config import Dtype, ModelConfig
from minillm.model.functional import ModelFunction
from minillm.teachers.teacher import Teacher


def mock_config(vocab_size: int) -> ModelConfig:
    """Two layers of width 32."""
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        intermediate_size=64,
    )


def mock_teacher(vocab_size: int, *, seed: int, mesh: Mesh, dtype: Dtype | None = None) -> Teacher:
    """The same logits for the same seed. It reads any tokenizer's ids."""
    dtype = dtype or "float32"
    function = ModelFunction(dataclasses.replace(mock_config(vocab_size), compute_dtype=dtype))
    params = jax.tree.map(
        lambda drawn, wanted: drawn.astype(wanted.dtype),
        function.init(seed, mesh),
        function.abstract(mesh, dtype),
    )
    return Teacher(function.bind(params), tokenizer=None)
