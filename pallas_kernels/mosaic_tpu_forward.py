"""Forward pass on TPU: online softmax over the tiles of a block of queries."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from pallas_kernels import mosaic_tpu_marks as tpu_marks
from pallas_kernels import mosaic_tpu_tiles as tiles
from pallas_kernels.flash import Call
from pallas_kernels.mosaic_tpu_tiles import FLOOR, HIDDEN, LOG2_E, PART, Band, Rows
from pallas_kernels.window import Marks


def forward(call: Call, q: Array, k: Array, v: Array, marks: Marks, sinks: Array | None):
    """As `flash.Kernels.forward`."""
    batch, queries, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1:3]
    group = heads // kv_heads
    block_q, block_k = tiles.fit_blocks(call.blocks.forward, keys, q, kv_heads)
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
        operands.append(LOG2_E * sinks.astype(jnp.float32).reshape(kv_heads, group, 1, 1))
        in_specs.append(pl.BlockSpec((1, group, 1, 1), lambda b, h, *_: (h, 0, 0, 0)))

    out_shape = [
        tiles.out_like(q, (batch, kv_heads, group, head_dim, rows.queries), q.dtype),
        # An axis of one before the last: a head is then picked by a leading axis.
        tiles.out_like(q, (batch, kv_heads, group, 1, rows.queries), jnp.float32),
    ]
    pairs = batch * heads * tiles.visible_pairs(queries, keys, call.window)
    options = tiles.call_options("window_attention_forward", 2, pairs, operands, out_shape, block_q)
    out, lse = pl.pallas_call(
        functools.partial(_kernel, band=band, rows=rows, facts=facts, call=call),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetch),
            grid=(batch, kv_heads, rows.queries // block_q, band.steps),
            in_specs=in_specs,
            out_specs=[
                pl.BlockSpec((1, 1, group, head_dim, block_q), q_map),
                pl.BlockSpec((1, 1, group, 1, block_q), q_map),
            ],
            scratch_shapes=[
                pltpu.VMEM((group, 1, block_q), jnp.float32),
                pltpu.VMEM((group, 1, block_q), jnp.float32),
                pltpu.VMEM((group, head_dim, block_q), jnp.float32),
            ],
        ),
        interpret=call.interpret,
        **options,
    )(*prefetch, *operands)

    out = out.reshape(batch, heads, head_dim, rows.queries).transpose(0, 3, 1, 2)
    lse = lse.reshape(batch, heads, rows.queries)
    kept = slice(rows.front, rows.front + queries)
    return out[:, kept], lse[:, :, kept]


class _Running(NamedTuple):
    """Refs of the softmax so far, in units of log 2: [G, 1, T] twice and [G, H, T]."""

    top: Any
    total: Any
    sum: Any

    def clear(self, here) -> None:
        for ref, value in zip(self, (FLOOR, 0.0, 0.0), strict=True):
            part = ref.at[here]
            part[...] = jnp.full(part.shape, value)

    def take_in(self, here, logits: list[Array], values: Array, fresh: bool) -> None:
        """Adds some keys, logits in parts; `fresh` is at the first keys of all."""
        top = jnp.max(functools.reduce(jnp.maximum, logits), axis=0, keepdims=True)
        before = jnp.full_like(top, FLOOR) if fresh else self.top[here]
        top = jnp.maximum(top, before)
        weights = [jnp.exp2(part - top) for part in logits]
        total = jnp.sum(functools.reduce(jnp.add, weights), axis=0, keepdims=True)
        # Joined before they are rounded: bf16 parts would be laid out anew.
        out = tiles.matmul(values, jnp.concatenate(weights, axis=0).astype(values.dtype))
        if not fresh:
            shrink = jnp.exp2(before - top)
            total += shrink * self.total[here]
            out += shrink * self.sum[here]
        self.top[here], self.total[here], self.sum[here] = top, total, out

    def result(self, g, sink: Array | None) -> tuple[Array, Array]:
        """Output [H, T] and log-sum-exp [1, T] of head g."""
        top, total, summed = self.top[g], self.total[g], self.sum[g]
        if sink is not None:
            before, top = top, jnp.maximum(top, sink)
            shrink = jnp.exp2(before - top)
            total = shrink * total + jnp.exp2(sink - top)
            summed = shrink * summed
        some = total > 0
        total = jnp.where(some, total, 1)
        return summed * (1 / total), jnp.where(some, (top + jnp.log2(total)) / LOG2_E, -jnp.inf)


def _kernel(*refs, band: Band, rows: Rows, facts: tpu_marks.Facts | None, call: Call):
    facts_refs, refs = (None, refs) if facts is None else (refs[:3], refs[3:])
    (q_ref, k_ref, v_ref), refs = refs[:3], refs[3:]
    mark_refs, refs = (None, refs) if facts is None else (refs[:2], refs[2:])
    *sinks_ref, out_ref, lse_ref = refs[:-3]
    running = _Running(*refs[-3:])
    b, i, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    group = q_ref.shape[2]
    width = PART if band.queries % call.blocks.strip else call.blocks.strip

    if facts is None:
        # Every query sees the key it stands on, so step 0 leaves nothing to start from.
        live, plain = tpu_marks.key_block(band, rows, i, step) >= 0, None
    else:
        live, plain = facts.status(facts_refs, b, i, step)
        pl.when(step == 0)(lambda: running.clear(...))

    def scores(keys, q, section, at):
        logits = tiles.cap(tiles.matmul(keys[section.row : section.row + PART], q), call.soft_cap)
        seen = tpu_marks.seen(mark_refs, facts, band, step, section, at)
        return logits if seen is None else jnp.where(seen, logits, HIDDEN)

    def tile(at):
        keys, values = k_ref[0, 0], v_ref[0, 0]
        fresh = at == 0 and facts is None

        def head(g):
            def begin(column, sections):
                q = q_ref[0, 0, g, :, pl.ds(column, width)]
                return [(x.row, scores(keys, q, x, at)) for x in sections]

            def finish(column, parts):
                here = (g, slice(None), pl.ds(column, width))
                if parts:
                    first, stop = parts[0][0], parts[-1][0] + PART
                    logits = [part for _, part in parts]
                    running.take_in(here, logits, values[:, first:stop], fresh)
                elif fresh:
                    running.clear(here)

            tiles.pipeline(band.strips_of_queries(at, width), width, begin, finish)

        tiles.for_each_head(group, head)

    tiles.for_each_path(band, step, live, plain, tile)

    @pl.when(step == band.steps - 1)
    def _():
        def head(g):
            sink = sinks_ref[0][0, g] if sinks_ref else None
            out, lse = running.result(g, sink)
            out_ref[0, 0, g] = out.astype(out_ref.dtype)
            lse_ref[0, 0, g] = lse

        tiles.for_each_head(group, head)
