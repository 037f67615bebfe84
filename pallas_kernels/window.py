"""The one definition of the window, and the ranges that follow from it.

Positions count keys: key s stands at position s, and query t of T over S keys stands at
position t + (S - T), so that the last query sits on the last key. A query sees a key when
`0 <= q_pos - k_pos < window` and, where segments are given, both carry the same non-zero id.
Ranges are half open.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Marks(NamedTuple):
    """What is known of each token beside its place in the row; each pair is whole or absent.

    Attributes:
        q_segments, k_segments: [B, T] and [B, S]; a query sees keys of its own id; 0 is padding.
        q_positions, k_positions: [B, T] and [B, S], rising strictly within a segment. The window
            then counts positions as well as places. Two tokens of a segment are at least as far
            apart in position as in place, so that what the places rule out stays ruled out.
    """

    q_segments: Int[Array, "B T"] | None = None
    k_segments: Int[Array, "B S"] | None = None
    q_positions: Int[Array, "B T"] | None = None
    k_positions: Int[Array, "B S"] | None = None


NO_MARKS = Marks()


def visible(
    q_pos: Int[Array, "..."], k_pos: Int[Array, "..."], window: int | None
) -> Bool[Array, "..."]:
    """Whether a query at `q_pos` reaches a key at `k_pos`; the arguments broadcast.

    `window = W` is the query's own position and the W - 1 before it; None has no lower end.
    """
    distance = q_pos - k_pos
    reached = distance >= 0
    return reached if window is None else reached & (distance < window)


def same_segment(q_segment: Int[Array, "..."], k_segment: Int[Array, "..."]) -> Bool[Array, "..."]:
    """Whether two tokens belong to one segment; padding (id 0) belongs to none."""
    return (q_segment == k_segment) & (q_segment != 0)


def attention_mask(
    queries: int, keys: int, window: int | None, marks: Marks = NO_MARKS
) -> Bool[Array, "b T S"]:
    """The whole mask, b = B with marks and 1 without; for oracles and tests only."""
    q_pos = jnp.arange(queries)[:, None] + (keys - queries)
    mask = visible(q_pos, jnp.arange(keys)[None, :], window)[None]
    q_segments, k_segments, q_positions, k_positions = marks
    if q_segments is not None and k_segments is not None:
        mask &= same_segment(q_segments[:, :, None], k_segments[:, None, :])
    if q_positions is not None and k_positions is not None:
        mask &= visible(q_positions[:, :, None], k_positions[:, None, :], window)
    return mask


def key_range(first: int, stop: int, window: int | None) -> tuple[int, int]:
    """Keys that some query at a position in [first, stop) can see."""
    return (0 if window is None else max(0, first - window + 1)), stop


def query_range(first: int, stop: int, window: int | None, positions: int) -> tuple[int, int]:
    """Query positions, below `positions`, that can see some key in [first, stop).

    Not the key range mirrored: key j is seen from j up to j + window - 1.
    """
    return first, (positions if window is None else min(positions, stop - 1 + window))
