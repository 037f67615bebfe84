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
    logits = logits.astype(jnp.float32)
    total = jax.nn.logsumexp(logits, axis=-1)
    values, ids = jax.lax.top_k(logits, count)
    # The last candidate by reductions, not by slices: where XLA sees a slice of what `top_k`
    # gives, it sorts the whole vocabulary instead, thirty times as slow on CPU.
    last = jnp.min(values, axis=-1, keepdims=True)
    last_id = jnp.max(jnp.where(values == last, ids, -1), axis=-1, keepdims=True)
    # The tail is summed from the tokens left over: as 1 minus the candidates' mass it would be
    # lost to cancellation. They are those behind the last candidate in the order of `top_k`.
    left = (logits < last) | ((logits == last) & (jnp.arange(logits.shape[-1]) > last_id))
    tail = jax.nn.logsumexp(logits, axis=-1, where=left)
    return TeacherTargets(ids, values - total[..., None], tail - total)
