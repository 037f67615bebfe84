"""What the forward pass and dq share: a block of queries, and a ring that brings its keys."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.flash import Call
from pallas_kernels.mosaic_gpu_ring import Ring
from pallas_kernels.mosaic_gpu_tile import Here


@dataclasses.dataclass(frozen=True)
class ByQueries(abc.ABC):
    """A kernel whose thread block owns queries; `pairs` are the names of the marks there are."""

    call: Call
    offset: int
    stages: int
    rows: int
    block_k: int
    head_dim: int
    group: int
    pairs: list[tuple[str, str]]

    def body(self, refs: dict[str, Any], outs: Sequence[Any], scratch: dict[str, Any]) -> None:
        here = Here.read(refs["table"])
        rings = [Ring(self.stages, *scratch[name]) for name in ("k", "v")]
        here.split(
            lambda: self._load(here, refs, *rings),
            lambda: self.compute(here, refs, outs, scratch, *rings),
        )

    def _load(self, here: Here, refs: dict[str, Any], k_ring: Ring, v_ring: Ring) -> None:
        kv_head = lax.div(here.head, jnp.int32(self.group))

        def fill(step, _):
            keys = pl.ds((here.start + step) * self.block_k, self.block_k)
            marks = [[refs[name].at[here.batch, keys]] for _, name in self.pairs]
            k_ring.fill(step, [[refs["k"].at[here.batch, keys, kv_head]], *marks])
            v_ring.fill(step, [[refs["v"].at[here.batch, keys, kv_head]]])
            return _

        lax.fori_loop(0, here.steps, fill, None)
        k_ring.drain(here.steps)
        v_ring.drain(here.steps)

    @abc.abstractmethod
    def compute(self, here, refs, outs, scratch, k_ring: Ring, v_ring: Ring) -> None:
        """What a compute warpgroup does with its rows of queries."""
