"""The derivative in the queries on Hopper; laid out as the forward pass is."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.flash import Call
from pallas_kernels.mosaic_gpu_ring import Ring, ring_scratch
from pallas_kernels.mosaic_gpu_tile import (
    COMPUTE_REGISTERS,
    COMPUTE_WARPGROUPS,
    MEMORY_REGISTERS,
    Sight,
    add_product,
    along_rows,
    launch,
    loop_blocks,
    mark_pairs,
    not_ahead,
    probabilities,
    product,
    read_table,
    row_of,
    smem_tiles,
    zeros,
)
from pallas_kernels.window import Marks


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
    rows, group = block_q // COMPUTE_WARPGROUPS, heads // kv_heads
    simple, pairs = bool(call.interpret), mark_pairs(marks)

    def attend_dq(refs, outs, scratch):
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
                k_ring.fill(j - start, [[refs["k"].at[row, keys, kv_head]], *marks_of_keys])
                v_ring.fill(j - start, [[refs["v"].at[row, keys, kv_head]]])
                return _

            lax.fori_loop(start, stop, fill, None)
            k_ring.drain(stop - start)
            v_ring.drain(stop - start)

        @pl.when(warpgroup < COMPUTE_WARPGROUPS)
        def compute():
            plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
            first_q = block * block_q + warpgroup * rows
            own = pl.ds(first_q, rows)
            q_smem, do_smem = scratch["q"].at[warpgroup], scratch["d_out"].at[warpgroup]
            ds_smem = scratch["ds"].at[warpgroup] if simple else None
            q_ready = scratch["q_ready"].at[warpgroup]
            plgpu.copy_gmem_to_smem(refs["q"].at[row, own, head], q_smem.at[0], q_ready)
            plgpu.copy_gmem_to_smem(refs["d_out"].at[row, own, head], do_smem.at[0], q_ready)
            row_lse, row_delta = (row_of(refs[x], row, head, own) for x in ("lse", "delta"))
            row_marks = {name: row_of(refs[name], row, own) for name, _ in pairs}
            sight = Sight(call.window, offset, 0, first_q, row_marks)
            plgpu.barrier_wait(q_ready)

            def step(j, dq, masked):
                k_smem, *k_marks = k_ring.wait(j - start)
                own_index = not_ahead(warpgroup, j)
                s = product(scratch["q"].at[own_index], k_smem)
                columns = {name: x.at[0] for (_, name), x in zip(pairs, k_marks, strict=True)}
                hide = (lambda x: sight.hide(x, j * block_k, columns)) if masked else None
                _, weights = probabilities(s, along_rows(row_lse, s.shape), call, hide)
                (v_smem,) = v_ring.wait(j - start)
                minus_delta = along_rows(-row_delta, s.shape)
                dp = product(scratch["d_out"].at[own_index], v_smem, start=minus_delta, in_smem=ds_smem)
                v_ring.release(j - start)
                dq = add_product(dq, (weights * dp).astype(q.dtype), k_smem, 0, ds_smem)
                k_ring.release(j - start)
                return dq

            dq = loop_blocks(table_row, step, zeros((rows, head_dim)))
            # No wgmma reads q any more: every product was waited for.
            q_smem[0, ...] = (dq * call.scale).astype(q.dtype)
            plgpu.commit_smem()  # TMA reads through the async proxy, which must see the store
            plgpu.copy_smem_to_gmem(q_smem.at[0], outs[0].at[row, own, head])
            plgpu.wait_smem_to_gmem(0)  # shared memory must outlive the store

    width = min(64, block_k)
    tiles = smem_tiles((stages, 1, block_k, head_dim), q.dtype, width)
    mark_tiles = plgpu.SMEM((stages, 1, block_k), jnp.int32)
    own_tiles = smem_tiles((COMPUTE_WARPGROUPS, 1, rows, head_dim), q.dtype, width)
    scratch = dict(
        q=own_tiles,
        d_out=own_tiles,
        k=ring_scratch([tiles, *[mark_tiles] * len(pairs)], stages, COMPUTE_WARPGROUPS),
        v=ring_scratch([tiles], stages, COMPUTE_WARPGROUPS),
        q_ready=plgpu.Barrier(num_arrivals=2, num_barriers=COMPUTE_WARPGROUPS),
    )
    if simple:
        scratch["ds"] = smem_tiles((COMPUTE_WARPGROUPS, rows, block_k), q.dtype, width)
    inputs = dict(q=q, k=k, v=v, lse=lse, delta=delta, d_out=d_out, table=table)
    (dq,) = launch(
        attend_dq,
        inputs | marks._asdict(),
        [jax.ShapeDtypeStruct(q.shape, q.dtype)],
        scratch,
        dict(heads=heads, blocks=pl.cdiv(queries, block_q), batch=batch),
        call.interpret,
    )
    return dq
