"""Which tiles the TPU kernels visit, what each of them can see, and how rows are padded.

A tile is a block of queries beside a block of keys, its logits held keys by queries: a softmax
then reduces over sublanes, which the vector unit does, and not over lanes. All arrays that have a
row axis of queries, and the values, come transposed (head size by row), so that no product
transposes anything.

Blocks are aligned by padding, so a step's distance (the position of the tile's first query minus
that of its first key) is known when the kernel is built: every edge of the window gets its own
code, which leaves out the parts that nothing sees, and tiles inside the window have no mask.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from pallas_kernels.arguments import bad_argument

# A vector register has 128 lanes: queries and keys are worked on by so many at a time.
PART = 128
# Below any logit, above HIDDEN: exp2(HIDDEN - FLOOR) is 0 where a row has seen no key.
FLOOR = -1e30
HIDDEN = -2e30
QUERY_BYTES = 9 * 2**20  # of the 16 MiB of VMEM that every chip gives a kernel unasked
BESIDE_BYTES = 7 * 2**20  # the rest of them: of keys, of gradients that wait
CORE_BYTES = 60 * 2**20  # of the 64 MiB that every core has from v5 on
LOG2_E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows padded so that blocks align.

    Attributes:
        front: query rows put before the first; they stand on real, earlier keys.
        queries, keys: rows after padding.
        offset: position of the first padded query.
    """

    front: int
    queries: int
    keys: int
    offset: int


def pad_rows(queries: int, keys: int, unit: int) -> Rows:
    """The smallest padding that puts queries and keys on multiples of `unit`."""
    front = (keys - queries) % unit
    offset = keys - queries - front
    padded = pl.cdiv(front + queries, unit) * unit
    # Padded keys stand after the last query, where nothing sees them.
    return Rows(front=front, queries=padded, keys=offset + padded, offset=offset)


def fit_blocks(blocks: tuple[int, int], positions: int, q: Array, kv_heads: int) -> tuple[int, int]:
    """`blocks` (queries, keys), halved where the row or VMEM has no use for so much.

    Raises:
        ValueError: no block of queries is small enough for VMEM.
    """
    queries, keys = blocks
    _, _, heads, head_dim = q.shape
    row = query_bytes(1, heads // kv_heads, head_dim, q.dtype)
    while queries % (2 * PART) == 0 and (queries // 2 >= positions or queries * row > QUERY_BYTES):
        # One stays a multiple of the other, whichever is larger.
        keys, queries = keys // 2 if keys == queries else keys, queries // 2
    while keys % (2 * PART) == 0 and keys // 2 >= positions:
        keys //= 2
    if queries * row + BESIDE_BYTES > CORE_BYTES:
        most = (CORE_BYTES - BESIDE_BYTES) * heads // kv_heads // (PART * row)
        raise ValueError(
            f"q: got {heads // kv_heads} query heads of size {head_dim} for each key head, in "
            f"blocks of {queries}; wanted at most {most} heads, in blocks of {PART}, to fit into "
            'VMEM; fix: try smaller block_sizes or implementation="xla"'
        )
    return queries, keys


def query_bytes(queries: int, group: int, head_dim: int, dtype) -> int:
    """VMEM of a block of queries with all heads of a group.

    At times sixteen bytes for each bf16 number: q, d_out and an output, each twice, and a sum in
    float32. A figure of a query, such as its log-sum-exp, takes eight sublanes; there are four.
    """
    return queries * group * (8 * jnp.dtype(dtype).itemsize * head_dim + 4 * 8 * 4)


@dataclasses.dataclass(frozen=True)
class Section:
    """PART keys of a tile beside some of its queries.

    Attributes:
        row, column: first key and first query within the tile.
        width: queries.
        distance: position of the first query minus that of the first key; where the step is not
            known, the step's distance comes on top.
        causal, windowed: which sides of the window cut the section.
    """

    row: int
    column: int
    width: int
    distance: int
    causal: bool = False
    windowed: bool = False


@dataclasses.dataclass(frozen=True)
class Band:
    """The tiles that one block visits, one a step.

    Attributes:
        queries, keys: of a tile.
        lead, stride: distance of step 0, and what each step adds to it.
        steps: as many as the window can reach.
    """

    queries: int
    keys: int
    window: int | None
    lead: int
    stride: int
    steps: int

    @classmethod
    def of_queries(cls, blocks: tuple[int, int], window: int | None, keys: int) -> "Band":
        """A block of queries visits its own keys first, then earlier ones."""
        queries, block = blocks
        _check_blocks(blocks, queries, block, "queries by keys, forward and dq")
        steps = pl.cdiv(keys if window is None else min(keys, window + queries - 1), block)
        return cls(queries, block, window, block - queries, block, steps)

    @classmethod
    def of_keys(cls, blocks: tuple[int, int], window: int | None, positions: int) -> "Band":
        """A block of keys visits the queries on its own positions first, then later ones."""
        block, keys = blocks
        _check_blocks(blocks, keys, block, "keys by queries, dkv")
        reached = positions if window is None else min(positions, window + keys - 1)
        steps = pl.cdiv(reached, block)
        return cls(block, keys, window, 0, block, steps)

    def distance(self, step):
        """Position of the first query minus that of the first key."""
        return self.lead + self.stride * step

    def whole(self, step: int) -> bool:
        """Whether every query of the tile sees every key, marks aside."""
        distance = self.distance(step)
        inside = self.window is None or distance + self.queries - 1 < self.window
        return inside and distance - (self.keys - 1) >= 0

    def inner(self) -> tuple[int, int]:
        """The steps that need no mask: [first, stop)."""
        steps = [step for step in range(self.steps) if self.whole(step)]
        return (steps[0], steps[-1] + 1) if steps else (0, 0)

    def edges(self) -> list[int]:
        return [step for step in range(self.steps) if not self.whole(step)]

    def strips_of_queries(self, step: int | None, width: int = PART) -> list[list[Section]]:
        """What each `width` queries of the tile see: all where the step is None, not known."""
        rows, columns = range(0, self.keys, PART), range(0, self.queries, width)
        return [self._seen([(row, column) for row in rows], step, width) for column in columns]

    def strips_of_keys(self, step: int | None) -> list[list[Section]]:
        """The same of each PART keys: what sees them."""
        rows, columns = range(0, self.keys, PART), range(0, self.queries, PART)
        return [self._seen([(row, column) for column in columns], step, PART) for row in rows]

    def _seen(self, corners: list[tuple[int, int]], step: int | None, width: int) -> list[Section]:
        if step is None:
            return [Section(row, column, width, column - row) for row, column in corners]
        found = []
        for row, column in corners:
            distance = self.distance(step) + column - row
            least, most = distance - (PART - 1), distance + width - 1
            if most < 0 or (self.window is not None and least >= self.window):
                continue
            windowed = self.window is not None and most >= self.window
            found.append(Section(row, column, width, distance, least < 0, windowed))
        return found


def _check_blocks(blocks, long: int, short: int, order: str) -> None:
    if long % short or short % PART:
        raise ValueError(
            f"block_sizes: got {blocks} ({order}); wanted multiples of {PART}, the first block "
            "a multiple of the other; fix: try powers of two"
        )


def for_each_path(
    band: Band, step: Array, live: Array, plain: Array | None, tile: Callable[..., None]
) -> None:
    """Runs the one piece of code that suits this step's tile.

    Args:
        live: whether the tile has anything to see.
        plain: with marks, whether they leave the tile as it would be without them.
        tile: called with a static step (any inner one stands for all), or None for the code that
            masks everything.
    """
    clear = live if plain is None else live & plain
    for edge in band.edges():
        pl.when(clear & (step == edge))(functools.partial(tile, edge))
    first, stop = band.inner()
    if first < stop:
        pl.when(clear & (step >= first) & (step < stop))(lambda: tile(first))
    if plain is not None:
        pl.when(live & ~plain)(lambda: tile(None))


def section_distances(section: Section) -> Array:
    """Query's place minus key's, were the section's first of each at one position."""
    shape = (PART, section.width)
    return lax.broadcasted_iota(jnp.int32, shape, 1) - lax.broadcasted_iota(jnp.int32, shape, 0)


def section_mask(section: Section, window: int | None) -> Array | None:
    """Which (key, query) pairs of a section are visible; None where all are."""
    if not (section.causal or section.windowed):
        return None
    ahead = section_distances(section)
    seen = None
    if section.causal:
        seen = ahead >= -section.distance
    if section.windowed:
        assert window is not None  # or nothing would cut the section on that side
        near = ahead < window - section.distance
        seen = near if seen is None else seen & near
    return seen


def cap(logits: Array, soft_cap: float | None) -> Array:
    """Logits in units of log 2, from what `query_factor` made of the queries."""
    return logits if soft_cap is None else (soft_cap * LOG2_E) * jnp.tanh(logits)


def query_factor(scale: float, soft_cap: float | None) -> float:
    """What the queries are multiplied by beforehand, so that a tile multiplies nothing."""
    return scale * LOG2_E if soft_cap is None else scale / soft_cap


def matmul(a: Array, b: Array, contract: tuple[int, int] = (1, 0)) -> Array:
    """A product in float32; float32 operands keep all their bits."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(
        a, b, (((contract[0],), (contract[1],)), ((), ())),
        precision=precision, preferred_element_type=jnp.float32,
    )  # fmt: skip


def transpose_queries(x: Array, rows: Rows, kv_heads: int) -> Array:
    """[B, T, N, H] to padded [B, K, G, H, T]."""
    batch, queries, heads, head_dim = x.shape
    x = x.transpose(0, 2, 3, 1).reshape(batch, kv_heads, heads // kv_heads, head_dim, queries)
    return pad_last(x, rows.front, rows.queries)


def pad_last(x: Array, front: int, size: int, value=0) -> Array:
    """Pads the last axis to `size`, `front` of it before the first."""
    widths = [(0, 0)] * (x.ndim - 1) + [(front, size - front - x.shape[-1])]
    return jnp.pad(x, widths, constant_values=value)


def pad_keys(x: Array, rows: Rows) -> Array:
    """[B, S, K, H] to padded [B, K, S, H]."""
    pad = rows.keys - x.shape[1]
    return jnp.pad(x.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, pad), (0, 0)))


def for_each_head(group: int, head: Callable[[Array | int], None]) -> None:
    """Runs `head` for every query head of a group; one copy of its code."""
    if group == 1:
        head(0)
    else:
        lax.fori_loop(0, group, lambda g, _: head(g), None)


def pipeline(
    strips: list[list[Section]],
    width: int,
    begin: Callable[[int, list[Section]], Any],
    finish: Callable[[int, Any], None],
) -> None:
    """Works through a tile's strips of `width`, beginning each before the one ahead is finished.

    So one strip's products are under way in the matrix unit while the vector unit works on
    another's softmax. The longest strip goes first: nothing runs beside the end of the last.
    """
    longest, *others = sorted(range(len(strips)), key=lambda n: -len(strips[n]))
    waiting = longest * width, begin(longest * width, strips[longest])
    for n in others:
        begun = n * width, begin(n * width, strips[n])
        finish(*waiting)
        waiting = begun
    finish(*waiting)


def call_options(
    name: str, products: int, pairs: int, operands, out_shape, block: int, carries: bool = False
) -> dict[str, Any]:
    """What every kernel's `pallas_call` is given, for `pairs` visible (query, key) pairs.

    Args:
        operands: the first is the queries, [B, K, G, H, T].
        block: queries of a tile.
    """
    moved = sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in (*operands, *out_shape))
    _, _, group, head_dim, _ = operands[0].shape
    held = query_bytes(block, group, head_dim, operands[0].dtype)
    return {
        "name": name,
        "out_shape": out_shape,
        # Rows and heads are independent, and so are blocks that carry nothing over; steps add up.
        "compiler_params": pltpu.CompilerParams(
            dimension_semantics=(
                "parallel",
                "parallel",
                "arbitrary" if carries else "parallel",
                "arbitrary",
            ),
            vmem_limit_bytes=None if held <= QUERY_BYTES else held + BESIDE_BYTES,
        ),
        "cost_estimate": pl.CostEstimate(
            flops=2 * products * pairs * head_dim, transcendentals=pairs, bytes_accessed=moved
        ),
    }


def check_dtype(q: Array) -> None:
    """Raises ValueError for what the TPU compiler refuses to load or the kernels would round."""
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        raise bad_argument(
            "q", f"dtype {q.dtype} for 'mosaic_tpu'", "bfloat16 or float32",
            'cast, or pass implementation="xla", which serves here',
        )  # fmt: skip


def out_like(x: Array, shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
    """An output that varies over the same axes of a `shard_map` as `x`."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def visible_pairs(queries: int, keys: int, window: int | None) -> int:
    """(query, key) pairs inside the window, marks aside."""
    first = keys - queries + 1  # keys that the first query has before and at it
    if window is None or keys <= window:
        return queries * (first + keys) // 2
    short = max(0, min(queries, window - first))
    return short * (2 * first + short - 1) // 2 + (queries - short) * window
