"""The derivatives in keys and values on Hopper.

A thread block holds keys and values of one key/value head and walks over the query blocks that
see them, for each query head of the group in turn, so that the sums need no atomics. Tiles are
transposed: a row is a key, a column a query. Up to a head size of 128 each compute warpgroup has
keys of its own. Beyond, the two sums of one warpgroup would not fit its registers: then both
have the same keys and each sums up its half of the columns of dk and dv.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.flash import Call
from pallas_kernels.mosaic_gpu_ring import Ring, ring_scratch
from pallas_kernels.mosaic_gpu_tile import (
    COMPUTE_WARPGROUPS,
    Here,
    Sight,
    add_product,
    along_columns,
    column_of,
    launch,
    loop_blocks,
    mark_pairs,
    not_ahead,
    probabilities,
    product,
    row_of,
    smem_tiles,
    zeros,
)
from pallas_kernels.window import Marks


@dataclasses.dataclass(frozen=True)
class _Dkv:
    """The kernel.

    Attributes:
        parts: in how many warpgroups the columns of dk and dv are split.
        columns: of dk and dv that one warpgroup sums up.
        pairs: the names of the marks there are.
    """

    call: Call
    offset: int
    stages: int
    rows: int
    block_q: int
    parts: int
    columns: int
    group: int
    pairs: list[tuple[str, str]]

    @property
    def owners(self) -> int:
        """How many stretches of keys the warpgroups have between them."""
        return COMPUTE_WARPGROUPS // self.parts

    def body(self, refs: dict[str, Any], outs: Sequence[Any], scratch: dict[str, Any]) -> None:
        here = Here.read(refs["table"])
        rings = [Ring(self.stages, *scratch[name]) for name in ("q", "d_out")]
        here.split(
            lambda: self._load(here, refs, scratch, *rings),
            lambda: self._compute(here, refs, outs, scratch, *rings),
        )

    def _load(self, here, refs, scratch, q_ring: Ring, do_ring: Ring) -> None:
        def split(name, first, length, head):
            at = (here.batch, pl.ds(first, length), head)
            pieces = [pl.ds(part * self.columns, self.columns) for part in range(self.parts)]
            return [refs[name].at[(*at, piece)] for piece in pieces]

        for owner in range(self.owners):
            first = (here.block * self.owners + owner) * self.rows
            for name in ("k", "v"):
                for part, source in enumerate(split(name, first, self.rows, here.head)):
                    to = scratch[name].at[owner, part]
                    plgpu.copy_gmem_to_smem(source, to, scratch["kv_ready"])

        def fill_head(member, _):
            head = here.head * self.group + member

            def fill(i, _):
                first = (here.start + i) * self.block_q
                at = pl.ds(first, self.block_q)
                step = member * here.steps + i
                lse, delta = ([refs[x].at[here.batch, head, at]] for x in ("lse", "delta"))
                marks = [[refs[name].at[here.batch, at]] for name, _ in self.pairs]
                q_ring.fill(step, [split("q", first, self.block_q, head), lse, *marks])
                do_ring.fill(step, [split("d_out", first, self.block_q, head), delta])
                return _

            return lax.fori_loop(0, here.steps, fill, _)

        lax.fori_loop(0, self.group, fill_head, None)
        q_ring.drain(self.group * here.steps)
        do_ring.drain(self.group * here.steps)

    def _compute(self, here, refs, outs, scratch, q_ring: Ring, do_ring: Ring) -> None:
        parts = jnp.int32(self.parts)
        owner, part = lax.div(here.warpgroup, parts), lax.rem(here.warpgroup, parts)
        first_k = (here.block * self.owners + owner) * self.rows
        own = pl.ds(first_k, self.rows)
        dtype = outs[0].dtype
        p_smem = scratch["p"].at[here.warpgroup] if "p" in scratch else None
        row_marks = {name: row_of(refs[name], here.batch, own) for _, name in self.pairs}
        sight = Sight(self.call.window, self.offset, 1, first_k, row_marks)
        plgpu.barrier_wait(scratch["kv_ready"])

        def step(member, i, sums, masked):
            dk, dv = sums
            use = member * here.steps + i - here.start
            q_smem, lse_smem, *q_marks = q_ring.wait(use)
            owner_again = not_ahead(owner, i)
            s = product(scratch["k"].at[owner_again], q_smem)
            columns = [x.at[0] for x in q_marks]
            hide = (lambda x: sight.hide(x, i * self.block_q, columns)) if masked else None
            lse = along_columns(column_of(lse_smem.at[0]), s.shape)
            p, weights = probabilities(s, lse, self.call, hide)
            do_smem, delta_smem = do_ring.wait(use)
            dv = add_product(dv, p.astype(dtype), do_smem, part, p_smem)
            minus_delta = along_columns(-column_of(delta_smem.at[0]), s.shape)
            dp = product(scratch["v"].at[owner_again], do_smem, start=minus_delta, in_smem=p_smem)
            do_ring.release(use)
            dk = add_product(dk, (weights * dp).astype(dtype), q_smem, part, p_smem)
            q_ring.release(use)
            return dk, dv

        def member(index, sums):
            return loop_blocks(here.table, lambda *args: step(index, *args), sums)

        empty = zeros((self.rows, self.columns))
        dk, dv = lax.fori_loop(0, self.group, member, (empty, empty))
        if self.parts > 1:
            # The other warpgroup reads the same keys and values: wait for its last product.
            plgpu.barrier_arrive(scratch["done"])
            plgpu.barrier_wait(scratch["done"])
        # No wgmma reads k and v any more: they make room for their derivatives.
        at = (here.batch, own, here.head, pl.ds(part * self.columns, self.columns))
        for x, name, out in ((dk * self.call.scale, "k", outs[0]), (dv, "v", outs[1])):
            x_smem = scratch[name].at[owner, part]
            x_smem[...] = x.astype(dtype)
            plgpu.commit_smem()  # TMA reads through the async proxy, which must see the store
            plgpu.copy_smem_to_gmem(x_smem, out.at[at])
        plgpu.wait_smem_to_gmem(0)  # shared memory must outlive the stores


def backward_dkv(
    call: Call,
    offset: int,
    stages: int,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    marks: Marks,
    lse: Float[Array, "B N T"],
    delta: Float[Array, "B N T"],
    d_out: Float[Array, "B T N H"],
    table: Int[Array, "b blocks 4"],
) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """dk and dv; arguments as of `backward_dq`, but the table is by key block."""
    (batch, _, heads, head_dim), (keys, kv_heads) = q.shape, k.shape[1:3]
    block_q, block_k = call.blocks.dkv
    # Two sums of 64 rows and 128 columns take 128 registers of a lane.
    parts = 1 if head_dim <= 128 else COMPUTE_WARPGROUPS
    owners, columns = COMPUTE_WARPGROUPS // parts, head_dim // parts
    rows, pairs = block_k // owners, mark_pairs(marks)
    width = min(64, block_q)
    tiles = smem_tiles((stages, parts, block_q, columns), q.dtype, width)
    line, mark_line = (plgpu.SMEM((stages, 1, block_q), x) for x in (jnp.float32, jnp.int32))
    own_tiles = smem_tiles((owners, parts, rows, columns), q.dtype, width)
    scratch = {
        "k": own_tiles,
        "v": own_tiles,
        "q": ring_scratch([tiles, line, *[mark_line] * len(pairs)], stages, COMPUTE_WARPGROUPS),
        "d_out": ring_scratch([tiles, line], stages, COMPUTE_WARPGROUPS),
        "kv_ready": plgpu.Barrier(num_arrivals=2 * owners * parts),
        "done": plgpu.Barrier(num_arrivals=COMPUTE_WARPGROUPS),
    }
    if call.interpret:
        scratch["p"] = smem_tiles((COMPUTE_WARPGROUPS, rows, block_q), q.dtype, width)
    kernel = _Dkv(
        call, offset, stages, rows, block_q, parts, columns, heads // kv_heads, pairs
    )  # fmt: skip
    inputs = {"q": q, "k": k, "v": v, "lse": lse, "delta": delta, "d_out": d_out, "table": table}
    dk, dv = launch(
        "attend_dkv",
        kernel.body,
        inputs | marks._asdict(),
        [jax.ShapeDtypeStruct(k.shape, k.dtype)] * 2,
        scratch,
        {"heads": kv_heads, "blocks": pl.cdiv(keys, block_k), "batch": batch},
        call.interpret,
    )
    return dk, dv
