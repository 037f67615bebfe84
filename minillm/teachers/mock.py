"""A teacher of random weights: for tests, and to try the pipeline without a model."""

from jax.sharding import Mesh

from minillm.model.config import ModelConfig
from minillm.model.functional import ModelFunction
from minillm.teachers.teacher import Teacher


def mock_teacher(vocab_size: int, *, seed: int, mesh: Mesh) -> Teacher:
    """Two layers of width 32; the same logits for the same seed. It reads any tokenizer's ids."""
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        intermediate_size=64,
    )
    function = ModelFunction(config)
    return Teacher(function.bind(function.init(seed, mesh)), tokenizer=None)
