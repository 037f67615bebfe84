"""One query a sequence against a ring-buffer cache, on NVIDIA Hopper and later.

All query heads of a group stand in one wgmma, so that a key is read once for them all; its 64 rows
are mostly empty, which costs nothing, since reading the cache bounds the step. The slots of a
sequence are shared out to several thread blocks where sequences and heads alone would leave
multiprocessors idle; their parts are merged by their log-sum-exps in XLA.
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
from pallas_kernels.mosaic_gpu import TMA_ROWS, check_support
from pallas_kernels.mosaic_gpu_forward import Softmax
from pallas_kernels.mosaic_gpu_ring import Ring, ring_scratch
from pallas_kernels.mosaic_gpu_tile import (
    ROWS,
    launch,
    loop_blocks,
    product,
    raw_logits,
    smem_tiles,
)
from pallas_kernels.tuning import BlockSizes

_MULTIPROCESSORS = 132
_STAGES = 2


def decode(
    q: Float[Array, "B N H"],
    k_cache: Float[Array, "B W K H"],
    v_cache: Float[Array, "B W K H"],
    lengths: Int[Array, " B"],
    *,
    scale: float,
    soft_cap: float | None,
    sinks: Float[Array, " N"] | None,
    block: int | None = None,
    interpret: Any = False,
) -> Float[Array, "B N H"]:
    """The semantics of `decode.decode_attention`, whose arguments these are, checked.

    Args:
        block: slots of a tile, 32, 64 or 128; None takes what shared memory allows. A cache whose
            length 8 does not divide is padded, and so copied, at every step.

    Raises:
        ValueError: as `mosaic_gpu.forward` does.
    """
    if block is None:
        block = 64 if q.shape[-1] <= 128 else 32
    tile = (ROWS, block)
    call = Call(None, scale, soft_cap, BlockSizes(tile, tile, tile), interpret)
    check_support(call, q)
    batch, heads, head_dim = q.shape
    slots, kv_heads = k_cache.shape[1:3]
    group = heads // kv_heads
    # More than 64 heads of one group are several rows of thread blocks.
    rows = ROWS if group > ROWS else -(-group // TMA_ROWS) * TMA_ROWS
    grouped = q.reshape(batch, kv_heads, group, head_dim)
    grouped = jnp.pad(grouped, ((0, 0), (0, 0), (0, -group % rows), (0, 0)))
    grouped = grouped.reshape(batch, -1, rows, head_dim)
    beyond = ((0, 0), (0, -slots % TMA_ROWS), (0, 0), (0, 0))
    k_cache, v_cache = jnp.pad(k_cache, beyond), jnp.pad(v_cache, beyond)

    blocks = pl.cdiv(slots, block)
    splits = min(blocks, max(1, _MULTIPROCESSORS // (batch * grouped.shape[1])))
    filled = jnp.clip(lengths, 0, slots).astype(jnp.int32)
    out, lse = _parts(call, grouped, k_cache, v_cache, filled, splits)
    out = out.reshape(batch, kv_heads, -1, splits, rows, head_dim).swapaxes(3, 4)
    out = out.reshape(batch, kv_heads, -1, splits, head_dim)[:, :, :group]
    lse = lse.reshape(batch, kv_heads, -1, splits, ROWS)[..., :rows].swapaxes(3, 4)
    lse = lse.reshape(batch, kv_heads, -1, splits)[:, :, :group]
    return _merge(out, lse, sinks).reshape(q.shape).astype(q.dtype)


def _merge(
    out: Float[Array, "B K G P H"], lse: Float[Array, "B K G P"], sinks: Array | None
) -> Float[Array, "B K G H"]:
    """Parts weighted by their share of the softmax; sinks take theirs here."""
    top = lse.max(axis=-1, keepdims=True)
    if sinks is not None:
        sinks = sinks.astype(jnp.float32).reshape(1, *lse.shape[1:3], 1)
        top = jnp.maximum(top, sinks)
    # An empty cache has no maximum; any finite stand-in leaves its weights at 0.
    top = jnp.where(jnp.isfinite(top), top, 0)
    weights = jnp.exp(lse - top)
    total = weights.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + jnp.exp(sinks - top)
    return (out * weights[..., None]).sum(axis=-2) / jnp.where(total == 0, 1, total)


@dataclasses.dataclass(frozen=True)
class _Decode:
    """The kernel; `rows` are those of the 64 that hold a query, `per_kv_head` blocks of them."""

    call: Call
    rows: int
    block: int
    head_dim: int
    splits: int
    per_kv_head: int

    def body(self, refs: dict[str, Any], outs: Sequence[Any], scratch: dict[str, Any]) -> None:
        member, part, batch = (lax.axis_index(name) for name in ("members", "parts", "batch"))
        written = refs["filled"][batch]
        # Evenly among the parts; the last ones may get nothing, and say so by their lse.
        stop = lax.div(written + (self.block - 1), jnp.int32(self.block))
        share = lax.div(stop + (self.splits - 1), jnp.int32(self.splits))
        start = jnp.minimum(part * share, stop)
        stop = jnp.minimum(start + share, stop)
        whole = jnp.clip(lax.div(written, jnp.int32(self.block)), start, stop)
        k_ring, v_ring = (Ring(_STAGES, *scratch[name]) for name in ("k", "v"))

        @pl.when(lax.axis_index("warpgroup") == 1)
        def load():
            kv_head = lax.div(member, jnp.int32(self.per_kv_head))

            def fill(step, _):
                # Only blocks with a written slot; TMA fills with zeros beyond the cache.
                at = (batch, pl.ds((start + step) * self.block, self.block), kv_head)
                k_ring.fill(step, [[refs["k"].at[at]]])
                v_ring.fill(step, [[refs["v"].at[at]]])
                return _

            lax.fori_loop(0, stop - start, fill, None)
            k_ring.drain(stop - start)
            v_ring.drain(stop - start)

        @pl.when(lax.axis_index("warpgroup") == 0)
        def compute():
            to = [out.at[batch, member, part] for out in outs]
            table = (start, start, whole, stop)
            query = refs["q"].at[batch, member]
            self._compute(query, table, written, to, scratch, k_ring, v_ring)

    def _compute(self, query, table, written, to, scratch, k_ring: Ring, v_ring: Ring) -> None:
        # Rows of the tile beyond the group hold what was there before: no row sees another, and
        # theirs are not stored.
        some_rows, start = pl.ds(0, self.rows), table[0]
        plgpu.copy_gmem_to_smem(query, scratch["q"].at[0, some_rows], scratch["q_ready"])
        plgpu.barrier_wait(scratch["q_ready"])

        def step(j, state, masked):
            (k_smem,) = k_ring.wait(j - start)
            r, factor = raw_logits(product(scratch["q"], k_smem), self.call)
            k_ring.release(j - start)
            if masked:
                slot = plgpu.broadcasted_iota(jnp.int32, r.shape, 1, layout=plgpu.Layout.WGMMA)
                r = jnp.where(slot < written - j * self.block, r, -jnp.inf)
            state, weights = state.weigh(r, factor)
            (v_smem,) = v_ring.wait(j - start)
            state = state.add(weights.astype(query.dtype), v_smem, scratch.get("weights"))
            v_ring.release(j - start)
            return state

        state = loop_blocks(table, step, Softmax.start(ROWS, self.head_dim, None))
        scratch["out"][...], scratch["lse"][...] = state.finish()
        plgpu.commit_smem()  # TMA reads through the async proxy, which must see the stores
        plgpu.copy_smem_to_gmem(scratch["out"].at[some_rows], to[0])
        plgpu.copy_smem_to_gmem(scratch["lse"], to[1])
        plgpu.wait_smem_to_gmem(0)  # shared memory must outlive the stores


def _parts(
    call: Call,
    q: Float[Array, "B M R H"],
    k_cache: Float[Array, "B W K H"],
    v_cache: Float[Array, "B W K H"],
    filled: Int[Array, " B"],
    splits: int,
) -> tuple[Float[Array, "B M P R H"], Float[Array, "B M P 64"]]:
    """Output and log-sum-exp of each part of the slots, for M rows of R heads."""
    batch, members, rows, head_dim = q.shape
    block = call.blocks.forward[1]
    width = min(64, block)
    tiles = smem_tiles((_STAGES, 1, block, head_dim), q.dtype, width)
    scratch = {
        "q": smem_tiles((1, ROWS, head_dim), q.dtype, width),
        "k": ring_scratch([tiles], _STAGES, readers=1),
        "v": ring_scratch([tiles], _STAGES, readers=1),
        "out": plgpu.SMEM((ROWS, head_dim), jnp.float32),
        "lse": plgpu.SMEM((ROWS,), jnp.float32),
        "q_ready": plgpu.Barrier(),
    }
    if call.interpret:
        scratch["weights"] = smem_tiles((ROWS, block), q.dtype, width)
    part_shape = (batch, members, splits)
    out, lse = launch(
        "attend_decode",
        _Decode(call, rows, block, head_dim, splits, members // k_cache.shape[2]).body,
        {"q": q, "k": k_cache, "v": v_cache, "filled": filled},
        [jax.ShapeDtypeStruct((*part_shape, rows, head_dim), jnp.float32),
         jax.ShapeDtypeStruct((*part_shape, ROWS), jnp.float32)],
        scratch,
        {"members": members, "parts": splits, "batch": batch},
        call.interpret,
        readers=1,
    )  # fmt: skip
    return out, lse
