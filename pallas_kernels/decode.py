"""One query a sequence against a ring-buffer cache: the attention of a generation step."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.arguments import bad_argument, check_heads, check_options
from pallas_kernels.choice import chosen_implementation, kernels


def decode_attention(
    q: Float[Array, "B N H"],
    k_cache: Float[Array, "B W K H"],
    v_cache: Float[Array, "B W K H"],
    lengths: Int[Array, " B"],
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    sinks: Float[Array, " N"] | None = None,
    implementation: str | None = None,
) -> Float[Array, "B N H"]:
    """Attention of the newest token over the last `min(lengths, W)` tokens.

    Token t lies in slot t mod W, so slots hold the window and nothing else once W tokens are
    written. A softmax does not ask for the order of its terms: the ring is never unrolled.

    Args:
        q: the query of the newest token of each sequence.
        k_cache, v_cache: the newest token's key and value are written already. Slots that are
            not written yet may hold any finite value: it is multiplied by 0.
        lengths: tokens written so far, the newest one included; 0 gives output 0.
        scale, soft_cap, sinks: as in `sliding_window_attention`.
        implementation: "mosaic_tpu", "mosaic_gpu", "xla", or None to let the device decide, as in
            `sliding_window_attention`. A name never falls back to another.

    Returns:
        The attended values, in the dtype of q.

    Raises:
        ValueError: naming the argument, what it was, what is wanted and what to do.
    """
    _check(q, k_cache, v_cache, lengths, sinks)
    check_options(window=None, scale=scale, soft_cap=soft_cap)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    soft_cap = None if soft_cap is None else float(soft_cap)
    name = chosen_implementation(implementation, q.dtype, q.shape[-1])
    if name == "reference":
        raise bad_argument(
            "implementation", '"reference"', "a decode implementation, or None",
            'pass "xla": a decode step is dense by itself',
        )  # fmt: skip
    options: dict = {"scale": scale, "soft_cap": soft_cap, "sinks": sinks}
    if name == "xla":
        return _attend_in_xla(q, k_cache, v_cache, lengths, **options)
    # Kernels count in 32 bits, whatever the program around them does.
    with jax.enable_x64(False):
        decode = kernels(f"{name}_decode", "decode")
        return decode(q, k_cache, v_cache, lengths.astype(jnp.int32), **options)


def _attend_in_xla(
    q: Float[Array, "B N H"],
    k_cache: Float[Array, "B W K H"],
    v_cache: Float[Array, "B W K H"],
    lengths: Int[Array, " B"],
    *,
    scale: float,
    soft_cap: float | None,
    sinks: Float[Array, " N"] | None,
) -> Float[Array, "B N H"]:
    batch, heads, head_dim = q.shape
    slots, kv_heads = k_cache.shape[1:3]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    # HIGHEST: an accelerator's default would round float32 operands; bfloat16 ones are exact.
    precision = lax.Precision.HIGHEST if q.dtype == jnp.float32 else None

    grouped = q.reshape(batch, kv_heads, heads // kv_heads, head_dim)
    logits = jnp.einsum(
        "bkgh,bwkh->bkgw", grouped, k_cache, precision=precision, preferred_element_type=wide
    )
    logits = logits * scale
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    written = (jnp.arange(slots) < lengths[:, None])[:, None, None, :]

    top = jnp.max(logits, axis=-1, keepdims=True, where=written, initial=-jnp.inf)
    sink = None
    if sinks is not None:
        sink = sinks.astype(wide).reshape(1, kv_heads, -1, 1)
        top = jnp.maximum(top, sink)
    # An empty cache has no maximum; any finite stand-in leaves its weights at 0.
    top = jnp.where(jnp.isfinite(top), top, 0)
    weights = jnp.where(written, jnp.exp(jnp.where(written, logits - top, 0)), 0)
    total = weights.sum(axis=-1, keepdims=True)
    if sink is not None:
        total = total + jnp.exp(sink - top)
    out = jnp.einsum(
        "bkgw,bwkh->bkgh", weights.astype(v_cache.dtype), v_cache,
        precision=precision, preferred_element_type=wide,
    )  # fmt: skip
    out = out / jnp.where(total == 0, 1, total)
    return out.reshape(q.shape).astype(q.dtype)


def _check(q: Array, k_cache: Array, v_cache: Array, lengths: Array, sinks: Array | None) -> None:
    for name, x, letters in (("q", q, "B, N, H"), ("k_cache", k_cache, "B, W, K, H")):
        if x.ndim != letters.count(",") + 1 or 0 in x.shape:
            raise bad_argument(
                name, f"shape {x.shape}", f"[{letters}] without empty axes",
                "a decode step has one query for each sequence, and a cache with a slot axis",
            )  # fmt: skip
    check_heads(q, k_cache, v_cache, sinks, "k_cache")
    if lengths.shape != q.shape[:1] or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise bad_argument(
            "lengths", f"shape {lengths.shape}, dtype {lengths.dtype}",
            f"integers of shape ({q.shape[0]},)",
            "count the tokens written for each sequence, the newest included",
        )  # fmt: skip
