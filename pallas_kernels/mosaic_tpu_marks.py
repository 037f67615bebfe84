"""What segments and positions change in the TPU kernels: which tiles are visited, what is masked.

Of every block XLA finds the least and greatest segment id, and whether the whole block is one
segment whose positions rise with the places. The kernels get these figures beforehand as scalars:
they say which tiles to leave out, and which look as they would without marks.
"""

import dataclasses

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Int

from pallas_kernels.arguments import bad_argument
from pallas_kernels.mosaic_tpu_tiles import (
    PART,
    Band,
    Rows,
    Section,
    pad_last,
    section_distances,
    section_mask,
)
from pallas_kernels.window import Marks, same_segment, visible

LOW, HIGH, ONLY, SHIFT = range(4)  # figures of a block, in this order
NO_ID = 2**31 - 1
SCALAR_BYTES = 2**20 - 2**16  # of 1 MiB of SMEM, less what the compiler itself puts there


@dataclasses.dataclass(frozen=True)
class Facts:
    """Marks as the kernels take them.

    Attributes:
        of_queries: int32 [B, 2, T]: segment ids and positions in lanes.
        of_keys: int32 [B, S, 2]: the same in sublanes.
        prefetch: scalars, flat: the first and last step of every block; figures of the blocks of
            queries; figures of the blocks of keys.
        has_positions: whether positions have a say.
    """

    of_queries: Int[Array, "B 2 T"]
    of_keys: Int[Array, "B S 2"]
    prefetch: tuple[Array, Array, Array]
    has_positions: bool
    band: Band
    rows: Rows
    by_queries: bool

    def counts(self) -> tuple[int, int]:
        """Blocks of queries and of keys in a row."""
        return self.rows.queries // self.band.queries, self.rows.keys // self.band.keys

    def status(self, refs, b, own, step) -> tuple[Array, Array]:
        """Whether a step has anything to see, and whether marks leave its tile as it is."""
        reach, of_queries, of_keys = refs
        query_blocks, key_blocks = self.counts()
        other = _other_block(self.band, self.rows, self.by_queries, own, step)
        last = (key_blocks if self.by_queries else query_blocks) - 1
        other = jnp.clip(other, 0, last)
        i, j = (own, other) if self.by_queries else (other, own)
        q = [of_queries[(b * query_blocks + i) * 4 + n] for n in range(4)]
        k = [of_keys[(b * key_blocks + j) * 4 + n] for n in range(4)]
        at = b * (query_blocks if self.by_queries else key_blocks) + own
        live = (step >= reach[2 * at]) & (step <= reach[2 * at + 1])
        live &= (q[LOW] <= k[HIGH]) & (k[LOW] <= q[HIGH])
        return live, (q[ONLY] == k[ONLY]) & (q[SHIFT] == k[SHIFT])


def key_block(band: Band, rows: Rows, i, step):
    """The key block that a block of queries visits; negative before the row."""
    return ((i + 1) * band.queries + rows.offset) // band.keys - 1 - step


def query_block(band: Band, rows: Rows, j, step):
    """The query block that a block of keys visits; it may lie outside the row."""
    return j * (band.keys // band.queries) - rows.offset // band.queries + step


def _other_block(band, rows, by_queries, own, step):
    return (key_block if by_queries else query_block)(band, rows, own, step)


def _clamped(band, rows, facts, by_queries, b, own, step, refs):
    """The block to load: one that is there already wherever the step has nothing to see."""
    if facts is not None:
        query_blocks, key_blocks = facts.counts()
        at = b * (query_blocks if by_queries else key_blocks) + own
        step = jnp.clip(step, refs[0][2 * at], refs[0][2 * at + 1])
    last = (rows.keys // band.keys if by_queries else rows.queries // band.queries) - 1
    return jnp.clip(_other_block(band, rows, by_queries, own, step), 0, last)


def key_block_of(band: Band, rows: Rows, facts: Facts | None):
    """A function from (b, i, step, scalar refs) to the key block to load."""
    return lambda b, i, s, *refs: _clamped(band, rows, facts, True, b, i, s, refs)


def query_block_of(band: Band, rows: Rows, facts: Facts | None):
    """A function from (b, j, step, scalar refs) to the query block to load."""
    return lambda b, j, s, *refs: _clamped(band, rows, facts, False, b, j, s, refs)


def gather(marks: Marks, rows: Rows, band: Band, by_queries: bool) -> Facts | None:
    """Marks padded and summed up; None where there are none."""
    if marks.q_segments is None and marks.q_positions is None:
        return None
    has_positions = marks.q_positions is not None
    of_queries = _padded(marks.q_segments, marks.q_positions, rows.front, rows.queries)
    of_keys = _padded(marks.k_segments, marks.k_positions, 0, rows.keys)
    figures_q = _figures(*of_queries, rows.offset, band.queries, has_positions, lonely=-1)
    figures_k = _figures(*of_keys, 0, band.keys, has_positions, lonely=-2)
    reach = _reach(figures_q, figures_k, band, rows, by_queries)
    prefetch = (reach.reshape(-1), figures_q.reshape(-1), figures_k.reshape(-1))
    _check_room(prefetch, len(of_keys[0]))
    return Facts(
        of_queries=jnp.stack(of_queries, axis=1),
        of_keys=jnp.stack(of_keys, axis=2),
        prefetch=prefetch,
        has_positions=has_positions, band=band, rows=rows, by_queries=by_queries,
    )  # fmt: skip


def _check_room(prefetch: tuple[Array, ...], batch: int) -> None:
    """Raises ValueError where the figures of all blocks are more than scalar memory holds."""
    needed = sum(4 * figures.size for figures in prefetch)
    if needed > SCALAR_BYTES:
        raise bad_argument(
            "segment_ids, positions", f"{batch} marked rows at once on a device",
            f"at most {batch * SCALAR_BYTES // needed}, of whose blocks scalar memory holds the "
            "figures",
            "split the batch over devices or with jax.lax.map, or take larger blocks",
        )  # fmt: skip


def _padded(
    segments: Int[Array, "B T"] | None, positions: Int[Array, "B T"] | None, front: int, size: int
) -> tuple[Int[Array, "B P"], Int[Array, "B P"]]:
    """Segment ids and positions of one side, of which one may be absent."""
    if segments is None:
        assert positions is not None
        segments = jnp.ones_like(positions)
    if positions is None:
        positions = jnp.zeros_like(segments)
    # Padding is of no segment: no query sees it, and it sees nothing.
    return (
        pad_last(segments.astype(jnp.int32), front, size),
        pad_last(positions.astype(jnp.int32), front, size),
    )


def _figures(segments, positions, place, block, has_positions, lonely) -> Int[Array, "B blocks 4"]:
    """Figures of every block; `lonely` stands for the id of a block that has several."""
    batch = segments.shape[0]
    ids = segments.reshape(batch, -1, block)
    real = ids != 0
    low = jnp.min(jnp.where(real, ids, NO_ID), axis=-1)
    high = jnp.max(jnp.where(real, ids, -NO_ID), axis=-1)
    one = real.all(axis=-1) & (low == high)
    shift = jnp.zeros_like(low)
    if has_positions:
        places = place + jnp.arange(segments.shape[1])
        shifts = (positions - places).reshape(ids.shape)
        shift = shifts[..., 0]
        one &= (shifts == shift[..., None]).all(axis=-1)
    only = jnp.where(one, low, lonely)
    # An id may be negative: `lonely` must then equal no other block's id.
    shift = jnp.where(one, shift, lonely * 2**29)
    return jnp.stack([low, high, only, shift], axis=-1).astype(jnp.int32)


def _reach(of_queries, of_keys, band: Band, rows: Rows, by_queries: bool):
    """First and last step of every block with anything to see: int32 [B, blocks, 2]."""
    own, others = (of_queries, of_keys) if by_queries else (of_keys, of_queries)
    blocks, last = own.shape[1], others.shape[1] - 1
    steps = jnp.arange(band.steps)
    at = _other_block(band, rows, by_queries, jnp.arange(blocks)[:, None], steps)
    there = (at >= 0) & (at <= last)
    other = others[:, jnp.clip(at, 0, last)]
    mine = own[:, :, None]
    live = there & (mine[..., LOW] <= other[..., HIGH]) & (other[..., LOW] <= mine[..., HIGH])
    first = jnp.argmax(live, axis=-1)
    final = jnp.where(live.any(axis=-1), band.steps - 1 - jnp.argmax(live[..., ::-1], axis=-1), -1)
    return jnp.stack([first, final], axis=-1).astype(jnp.int32)


def specs(band: Band, query_at, key_at) -> list[pl.BlockSpec]:
    """How the marks of a tile's queries and keys are loaded."""
    return [
        pl.BlockSpec((1, 2, band.queries), lambda b, h, *at: (b, 0, query_at(b, *at))),
        pl.BlockSpec((1, band.keys, 2), lambda b, h, *at: (b, key_at(b, *at), 0)),
    ]


def seen(refs, facts: Facts | None, band: Band, step, section: Section, at: int | None):
    """Which (key, query) pairs of a section are visible; None where all are.

    Args:
        at: the step, where the code knows it and marks leave the tile as it is; else None.
    """
    if at is not None:
        return section_mask(section, band.window)
    assert facts is not None  # without marks the code knows every step
    of_queries, of_keys = refs
    queries = of_queries[0, :, pl.ds(section.column, section.width)]
    keys = of_keys[0, pl.ds(section.row, PART), :]
    distance = band.distance(step) + section.distance
    found = visible(section_distances(section), -distance, band.window)
    found &= same_segment(queries[0:1], keys[:, 0:1])
    if facts.has_positions:
        found &= visible(queries[1:2], keys[:, 1:2], band.window)
    return found
