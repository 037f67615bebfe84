"""The loss that was measured beside likelihoods of spans and lost; the benchmark alone uses it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from minillm.losses import LossSum


def sorted_distance(
    logits: Float[Array, "B T V"],
    sorted_log_probs: Float[Array, "B T C"],
    tail_log_prob: Float[Array, "B T"],
    weights: Float[Array, "B T"],
) -> LossSum:
    """Distance of the probabilities by rank: the sum of |p - q| over C ranks and over the rest.

    For teachers of another tokenizer, whose ids mean nothing here: "universal logit distillation",
    Boizard et al. 2024 (arXiv 2402.12030), of which it is a lower bound, equal at C = V.

    Args:
        sorted_log_probs: the teacher's largest, descending; -inf in an unused slot.
        tail_log_prob: log of the teacher's mass beyond them.
    """
    probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    count = sorted_log_probs.shape[-1]
    largest = jax.lax.top_k(probs, min(count, probs.shape[-1]))[0]
    tail = 1.0 - jnp.sum(largest, axis=-1)
    largest = jnp.pad(largest, ((0, 0), (0, 0), (0, count - largest.shape[-1])))
    by_rank = jnp.sum(jnp.abs(jnp.exp(sorted_log_probs) - largest), axis=-1)
    distance = by_rank + jnp.abs(jnp.exp(tail_log_prob) - tail)
    return LossSum(jnp.sum(weights * distance), jnp.sum(weights))
