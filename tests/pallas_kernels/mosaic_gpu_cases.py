"""Cases of the Mosaic GPU kernels, their float64 oracle, and plain bfloat16 attention beside it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.flash import Call, flash_attention
from pallas_kernels.mosaic_gpu import KERNELS
from pallas_kernels.reference import reference_attention
from pallas_kernels.tuning import BlockSizes
from pallas_kernels.window import Marks, attention_mask

# (id, length) runs of the keys; the queries are the last ones.
SEGMENTS = {
    "aligned": [(1, 64), (2, 64), (3, 22)],
    "misaligned": [(5, 50), (2, 33), (3, 67)],
    "length one": [(i + 1, 1) for i in range(150)],
    "padding": [(1, 70), (2, 30), (0, 50)],
    "padding in front": [(0, 65), (1, 85)],
    "only padding": [(0, 150)],
    "id used twice": [(1, 20), (2, 100), (1, 30)],
}
# The smallest that the kernels take: a row of 150 is then two or three blocks either way.
SMALL = BlockSizes(forward=(128, 64), dq=(128, 64), dkv=(64, 128))
SMALL_256 = BlockSizes(forward=(128, 64), dq=(128, 32), dkv=(64, 64))


@dataclasses.dataclass(frozen=True)
class Case:
    """One call; `slow` keeps it out of the default run."""

    window: int | None = 40
    queries: int = 150
    keys: int = 150
    heads: int = 1
    kv_heads: int = 1
    head_dim: int = 64
    batch: int = 1
    segments: str | None = None
    positions: bool = False
    soft_cap: float | None = None
    sinks: bool = False
    slow: bool = True

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5

    @property
    def blocks(self) -> BlockSizes:
        return SMALL_256 if self.head_dim == 256 else SMALL

    def marks(self) -> Marks:
        ids = places = None
        if self.segments is not None:
            ids = np.repeat(*np.array(SEGMENTS[self.segments]).T).astype(np.int32)
            ids = np.stack([ids, ids[::-1]][: self.batch])
        if self.positions:
            # Tokens were dropped: now and then a place counts for several.
            step = np.where(np.arange(self.keys) % 7 == 3, 5, 1)
            places = np.cumsum(step).astype(np.int32)[None].repeat(self.batch, axis=0)
        first = self.keys - self.queries
        sides = [(None, None) if x is None else (x[:, first:], x) for x in (ids, places)]
        return Marks(*(side for pair in sides for side in pair))

    def arrays(self, seed: int = 0) -> tuple[list[Any], tuple[np.ndarray, np.ndarray]]:
        """q, k, v and sinks (or None), and the cotangents of output and log-sum-exp.

        Rounded to bfloat16: all sides of a comparison start from the same numbers.
        """
        rng = np.random.default_rng(seed)

        def draw(*shape: int) -> np.ndarray:
            x = jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)
            return np.asarray(x.astype(jnp.float32), np.float64)

        q_shape = (self.batch, self.queries, self.heads, self.head_dim)
        k_shape = (self.batch, self.keys, self.kv_heads, self.head_dim)
        inputs = [draw(*q_shape), draw(*k_shape), draw(*k_shape)]
        inputs.append(draw(self.heads) if self.sinks else None)
        return inputs, (draw(*q_shape), draw(*q_shape[:3]))


def results(attend: Any, case: Case, dtype: Any) -> list[np.ndarray]:
    """Output, log-sum-exp, and the gradients in q, k, v and sinks; float64 for comparison."""
    inputs, (d_out, d_lse) = case.arrays()
    q, k, v, sinks = (None if x is None else jnp.asarray(x, dtype) for x in inputs)
    # A query without keys has no log-sum-exp to ask for.
    seen = attention_mask(case.queries, case.keys, case.window, case.marks()).any(axis=-1)
    d_lse = jnp.where(seen[..., None] | case.sinks, d_lse, 0)

    @jax.jit
    def run(q, k, v, sinks):
        (out, lse), pull = jax.vjp(attend, q, k, v, sinks)
        return out, lse, pull((jnp.asarray(d_out, out.dtype), d_lse.astype(lse.dtype)))

    return [np.asarray(x, np.float64) for x in jax.tree.leaves(run(q, k, v, sinks))]


def of_kernels(case: Case, interpret: Any, blocks: BlockSizes | None = None) -> list[np.ndarray]:
    call = Call(case.window, case.scale, case.soft_cap, blocks or case.blocks, interpret)
    marks = jax.tree.map(jnp.asarray, case.marks())
    return results(
        lambda q, k, v, sinks: flash_attention(KERNELS, call, q, k, v, marks, sinks),
        case, jnp.bfloat16,
    )  # fmt: skip


@functools.cache
def of_oracle(case: Case) -> list[np.ndarray]:
    def attend(q, k, v, sinks):
        return reference_attention(
            q, k, v, window=case.window, marks=case.marks(), scale=case.scale,
            soft_cap=case.soft_cap, sinks=sinks,
        )  # fmt: skip

    with jax.enable_x64(True):
        return results(attend, case, jnp.float64)


@functools.cache
def of_plain_bfloat16(case: Case) -> list[np.ndarray]:
    """What one would write down without kernels, all in bfloat16."""
    mask = attention_mask(case.queries, case.keys, case.window, case.marks())[:, None, None]

    def attend(q, k, v, sinks):
        grouped = q.reshape(*q.shape[:2], case.kv_heads, -1, case.head_dim)
        logits = jnp.einsum("btkgh,bskh->bkgts", grouped, k) * jnp.asarray(case.scale, q.dtype)
        if case.soft_cap is not None:
            logits = case.soft_cap * jnp.tanh(logits / case.soft_cap)
        logits = jnp.where(mask, logits, -1e30)
        sink = jnp.full(logits.shape[:-1], -1e30, q.dtype)
        if sinks is not None:
            sink = jnp.broadcast_to(sinks.reshape(1, case.kv_heads, -1, 1), sink.shape)
        lse = jnp.logaddexp(jax.nn.logsumexp(logits, axis=-1), sink)
        weights = jnp.where(mask, jnp.exp(logits - lse[..., None]), 0)
        out = jnp.einsum("bkgts,bskh->btkgh", weights, v).reshape(q.shape)
        return out, lse.reshape(q.shape[0], -1, q.shape[1]).swapaxes(1, 2)

    return results(attend, case, jnp.bfloat16)


_WIDE = {"head_dim": 128, "soft_cap": 3.0, "sinks": True, "heads": 3}
CASES = (
    {f"window {w}": Case(w) for w in (1, 7, 63, 65, 127, 128, 129, 500)}
    | {
        "window 64, keys before the queries": Case(64, queries=70, slow=False),
        "no window": Case(None, heads=3, slow=False),
        "all features": Case(
            60, queries=149, heads=2, segments="misaligned", positions=True, soft_cap=3.0,
            sinks=True, slow=False,
        ),
        "all features, H 128": Case(60, **_WIDE, segments="padding", positions=True, batch=2),
        "all features, H 256": Case(
            60, **_WIDE | {"head_dim": 256}, segments="misaligned", positions=True
        ),
        "H 256": Case(70, head_dim=256, slow=False),
        "H 128, 8 heads a group": Case(90, head_dim=128, heads=8),
        "H 256, 3 heads a group": Case(None, head_dim=256, heads=6, kv_heads=2),
        "8 heads a group": Case(33, heads=8),
        "one query": Case(None, queries=1),
        "one token": Case(None, queries=1, keys=1),
        "positions": Case(40, positions=True),
        "positions, no window": Case(None, positions=True, segments="id used twice"),
        "soft cap": Case(100, soft_cap=2.0, heads=2),
        "sinks": Case(100, sinks=True, heads=2, kv_heads=2),
        "sinks and padding": Case(30, sinks=True, segments="only padding"),
    }
    | {
        f"segments {name}, window {w}": Case(w, segments=name, batch=2)
        for name in SEGMENTS
        for w in (40, None)
    }
)  # fmt: skip
