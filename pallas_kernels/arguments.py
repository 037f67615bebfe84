"""The checks of what callers pass: one form of error, raised before any work."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from pallas_kernels.tuning import BlockSizes
from pallas_kernels.window import Marks

_LARGEST_INT = 2**31 - 1

# One array where queries and keys are the same tokens, otherwise one for each of the two.
OfTokens = Int[Array, "B T"] | tuple[Int[Array, "B T"], Int[Array, "B S"]]


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


def check_rows(q: Array, k: Array, v: Array, sinks: Array | None) -> None:
    """Checks the arrays of a whole-row call against each other."""
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


def marks_of(q: Array, k: Array, segment_ids: OfTokens | None, positions: OfTokens | None) -> Marks:
    """The checked marks of a call: each a pair for queries and keys, or absent."""
    q_segments, k_segments = _pair("segment_ids", segment_ids, q, k)
    return Marks(q_segments, k_segments, *_pair("positions", positions, q, k))


def _pair(
    name: str, given: OfTokens | None, q: Array, k: Array
) -> tuple[Array, Array] | tuple[None, None]:
    if given is None:
        return None, None
    (batch, queries), keys = q.shape[:2], k.shape[1]
    if not isinstance(given, tuple):
        if given.shape != (batch, queries) or keys != queries:
            raise bad_argument(
                name, f"shape {given.shape} with T = {queries}, S = {keys}",
                f"shape ({batch}, {queries}) and T == S",
                "where there are more keys than queries pass a pair ([B, T], [B, S])",
            )  # fmt: skip
        given = (given, given)
    elif tuple(x.shape for x in given) != ((batch, queries), (batch, keys)):
        raise bad_argument(
            name, f"a tuple of shapes {', '.join(str(x.shape) for x in given)}",
            f"shapes ({batch}, {queries}) and ({batch}, {keys})",
            "the first is of the queries' tokens, the second of the keys'",
        )  # fmt: skip
    for x in given:
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise bad_argument(name, f"dtype {x.dtype}", "an integer dtype", "cast to int32")
    # Narrower integers would wrap where they are subtracted.
    first, second = given
    return first.astype(jnp.int32), second.astype(jnp.int32)


def effective_window(window: int | None, keys: int, marks: Marks) -> int | None:
    """None for a window that reaches every key: one program for all of them, and no overflow."""
    if window is None or (marks.q_positions is None and window >= keys):
        return None
    return min(window, _LARGEST_INT)


def vary_together(*arrays: Array | None) -> list[Any]:
    """Arrays that vary over the same axes of a `shard_map`: over all that any of them varies over.

    A derivative rule returns gradients that vary as its inputs do. The sum over the axes along
    which an array was whole belongs to this cast's own derivative.
    """
    axes = frozenset().union(*(_varying(x) for x in arrays if x is not None))
    return [
        x
        if x is None or axes == _varying(x)
        else lax.pcast(x, tuple(axes - _varying(x)), to="varying")
        for x in arrays
    ]


def _varying(x: Array) -> frozenset[str]:
    return jax.typeof(x).manual_axis_type.varying


def check_block_sizes(block_sizes: BlockSizes | None, implementation: str) -> None:
    """Checks that block sizes are sensible numbers, given to an implementation that has blocks."""
    if block_sizes is None:
        return
    if not isinstance(block_sizes, BlockSizes):
        raise bad_argument(
            "block_sizes", repr(block_sizes), "a BlockSizes, or None",
            "from pallas_kernels.tuning import BlockSizes",
        )  # fmt: skip
    if implementation == "reference":
        raise bad_argument(
            "block_sizes", block_sizes, 'None with implementation "reference"',
            "leave it out: dense attention has no blocks",
        )  # fmt: skip
    for name in ("forward", "dq", "dkv"):
        sizes = getattr(block_sizes, name)
        if len(sizes) != 2 or not all(type(size) is int and size > 0 for size in sizes):
            raise bad_argument(
                f"block_sizes.{name}",
                sizes,
                "(queries, keys), two ints >= 1",
                "None takes a default",
            )
    if type(block_sizes.strip) is not int or block_sizes.strip < 1:
        raise bad_argument("block_sizes.strip", block_sizes.strip, "an int >= 1", "leave it out")


def _is_finite(x: object) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)
