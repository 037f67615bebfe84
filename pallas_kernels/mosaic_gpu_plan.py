"""Which blocks of the other side a block of queries, or of keys, has to visit.

The answer is a small integer table made by XLA ahead of a kernel, so that the kernel itself
only runs three loops. One row is `(start, inner_start, inner_stop, stop)`: blocks in
[start, stop) are visited, those in [inner_start, inner_stop) without a mask.
"""

from types import ModuleType

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from pallas_kernels.window import Marks

# The columns of a table.
START, INNER_START, INNER_STOP, STOP = range(4)


def block_table(
    queries: int,
    keys: int,
    window: int | None,
    marks: Marks,
    *,
    q_block: int,
    k_block: int,
    by_key: bool = False,
) -> Int[Array, "b blocks 4"]:
    """The table of every query block over key blocks, or with `by_key` the other way round.

    Args:
        queries, keys: T and S before padding.
        marks: padded to whole blocks; padding carries id 0.

    Returns:
        int32, b = B with marks and 1 without.
    """
    # Without marks all is known now, and numpy leaves XLA no matrix of blocks to fold.
    xp = np if marks.q_segments is None and marks.q_positions is None else jnp
    reached, inner = _by_place(xp, queries, keys, window, q_block, k_block)
    reached, inner = reached[None], inner[None]
    q_segments, k_segments, q_positions, k_positions = marks
    if q_segments is not None and k_segments is not None:
        reached, inner = _by_segment(reached, inner, q_segments, k_segments, q_block, k_block)
    if q_positions is not None and k_positions is not None:
        q_positions = q_positions.reshape(q_positions.shape[0], -1, q_block)
        k_positions = k_positions.reshape(k_positions.shape[0], -1, k_block)
        reached, inner = _by_position(reached, inner, q_positions, k_positions, window)
    if by_key:
        reached, inner = reached.swapaxes(1, 2), inner.swapaxes(1, 2)
    return jnp.asarray(_ranges(xp, reached, inner))


def _by_place(
    xp: ModuleType, queries: int, keys: int, window: int | None, q_block: int, k_block: int
) -> tuple[Bool[Array, "q k"], Bool[Array, "q k"]]:
    first_q = xp.arange(-(-queries // q_block))[:, None] * q_block
    # A query of the padding asks for nothing; a key of the padding must stay masked.
    last_q = xp.minimum(first_q + q_block, queries) - 1
    first_k = xp.arange(-(-keys // k_block))[None, :] * k_block
    last_k = first_k + k_block - 1
    offset = keys - queries
    return _within(first_q + offset, last_q + offset, first_k, last_k, window)


def _within(first_q, last_q, first_k, last_k, window: int | None):
    """Whether some pair, and whether every pair, of two ranges of positions is in the window."""
    least, most = first_q - last_k, last_q - first_k
    some, every = most >= 0, least >= 0
    return (some, every) if window is None else (some & (least < window), every & (most < window))


def _by_segment(
    reached: Bool[Array, "b q k"],
    inner: Bool[Array, "b q k"],
    q_segments: Int[Array, "B T"],
    k_segments: Int[Array, "B S"],
    q_block: int,
    k_block: int,
) -> tuple[Bool[Array, "B q k"], Bool[Array, "B q k"]]:
    def span(ids: Array, block: int) -> tuple[Array, Array, Array]:
        ids = ids.reshape(ids.shape[0], -1, block)
        limits = jnp.iinfo(ids.dtype)
        low = jnp.where(ids == 0, limits.max, ids).min(axis=-1)
        high = jnp.where(ids == 0, limits.min, ids).max(axis=-1)
        whole = (ids == ids[..., :1]).all(axis=-1) & (ids[..., 0] != 0)
        return low, high, whole

    q_low, q_high, q_whole = (x[:, :, None] for x in span(q_segments, q_block))
    k_low, k_high, k_whole = (x[:, None, :] for x in span(k_segments, k_block))
    # Nothing but padding has low > high on its side, and so meets no other range.
    meet = (q_low <= k_high) & (k_low <= q_high) & (q_low <= q_high) & (k_low <= k_high)
    return reached & meet, inner & q_whole & k_whole & (q_low == k_low)


def _by_position(
    reached: Bool[Array, "b q k"],
    inner: Bool[Array, "b q k"],
    q: Int[Array, "B q block"],
    k: Int[Array, "B k block"],
    window: int | None,
) -> tuple[Bool[Array, "B q k"], Bool[Array, "B q k"]]:
    some, every = _within(
        q.min(axis=-1)[:, :, None], q.max(axis=-1)[:, :, None],
        k.min(axis=-1)[:, None, :], k.max(axis=-1)[:, None, :], window,
    )  # fmt: skip
    return reached & some, inner & every


def _ranges(xp: ModuleType, reached, inner) -> Int[Array, "b blocks 4"]:
    blocks = reached.shape[-1]
    start = xp.argmax(reached, axis=-1)
    stop = xp.where(reached.any(axis=-1), blocks - xp.argmax(reached[..., ::-1], axis=-1), start)
    # The first run of unmasked blocks; where there is none, it is empty and stands at the end.
    inner = inner & reached
    inner_start = xp.where(inner.any(axis=-1), xp.argmax(inner, axis=-1), stop)
    past = ~inner & (xp.arange(blocks) >= inner_start[..., None])
    inner_stop = xp.where(past.any(axis=-1), xp.argmax(past, axis=-1), blocks)
    inner_stop = xp.minimum(xp.maximum(inner_start, inner_stop), stop)
    return xp.stack([start, inner_start, inner_stop, stop], axis=-1).astype(xp.int32)
