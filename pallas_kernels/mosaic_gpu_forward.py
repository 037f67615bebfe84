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
from pallas_kernels.mosaic_gpu_queries import ByQueries
from pallas_kernels.mosaic_gpu_ring import Ring, ring_scratch
from pallas_kernels.mosaic_gpu_tile import (
    BY_ROW,
    COMPUTE_WARPGROUPS,
    LN2,
    LOG2E,
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


@dataclasses.dataclass(frozen=True)
class _Forward(ByQueries):
    """The kernel."""

    def compute(self, here, refs, outs, scratch, k_ring: Ring, v_ring: Ring) -> None:
        first_q = here.block * (self.rows * COMPUTE_WARPGROUPS) + here.warpgroup * self.rows
        own = pl.ds(first_q, self.rows)
        q_smem, lse_smem = scratch["q"].at[here.warpgroup], scratch["lse"].at[here.warpgroup]
        weights_smem = scratch["weights"].at[here.warpgroup] if "weights" in scratch else None
        row_marks = {name: row_of(refs[name], here.batch, own) for name, _ in self.pairs}
        sight = Sight(self.call.window, self.offset, 0, first_q, row_marks)
        q_ready = scratch["q_ready"].at[here.warpgroup]
        plgpu.copy_gmem_to_smem(refs["q"].at[here.batch, own, here.head], q_smem.at[0], q_ready)
        plgpu.barrier_wait(q_ready)

        def pass_turn():
            # Both warpgroups come here equally often, so no arrival is left over.
            plgpu.barrier_arrive(scratch["turn"])
            plgpu.barrier_wait(scratch["turn"])

        def step(j, state, masked):
            k_smem, *k_marks = k_ring.wait(j - here.start)
            q_again = scratch["q"].at[not_ahead(here.warpgroup, j)]
            r, factor = raw_logits(product(q_again, k_smem, issued=pass_turn), self.call)
            if masked:
                r = sight.hide(r, j * self.block_k, [x.at[0] for x in k_marks])
            k_ring.release(j - here.start)
            state, weights = state.weigh(r, factor)
            weights = weights.astype(outs[0].dtype)
            pass_turn()
            (v_smem,) = v_ring.wait(j - here.start)
            state = state.add(weights, v_smem, weights_smem)
            v_ring.release(j - here.start)
            return state

        # The second warpgroup starts one turn late, and the first one ends one late.
        pl.when(here.warpgroup == 1)(pass_turn)
        sink = refs["sinks"][here.head] if "sinks" in refs else None
        state = loop_blocks(here.table, step, Softmax.start(self.rows, self.head_dim, sink))
        pl.when(here.warpgroup == 0)(pass_turn)

        out, lse_smem[...] = state.finish()
        # No wgmma reads q any more: every product was waited for.
        q_smem[0, ...] = out.astype(outs[0].dtype)
        plgpu.commit_smem()  # TMA reads through the async proxy, which must see the stores
        plgpu.copy_smem_to_gmem(q_smem.at[0], outs[0].at[here.batch, own, here.head])
        plgpu.copy_smem_to_gmem(lse_smem, outs[1].at[here.batch, here.head, own])
        plgpu.wait_smem_to_gmem(0)  # shared memory must outlive the stores


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
    rows, pairs = block_q // COMPUTE_WARPGROUPS, mark_pairs(marks)
    blocks = pl.cdiv(queries, block_q)
    tiles = smem_tiles((stages, 1, block_k, head_dim), q.dtype)
    mark_tiles = plgpu.SMEM((stages, 1, block_k), jnp.int32)
    scratch = {
        "q": smem_tiles((COMPUTE_WARPGROUPS, 1, rows, head_dim), q.dtype),
        "lse": plgpu.SMEM((COMPUTE_WARPGROUPS, rows), jnp.float32),
        "k": ring_scratch([tiles, *[mark_tiles] * len(pairs)], stages, COMPUTE_WARPGROUPS),
        "v": ring_scratch([tiles], stages, COMPUTE_WARPGROUPS),
        "q_ready": plgpu.Barrier(num_barriers=COMPUTE_WARPGROUPS),
        "turn": plgpu.Barrier(num_arrivals=COMPUTE_WARPGROUPS),
    }
    if call.interpret:
        scratch["weights"] = smem_tiles((COMPUTE_WARPGROUPS, rows, block_k), q.dtype)
    kernel = _Forward(call, offset, stages, rows, block_k, head_dim, heads // kv_heads, pairs)
    out, lse = launch(
        "attend_forward",
        kernel.body,
        {"q": q, "k": k, "v": v, "table": table, "sinks": sinks} | marks._asdict(),
        [jax.ShapeDtypeStruct(q.shape, q.dtype),
         jax.ShapeDtypeStruct((batch, heads, blocks * block_q), jnp.float32)],
        scratch,
        {"heads": heads, "blocks": blocks, "batch": batch},
        call.interpret,
    )  # fmt: skip
    return out, lse
