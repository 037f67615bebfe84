"""Parameters being filled, where they will stay: in the host's memory, or on accelerators."""

import functools
import math
import mmap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from minillm.teachers.pieces import Part, Place, blocks_of

# Entries along a block's last axis that are written at a time where values have to be transposed:
# what is read for them is still in the cache for those next to it. 16 MiB take 5 ms so, and 27
# at once.
_COLUMNS = 16


class HostShards:
    """A parameter on CPU devices: blocks that numpy fills and JAX takes as they are.

    Nothing is compiled, and no block exists twice.

    Args:
        leaf: shape, dtype and sharding.
        tensors: how many are to be written.

    Attributes:
        writers: how many threads may write at once: while one reads, another one copies.
    """

    writers = 2

    def __init__(self, leaf: jax.ShapeDtypeStruct, tensors: int) -> None:
        self._leaf = leaf
        self._shape = leaf.sharding.shard_shape(leaf.shape)
        indices = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
        self._blocks = {
            blocks_of(index, self._shape): _room(self._shape, leaf.dtype) for index in indices
        }
        self._finite = np.ones(tensors, bool)

    def write(self, part: Part, number: int) -> None:
        """Read the pieces of a part into their places; it is tensor `number` of this parameter."""
        for start in part.starts():
            read = part.reader(start)
            for block, kept in self._blocks.items():
                values = read(block[-part.axes :])
                if part.plus:
                    values = values.astype(np.float32) + np.float32(part.plus)
                values = values.astype(kept.dtype, copy=False)
                self._finite[number] &= np.isfinite(values).all()
                _copy(values, kept, part.place(start))

    def finite(self) -> np.ndarray:
        """Of each tensor, whether what this host has of it is finite."""
        return self._finite

    def array(self) -> jax.Array:
        """The parameter."""
        return jax.make_array_from_callback(
            self._leaf.shape,
            self._leaf.sharding,
            lambda index: self._blocks[blocks_of(index, self._shape)],
        )


def _copy(values: np.ndarray, block: np.ndarray, place: Place) -> None:
    """Into the block from `place` on; `values` may lack the block's first axes."""
    extent = (1,) * (block.ndim - values.ndim) + values.shape
    into = block[tuple(slice(first, first + n) for first, n in zip(place, extent, strict=True))]
    # As integers: numpy copies types that are not its own a value at a time.
    bits = np.dtype(f"u{block.dtype.itemsize}")
    into, values = into.view(bits), values.view(bits)
    columns = values.shape[-1] if values.strides[-1] == bits.itemsize else _COLUMNS
    for first in range(0, values.shape[-1], columns):
        into[..., first : first + columns] = values[..., first : first + columns]


def _room(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Memory that begins a page: JAX copies what is not aligned to 64 bytes."""
    dtype = np.dtype(dtype)
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    room = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=private)
    return np.frombuffer(room, dtype).reshape(shape)


class DeviceShards:
    """A parameter on accelerators: filled in place, a piece of each block at a time.

    Args:
        leaf: shape, dtype and sharding.
        tensors: how many are to be written.

    Attributes:
        writers: how many threads may write at once: while the one reads, the devices copy.
    """

    writers = 1

    def __init__(self, leaf: jax.ShapeDtypeStruct, tensors: int) -> None:
        self._sharding = leaf.sharding
        mesh = leaf.sharding.mesh
        # What each device found of its own blocks.
        found = (*mesh.devices.shape, tensors)
        on_each = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
        self._filled = jax.jit(
            lambda: (jnp.zeros(leaf.shape, leaf.dtype), jnp.ones(found, bool)),
            out_shardings=(leaf.sharding, on_each),
        )()

    def write(self, part: Part, number: int) -> None:
        """Read the pieces of a part into their places; it is tensor `number` of this parameter."""
        for start in part.starts():
            values = part.on_mesh(start)
            # Now, so that this piece was read while the devices wrote the one before; and not
            # later, lest pieces pile up before a slow device.
            jax.block_until_ready(self._filled)
            where = np.array([number, *part.place(start)], np.int32)
            self._filled = _write(
                *self._filled, values, where, sharding=self._sharding, plus=part.plus
            )

    def finite(self) -> np.ndarray:
        """Of each tensor, whether what this host has of it is finite."""
        shards = self._filled[1].addressable_shards
        return np.logical_and.reduce([np.asarray(shard.data).ravel() for shard in shards])

    def array(self) -> jax.Array:
        """The parameter."""
        return self._filled[0]


@functools.partial(jax.jit, donate_argnums=(0, 1), static_argnames=("sharding", "plus"))
def _write(
    param: jax.Array,
    finite: jax.Array,
    values: jax.Array,
    where: jax.Array,
    *,
    sharding: NamedSharding,
    plus: float,
) -> tuple[jax.Array, jax.Array]:
    """Each device's part of `values` into its own block, and whether it is finite.

    Args:
        where: the tensor's number, then the place in the block.
    """
    missing = param.ndim - values.ndim

    def write(block: jax.Array, finite: jax.Array, part: jax.Array, where: jax.Array) -> Any:
        part = part.astype(jnp.float32) + plus if plus else part
        part = jnp.expand_dims(part.astype(block.dtype), range(missing))
        block = jax.lax.dynamic_update_slice(block, part, list(where[1:]))
        return block, finite.at[..., where[0]].min(jnp.isfinite(part).all())

    specs = (sharding.spec, PartitionSpec(*sharding.mesh.axis_names))
    of_values = PartitionSpec(*sharding.spec[missing:])
    on_each = jax.shard_map(
        write,
        mesh=sharding.mesh,
        in_specs=(*specs, of_values, PartitionSpec()),
        out_specs=specs,
        # What a device found of its part is its own, also where all have the same part.
        check_vma=False,
    )
    return on_each(param, finite, values, where)
