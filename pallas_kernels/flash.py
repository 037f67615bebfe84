"""What the Mosaic kernels share: the derivative rule around their forward and backward passes.

The forward pass keeps the log-sum-exp of every query. From it the backward pass makes each tile's
probabilities again, p = exp(logits - lse), and with delta = sum(out * d_out) - d_lse the derivative
of the logits is p * (d_out v' - delta) (Dao 2023, "FlashAttention-2", algorithm 2; the term in
d_lse is the derivative of the log-sum-exp itself, which is p).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.tuning import BlockSizes
from pallas_kernels.window import Marks


@dataclasses.dataclass(frozen=True)
class Call:
    """What does not change within a call; static under jit.

    Attributes:
        interpret: what the kernels pass on to Pallas: False compiles, anything else interprets.
    """

    window: int | None
    scale: float
    soft_cap: float | None
    blocks: BlockSizes
    interpret: Any = False


@dataclasses.dataclass(frozen=True)
class Kernels:
    """One device's two passes; T and S are what the caller has, padded inside where needed.

    Attributes:
        forward: (call, q[B,T,N,H], k[B,S,K,H], v[B,S,K,H], marks, sinks[N] or None) to
            out[B,T,N,H] in the dtype of q and the natural log-sum-exp [B,N,T] in float32, sink
            included. A query without keys has out 0, and without a sink a log-sum-exp of -inf.
        backward: (call, q, k, v, marks, lse, delta[B,N,T] float32, d_out[B,T,N,H]) to dq, dk and
            dv in the dtypes of q, k and v.
    """

    forward: Callable[..., tuple[Array, Array]]
    backward: Callable[..., tuple[Array, Array, Array]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def flash_attention(
    kernels: Kernels,
    call: Call,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    marks: Marks,
    sinks: Float[Array, " N"] | None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Output and log-sum-exp, differentiable in q, k, v and sinks through either."""
    return _forward(kernels, call, q, k, v, marks, sinks)[0]


def _forward(kernels, call, q, k, v, marks, sinks):
    # Kernels count in 32 bits, whatever the program around them does.
    with jax.enable_x64(False):
        out, lse = kernels.forward(call, q, k, v, marks, sinks)
    return (out, lse.swapaxes(1, 2)), (q, k, v, marks, sinks, out, lse)


def _backward(kernels, call, saved, cotangents):
    q, k, v, marks, sinks, out, lse = saved
    d_out, d_lse = cotangents
    # bf16 products are exact in float32; their sum over H is not in bf16.
    products = out.astype(jnp.float32) * d_out.astype(jnp.float32)
    delta = products.sum(axis=-1).swapaxes(1, 2) - d_lse.swapaxes(1, 2)
    # A query without keys: its log-sum-exp is a constant, whatever is asked of it.
    delta = jnp.where(jnp.isfinite(lse), delta, 0)
    with jax.enable_x64(False):
        dq, dk, dv = kernels.backward(call, q, k, v, marks, lse, delta, d_out)
    d_sinks = None
    if sinks is not None:
        # The sink is one more logit, of value 0: its share of the softmax times -delta.
        share = jnp.exp(sinks.astype(jnp.float32)[None, :, None] - lse)
        # A sink of -inf at a query without keys: -inf minus itself, where nothing is shared.
        share = jnp.where(jnp.isfinite(lse), share, 0)
        d_sinks = -(share * delta).sum(axis=(0, 2)).astype(sinks.dtype)
    return dq, dk, dv, None, d_sinks


flash_attention.defvjp(_forward, _backward)
