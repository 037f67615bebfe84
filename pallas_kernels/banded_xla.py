"""Windowed attention in plain XLA whose time and memory grow with T * W, not with T * T.

A tile is one block of queries against every key the block can reach, so its softmax is complete
in itself. The forward pass keeps nothing but its inputs; the backward pass makes each tile's
probabilities again and adds the tile's share of dk and dv where its keys lie. A key at position j
thereby collects from exactly the query blocks that cover [j, j + window - 1].

The tile is written for XLA's CPU backend, where it decides how fast a small model trains: the mask
is an array that is added, and every intermediate has one reader. That form becomes one fused loop
that holds a tile's logits in cache; a `select`, or a log-sum-exp saved on the side, breaks it up
and costs a third of the speed. Batch and key/value heads stay separate axes, so that a mesh can
split both without a collective.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.tiling import Span, plan_spans
from pallas_kernels.window import same_segment, visible

# Finite, so that a row without keys stays free of NaN; large enough that exp gives exactly 0.
_MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class _Setting:
    """What does not change within a call; static under jit."""

    window: int | None
    scale: float
    soft_cap: float | None


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of logits, softmax and accumulators."""
    return jnp.promote_types(dtype, jnp.float32)


def _product(equation: str, a: Array, b: Array) -> Array:
    # HIGHEST: an accelerator's default would round float32 operands; bfloat16 ones are exact.
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    wide = _wide(a.dtype)
    return jnp.einsum(equation, a, b, precision=precision, preferred_element_type=wide)


def _pack(x: Array, kv_heads: int, span: Span) -> Array:
    """[B, T, N, H] to the span's [steps, B, K, G*block, H], filled up with zeros."""
    batch, queries, heads, head_dim = x.shape
    x = x[:, span.first : span.stop]
    x = jnp.pad(x, ((0, 0), (0, max(0, span.stop - queries)), (0, 0), (0, 0)))
    x = x.reshape(batch, span.steps, span.block, kv_heads, heads // kv_heads, head_dim)
    x = x.transpose(1, 0, 3, 4, 2, 5)
    return x.reshape(span.steps, batch, kv_heads, -1, head_dim)


def _unpack(parts: list[Array], shape: tuple[int, ...], plan: list[Span]) -> Array:
    """The inverse of `_pack` over all spans, cut back to the real queries."""
    batch, queries, heads, head_dim = shape
    rows = []
    for x, span in zip(parts, plan, strict=True):
        x = x.reshape(span.steps, batch, heads, span.block, head_dim).transpose(1, 0, 3, 2, 4)
        rows.append(x.reshape(batch, span.steps * span.block, heads, head_dim))
    return jnp.concatenate(rows, axis=1)[:, :queries]


@dataclasses.dataclass(frozen=True)
class _Tiles:
    """The tiles of one call: which keys a step of a span needs, and its probabilities."""

    setting: _Setting
    queries: int
    keys: int
    segment_ids: Array | None
    sinks: Array | None

    def key_start(self, span: Span, step: Array) -> Array:
        # The last key of the block's last query ends the tile. Where that would begin before
        # key 0 or end after the last one the tile moves inwards, and the mask does the rest.
        stop = span.first + (step + 1) * span.block + self.keys - self.queries
        return jnp.clip(stop - span.keys, 0, self.keys - span.keys)

    def bias(self, span: Span, step: Array, dtype: jnp.dtype) -> Array:
        """0 where a query sees a key and a very negative number elsewhere: [b, block, keys]."""
        first, start = span.first + step * span.block, self.key_start(span, step)
        q_pos = first + jnp.arange(span.block)[:, None] + (self.keys - self.queries)
        mask = visible(q_pos, start + jnp.arange(span.keys)[None, :], self.setting.window)[None]
        if self.segment_ids is not None:
            overhang = max(0, span.stop - self.queries)
            q_segments = jnp.pad(self.segment_ids, ((0, 0), (0, overhang)))
            q_segments = lax.dynamic_slice_in_dim(q_segments, first, span.block, axis=1)
            k_segments = lax.dynamic_slice_in_dim(self.segment_ids, start, span.keys, axis=1)
            mask = mask & same_segment(q_segments[:, :, None], k_segments[:, None, :])
        return jnp.where(mask, jnp.zeros((), dtype), _MASKED)

    def probabilities(
        self, q: Array, k: Array, bias: Array
    ) -> tuple[Array, Array | None, Array | None]:
        """Softmax of one tile.

        Args:
            q: [B, K, G*block, H]. k: [B, K, keys, H]. bias: [b, block, keys].

        Returns:
            The probabilities [B, K, G*block, keys]; those of the sinks [B, K, G*block, 1] if
            there are any; the derivative of the soft cap, if there is one.
        """
        logits = _product("bkth,bksh->bkts", q, k) * self.setting.scale
        slope = None
        if self.setting.soft_cap is not None:
            capped = jnp.tanh(logits / self.setting.soft_cap)
            logits, slope = capped * self.setting.soft_cap, 1 - capped * capped
        block = bias.shape[1]
        by_head = logits.reshape(*logits.shape[:2], -1, *bias.shape[1:])
        logits = (by_head + bias[:, None, None]).reshape(logits.shape)
        top = logits.max(axis=-1, keepdims=True)
        if self.sinks is None:
            weights = jnp.exp(logits - top)
            return weights / weights.sum(axis=-1, keepdims=True), None, slope
        sink = self.sinks.astype(logits.dtype).reshape(k.shape[1], -1, 1)
        sink = jnp.repeat(sink, block, axis=1)
        top = jnp.maximum(top, sink)
        weights, sink_weight = jnp.exp(logits - top), jnp.exp(sink - top)
        total = weights.sum(axis=-1, keepdims=True) + sink_weight
        return weights / total, sink_weight / total, slope


def _over_steps(
    body: Callable[[Any, tuple[Array, Any]], tuple[Any, Array]], carry: Any, xs: Any, steps: int
) -> tuple[Any, Array]:
    """`lax.scan`, without the loop where there is one step only."""
    if steps > 1:
        return lax.scan(body, carry, (jnp.arange(steps), xs))
    carry, y = body(carry, (jnp.zeros((), jnp.int32), jax.tree.map(lambda x: x[0], xs)))
    return carry, y[None]


def _without_padding(x: Array, segment_ids: Array | None) -> Array:
    """Zero at the queries that see no key. A real token always sees itself."""
    return x if segment_ids is None else jnp.where((segment_ids != 0)[:, :, None, None], x, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(setting, q, k, v, segment_ids, sinks):
    return _forward(setting, q, k, v, segment_ids, sinks)[0]


def _forward(setting, q, k, v, segment_ids, sinks):
    kv_heads = k.shape[2]
    tiles = _Tiles(setting, q.shape[1], k.shape[1], segment_ids, sinks)
    plan = plan_spans(q.shape[1], k.shape[1], setting.window)
    k_rows, v_rows = k.swapaxes(1, 2), v.swapaxes(1, 2)

    def attend_span(span: Span) -> Array:
        def step(carry, inputs):
            index, q_block = inputs
            start = tiles.key_start(span, index)
            k_tile = lax.dynamic_slice_in_dim(k_rows, start, span.keys, axis=2)
            v_tile = lax.dynamic_slice_in_dim(v_rows, start, span.keys, axis=2)
            bias = tiles.bias(span, index, _wide(q.dtype))
            p, _, _ = tiles.probabilities(q_block, k_tile, bias)
            return carry, _product("bkts,bksh->bkth", p.astype(v.dtype), v_tile)

        return _over_steps(step, None, _pack(q, kv_heads, span), span.steps)[1]

    out = _unpack([attend_span(span) for span in plan], q.shape, plan)
    out = _without_padding(out, segment_ids).astype(q.dtype)
    return out, (q, k, v, segment_ids, sinks)


def _backward(setting, saved, d_out):
    q, k, v, segment_ids, sinks = saved
    (batch, queries, heads, _), kv_heads, wide = q.shape, k.shape[2], _wide(q.dtype)
    tiles = _Tiles(setting, queries, k.shape[1], segment_ids, sinks)
    plan = plan_spans(queries, k.shape[1], setting.window)
    k_rows, v_rows = k.swapaxes(1, 2), v.swapaxes(1, 2)
    d_out = _without_padding(d_out, segment_ids)

    def add_at(total: Array, start: Array, share: Array) -> Array:
        old = lax.dynamic_slice_in_dim(total, start, share.shape[2], axis=2)
        return lax.dynamic_update_slice_in_dim(total, old + share, start, axis=2)

    def differentiate_span(carry, span: Span):
        def step(carry, inputs):
            dk, dv, d_sinks = carry
            index, (q_block, do_block) = inputs
            start = tiles.key_start(span, index)
            k_tile = lax.dynamic_slice_in_dim(k_rows, start, span.keys, axis=2)
            v_tile = lax.dynamic_slice_in_dim(v_rows, start, span.keys, axis=2)
            bias = tiles.bias(span, index, wide)
            p, p_sink, slope = tiles.probabilities(q_block, k_tile, bias)
            dp = _product("bkth,bksh->bkts", do_block, v_tile)
            # delta from the tile rather than from the saved output: dp is in cache here.
            delta = (p * dp).sum(axis=-1, keepdims=True)
            d_logits = p * (dp - delta)
            if slope is not None:
                d_logits = d_logits * slope
            d_logits = (d_logits * setting.scale).astype(q.dtype)
            dq_block = _product("bkts,bksh->bkth", d_logits, k_tile)
            # Written as [H, keys]: XLA's CPU backend has no fast product for the other order.
            # Written as [H, keys]: the other order is a product XLA's CPU backend is slow at.
            dk_tile = _product("bkth,bkts->bkhs", q_block, d_logits).swapaxes(2, 3)
            dv_tile = _product("bkth,bkts->bkhs", do_block, p.astype(q.dtype)).swapaxes(2, 3)
            if p_sink is not None:
                shares = (p_sink * delta).reshape(batch, heads, span.block)
                d_sinks = d_sinks - shares.sum(axis=(0, 2))
            return (add_at(dk, start, dk_tile), add_at(dv, start, dv_tile), d_sinks), dq_block

        inputs = (_pack(q, kv_heads, span), _pack(d_out, kv_heads, span))
        return _over_steps(step, carry, inputs, span.steps)

    carry: tuple = (
        jnp.zeros(k_rows.shape, wide),
        jnp.zeros(v_rows.shape, wide),
        None if sinks is None else jnp.zeros(sinks.shape, wide),
    )
    parts = []
    # The last span may hold all keys: its share then needs no sum of zeros.
    for span in reversed(plan):
        carry, dq_part = differentiate_span(carry, span)
        parts.append(dq_part)
    dk, dv, d_sinks = carry
    return (
        _unpack(parts[::-1], q.shape, plan).astype(q.dtype),
        dk.swapaxes(1, 2).astype(k.dtype),
        dv.swapaxes(1, 2).astype(v.dtype),
        None,
        None if sinks is None else d_sinks.astype(sinks.dtype),
    )


_attend.defvjp(_forward, _backward)
# A call from outside of any jit would otherwise go through its operations one by one.
_compiled = jax.jit(_attend, static_argnums=0)


def banded_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    window: int | None,
    segment_ids: Int[Array, "B T"] | None = None,
    scale: float,
    soft_cap: float | None = None,
    sinks: Float[Array, " N"] | None = None,
) -> Float[Array, "B T N H"]:
    """Windowed attention with its own backward pass; arguments as checked by the public op."""
    return _compiled(_Setting(window, scale, soft_cap), q, k, v, segment_ids, sinks)
