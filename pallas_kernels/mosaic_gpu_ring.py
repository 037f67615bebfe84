"""A ring of shared-memory buffers between the warpgroup that loads and those that compute.

Use number `step` of a ring lies in slot `step % stages`. The invariants, per slot:
  ready: completes once a use, when TMA has written every buffer of the slot.
  free: completes once a use, when every compute warpgroup has arrived, which each does after its
    last read of the slot is complete. Fill `step` waits for the release of fill `step - stages`.
A barrier knows only the parity of its phase, so whoever waits on it waits for every completion in
order: the loader waits on `free` only, the readers on `ready` only.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Ring:
    """Buffers [stages, parts, ...] with their two barriers, as `ring_scratch` lays them out."""

    stages: int
    buffers: Sequence[Any]
    ready: Any
    free: Any

    def _slot(self, step: Array) -> Array:
        return lax.rem(step, jnp.int32(self.stages))

    def fill(self, step: Array, sources: Sequence[Sequence[Any]]) -> None:
        """Loads use `step`, as soon as the slot is free; a buffer takes one source per part."""
        slot = self._slot(step)

        @pl.when(step >= self.stages)
        def _wait():
            plgpu.barrier_wait(self.free.at[slot])
            # TMA writes through the async proxy: this orders it after the readers' plain loads.
            plgpu.commit_smem()

        for parts, buffer in zip(sources, self.buffers, strict=True):
            for part, source in enumerate(parts):
                plgpu.copy_gmem_to_smem(source, buffer.at[slot, part], self.ready.at[slot])

    def drain(self, steps: Array) -> None:
        """Waits, as the loader, until the readers have released all `steps` uses."""

        def wait(step, _):
            plgpu.barrier_wait(self.free.at[self._slot(step)])
            return _

        lax.fori_loop(jnp.maximum(steps - self.stages, 0), steps, wait, None)

    def wait(self, step: Array) -> list[Any]:
        """The buffers of use `step`, as a reader, once they are full."""
        slot = self._slot(step)
        plgpu.barrier_wait(self.ready.at[slot])
        return [buffer.at[slot] for buffer in self.buffers]

    def release(self, step: Array) -> None:
        """Says, as a reader, that no read of use `step` is outstanding."""
        plgpu.barrier_arrive(self.free.at[self._slot(step)])


def ring_scratch(buffers: Sequence[Any], stages: int, readers: int) -> tuple[Any, Any, Any]:
    """The scratch types of a ring over buffers [stages, parts, ...]."""
    copies = sum(buffer.shape[1] for buffer in buffers)  # each arrives once at `ready`
    return (
        tuple(buffers),
        plgpu.Barrier(num_arrivals=copies, num_barriers=stages),
        plgpu.Barrier(num_arrivals=readers, num_barriers=stages),
    )
