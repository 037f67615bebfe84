"""One query a sequence against a ring-buffer cache, on TPU.

The cache is read as it lies: rows of (slot, key head), all heads of a block in one product with
all query heads. A query's logits with other heads' keys are masked; the matrix unit has the room,
since it takes a block's rows once whatever the number of queries. Only blocks with filled slots
are loaded. At a head size of 128, [B, W, K, H] and [B, W * K, H] lie alike in memory; at 64 XLA
packs the cache otherwise and copies it first, unless it is kept in the second form.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels import mosaic_tpu_tiles as tiles
from pallas_kernels.mosaic_tpu_tiles import FLOOR, HIDDEN, LOG2_E, PART

ROWS = 2048  # of a block, about: half a megabyte of bf16 keys at a head size of 128


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
    interpret=False,
) -> Float[Array, "B N H"]:
    """As `decode.decode_attention`; `block` is in slots, and its rows a multiple of 128."""
    tiles.check_dtype(q)
    batch, heads, head_dim = q.shape
    slots, kv_heads = k_cache.shape[1:3]
    block = block_slots(block, slots, kv_heads)
    rows = block * kv_heads
    factor = tiles.query_factor(scale, soft_cap)
    filled = jnp.minimum(lengths, slots).astype(jnp.int32)
    scaled = (q.astype(jnp.float32) * factor).astype(q.dtype)
    # Of every row of a block: its slot and its head.
    places = jnp.stack([jnp.arange(rows) // kv_heads, jnp.arange(rows) % kv_heads]).astype(
        jnp.int32
    )
    of_heads = (jnp.arange(heads, dtype=jnp.int32) // (heads // kv_heads))[:, None]

    def cache_at(b, j, filled):
        return b, jnp.minimum(j, jnp.maximum(pl.cdiv(filled[b], block), 1) - 1), 0

    def whole(b, j, filled):
        return 0, 0

    operands = [
        scaled, *(x.reshape(batch, slots * kv_heads, head_dim) for x in (k_cache, v_cache)),
        places, of_heads,
    ]  # fmt: skip
    in_specs = [
        pl.BlockSpec((1, heads, head_dim), lambda b, j, filled: (b, 0, 0)),
        pl.BlockSpec((1, rows, head_dim), cache_at),
        pl.BlockSpec((1, rows, head_dim), cache_at),
        pl.BlockSpec((2, rows), whole),
        pl.BlockSpec((heads, 1), whole),
    ]
    if sinks is not None:
        operands.append(LOG2_E * sinks.astype(jnp.float32)[:, None])
        in_specs.append(pl.BlockSpec((heads, 1), whole))
    out_shape = tiles.out_like(q, q.shape, q.dtype)
    moved: list[Array | jax.ShapeDtypeStruct] = [*operands, out_shape]
    return pl.pallas_call(
        functools.partial(_kernel, block=block, total=slots * kv_heads, soft_cap=soft_cap),
        out_shape=out_shape,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, pl.cdiv(slots, block)),
            in_specs=in_specs,
            out_specs=pl.BlockSpec((1, heads, head_dim), lambda b, j, filled: (b, 0, 0)),
            scratch_shapes=[
                pltpu.VMEM((heads, 1), jnp.float32),
                pltpu.VMEM((heads, 1), jnp.float32),
                pltpu.VMEM((heads, head_dim), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=4 * batch * heads * slots * kv_heads * head_dim,
            transcendentals=batch * heads * slots * kv_heads,
            bytes_accessed=sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in moved),
        ),
        interpret=interpret,
        name="decode_attention",
    )(filled, *operands)


def block_slots(block: int | None, slots: int, kv_heads: int) -> int:
    """Slots of a block: all, or as many as make a multiple of PART rows."""
    unit = PART // math.gcd(PART, kv_heads)
    if block is None:
        block = max(unit, ROWS // kv_heads // unit * unit)
    elif block % unit:
        raise ValueError(
            f"block: got {block} slots of {kv_heads} heads; wanted a multiple of {unit}, so that "
            f"rows are a multiple of {PART}; fix: try {pl.cdiv(block, unit) * unit}"
        )
    return min(block, slots)


def _kernel(
    filled_ref, q_ref, k_ref, v_ref, places_ref, of_heads_ref, *refs, block, total, soft_cap
):
    *sinks_ref, out_ref, top_ref, total_ref, sum_ref = refs
    b, j = pl.program_id(0), pl.program_id(1)
    filled = filled_ref[b] - j * block
    rows = k_ref.shape[1]

    @pl.when(j == 0)
    def _():
        top_ref[...] = sinks_ref[0][...] if sinks_ref else jnp.full_like(top_ref, FLOOR)
        total_ref[...] = jnp.full_like(total_ref, 1 if sinks_ref else 0)
        sum_ref[...] = jnp.zeros_like(sum_ref)

    @pl.when(filled > 0)
    def _():
        logits = tiles.cap(tiles.matmul(q_ref[0], k_ref[0], (1, 1)), soft_cap)
        places = places_ref[...]
        seen = (places[1:2] == of_heads_ref[...]) & (places[0:1] < filled)
        logits = jnp.where(seen, logits, HIDDEN)
        before = top_ref[...]
        top = jnp.maximum(before, jnp.max(logits, axis=1, keepdims=True))
        weights = jnp.exp2(logits - top)
        shrink = jnp.exp2(before - top)
        values = v_ref[0]
        if total % rows:
            # The last block reaches past the cache, and what stands there may be NaN.
            row = lax.broadcasted_iota(jnp.int32, values.shape, 0) + j * rows
            values = jnp.where(row < total, values, jnp.zeros_like(values))
        top_ref[...] = top
        total_ref[...] = shrink * total_ref[...] + jnp.sum(weights, axis=1, keepdims=True)
        sum_ref[...] = shrink * sum_ref[...] + tiles.matmul(weights.astype(values.dtype), values)

    @pl.when(j == pl.num_programs(1) - 1)
    def _():
        total = total_ref[...]
        out_ref[0] = (sum_ref[...] / jnp.where(total > 0, total, 1)).astype(out_ref.dtype)
