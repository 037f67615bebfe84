"""From a teacher's logits to what the store keeps of them."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from minillm.store.schema import TeacherTargets


@functools.partial(jax.jit, static_argnames="count")
def top_candidates(logits: Float[Array, "B T V"], count: int) -> TeacherTargets:
    """The `count` likeliest tokens of each position, likeliest first, and the mass of the rest.

    Returns:
        TeacherTargets of int32[B, T, C], float32[B, T, C], float32[B, T]. At C = V the tail is
        -inf. Equal logits go to the lower id, on every platform.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    values, ids = jax.lax.top_k(log_probs, count)
    # Summed from the tokens left over: as 1 minus the candidates' mass it would be lost to
    # cancellation. Mapped over B and T, so that a sharded batch stays where it is.
    rest = jax.vmap(jax.vmap(lambda row, at: row.at[at].set(-jnp.inf)))(log_probs, ids)
    return TeacherTargets(ids, values, jax.nn.logsumexp(rest, axis=-1))
