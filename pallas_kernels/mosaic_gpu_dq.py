"""The derivative in the queries on Hopper; laid out as the forward pass is."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.flash import Call
from pallas_kernels.mosaic_gpu_queries import ByQueries
from pallas_kernels.mosaic_gpu_ring import Ring, ring_scratch
from pallas_kernels.mosaic_gpu_tile import (
    COMPUTE_WARPGROUPS,
    Sight,
    add_product,
    along_rows,
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
class _Dq(ByQueries):
    """The kernel."""

    def compute(self, here, refs, outs, scratch, k_ring: Ring, v_ring: Ring) -> None:
        first_q = here.block * (self.rows * COMPUTE_WARPGROUPS) + here.warpgroup * self.rows
        own = pl.ds(first_q, self.rows)
        q_smem, do_smem = (scratch[name].at[here.warpgroup] for name in ("q", "d_out"))
        ds_smem = scratch["ds"].at[here.warpgroup] if "ds" in scratch else None
        q_ready = scratch["q_ready"].at[here.warpgroup]
        at = (here.batch, own, here.head)
        plgpu.copy_gmem_to_smem(refs["q"].at[at], q_smem.at[0], q_ready)
        plgpu.copy_gmem_to_smem(refs["d_out"].at[at], do_smem.at[0], q_ready)
        lse, delta = (row_of(refs[x], here.batch, here.head, own) for x in ("lse", "delta"))
        row_marks = {name: row_of(refs[name], here.batch, own) for name, _ in self.pairs}
        sight = Sight(self.call.window, self.offset, 0, first_q, row_marks)
        plgpu.barrier_wait(q_ready)

        def step(j, dq, masked):
            k_smem, *k_marks = k_ring.wait(j - here.start)
            own_index = not_ahead(here.warpgroup, j)
            s = product(scratch["q"].at[own_index], k_smem)
            columns = [x.at[0] for x in k_marks]
            hide = (lambda x: sight.hide(x, j * self.block_k, columns)) if masked else None
            _, weights = probabilities(s, along_rows(lse, s.shape), self.call, hide)
            (v_smem,) = v_ring.wait(j - here.start)
            minus_delta = along_rows(-delta, s.shape)
            dp = product(scratch["d_out"].at[own_index], v_smem, start=minus_delta, in_smem=ds_smem)
            v_ring.release(j - here.start)
            ds = (weights * dp).astype(outs[0].dtype)
            dq = add_product(dq, ds, k_smem, 0, ds_smem)
            k_ring.release(j - here.start)
            return dq

        dq = loop_blocks(here.table, step, zeros((self.rows, self.head_dim)))
        # No wgmma reads q any more: every product was waited for.
        q_smem[0, ...] = (dq * self.call.scale).astype(outs[0].dtype)
        plgpu.commit_smem()  # TMA reads through the async proxy, which must see the store
        plgpu.copy_smem_to_gmem(q_smem.at[0], outs[0].at[at])
        plgpu.wait_smem_to_gmem(0)  # shared memory must outlive the store


def backward_dq(
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
) -> Float[Array, "B T N H"]:
    """dq.

    Args:
        lse, delta: in whole blocks, as the marks are; lse times log2(e), and +inf where a query
            sees nothing.
    """
    (batch, queries, heads, head_dim), kv_heads = q.shape, k.shape[2]
    block_q, block_k = call.blocks.dq
    rows, pairs = block_q // COMPUTE_WARPGROUPS, mark_pairs(marks)
    width = min(64, block_k)
    tiles = smem_tiles((stages, 1, block_k, head_dim), q.dtype, width)
    mark_tiles = plgpu.SMEM((stages, 1, block_k), jnp.int32)
    own_tiles = smem_tiles((COMPUTE_WARPGROUPS, 1, rows, head_dim), q.dtype, width)
    scratch = {
        "q": own_tiles,
        "d_out": own_tiles,
        "k": ring_scratch([tiles, *[mark_tiles] * len(pairs)], stages, COMPUTE_WARPGROUPS),
        "v": ring_scratch([tiles], stages, COMPUTE_WARPGROUPS),
        "q_ready": plgpu.Barrier(num_arrivals=2, num_barriers=COMPUTE_WARPGROUPS),
    }
    if call.interpret:
        scratch["ds"] = smem_tiles((COMPUTE_WARPGROUPS, rows, block_k), q.dtype, width)
    inputs = {"q": q, "k": k, "v": v, "lse": lse, "delta": delta, "d_out": d_out, "table": table}
    (dq,) = launch(
        "attend_dq",
        _Dq(call, offset, stages, rows, block_k, head_dim, heads // kv_heads, pairs).body,
        inputs | marks._asdict(),
        [jax.ShapeDtypeStruct(q.shape, q.dtype)],
        scratch,
        {"heads": heads, "blocks": pl.cdiv(queries, block_q), "batch": batch},
        call.interpret,
    )
    return dq
