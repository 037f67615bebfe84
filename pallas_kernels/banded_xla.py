"""Windowed attention in plain XLA whose time and memory grow with T * W, not with T * T.

A tile is one block of queries against every key the block can reach, so its softmax is complete
in itself. The forward pass keeps nothing but its inputs; the backward pass makes each tile's
probabilities again and adds the tile's share of dk and dv where its keys lie. A key at position j
thereby collects from exactly the query blocks that cover [j, j + window - 1].

The tile is written for XLA's CPU backend, where it decides how fast a small model trains: the mask
is an array that is added, the scale stands on the queries, and the weights are divided by their
sum after the product with the values. That form becomes one fused loop from the product to the
weights, which holds a tile's logits in cache. A `select` breaks it up, a scalar factor is written
out at the size of the tile first, and a saved log-sum-exp costs more than the maximum it spares.
What a call does not ask for (segments, positions, sinks, the log-sum-exp) adds no operation. Batch
and key/value heads stay separate axes, so that a mesh can split both without a collective.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.choice import device
from pallas_kernels.tiling import BLOCK, Span, plan_spans
from pallas_kernels.tuning import BlockSizes
from pallas_kernels.window import NO_MARKS, Marks, same_segment, visible

# Finite, so that a row without keys stays free of NaN; large enough that exp gives exactly 0.
_MASKED = -1e30
_WORTH_HALVING = 2**14  # queries of all heads; smaller halves cost more in calls than they gain


@dataclasses.dataclass(frozen=True)
class _Setting:
    """What does not change within a call; static under jit.

    Attributes:
        on_queries, on_logits: the two factors of the scale, one of them 1.
    """

    window: int | None
    on_queries: float
    on_logits: float
    soft_cap: float | None
    block: int
    with_lse: bool


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of logits, softmax and accumulators."""
    return jnp.promote_types(dtype, jnp.float32)


def _product(equation: str, a: Array, b: Array) -> Array:
    # HIGHEST: an accelerator's default would round float32 operands; bfloat16 ones are exact.
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    wide = _wide(a.dtype)
    return jnp.einsum(equation, a, b, precision=precision, preferred_element_type=wide)


def _scaled(x: Array, factor: float) -> Array:
    return x if factor == 1 else x * factor


def _pack(x: Array, kv_heads: int, span: Span) -> Array:
    """[B, T, N, H] to the span's [steps, B, K, G*block, H], filled up with zeros."""
    batch, queries, heads, head_dim = x.shape
    x = x[:, span.first : span.stop]
    x = jnp.pad(x, ((0, 0), (0, max(0, span.stop - queries)), (0, 0), (0, 0)))
    x = x.reshape(batch, span.steps, span.block, kv_heads, heads // kv_heads, head_dim)
    x = x.transpose(1, 0, 3, 4, 2, 5)
    return x.reshape(span.steps, batch, kv_heads, -1, head_dim)


def _unpack(parts: Sequence[Array], shape: tuple[int, ...], plan: list[Span]) -> Array:
    """The inverse of `_pack` over all spans, cut back to the real queries."""
    batch, queries, heads, head_dim = shape
    rows = []
    for x, span in zip(parts, plan, strict=True):
        x = x.reshape(span.steps, batch, heads, span.block, head_dim).transpose(1, 0, 3, 2, 4)
        rows.append(x.reshape(batch, span.steps * span.block, heads, head_dim))
    return jnp.concatenate(rows, axis=1)[:, :queries]


class _Softmax(NamedTuple):
    """A tile's softmax before the division by `total`; the arrays of a row are [..., 1].

    Attributes:
        weights: [B, K, G*block, keys], exp(logits - top). sink: that of the sinks, if any.
        total: their sum. top: the largest logit. slope: the derivative of the soft cap, if any.
    """

    weights: Array
    sink: Array | None
    total: Array
    top: Array
    slope: Array | None


@dataclasses.dataclass(frozen=True)
class _Tiles:
    """The tiles of one call: which keys a step of a span needs, and its softmax."""

    setting: _Setting
    queries: int
    keys: int
    marks: Marks
    sinks: Array | None

    def key_start(self, span: Span, step: Array) -> Array:
        # The last key of the block's last query ends the tile. Where that would begin before
        # key 0 or end after the last one the tile moves inwards, and the mask does the rest.
        stop = span.first + (step + 1) * span.block + self.keys - self.queries
        return jnp.clip(stop - span.keys, 0, self.keys - span.keys)

    def mask(self, span: Span, step: Array) -> Array:
        """Whether a query sees a key: [b, block, keys], b = B with marks and 1 without."""
        first, start = span.first + step * span.block, self.key_start(span, step)
        q_pos = first + jnp.arange(span.block)[:, None] + (self.keys - self.queries)
        window = self.setting.window
        mask = visible(q_pos, start + jnp.arange(span.keys)[None, :], window)[None]

        def of_queries(x: Array) -> Array:
            x = jnp.pad(x, ((0, 0), (0, max(0, span.stop - self.queries))))
            return lax.dynamic_slice_in_dim(x, first, span.block, axis=1)[:, :, None]

        def of_keys(x: Array) -> Array:
            return lax.dynamic_slice_in_dim(x, start, span.keys, axis=1)[:, None, :]

        q_segments, k_segments, q_positions, k_positions = self.marks
        if q_segments is not None and k_segments is not None:
            mask &= same_segment(of_queries(q_segments), of_keys(k_segments))
        if q_positions is not None and k_positions is not None:
            mask &= visible(of_queries(q_positions), of_keys(k_positions), window)
        return mask

    def has_keys(self, mask: Array, like: Array) -> Array | None:
        """Which rows of a [B, K, G*block, ...] array see a key, [B, 1, G*block, 1]; None: all."""
        if all(x is None for x in self.marks):
            return None
        rows = mask.any(axis=-1)[:, None, :, None]
        return jnp.tile(rows, (1, 1, like.shape[2] // mask.shape[1], 1))

    def softmax(self, q: Array, k: Array, mask: Array) -> _Softmax:
        """Of q [B, K, G*block, H], scaled, over k [B, K, keys, H] under mask [b, block, keys]."""
        logits = _scaled(_product("bkth,bksh->bkts", q, k), self.setting.on_logits)
        slope = None
        if self.setting.soft_cap is not None:
            capped = jnp.tanh(logits / self.setting.soft_cap)
            logits, slope = capped * self.setting.soft_cap, 1 - capped * capped
        bias = jnp.where(mask, jnp.zeros((), logits.dtype), _MASKED)
        by_head = logits.reshape(*logits.shape[:2], -1, *bias.shape[1:])
        logits = (by_head + bias[:, None, None]).reshape(logits.shape)
        top = logits.max(axis=-1, keepdims=True)
        if self.sinks is None:
            weights = jnp.exp(logits - top)
            return _Softmax(weights, None, weights.sum(axis=-1, keepdims=True), top, slope)
        sink = self.sinks.astype(logits.dtype).reshape(k.shape[1], -1, 1)
        sink = jnp.repeat(sink, mask.shape[1], axis=1)
        top = jnp.maximum(top, sink)
        weights, sink_weight = jnp.exp(logits - top), jnp.exp(sink - top)
        total = weights.sum(axis=-1, keepdims=True) + sink_weight
        return _Softmax(weights, sink_weight, total, top, slope)


def _over_steps(
    body: Callable[[Any, tuple[Array, Any]], tuple[Any, Any]], carry: Any, xs: Any, steps: int
) -> tuple[Any, Any]:
    """`lax.scan`, without the loop where there is one step only."""
    if steps > 1:
        return lax.scan(body, carry, (jnp.arange(steps), xs))
    carry, y = body(carry, (jnp.zeros((), jnp.int32), jax.tree.map(lambda x: x[0], xs)))
    return carry, jax.tree.map(lambda x: x[None], y)


def _keep(rows: Array | None, x: Array, otherwise: float = 0.0) -> Array:
    """`x` where `rows` says so, and everywhere where it is None."""
    return x if rows is None else jnp.where(rows, x, otherwise)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(setting, q, k, v, marks, sinks):
    return _forward(setting, q, k, v, marks, sinks)[0]


def _forward(setting, q, k, v, marks, sinks):
    kv_heads = k.shape[2]
    tiles = _Tiles(setting, q.shape[1], k.shape[1], marks, sinks)
    plan = plan_spans(q.shape[1], k.shape[1], setting.window, setting.block)
    q_scaled, k_rows, v_rows = _scaled(q, setting.on_queries), k.swapaxes(1, 2), v.swapaxes(1, 2)

    def attend_span(span: Span) -> tuple[Array, Array | None]:
        def step(carry, inputs):
            index, q_block = inputs
            start = tiles.key_start(span, index)
            k_tile = lax.dynamic_slice_in_dim(k_rows, start, span.keys, axis=2)
            v_tile = lax.dynamic_slice_in_dim(v_rows, start, span.keys, axis=2)
            mask = tiles.mask(span, index)
            weights, _, total, top, _ = tiles.softmax(q_block, k_tile, mask)
            rows = tiles.has_keys(mask, q_block)
            out = _product("bkts,bksh->bkth", weights.astype(v.dtype), v_tile) / total
            lse = None
            if setting.with_lse:
                lse = top + jnp.log(total)
                # A sink is there for a query without keys too, unless it is -inf itself.
                lse = _keep(rows if sinks is None else top > _MASKED, lse, -jnp.inf)
            return carry, (_keep(rows, out).astype(q.dtype), lse)

        return _over_steps(step, None, _pack(q_scaled, kv_heads, span), span.steps)[1]

    outs, lses = zip(*(attend_span(span) for span in plan), strict=True)
    lse = None
    if setting.with_lse:
        lse = _unpack(lses, (*q.shape[:3], 1), plan)[..., 0]
    return (_unpack(outs, q.shape, plan), lse), (q, k, v, marks, sinks)


def _backward(setting, saved, cotangents):
    q, k, v, marks, sinks = saved
    d_out, d_lse = cotangents
    (batch, queries, heads, _), kv_heads, wide = q.shape, k.shape[2], _wide(q.dtype)
    tiles = _Tiles(setting, queries, k.shape[1], marks, sinks)
    plan = plan_spans(queries, k.shape[1], setting.window, setting.block)
    q_scaled, k_rows, v_rows = _scaled(q, setting.on_queries), k.swapaxes(1, 2), v.swapaxes(1, 2)

    def add_at(total: Array, start: Array, share: Array) -> Array:
        old = lax.dynamic_slice_in_dim(total, start, share.shape[2], axis=2)
        return lax.dynamic_update_slice_in_dim(total, old + share, start, axis=2)

    def differentiate_span(carry, span: Span):
        def step(carry, inputs):
            dk, dv, d_sinks = carry
            index, (q_block, do_block, d_lse_block) = inputs
            start = tiles.key_start(span, index)
            k_tile = lax.dynamic_slice_in_dim(k_rows, start, span.keys, axis=2)
            v_tile = lax.dynamic_slice_in_dim(v_rows, start, span.keys, axis=2)
            mask = tiles.mask(span, index)
            weights, sink, total, _, slope = tiles.softmax(q_block, k_tile, mask)
            p, rows = weights / total, tiles.has_keys(mask, q_block)
            do_block = _keep(rows, do_block)
            dp = _product("bkth,bksh->bkts", do_block, v_tile)
            # delta from the tile rather than from the saved output: dp is in cache here.
            delta = (p * dp).sum(axis=-1, keepdims=True)
            if d_lse_block is not None:
                # The derivative of the log-sum-exp by a logit is that logit's probability.
                delta -= _keep(None if sinks is not None else rows, d_lse_block)
            d_logits = p * (dp - delta)
            if slope is not None:
                d_logits = d_logits * slope
            d_logits = _scaled(d_logits, setting.on_logits).astype(q.dtype)
            dq_block = _product("bkts,bksh->bkth", d_logits, k_tile)
            # Written as [H, keys]: XLA's CPU backend has no fast product for the other order.
            dk_tile = _product("bkth,bkts->bkhs", q_block, d_logits).swapaxes(2, 3)
            dv_tile = _product("bkth,bkts->bkhs", do_block, p.astype(q.dtype)).swapaxes(2, 3)
            if sink is not None:
                shares = (sink / total * delta).reshape(batch, heads, span.block)
                d_sinks = d_sinks - shares.sum(axis=(0, 2))
            return (add_at(dk, start, dk_tile), add_at(dv, start, dv_tile), d_sinks), dq_block

        inputs = (
            _pack(q_scaled, kv_heads, span),
            _pack(d_out, kv_heads, span),
            None if d_lse is None else _pack(d_lse[..., None], kv_heads, span),
        )
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
        _scaled(_unpack(parts[::-1], q.shape, plan), setting.on_queries).astype(q.dtype),
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
    marks: Marks = NO_MARKS,
    scale: float,
    soft_cap: float | None = None,
    sinks: Float[Array, " N"] | None = None,
    block_sizes: BlockSizes | None = None,
    return_lse: bool = False,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"] | None]:
    """Windowed attention with its own backward pass; arguments as checked by the public op.

    The log-sum-exp is None where it is not asked for. `block_sizes.forward[0]` is the query block
    of both passes; keys have no blocks here.
    """
    block = BLOCK if block_sizes is None else block_sizes.forward[0]
    # Narrower queries would be rounded by the scale; theirs stands on the float32 logits.
    on_queries, on_logits = (scale, 1.0) if _wide(q.dtype) == q.dtype else (1.0, scale)
    setting = _Setting(window, on_queries, on_logits, soft_cap, block, return_lse)
    if not _halves_pay(setting, q.shape, k.shape[1]):
        return _compiled(setting, q, k, v, marks, sinks)
    middle = q.shape[0] // 2
    parts = []
    for rows in (slice(None, middle), slice(middle, None)):
        here = Marks(*(None if x is None else x[rows] for x in marks))
        parts.append(_compiled(setting, q[rows], k[rows], v[rows], here, sinks))
    (first, first_lse), (second, second_lse) = parts
    out = jnp.concatenate([first, second])
    return out, None if first_lse is None else jnp.concatenate([first_lse, second_lse])


def _halves_pay(setting: _Setting, shape: tuple[int, ...], keys: int) -> bool:
    """Whether to compute the batch in two halves, independent of each other.

    XLA's CPU backend gives a tile one core, and runs independent tiles beside each other, but the
    steps of a loop in turn. So short rows gain (a third, at B16 T256 N6 H32), and scanned ones do
    not. A batch that a mesh splits has its cores at work already.
    """
    batch, queries, heads, _ = shape
    alone = device()[0] == "cpu" and jax.device_count() == 1
    large = batch >= 2 and batch * queries * heads >= _WORTH_HALVING
    plan = plan_spans(queries, keys, setting.window, setting.block)
    return alone and large and all(span.steps == 1 for span in plan)
