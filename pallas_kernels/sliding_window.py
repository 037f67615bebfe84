"""The public op: argument checks and the choice of an implementation."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.banded_xla import banded_attention
from pallas_kernels.reference import reference_attention
from pallas_kernels.tuning import BlockSizes
from pallas_kernels.window import Marks

_IMPLEMENTATIONS = {"xla": banded_attention, "reference": reference_attention}
_PLANNED = ("mosaic_tpu", "mosaic_gpu")

# One array where queries and keys are the same tokens, otherwise one for each of the two.
OfTokens = Int[Array, "B T"] | tuple[Int[Array, "B T"], Int[Array, "B S"]]


def sliding_window_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    window: int | None,
    segment_ids: OfTokens | None = None,
    positions: OfTokens | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    sinks: Float[Array, " N"] | None = None,
    implementation: str | None = None,
    block_sizes: BlockSizes | None = None,
    return_lse: bool = False,
) -> Float[Array, "B T N H"] | tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Causal attention in which a query sees itself and the `window - 1` keys before it.

    Logits, softmax and accumulators are float32 for narrower inputs. Query head n reads key/value
    head n // (N / K). Differentiable in q, k, v and sinks.

    Args:
        q, k, v: one floating dtype for all three. With S > T the last query sits on the last key.
        window: W >= 1, or None for full causal attention.
        segment_ids: a token sees only tokens with its own id; id 0 is padding, whose output and
            gradient are 0. [B, T] where T == S; a pair ([B, T], [B, S]) for queries and keys.
        positions: what the window counts, rising strictly within a segment; the place in the row
            if None. For rows from which tokens were dropped. Shapes as of `segment_ids`.
        scale: factor on the logits, a Python number; 1 / sqrt(H) if None.
        soft_cap: c > 0 replaces the scaled logits x by c * tanh(x / c).
        sinks: one more logit for each query head. It takes its share of the softmax and gives
            no value.
        implementation: "xla" (time and memory O(T * W)), "reference" (dense), or None to let the
            device decide, which today is "xla" everywhere. A name never falls back to another.

    Returns:
        The attended values, in the dtype of q.

    Raises:
        ValueError: naming the argument, what it was, what is wanted and what to do.
    """
    _check_shapes(q, k, v, segment_ids, sinks)
    check_options(window=window, scale=scale, soft_cap=soft_cap)
    attend = _IMPLEMENTATIONS[_chosen(implementation)]
    return attend(
        q, k, v,
        window=window,
        segment_ids=segment_ids,
        scale=q.shape[-1] ** -0.5 if scale is None else float(scale),
        soft_cap=None if soft_cap is None else float(soft_cap),
        sinks=sinks,
    )  # fmt: skip


def bad_argument(field: str, got: object, wanted: str, fix: str) -> ValueError:
    """The one form of every argument error in this package."""
    return ValueError(f"{field}: got {got}; wanted {wanted}; fix: {fix}")


def check_options(*, window: int | None, scale: float | None, soft_cap: float | None) -> None:
    """Checks the static options; they decide what is compiled, so they must be Python numbers."""
    if window is not None and (isinstance(window, bool) or not isinstance(window, int)):
        raise bad_argument(
            "window", repr(window), "an int >= 1, or None", "pass a Python int: int(window)"
        )
    if window is not None and window < 1:
        raise bad_argument(
            "window", window, "an int >= 1, or None",
            "a query always sees itself: pass 1 for that alone, None for full causal attention",
        )  # fmt: skip
    if scale is not None and not _is_finite(scale):
        raise bad_argument(
            "scale", repr(scale), "a finite Python number, or None", "None gives 1 / sqrt(H)"
        )
    if soft_cap is not None and not (_is_finite(soft_cap) and soft_cap > 0):
        raise bad_argument(
            "soft_cap", repr(soft_cap), "a positive Python number, or None", "None turns it off"
        )


def check_heads(q: Array, k: Array, v: Array, sinks: Array | None, key_name: str) -> None:
    """Checks what the op and its decode step share: dtypes, head counts, head size, sinks."""
    if k.shape != v.shape:
        raise bad_argument(
            "v", f"shape {v.shape}", f"the shape of {key_name}, {k.shape}",
            "keys and values need the same length, heads and head size",
        )  # fmt: skip
    if q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1]:
        raise bad_argument(
            key_name, f"shape {k.shape}",
            f"batch {q.shape[0]} and head size {q.shape[-1]}, as in q", "check the axis order",
        )  # fmt: skip
    heads, kv_heads = q.shape[-2], k.shape[-2]
    if kv_heads == 0 or heads % kv_heads:
        raise bad_argument(
            key_name, f"{kv_heads} key/value heads", f"a divisor of the {heads} query heads",
            "check that the head axis stands before the head size",
        )  # fmt: skip
    for name, x in ((key_name, k), ("v", v)):
        if x.dtype != q.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
            raise bad_argument(
                name, f"{x.dtype} beside q in {q.dtype}", "one floating dtype for q, k and v",
                "cast the three to one dtype",
            )  # fmt: skip
    if sinks is not None and sinks.shape != (heads,):
        raise bad_argument(
            "sinks", f"shape {sinks.shape}", f"shape ({heads},)", "one logit for each query head"
        )


def _check_shapes(
    q: Array, k: Array, v: Array, segment_ids: Array | None, sinks: Array | None
) -> None:
    for name, x, letters in (("q", q, "B, T, N, H"), ("k", k, "B, S, K, H")):
        if x.ndim != 4 or 0 in x.shape:
            raise bad_argument(
                name, f"shape {x.shape}", f"[{letters}] without empty axes", "add the axes missing"
            )
    check_heads(q, k, v, sinks, "k")
    queries, keys = q.shape[1], k.shape[1]
    if keys < queries:
        raise bad_argument(
            "k", f"{keys} keys for {queries} queries", f"at least {queries} keys",
            "every query needs its own key: pass the keys of the same tokens",
        )  # fmt: skip
    if segment_ids is None:
        return
    if segment_ids.shape != (q.shape[0], queries) or keys != queries:
        raise bad_argument(
            "segment_ids", f"shape {segment_ids.shape} with T = {queries}, S = {keys}",
            f"shape ({q.shape[0]}, {queries}) and T == S",
            "segments are known for whole rows only; without them leave segment_ids out",
        )  # fmt: skip
    if not jnp.issubdtype(segment_ids.dtype, jnp.integer):
        raise bad_argument(
            "segment_ids", f"dtype {segment_ids.dtype}", "an integer dtype", "cast to int32"
        )


def _chosen(implementation: str | None) -> str:
    if implementation is None:
        return "xla"
    known = ", ".join(f'"{name}"' for name in _IMPLEMENTATIONS)
    if implementation in _PLANNED:
        raise bad_argument(
            "implementation", repr(implementation), f"one of {known}, or None",
            "this version has no Mosaic kernels yet; None takes the fastest there is",
        )  # fmt: skip
    if implementation not in _IMPLEMENTATIONS:
        raise bad_argument(
            "implementation", repr(implementation), f"one of {known}, or None", "leave it out"
        )
    return implementation


def _is_finite(x: object) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)
