"""Dense attention straight from the definition: the oracle every implementation is held to."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.window import NO_MARKS, Marks, attention_mask


def reference_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    window: int | None,
    marks: Marks = NO_MARKS,
    scale: float,
    soft_cap: float | None = None,
    sinks: Float[Array, " N"] | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Output and log-sum-exp with O(T * S) memory, differentiated by JAX itself.

    Computes in float32 at least; float64 inputs under `jax.enable_x64` stay float64, which is
    how the tests use it.
    """
    batch, queries, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1:3]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    grouped = q.reshape(batch, queries, kv_heads, heads // kv_heads, head_dim).astype(wide)
    # HIGHEST: an accelerator's default would round float32 operands.
    logits = scale * jnp.einsum("btkgh,bskh->bkgts", grouped, k.astype(wide), precision="highest")
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    mask = attention_mask(queries, keys, window, marks)[:, None, None]

    # 0 stands in for the maximum of a row without keys, and 1 for its sum: no inf - inf, no 0 / 0,
    # neither here nor in the derivative.
    top = jnp.max(logits, axis=-1, keepdims=True, where=mask, initial=-jnp.inf)
    sink = jnp.zeros((), wide)
    if sinks is not None:
        sink = sinks.astype(wide).reshape(1, kv_heads, heads // kv_heads, 1, 1)
        top = jnp.maximum(top, sink)
    top = jnp.where(jnp.isfinite(top), top, 0)
    weights = jnp.where(mask, jnp.exp(jnp.where(mask, logits - top, 0)), 0)
    total = weights.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + jnp.exp(sink - top)
    some = total != 0
    total = jnp.where(some, total, 1)
    out = jnp.einsum("bkgts,bskh->btkgh", weights / total, v.astype(wide), precision="highest")
    lse = jnp.where(some, top + jnp.log(total), -jnp.inf)[..., 0]
    lse = lse.reshape(batch, heads, queries).swapaxes(1, 2)
    return out.reshape(q.shape).astype(q.dtype), lse
