"""The derivatives in keys and values on Hopper.

A thread block holds keys and values of one key/value head and walks over the query blocks that
see them, for each query head of the group in turn, so that the sums need no atomics. Tiles are
transposed: a row is a key, a column a query. Up to a head size of 128 each compute warpgroup has
keys of its own. Beyond, the two sums of one warpgroup would not fit its registers: then both
have the same keys and each sums up its half of the columns of dk and dv.
"""

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
    along_columns,
    column_of,
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


def column_parts(head_dim: int) -> int:
    """In how many warpgroups the columns of dk and dv are split."""
    return 1 if head_dim <= 128 else COMPUTE_WARPGROUPS


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
    parts = column_parts(head_dim)
    owners, columns = COMPUTE_WARPGROUPS // parts, head_dim // parts
    rows, group = block_k // owners, heads // kv_heads
    simple, pairs = bool(call.interpret), mark_pairs(marks)

    def attend_dkv(refs, outs, scratch):
        kv_head, block, row = (lax.axis_index(name) for name in ("heads", "blocks", "batch"))
        warpgroup = lax.axis_index("warpgroup")
        table_row = read_table(refs["table"], row, block)
        start, stop = table_row[0], table_row[-1]
        steps = stop - start
        q_ring, do_ring = (Ring(*scratch[name], stages) for name in ("q", "d_out"))

        def split(ref, line, length, head):
            at = (row, pl.ds(line, length), head)
            return [ref.at[*at, pl.ds(part * columns, columns)] for part in range(parts)]

        @pl.when(warpgroup == COMPUTE_WARPGROUPS)
        def load():
            plgpu.set_max_registers(MEMORY_REGISTERS, action="decrease")
            for owner in range(owners):
                line = block * block_k + owner * rows
                for name in ("k", "v"):
                    for part, source in enumerate(split(refs[name], line, rows, kv_head)):
                        plgpu.copy_gmem_to_smem(
                            source, scratch[name].at[owner, part], scratch["kv_ready"]
                        )

            def fill_head(member, _):
                head = kv_head * group + member

                def fill(i, _):
                    step = member * steps + i - start
                    at = pl.ds(i * block_q, block_q)
                    marks_of_queries = [[refs[name].at[row, at]] for name, _ in pairs]
                    q_tiles = split(refs["q"], i * block_q, block_q, head)
                    q_ring.fill(step, [q_tiles, [refs["lse"].at[row, head, at]], *marks_of_queries])
                    do_tiles = split(refs["d_out"], i * block_q, block_q, head)
                    do_ring.fill(step, [do_tiles, [refs["delta"].at[row, head, at]]])
                    return _

                return lax.fori_loop(start, stop, fill, _)

            lax.fori_loop(0, group, fill_head, None)
            q_ring.drain(group * steps)
            do_ring.drain(group * steps)

        @pl.when(warpgroup < COMPUTE_WARPGROUPS)
        def compute():
            plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
            owner, part = lax.div(warpgroup, jnp.int32(parts)), lax.rem(warpgroup, jnp.int32(parts))
            first_k = block * block_k + owner * rows
            own = pl.ds(first_k, rows)
            k_smem, v_smem = scratch["k"].at[owner], scratch["v"].at[owner]
            p_smem = scratch["p"].at[warpgroup] if simple else None
            row_marks = {name: row_of(refs[name], row, own) for _, name in pairs}
            sight = Sight(call.window, offset, 1, first_k, row_marks)
            plgpu.barrier_wait(scratch["kv_ready"])

            def step(member, i, sums, masked):
                dk, dv = sums
                use = member * steps + i - start
                q_smem, lse_smem, *q_marks = q_ring.wait(use)
                owner_index = not_ahead(owner, i)
                s = product(scratch["k"].at[owner_index], q_smem)
                named = {name: x.at[0] for (name, _), x in zip(pairs, q_marks, strict=True)}
                hide = (lambda x: sight.hide(x, i * block_q, named)) if masked else None
                lse_tile = along_columns(column_of(lse_smem.at[0]), s.shape)
                p, weights = probabilities(s, lse_tile, call, hide)
                do_smem, delta_smem = do_ring.wait(use)
                dv = add_product(dv, p.astype(q.dtype), do_smem, part, p_smem)
                minus_delta = along_columns(-column_of(delta_smem.at[0]), s.shape)
                dp = product(scratch["v"].at[owner_index], do_smem, start=minus_delta, in_smem=p_smem)
                do_ring.release(use)
                dk = add_product(dk, (weights * dp).astype(q.dtype), q_smem, part, p_smem)
                q_ring.release(use)
                return dk, dv

            def head(member, sums):
                return loop_blocks(table_row, lambda *args: step(member, *args), sums)

            empty = zeros((rows, columns))
            dk, dv = lax.fori_loop(0, group, head, (empty, empty))
            if parts > 1:
                # The other warpgroup reads the same keys and values: wait for its last product.
                plgpu.barrier_arrive(scratch["done"])
                plgpu.barrier_wait(scratch["done"])
            # No wgmma reads k and v any more: they make room for their derivatives.
            out_columns = pl.ds(part * columns, columns)
            for x, x_smem, out in ((dk * call.scale, k_smem, outs[0]), (dv, v_smem, outs[1])):
                x_smem[part, ...] = x.astype(q.dtype)
                plgpu.commit_smem()  # TMA reads through the async proxy, which must see the store
                plgpu.copy_smem_to_gmem(
                    x_smem.at[part], out.at[row, own, kv_head, out_columns]
                )
            plgpu.wait_smem_to_gmem(0)  # shared memory must outlive the stores

    width = min(64, block_q)
    tiles = smem_tiles((stages, parts, block_q, columns), q.dtype, width)
    line, mark_line = (plgpu.SMEM((stages, 1, block_q), x) for x in (jnp.float32, jnp.int32))
    own_tiles = smem_tiles((owners, parts, rows, columns), q.dtype, width)
    scratch = dict(
        k=own_tiles,
        v=own_tiles,
        q=ring_scratch([tiles, line, *[mark_line] * len(pairs)], stages, COMPUTE_WARPGROUPS),
        d_out=ring_scratch([tiles, line], stages, COMPUTE_WARPGROUPS),
        kv_ready=plgpu.Barrier(num_arrivals=2 * owners * parts),
        done=plgpu.Barrier(num_arrivals=COMPUTE_WARPGROUPS),
    )
    if simple:
        scratch["p"] = smem_tiles((COMPUTE_WARPGROUPS, rows, block_q), q.dtype, width)
    inputs = dict(q=q, k=k, v=v, lse=lse, delta=delta, d_out=d_out, table=table)
    dk, dv = launch(
        attend_dkv,
        inputs | marks._asdict(),
        [jax.ShapeDtypeStruct(k.shape, k.dtype)] * 2,
        scratch,
        dict(heads=kv_heads, blocks=pl.cdiv(keys, block_k), batch=batch),
        call.interpret,
    )
    return dk, dv
