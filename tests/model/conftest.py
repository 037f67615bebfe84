"""One small model with everything switched on, built once."""

import jax
import pytest

from minillm.model.transformer import Transformer
from tests.model.models import SMALL, build, forward


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
