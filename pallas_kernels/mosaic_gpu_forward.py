"""The forward pass on Hopper: two compute warpgroups and one that loads.

A thread block holds `queries` rows of one head, half in each compute warpgroup, and walks over
the key blocks of its row of the block table. The memory warpgroup fills a ring of key and value
tiles by TMA. The compute warpgroups take turns: while one is in its softmax, the other has the
tensor core (Shah et al. 2024, "FlashAttention-3", section 3.1).
"""

import dataclasses
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
    BY_ROW,
    COMPUTE_REGISTERS,
    COMPUTE_WARPGROUPS,
    LN2,
    LOG2E,
    MEMORY_REGISTERS,
    NO_MAXIMUM,
    Sight,
    add_product,
    along_rows,
    launch,
    loop_blocks,
    mark_pairs,
    not_ahead,
    product,
    raw_logits,
    read_table,
    row_of,
    smem_tiles,
    zeros,
)
from pallas_kernels.window import Marks


@dataclasses.dataclass(frozen=True)
class Softmax:
    """The running softmax of some rows: sum of values, maximum times log2(e), sum of weights."""

    values: Array
    top: Array
    total: Array

    @staticmethod
    def start(rows: int, head_dim: int, sink: Array | None) -> "Softmax":
        top, total = jnp.full((rows,), NO_MAXIMUM, jnp.float32), jnp.zeros((rows,), jnp.float32)
        if sink is not None:
            # The sink is one logit seen already, without a value.
            sink = jnp.broadcast_to(sink * LOG2E, (rows,))
            top = jnp.maximum(top, sink)
            total = jnp.exp2(sink - top)
        layout = plgpu.layout_cast
        return Softmax(zeros((rows, head_dim)), layout(top, BY_ROW), layout(total, BY_ROW))

    def weigh(self, r: Array, factor: float) -> tuple["Softmax", Array]:
        """Rescales to the maximum with one more tile; returns that and the tile's weights."""
        top = jnp.maximum(self.top, r.max(axis=1) * factor)
        weights = jnp.exp2(r * factor - along_rows(top, r.shape))
        shrink = jnp.exp2(self.top - top)
        values = self.values * along_rows(shrink, self.values.shape)
        return Softmax(values, top, self.total * shrink + weights.sum(axis=1)), weights

    def add(self, weights: Array, v: Any, in_smem: Any | None) -> "Softmax":
        """Adds the values of a tile that was weighed."""
        values = add_product(self.values, weights, v, 0, in_smem)
        return dataclasses.replace(self, values=values)

    def finish(self) -> tuple[Array, Array]:
        """The output and the natural log-sum-exp; 0 and -inf where no key was seen."""
        some = self.total > 0
        total = jnp.where(some, self.total, 1.0)
        lse = jnp.where(some, self.top * LN2 + jnp.log(total), -jnp.inf)
        root = lax.rsqrt(total)  # a division would be a subroutine that wants registers
        return self.values * along_rows(root * root, self.values.shape), lse


jax.tree_util.register_dataclass(Softmax)


def forward(
    call: Call,
    offset: int,
    stages: int,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    marks: Marks,
    sinks: Float[Array, " N"] | None,
    table: Int[Array, "b blocks 4"],
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Output and log-sum-exp; the latter, and the marks, in whole blocks.

    Args:
        offset: position of query 0.
        stages: slots of the rings.
        table: of `block_table`.
    """
    (batch, queries, heads, head_dim), kv_heads = q.shape, k.shape[2]
    block_q, block_k = call.blocks.forward
    rows, group = block_q // COMPUTE_WARPGROUPS, heads // kv_heads
    simple, pairs = bool(call.interpret), mark_pairs(marks)
    blocks = pl.cdiv(queries, block_q)

    def attend_forward(refs, outs, scratch):
        q_ref, k_ref, v_ref = refs["q"], refs["k"], refs["v"]
        out_ref, lse_ref = outs
        head, block, row = (lax.axis_index(name) for name in ("heads", "blocks", "batch"))
        warpgroup = lax.axis_index("warpgroup")
        table_row = read_table(refs["table"], row, block)
        start, stop = table_row[0], table_row[-1]
        k_ring, v_ring = (Ring(*scratch[name], stages) for name in ("k", "v"))

        @pl.when(warpgroup == COMPUTE_WARPGROUPS)
        def load():
            plgpu.set_max_registers(MEMORY_REGISTERS, action="decrease")
            kv_head = lax.div(head, jnp.int32(group))

            def fill(j, _):
                keys = pl.ds(j * block_k, block_k)
                marks_of_keys = [[refs[name].at[row, keys]] for _, name in pairs]
                k_ring.fill(j - start, [[k_ref.at[row, keys, kv_head]], *marks_of_keys])
                v_ring.fill(j - start, [[v_ref.at[row, keys, kv_head]]])
                return _

            lax.fori_loop(start, stop, fill, None)
            k_ring.drain(stop - start)
            v_ring.drain(stop - start)

        @pl.when(warpgroup < COMPUTE_WARPGROUPS)
        def compute():
            plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
            first_q = block * block_q + warpgroup * rows
            q_smem, lse_smem = scratch["q"].at[warpgroup], scratch["lse"].at[warpgroup]
            weights_smem = scratch["weights"].at[warpgroup] if simple else None
            rows_at = (row, pl.ds(first_q, rows))
            row_marks = {name: row_of(refs[name], *rows_at) for name, _ in pairs}
            sight = Sight(call.window, offset, 0, first_q, row_marks)
            plgpu.copy_gmem_to_smem(
                q_ref.at[row, pl.ds(first_q, rows), head], q_smem.at[0], scratch["q_ready"].at[warpgroup]
            )
            plgpu.barrier_wait(scratch["q_ready"].at[warpgroup])

            def pass_turn():
                # Both warpgroups come here equally often, so no arrival is left over.
                plgpu.barrier_arrive(scratch["turn"])
                plgpu.barrier_wait(scratch["turn"])

            def step(j, state, masked):
                k_smem, *k_marks = k_ring.wait(j - start)
                s = product(scratch["q"].at[not_ahead(warpgroup, j)], k_smem, issued=pass_turn)
                r, factor = raw_logits(s, call)
                if masked:
                    columns = {name: x.at[0] for (_, name), x in zip(pairs, k_marks, strict=True)}
                    r = sight.hide(r, j * block_k, columns)
                k_ring.release(j - start)
                state, weights = state.weigh(r, factor)
                weights = weights.astype(q.dtype)
                pass_turn()
                (v_smem,) = v_ring.wait(j - start)
                state = state.add(weights, v_smem, weights_smem)
                v_ring.release(j - start)
                return state

            # The second warpgroup starts one turn late, and the first one ends one late.
            pl.when(warpgroup == 1)(pass_turn)
            sink = None if sinks is None else refs["sinks"][head]
            state = loop_blocks(table_row, step, Softmax.start(rows, head_dim, sink))
            pl.when(warpgroup == 0)(pass_turn)

            out, lse = state.finish()
            # No wgmma reads q any more: every product was waited for.
            q_smem[0, ...] = out.astype(q.dtype)
            lse_smem[...] = lse
            plgpu.commit_smem()  # TMA reads through the async proxy, which must see the stores
            plgpu.copy_smem_to_gmem(q_smem.at[0], out_ref.at[row, pl.ds(first_q, rows), head])
            plgpu.copy_smem_to_gmem(lse_smem, lse_ref.at[row, head, pl.ds(first_q, rows)])
            plgpu.wait_smem_to_gmem(0)  # shared memory must outlive the stores

    inputs = dict(q=q, k=k, v=v, table=table, sinks=sinks) | marks._asdict()
    tiles = smem_tiles((stages, 1, block_k, head_dim), q.dtype)
    mark_tiles = plgpu.SMEM((stages, 1, block_k), jnp.int32)
    scratch = dict(
        q=smem_tiles((COMPUTE_WARPGROUPS, 1, rows, head_dim), q.dtype),
        lse=plgpu.SMEM((COMPUTE_WARPGROUPS, rows), jnp.float32),
        k=ring_scratch([tiles, *[mark_tiles] * len(pairs)], stages, COMPUTE_WARPGROUPS),
        v=ring_scratch([tiles], stages, COMPUTE_WARPGROUPS),
        q_ready=plgpu.Barrier(num_barriers=COMPUTE_WARPGROUPS),
        turn=plgpu.Barrier(num_arrivals=COMPUTE_WARPGROUPS),
    )
    if simple:
        scratch["weights"] = smem_tiles((COMPUTE_WARPGROUPS, rows, block_k), q.dtype)
    return launch(
        attend_forward,
        inputs,
        [jax.ShapeDtypeStruct(q.shape, q.dtype),
         jax.ShapeDtypeStruct((batch, heads, blocks * block_q), jnp.float32)],
        scratch,
        dict(heads=heads, blocks=blocks, batch=batch),
        call.interpret,
    )  # fmt: skip
