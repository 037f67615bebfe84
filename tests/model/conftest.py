"""One small model with everything switched on, built once."""

import jax
import pytest
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


def build(config: ModelConfig, seed: int = 0) -> Transformer:
    """A model whose every parameter is random, scales and biases too."""

    @nnx.jit
    def make() -> Transformer:
        model = Transformer(config, rngs=nnx.Rngs(seed))
        leaves, tree = jax.tree.flatten(nnx.state(model))
        keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
        moved = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
        nnx.update(model, jax.tree.unflatten(tree, moved))
        return model

    return make()


@nnx.jit
def forward(model: Transformer, tokens: jax.Array) -> jax.Array:
    """Logits, compiled: eager calls compile every operation by itself."""
    return model(tokens)


@pytest.fixture(scope="session")
def small_model() -> Transformer:
    return build(SMALL)


@pytest.fixture(scope="session")
def tokens() -> jax.Array:
    return jax.random.randint(jax.random.key(7), (3, 18), 0, SMALL.vocab_size)


@pytest.fixture(scope="session")
def full_logits(small_model: Transformer, tokens: jax.Array) -> jax.Array:
    """Logits of the whole sequences in one forward pass: what caches must reproduce."""
    return forward(small_model, tokens)
