"""Forward pass on TPU: online softmax over the tiles of a block of queries."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from pallas_kernels import mosaic_tpu_marks as tpu_marks
from pallas_kernels import mosaic_tpu_tiles as tiles
from pallas_kernels.flash import Call
from pallas_kernels.mosaic_tpu_tiles import FLOOR, HIDDEN, LOG2_E, PART, Band
from pallas_kernels.window import Marks


def forward(call: Call, q: Array, k: Array, v: Array, marks: Marks, sinks: Array | None):
    """As `flash.Kernels.forward`."""
    batch, queries, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1:3]
    group = heads // kv_heads
    block_q, block_k = (tiles.fit_block(size, keys) for size in call.blocks.forward)
    rows = tiles.pad_rows(queries, keys, block_q)
    band = Band.of_queries((block_q, block_k), call.window, rows.keys)
    factor = tiles.query_factor(call.scale, call.soft_cap)

    scaled = (q.astype(jnp.float32) * factor).astype(q.dtype)
    operands = [
        tiles.transpose_queries(scaled, rows, kv_heads),
        tiles.pad_keys(k, rows),
        tiles.pad_last(v.transpose(0, 2, 3, 1), 0, rows.keys),
    ]
    facts = tpu_marks.gather(marks, rows, band, by_queries=True)
    key_block = tpu_marks.key_block_of(band, rows, facts)
    prefetch = () if facts is None else facts.prefetch

    def q_map(b, h, i, s, *_):
        return b, h, 0, 0, i

    in_specs = [
        pl.BlockSpec((1, 1, group, head_dim, block_q), q_map),
        pl.BlockSpec((1, 1, block_k, head_dim), lambda b, h, *at: (b, h, key_block(b, *at), 0)),
        pl.BlockSpec((1, 1, head_dim, block_k), lambda b, h, *at: (b, h, 0, key_block(b, *at))),
    ]
    if facts is not None:
        operands += [facts.of_queries, facts.of_keys]
        in_specs += tpu_marks.specs(band, lambda b, i, *_: i, key_block)
    if sinks is not None:
        operands.append(LOG2_E * sinks.astype(jnp.float32).reshape(kv_heads, group, 1))
        in_specs.append(pl.BlockSpec((1, group, 1), lambda b, h, *_: (h, 0, 0)))

    out_shape = [
        jax.ShapeDtypeStruct((batch, kv_heads, group, head_dim, rows.queries), q.dtype),
        jax.ShapeDtypeStruct((batch, kv_heads, group, rows.queries), jnp.float32),
    ]
    pairs = batch * heads * tiles.visible_pairs(queries, keys, call.window)
    out, lse = pl.pallas_call(
        functools.partial(
            _kernel, band=band, rows=rows, soft_cap=call.soft_cap, facts=facts,
            has_sinks=sinks is not None,
        ),
        out_shape=out_shape,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetch),
            grid=(batch, kv_heads, rows.queries // block_q, band.steps),
            in_specs=in_specs,
            out_specs=[
                pl.BlockSpec((1, 1, group, head_dim, block_q), q_map),
                pl.BlockSpec((1, 1, group, block_q), lambda b, h, i, s, *_: (b, h, 0, i)),
            ],
            scratch_shapes=[
                pltpu.VMEM((group, 1, block_q), jnp.float32),
                pltpu.VMEM((group, 1, block_q), jnp.float32),
                pltpu.VMEM((group, head_dim, block_q), jnp.float32),
            ],
        ),
        compiler_params=tiles.compiler_params(3, 1),
        cost_estimate=tiles.cost(2, pairs, head_dim, [*operands, *out_shape]),
        interpret=call.interpret,
        name="window_attention_forward",
    )(*prefetch, *operands)  # fmt: skip

    out = out.reshape(batch, heads, head_dim, rows.queries).transpose(0, 3, 1, 2)
    lse = lse.reshape(batch, heads, rows.queries)
    kept = slice(rows.front, rows.front + queries)
    return out[:, kept], lse[:, :, kept]


def _kernel(*refs, band: Band, rows, soft_cap, facts, has_sinks):
    facts_refs, refs = (None, refs) if facts is None else (refs[:3], refs[3:])
    q_ref, k_ref, v_ref, *refs = refs
    mark_refs = None
    if facts is not None:
        mark_refs, refs = refs[:2], refs[2:]
    sinks_ref = refs.pop(0) if has_sinks else None
    out_ref, lse_ref, top_ref, total_ref, sum_ref = refs
    b, i, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    group = q_ref.shape[2]

    if facts is None:
        # Every query sees the key it stands on, so step 0 leaves nothing to start from.
        live, plain = tpu_marks.key_block(band, rows, i, step) >= 0, None
    else:
        live, plain = facts.status(facts_refs, b, i, step)

        @pl.when(step == 0)
        def _():
            top_ref[...] = jnp.full_like(top_ref, FLOOR)
            total_ref[...] = jnp.zeros_like(total_ref)
            sum_ref[...] = jnp.zeros_like(sum_ref)

    def scores(keys, q, section, at):
        part = keys[section.row : section.row + PART]
        logits = tiles.cap(tiles.matmul(part, q), soft_cap)
        if at is None:
            seen = tpu_marks.mask(mark_refs, facts, step, section)
        else:
            seen = tiles.section_mask(section, band.window)
        return logits if seen is None else jnp.where(seen, logits, HIDDEN)

    def strip_scores(g, column, at, keys):
        """Logits of some queries of head g, in parts, and the first key's row."""
        sections = band.beside(column, at)
        if not sections:
            return None
        q = q_ref[0, 0, g, :, pl.ds(column, PART)]
        return sections[0].row, [scores(keys, q, section, at) for section in sections]

    def strip(g, column, found, all_values, fresh):
        """Takes the keys that some queries of head g see into their running softmax."""
        here = (g, slice(None), pl.ds(column, PART))
        if found is None:
            if fresh:
                top_ref[here] = jnp.full((1, PART), FLOOR)
                total_ref[here] = jnp.zeros((1, PART))
                sum_ref[here] = jnp.zeros((sum_ref.shape[1], PART))
            return
        first, logits = found
        top = jnp.max(functools.reduce(jnp.maximum, logits), axis=0, keepdims=True)
        before = jnp.full((1, PART), FLOOR) if fresh else top_ref[here]
        top = jnp.maximum(top, before)
        weights = [jnp.exp2(part - top) for part in logits]
        total = jnp.sum(functools.reduce(jnp.add, weights), axis=0, keepdims=True)
        weights = jnp.concatenate(weights, axis=0)
        values = all_values[:, first : first + weights.shape[0]]
        out = tiles.matmul(values, weights.astype(values.dtype))
        if not fresh:
            shrink = jnp.exp2(before - top)
            total += shrink * total_ref[here]
            out += shrink * sum_ref[here]
        top_ref[here], total_ref[here], sum_ref[here] = top, total, out

    def tile(at):
        keys, values = k_ref[0, 0], v_ref[0, 0]
        fresh = at == 0 and facts is None

        def head(g, carry):
            # One strip's logits are under way while the one before goes through its softmax:
            # the matrix and the vector units work side by side.
            waiting = None
            for column in range(0, band.queries, PART):
                found = strip_scores(g, column, at, keys)
                if waiting is not None:
                    strip(g, *waiting, values, fresh)
                waiting = column, found
            strip(g, *waiting, values, fresh)
            return carry

        jax.lax.fori_loop(0, group, head, 0) if group > 1 else head(0, 0)

    tiles.for_each_path(band, step, live, plain, tile)

    @pl.when(step == band.steps - 1)
    def _():
        def head(g, carry):
            top, total, summed = top_ref[g], total_ref[g], sum_ref[g]
            if sinks_ref is not None:
                sink = sinks_ref[0, pl.ds(g, 1), :]
                before, top = top, jnp.maximum(top, sink)
                shrink = jnp.exp2(before - top)
                total = shrink * total + jnp.exp2(sink - top)
                summed = shrink * summed
            some = total > 0
            inverse = jnp.where(some, 1 / jnp.where(some, total, 1), 0)
            out_ref[0, 0, g] = (summed * inverse).astype(out_ref.dtype)
            lse = (top + jnp.log2(jnp.where(some, total, 1))) / LOG2_E
            lse_ref[0, 0, pl.ds(g, 1), :] = jnp.where(some, lse, -jnp.inf)
            return carry

        jax.lax.fori_loop(0, group, head, 0) if group > 1 else head(0, 0)
