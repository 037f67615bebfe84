"""Models for tests, made without compiling their initialisers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from minillm.model.config import ModelConfig
from minillm.model.transformer import Transformer

# Five layers in a pattern of two: the scan and the layer left over are both at work.
SMALL = ModelConfig(
    vocab_size=37,
    hidden_size=16,
    num_layers=5,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=24,
    windows=(5, None),
    max_length=64,
    tie_embeddings=False,
    attention_bias=True,
    qk_norm=True,
    logit_soft_cap=8.0,
)


def shapes_of(config: ModelConfig) -> dict[str, Any]:
    """Shapes and dtypes of a model's parameters, without making them."""
    return nnx.to_pure_dict(nnx.state(_abstract(config)))


def bind(config: ModelConfig, weights: dict[str, Any]) -> Transformer:
    """A model with these parameters. (Compiling initialisers takes longer than most tests.)"""
    graph, state = nnx.split(_abstract(config))
    nnx.replace_by_pure_dict(state, weights)
    return nnx.merge(graph, state)


def build(config: ModelConfig, seed: int = 0) -> Transformer:
    """A model whose every parameter is random, scales and biases too."""
    rng = np.random.default_rng(seed)

    def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        mean = 1.0 if "scale" in path[-1].key else 0.0
        return jnp.asarray(rng.normal(mean, 0.25, leaf.shape), leaf.dtype)

    return bind(config, jax.tree_util.tree_map_with_path(fill, shapes_of(config)))


def _abstract(config: ModelConfig) -> Transformer:
    return nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))


@nnx.jit
def forward(model: Transformer, tokens: jax.Array) -> jax.Array:
    """Logits, compiled: eager calls compile every operation by itself."""
    return model(tokens)
