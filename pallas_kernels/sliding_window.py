"""The public op: its contract, and the way to the implementation."""

import functools
from collections.abc import Callable
from typing import Any, Literal, overload

from jaxtyping import Array, Float

from pallas_kernels import tuning
from pallas_kernels.arguments import (
    OfTokens,
    check_block_sizes,
    check_options,
    check_rows,
    effective_window,
    marks_of,
    vary_together,
)
from pallas_kernels.banded_xla import banded_attention
from pallas_kernels.choice import chosen_implementation, device, kernels
from pallas_kernels.flash import Call, flash_attention
from pallas_kernels.reference import reference_attention
from pallas_kernels.tuning import BlockSizes
from pallas_kernels.window import Marks


@overload
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
    return_lse: Literal[False] = False,
) -> Float[Array, "B T N H"]: ...


@overload
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
    return_lse: Literal[True],
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]: ...


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
        implementation: "mosaic_tpu", "mosaic_gpu" (compute capability 9.x, bfloat16, H 64, 128 or
            256, jax >= 0.11), "xla" (any device) or "reference" (dense). A name never falls back
            to another. None decides by the device compiled for: the Mosaic kernels of a TPU, those
            of a GPU where they apply, and "xla" for all else.
        block_sizes: the tiles' sizes, by device, head size and window if None. "xla" takes
            `forward[0]` as the query block of both passes; "reference" has none.
        return_lse: return the log-sum-exp too. It is differentiable like the output, so that
            attention over parts of the keys can be merged.

    Returns:
        The attended values, in the dtype of q. With `return_lse` a pair: these, and the natural
        log-sum-exp of each query's logits [B, T, N], the sink included, in float32 or wider; -inf
        for a query that sees no key and has no sink.

    Raises:
        ValueError: naming the argument, what it was, what is wanted and what to do.
    """
    check_rows(q, k, v, sinks)
    check_options(window=window, scale=scale, soft_cap=soft_cap)
    marks = marks_of(q, k, segment_ids, positions)
    window = effective_window(window, k.shape[1], marks)
    name = chosen_implementation(implementation, q.dtype, q.shape[-1])
    check_block_sizes(block_sizes, name)
    q, k, v, sinks, *varying_marks = vary_together(q, k, v, sinks, *marks)
    marks = Marks(*varying_marks)
    out, lse = _attend(name, block_sizes, return_lse)(
        q, k, v,
        window=window,
        marks=marks,
        scale=q.shape[-1] ** -0.5 if scale is None else float(scale),
        soft_cap=None if soft_cap is None else float(soft_cap),
        sinks=sinks,
    )  # fmt: skip
    return (out, lse) if return_lse else out


def _attend(
    name: str, block_sizes: BlockSizes | None, return_lse: bool
) -> Callable[..., tuple[Array, Any]]:
    if name == "reference":
        return reference_attention
    if name == "xla":
        return functools.partial(banded_attention, block_sizes=block_sizes, return_lse=return_lse)
    return functools.partial(_mosaic_attention, name, block_sizes)


def _mosaic_attention(
    name: str,
    block_sizes: BlockSizes | None,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    window: int | None,
    marks: Marks,
    scale: float,
    soft_cap: float | None,
    sinks: Float[Array, " N"] | None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    blocks = block_sizes or tuning.block_sizes(device()[1], q.shape[-1], window)
    call = Call(window, scale, soft_cap, blocks)
    return flash_attention(kernels(name, "KERNELS"), call, q, k, v, marks, sinks)
