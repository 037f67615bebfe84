"""Backward pass on TPU: dk and dv are gathered over queries, dq along the way or over keys.

Every tile's probabilities are made again from the log-sum-exp (see `flash`). The heads of a group
share their tile of keys, and their parts of dk and dv are summed where they arise.

Blocks of keys are taken in turn, and each is reached by a few blocks of queries: as many as the
window spans. Their dq so far waits in a ring in VMEM, and a block of queries leaves it at the
block of keys it stands on, the last that it sees. One pass over the tiles then makes all three,
with five products a tile. Where the ring would be too large, a kernel of its own gathers dq: seven.
"""

import functools
import math

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import mosaic_tpu_marks as tpu_marks
from pallas_kernels import mosaic_tpu_tiles as tiles
from pallas_kernels.flash import Call
from pallas_kernels.mosaic_tpu_tiles import HIDDEN, LOG2_E, PART, Band, Rows
from pallas_kernels.window import Marks

# A log-sum-exp so large that every probability is 0: of padding, and of queries without keys.
CLOSED = 1e30
RING_BYTES = 4 * 2**20  # of `tiles.BESIDE_BYTES`


def backward(call: Call, q, k, v, marks: Marks, lse, delta, d_out):
    """As `flash.Kernels.backward`."""
    batch, queries, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1:3]
    group = heads // kv_heads
    blocks_dq = tiles.fit_blocks(call.blocks.dq, keys, q, kv_heads)
    blocks_dkv = tiles.fit_blocks(call.blocks.dkv, keys, q, kv_heads)
    rows = tiles.pad_rows(queries, keys, math.lcm(*blocks_dq, *blocks_dkv))

    factor = tiles.query_factor(call.scale, call.soft_cap)
    scaled = (q.astype(jnp.float32) * factor).astype(q.dtype)
    lse = jnp.where(jnp.isfinite(lse), lse * LOG2_E, CLOSED)

    def grouped(x, value=0):
        x = x.astype(jnp.float32).reshape(batch, kv_heads, group, 1, queries)
        return tiles.pad_last(x, rows.front, rows.queries, value)

    operands = [
        tiles.transpose_queries(scaled, rows, kv_heads),
        tiles.transpose_queries(d_out.astype(q.dtype), rows, kv_heads),
        grouped(lse, CLOSED),
        grouped(delta),
        tiles.pad_keys(k, rows),
        tiles.pad_keys(v, rows),
    ]
    pairs = batch * heads * tiles.visible_pairs(queries, keys, call.window)
    by_keys = Band.of_keys(blocks_dkv, call.window, rows.keys)
    if fuses(by_keys, group, head_dim):
        dk, dv, dq = _fused(call, rows, by_keys, marks, operands, pairs)
    else:
        by_queries = Band.of_queries(blocks_dq, call.window, rows.keys)
        (dq,) = _dq(call, rows, by_queries, marks, operands, pairs)
        dk, dv = _dkv(call, rows, by_keys, marks, operands, pairs)

    dq = dq.reshape(batch, heads, head_dim, rows.queries).transpose(0, 3, 1, 2)
    dq = dq[:, rows.front : rows.front + queries]
    return dq, *(x.transpose(0, 3, 1, 2)[:, :keys] for x in (dk, dv))


def fuses(band: Band, group: int, head_dim: int) -> bool:
    """Whether one kernel gathers all three gradients."""
    return 4 * band.steps * group * head_dim * band.queries <= RING_BYTES


def _call(
    kernel, call, rows, band, marks, operands, outputs, scratch, pairs, *, by_queries, carries, name
):
    """One kernel over a grid of batch, key heads, blocks of its own side and steps.

    Args:
        operands: as `backward` makes them; the keys may follow once more, turned.
        outputs: shape and block specification of each.
        carries: whether a block leaves something behind for the next.
    """
    batch, kv_heads, group, head_dim, _ = operands[0].shape
    facts = tpu_marks.gather(marks, rows, band, by_queries)
    prefetch = () if facts is None else facts.prefetch
    if by_queries:
        query_at, key_at = (lambda b, own, *_: own), tpu_marks.key_block_of(band, rows, facts)
        blocks = rows.queries // band.queries
    else:
        query_at, key_at = tpu_marks.query_block_of(band, rows, facts), (lambda b, own, *_: own)
        blocks = rows.keys // band.keys

    def of_queries(height):
        shape = (1, 1, group, height, band.queries)
        return pl.BlockSpec(shape, lambda b, h, *at: (b, h, 0, 0, query_at(b, *at)))

    of_keys = pl.BlockSpec((1, 1, band.keys, head_dim), lambda b, h, *at: (b, h, key_at(b, *at), 0))
    turned = pl.BlockSpec((1, 1, head_dim, band.keys), lambda b, h, *at: (b, h, 0, key_at(b, *at)))
    in_specs = [of_queries(head_dim)] * 2 + [of_queries(1)] * 2 + [of_keys] * 2 + [turned]
    in_specs = in_specs[: len(operands)]
    if facts is not None:
        in_specs += tpu_marks.specs(band, query_at, key_at)
        operands = [*operands, facts.of_queries, facts.of_keys]
    out_shape, out_specs = zip(*outputs, strict=True)
    products = {1: 3, 2: 4, 3: 5}[len(outputs)]
    return pl.pallas_call(
        functools.partial(kernel, band=band, rows=rows, facts=facts, call=call),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetch),
            grid=(batch, kv_heads, blocks, band.steps),
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        ),
        interpret=call.interpret,
        **tiles.call_options(name, products, pairs, operands, out_shape, band.queries, carries),
    )(*prefetch, *operands)


def _dq(call: Call, rows: Rows, band: Band, marks, operands, pairs):
    q, k = operands[0], operands[4]
    own = (*q.shape[2:4], band.queries)
    spec = pl.BlockSpec((1, 1, *own), lambda b, h, i, *_: (b, h, 0, 0, i))
    return _call(
        _dq_kernel, call, rows, band, marks, [*operands, k.swapaxes(2, 3)],
        [(tiles.out_like(q, q.shape, q.dtype), spec)], [own], pairs,
        by_queries=True, carries=False, name="window_attention_dq",
    )  # fmt: skip


def _of_keys(operands, band: Band):
    """Output and accumulator of dk, or of dv."""
    q, k = operands[0], operands[4]
    batch, kv_heads, keys, head_dim = k.shape
    own = (head_dim, band.keys)
    spec = pl.BlockSpec((1, 1, *own), lambda b, h, j, *_: (b, h, 0, j))
    return (tiles.out_like(q, (batch, kv_heads, head_dim, keys), k.dtype), spec), own


def _dkv(call: Call, rows: Rows, band: Band, marks, operands, pairs):
    output, own = _of_keys(operands, band)
    return _call(
        _dkv_kernel, call, rows, band, marks, operands, [output] * 2, [own] * 2, pairs,
        by_queries=False, carries=False, name="window_attention_dkv",
    )  # fmt: skip


def _fused(call: Call, rows: Rows, band: Band, marks, operands, pairs):
    q, k = operands[0], operands[4]
    output, own = _of_keys(operands, band)
    waiting = (*q.shape[2:4], band.queries)
    last = rows.queries // band.queries - 1

    def leaving(b, h, j, step, *_):
        # The blocks of queries that stand on these keys, one a step, then the last of them.
        step = jnp.minimum(step, band.keys // band.queries - 1)
        return b, h, 0, 0, jnp.clip(tpu_marks.query_block(band, rows, j, step), 0, last)

    dq = tiles.out_like(q, q.shape, q.dtype), pl.BlockSpec((1, 1, *waiting), leaving)
    return _call(
        _fused_kernel, call, rows, band, marks, [*operands, k.swapaxes(2, 3)],
        [output, output, dq], [own, own, (band.steps, *waiting)], pairs,
        by_queries=False, carries=True, name="window_attention_backward",
    )  # fmt: skip


def _slopes(products, d_products, lse, delta, seen, soft_cap):
    """Probabilities, and the derivative in the capped logits' products, of one section."""
    logits = tiles.cap(products, soft_cap)
    if seen is not None:
        logits = jnp.where(seen, logits, HIDDEN)
    weights = jnp.exp2(logits - lse)
    slopes = weights * (d_products - delta)
    if soft_cap is not None:
        bend = jnp.tanh(products)
        slopes = slopes * (1 - bend * bend)
    return weights, slopes


def _columns(ref, g, section):
    return ref[0, 0, g, :, pl.ds(section.column, PART)]


def _dq_kernel(*refs, band: Band, rows: Rows, facts, call: Call):
    facts_refs, refs = (None, refs) if facts is None else (refs[:3], refs[3:])
    q_ref, d_out_ref, lse_ref, delta_ref, k_ref, v_ref, k_turned_ref, *mark_refs = refs[:-2]
    out_ref, sum_ref = refs[-2:]
    b, i, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    if facts is None:
        live, plain = tpu_marks.key_block(band, rows, i, step) >= 0, None
    else:
        live, plain = facts.status(facts_refs, b, i, step)

        @pl.when(step == 0)
        def _():
            sum_ref[...] = jnp.zeros_like(sum_ref)

    def tile(at):
        keys, values, turned = k_ref[0, 0], v_ref[0, 0], k_turned_ref[0, 0]
        fresh = at == 0 and facts is None

        def head(g):
            def begin(column, sections):
                columns = pl.ds(column, PART)
                q, d_out = q_ref[0, 0, g, :, columns], d_out_ref[0, 0, g, :, columns]
                return [
                    (
                        section,
                        tiles.matmul(keys[section.row : section.row + PART], q),
                        tiles.matmul(values[section.row : section.row + PART], d_out),
                    )
                    for section in sections
                ]

            def finish(column, parts):
                here = (g, slice(None), pl.ds(column, PART))
                if not parts:
                    if fresh:
                        sum_ref[here] = jnp.zeros((sum_ref.shape[1], PART))
                    return
                slopes = [
                    _slopes(
                        products, d_products, _columns(lse_ref, g, section),
                        _columns(delta_ref, g, section),
                        tpu_marks.seen(mark_refs, facts, band, step, section, at), call.soft_cap,
                    )[1]
                    for section, products, d_products in parts
                ]  # fmt: skip
                joined = jnp.concatenate(slopes, axis=0).astype(turned.dtype)
                first = parts[0][0].row
                out = tiles.matmul(turned[:, first : first + joined.shape[0]], joined)
                sum_ref[here] = out if fresh else sum_ref[here] + out

            tiles.pipeline(band.strips_of_queries(at), PART, begin, finish)

        tiles.for_each_head(sum_ref.shape[0], head)

    tiles.for_each_path(band, step, live, plain, tile)

    @pl.when(step == band.steps - 1)
    def _():
        out_ref[0, 0] = (call.scale * sum_ref[...]).astype(out_ref.dtype)


def _dkv_kernel(*refs, band: Band, rows: Rows, facts, call: Call, add_dq=None):
    facts_refs, refs = (None, refs) if facts is None else (refs[:3], refs[3:])
    q_ref, d_out_ref, lse_ref, delta_ref, k_ref, v_ref, *mark_refs = refs[:-4]
    dk_ref, dv_ref, dk_sum_ref, dv_sum_ref = refs[-4:]
    b, j, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    if facts is None:
        at_block = tpu_marks.query_block(band, rows, j, step)
        live, plain = (at_block >= 0) & (at_block < rows.queries // band.queries), None
    else:
        live, plain = facts.status(facts_refs, b, j, step)

    @pl.when(step == 0)
    def _():
        dk_sum_ref[...] = jnp.zeros_like(dk_sum_ref)
        dv_sum_ref[...] = jnp.zeros_like(dv_sum_ref)

    def tile(at):
        def head(g):
            q, d_out = q_ref[0, 0, g], d_out_ref[0, 0, g]

            def begin(row, sections):
                keys, values = k_ref[0, 0, pl.ds(row, PART), :], v_ref[0, 0, pl.ds(row, PART), :]
                return [
                    (
                        section,
                        tiles.matmul(keys, q[:, section.column : section.column + PART]),
                        tiles.matmul(values, d_out[:, section.column : section.column + PART]),
                    )
                    for section in sections
                ]

            def finish(row, parts):
                if not parts:
                    return
                found = [
                    _slopes(
                        products, d_products, _columns(lse_ref, g, section),
                        _columns(delta_ref, g, section),
                        tpu_marks.seen(mark_refs, facts, band, step, section, at), call.soft_cap,
                    )
                    for section, products, d_products in parts
                ]  # fmt: skip
                weights, slopes = (
                    jnp.concatenate(x, axis=1).astype(q.dtype) for x in zip(*found, strict=True)
                )
                first = parts[0][0].column
                columns = slice(first, first + weights.shape[1])
                here = (slice(None), pl.ds(row, PART))
                dv_sum_ref[here] += tiles.matmul(d_out[:, columns], weights, (1, 1))
                dk_sum_ref[here] += tiles.matmul(q[:, columns], slopes, (1, 1))
                if add_dq is not None:
                    add_dq(g, row, pl.ds(first, weights.shape[1]), slopes)

            tiles.pipeline(band.strips_of_keys(at), PART, begin, finish)

        tiles.for_each_head(q_ref.shape[2], head)

    tiles.for_each_path(band, step, live, plain, tile)

    @pl.when(step == band.steps - 1)
    def _():
        # The queries came with their factor in them; what is left of the scale is this.
        rest = call.scale / tiles.query_factor(call.scale, call.soft_cap)
        dk_ref[0, 0] = (rest * dk_sum_ref[...]).astype(dk_ref.dtype)
        dv_ref[0, 0] = dv_sum_ref[...].astype(dv_ref.dtype)


def _fused_kernel(*refs, band: Band, rows: Rows, facts, call: Call):
    turned_at = 6 + (0 if facts is None else 3)
    k_turned_ref = refs[turned_at]
    front = refs[:turned_at] + refs[turned_at + 1 : -6]
    dk_ref, dv_ref, dq_ref, dk_sum_ref, dv_sum_ref, ring_ref = refs[-6:]
    j, step = pl.program_id(2), pl.program_id(3)
    i = tpu_marks.query_block(band, rows, j, step)
    there = (i >= 0) & (i < rows.queries // band.queries)
    standing = band.keys // band.queries
    slot = lax.rem(jnp.maximum(i, 0), band.steps)

    # A block of keys is the first that the farthest of its queries see.
    @pl.when(there & ((j == 0) | (step >= band.steps - standing)))
    def _():
        ring_ref[slot] = jnp.zeros(ring_ref.shape[1:])

    def add_dq(g, row, columns, slopes):
        part = tiles.matmul(k_turned_ref[0, 0, :, pl.ds(row, PART)], slopes)
        ring_ref[slot, g, :, columns] += part

    _dkv_kernel(
        *front, dk_ref, dv_ref, dk_sum_ref, dv_sum_ref,
        band=band, rows=rows, facts=facts, call=call, add_dq=add_dq,
    )  # fmt: skip

    @pl.when(there & (step < standing))
    def _():
        dq_ref[0, 0] = (call.scale * ring_ref[slot]).astype(dq_ref.dtype)
