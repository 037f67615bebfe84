"""What the Mosaic GPU kernels share: shared-memory tiles, products, masks, the softmax step.

A *warpgroup* is Pallas's thread: 128 lanes that issue one `wgmma` together. Every product has
two forms. On the GPU the probabilities stay in registers; with `in_smem` they go through shared
memory and sums are kept outside of the accumulator, which is slower but all the interpreter
knows (it has neither `wgmma` on registers nor `run_state`).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from pallas_kernels.flash import Call
from pallas_kernels.window import Marks, same_segment, visible

LOG2E = math.log2(math.e)
LN2 = math.log(2.0)
# Finite, so that a row whose keys are all masked so far gives no inf - inf.
NO_MAXIMUM = -1e30
# Rows of one wgmma: each compute warpgroup holds a multiple of these.
ROWS = 64
COMPUTE_WARPGROUPS = 2
# 128 * (2 * 240 + 24) of the 65,536 registers there are; both must be multiples of 8.
COMPUTE_REGISTERS, MEMORY_REGISTERS = 240, 24
PARAMS = plgpu.CompilerParams(approx_math=True)

BY_ROW = plgpu.Layout.WGMMA.reduce(1)
BY_COLUMN = plgpu.Layout.WGMMA.reduce(0)
# Typed here: mypy finds that the first lacks an argument (jax 0.10) and that the others are
# abstract (jax 0.12); to the versions of jax that run these kernels neither applies.
_load: Callable[..., Array] = plgpu.load
_TRANSFORMS: Any = (plgpu.TilingTransform, plgpu.SwizzleTransform)


def smem_tiles(shape: tuple[int, ...], dtype: Any, columns: int = 64) -> Any:
    """16-bit tiles as TMA writes and wgmma reads them: 8 rows of `columns`, swizzled.

    wgmma wants one width for both factors, and none above the length of the sum.
    """
    tiling, swizzle = _TRANSFORMS
    transforms = (tiling((8, columns)), swizzle(2 * columns))
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def zeros(shape: tuple[int, int]) -> Array:
    return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), plgpu.Layout.WGMMA)


def along_rows(x: Array, shape: tuple[int, ...]) -> Array:
    return lax.broadcast_in_dim(x, shape, [0])


def along_columns(x: Array, shape: tuple[int, ...]) -> Array:
    return lax.broadcast_in_dim(x, shape, [1])


def not_ahead(index: Array, block: Array) -> Array:
    """`index`, computed in a way that seems to depend on the loop over blocks.

    The address of every 16 columns of a tile that stays is otherwise computed ahead of the loop,
    and held in two registers: 64 registers for the two tiles at a head size of 256.
    """
    return index + lax.shift_right_arithmetic(block, jnp.int32(31))  # blocks are not negative


def product(
    a: Any, b: Any, *, start: Array | None = None, issued: Callable[[], None] | None = None,
    in_smem: Any | None = None,
) -> Array:  # fmt: skip
    """start + the sum of a[i] @ b[i]' over the parts of two shared-memory tiles, in float32.

    Complete on return.

    Args:
        a, b: [parts, rows, columns].
        start: in the wgmma layout; 0 if None.
        issued: called between the issue of the products and the wait for them.
        in_smem: not None where the accumulator cannot be preset.
    """

    def multiply(total):
        for i in range(a.shape[0]):
            plgpu.wgmma(total, a.at[i], b.at[i].transpose((1, 0)))
        if issued is not None:
            issued()

    def multiply_alone(total):
        multiply(total)
        return total[...]  # waits for all outstanding wgmma

    if start is not None and in_smem is None:
        return pl.run_state(multiply)(plgpu.ACC.init(start))  # waits likewise
    shape = (a.shape[1], b.shape[1])
    total = pl.run_scoped(multiply_alone, plgpu.ACC(shape, jnp.float32))
    return total if start is None else total + start


def add_product(total: Array, a: Array, parts: Any, part: Any, in_smem: Any | None) -> Array:
    """total + a @ parts[part] for `a` in registers; complete on return.

    Args:
        in_smem: a buffer for `a` where wgmma cannot take it from registers.
    """
    if in_smem is None:
        # The index is taken inside: as a constant from outside it would not lower.
        return pl.run_state(lambda sum_: plgpu.wgmma(sum_, a, parts.at[part]))(
            plgpu.ACC.init(total)
        )
    in_smem[...] = a
    plgpu.commit_smem()  # wgmma reads through the async proxy, which must see the store

    rows, columns = total.shape

    def multiply(sum_):
        plgpu.wgmma(sum_, in_smem, parts.at[part])
        return sum_[...]

    return total + pl.run_scoped(multiply, plgpu.ACC((rows, columns), jnp.float32))


def mark_pairs(marks: Marks) -> list[tuple[str, str]]:
    """The names of the marks given, of the query and of the key side."""
    pairs = [("q_segments", "k_segments"), ("q_positions", "k_positions")]
    return [pair for pair in pairs if getattr(marks, pair[0]) is not None]


def row_of(ref: Any, *at: Any) -> Array:
    """A stretch of global memory as one value for each row of a tile."""
    return _load(ref.at[at], layout=BY_ROW, optimized=False)


def column_of(ref: Any) -> Array:
    """A stretch of shared memory as one value for each column of a tile."""
    return _load(ref, layout=BY_COLUMN)


@dataclasses.dataclass(frozen=True)
class Sight:
    """Which queries of a tile see which keys.

    Attributes:
        offset: position of query 0, S - T.
        q_axis: the axis of the tile along which queries lie.
        first_row: place, on its own side, of the tile's first row.
        rows: the marks of the tile's rows, by name.
    """

    window: int | None
    offset: int
    q_axis: int
    first_row: Array
    rows: dict[str, Array]

    def hide(self, r: Array, first_column: Array, columns: Sequence[Any]) -> Array:
        """r where the query sees the key, -inf elsewhere.

        Args:
            columns: the marks of the tile's columns in shared memory, in the order of `rows`.
        """
        q, k = (
            plgpu.broadcasted_iota(jnp.int32, r.shape, axis, layout=plgpu.Layout.WGMMA)
            for axis in (self.q_axis, 1 - self.q_axis)
        )
        ahead = self.first_row - first_column
        # Only the distance counts, so the whole of it goes to the side of the queries.
        shift = self.offset + (ahead if self.q_axis == 0 else -ahead)
        r = jnp.where(visible(q + shift, k, self.window), r, -jnp.inf)
        # One rule after the other: a mask of all rules, held beside r, costs registers.
        for (name, row), column in zip(self.rows.items(), columns, strict=True):
            sides = (along_rows(row, r.shape), along_columns(column_of(column), r.shape))
            q, k = sides[self.q_axis], sides[1 - self.q_axis]
            by_segment = name.endswith("segments")
            seen = same_segment(q, k) if by_segment else visible(q, k, self.window)
            r = jnp.where(seen, r, -jnp.inf)
        return r


def raw_logits(s: Array, call: Call) -> tuple[Array, float]:
    """The logits of a product, as r and c > 0 with logits = r * c / log2(e).

    c is left to the exponent, where it costs nothing: exp2(r * c - maximum) is one
    multiply-add. With a soft cap r is the tanh, whose derivative is 1 - r * r.
    """
    if call.soft_cap is not None:
        # tanh.approx is wrong by 2^-11, times the cap; this form is right to about 2^-21. A
        # division is a subroutine; the square of rsqrt is one instruction and a product.
        root = lax.rsqrt(jnp.exp2(s * (2 * LOG2E * call.scale / call.soft_cap)) + 1.0)
        return 1.0 - 2.0 * root * root, call.soft_cap * LOG2E
    return (s, call.scale * LOG2E) if call.scale > 0 else (s * call.scale, LOG2E)


def probabilities(
    s: Array, lse: Array, call: Call, hide: Callable[[Array], Array] | None
) -> tuple[Array, Array]:
    """A tile's share of the softmax, from the product and the log-sum-exp times log2(e).

    Returns:
        The probabilities; and the same times the derivative of the soft cap, which times
        (dp - delta) is the derivative in the product, but for the scale: that waits for the end.
    """
    r, factor = raw_logits(s, call)
    exponent = r * factor - lse
    if hide is not None:
        # The exponent rather than r: the derivative of the cap must stay finite.
        exponent = hide(exponent)
    p = jnp.exp2(exponent)
    return p, p if call.soft_cap is None else p * (1.0 - r * r)


@dataclasses.dataclass(frozen=True)
class Here:
    """Where in the grid a warpgroup is, and its row of the block table."""

    head: Array
    block: Array
    batch: Array
    warpgroup: Array
    table: Sequence[Array]

    @staticmethod
    def read(table_ref: Any) -> "Here":
        head, block, batch, warpgroup = (
            lax.axis_index(name) for name in ("heads", "blocks", "batch", "warpgroup")
        )
        row = jnp.minimum(batch, table_ref.shape[0] - 1)  # without marks one row serves all
        # Within shard_map what a reference gives is marked as varying, and what an operation gives
        # is not; a loop wants the same of its first index as of the next ones.
        table = [table_ref[row, block, i] + 0 for i in range(4)]
        return Here(head, block, batch, warpgroup, table)

    @property
    def start(self) -> Array:
        return self.table[0]

    @property
    def steps(self) -> Array:
        return self.table[-1] - self.table[0]

    def split(self, load: Callable[[], None], compute: Callable[[], None]) -> None:
        """Runs one or the other, by warpgroup, with the registers that it may have."""

        @pl.when(self.warpgroup == COMPUTE_WARPGROUPS)
        def _load():
            plgpu.set_max_registers(MEMORY_REGISTERS, action="decrease")
            load()

        @pl.when(self.warpgroup < COMPUTE_WARPGROUPS)
        def _compute():
            plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
            compute()


def loop_blocks(table: Sequence[Array], body: Callable[..., Any], carry: Any) -> Any:
    """`body(block, carry, masked)` over a row of a block table."""
    start, inner_start, inner_stop, stop = table

    def over(first: Array, last: Array, masked: bool, carry: Any) -> Any:
        return lax.fori_loop(first, last, lambda i, c: body(i, c, masked), carry)

    carry = over(start, inner_start, True, carry)
    carry = over(inner_start, inner_stop, False, carry)
    return over(inner_stop, stop, True, carry)


def launch(
    name: str,
    body: Callable[..., None],
    inputs: Mapping[str, Array | None],
    out_type: Sequence[jax.ShapeDtypeStruct],
    scratch: dict[str, Any],
    grid: dict[str, int],
    interpret: Any,
    readers: int = COMPUTE_WARPGROUPS,
) -> Sequence[Array]:
    """Runs `body(inputs by name, outputs, scratch by name)` in a loader and `readers` others."""
    given = {name: x for name, x in inputs.items() if x is not None}

    def kernel(*refs, **scratch_refs):
        body(dict(zip(given, refs, strict=False)), refs[len(given) :], scratch_refs)

    outs = plgpu.kernel(
        kernel,
        out_type=list(out_type),
        scratch_types=scratch,
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        num_threads=readers + 1,
        thread_name="warpgroup",
        compiler_params=PARAMS,
        interpret=interpret,
        kernel_name=name,
    )(*given.values())
    # Within shard_map, what a kernel gives is not marked as varying over the mesh's axes.
    varying = frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in given.values()))
    return [lax.pcast(x, tuple(varying), to="varying") for x in outs]
