"""A tensor of a file into a parameter on a mesh, a piece at a time and in place."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from minillm.teachers.safetensors_files import TensorFiles
from minillm.teachers.weights import Source

# Bytes that a host reads at a time: little beside a tensor that matters, much beside a call.
PIECE_BYTES = 16 << 20

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class _Cut:
    """How every device's block of a view is cut into pieces, alike on all devices.

    Attributes:
        view: the sizes of the whole.
        block: those that one device keeps.
        extent: those of a piece: 1 along the axes before `axis`, the block's along those after.
        axis: the one along which a block is cut in pieces of several rows.
    """

    view: tuple[int, ...]
    block: tuple[int, ...]
    extent: tuple[int, ...]
    axis: int

    def starts(self) -> Iterator[tuple[int, ...]]:
        """Where each piece starts in its block."""
        step, size = self.extent[self.axis], self.block[self.axis]
        # The last piece overlaps the one before: another shape would have to be compiled.
        rows = [min(row, size - step) for row in range(0, size, step)]
        rest = (0,) * (len(self.view) - self.axis - 1)
        for before in itertools.product(*map(range, self.block[: self.axis])):
            for row in rows:
                yield (*before, row, *rest)


def _cut(view: Sequence[int], counts: Sequence[int], *, itemsize: int, devices: int) -> _Cut:
    """Pieces of at most PIECE_BYTES for all of a host's devices together, as large as can be.

    Args:
        counts: how many blocks the mesh makes of each axis.
        devices: how many a host has.
    """
    block = tuple(size // count for size, count in zip(view, counts, strict=True))
    for axis in range(len(view)):
        # Rows are read whole, also where each device keeps a part: once for all that share them.
        ranges = min(math.prod(counts[: axis + 1]), devices)
        row = itemsize * math.prod(view[axis + 1 :]) * ranges
        if row <= PIECE_BYTES:
            break
    rows = min(block[axis], max(1, PIECE_BYTES // row))
    return _Cut(tuple(view), block, (1,) * axis + (rows,) + block[axis + 1 :], axis)


class Filling(NamedTuple):
    """A parameter on its way, and whether each tensor read so far is finite.

    Attributes:
        param: each device's block of it.
        finite: [*mesh, tensors], what each device found of the tensors' parts that it keeps.
    """

    param: jax.Array
    finite: jax.Array


def all_finite(mesh: Mesh, tensors: int) -> jax.Array:
    """`Filling.finite` before anything is read."""
    shape = (*mesh.devices.shape, tensors)
    on_each = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
    return jax.jit(lambda: jnp.ones(shape, bool), out_shardings=on_each)()


def fill(
    filling: Filling,
    files: TensorFiles,
    name: str,
    source: Source,
    *,
    number: int,
    layer: int | None = None,
) -> Filling:
    """The parameter with a tensor's values in its place, written into the buffer it had.

    Args:
        filling: given up. The parameter's sharding cuts none of its axes unevenly.
        name: of the tensor.
        number: of the tensor, in `filling.finite`.
        layer: which entry of the first axis, of a parameter that has one for each layer.
    """
    stacked = layer is not None
    of_param = filling.param.sharding
    mesh, spec = of_param.mesh, tuple(of_param.spec)[int(stacked) :]
    by_axis = [_shards(mesh, entry) for entry in spec]
    joined, offset = source.at or (0, 0)
    if source.at and by_axis[joined] != 1:
        raise ValueError(f"{name}: joined with others along an axis that the mesh cuts")
    axis_of = [source.order.index(axis) for axis in range(len(source.view))]
    cut = _cut(
        source.view,
        [by_axis[axis] for axis in axis_of],
        itemsize=files.itemsize(name),
        devices=mesh.size // jax.process_count(),
    )
    shape = tuple(cut.extent[axis] * by_axis[p] for p, axis in enumerate(source.order))
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    for start in cut.starts():
        read = _reader(files, name, source, cut, start)
        values = jax.make_array_from_callback(shape, sharding, read)
        place = [start[axis] for axis in source.order]
        place[joined] += offset
        # Only now, so that this piece was read while the devices wrote the one before; and not
        # later, lest a slow device's pieces pile up.
        jax.block_until_ready(filling)
        where = np.array([number, layer, *place] if stacked else [number, *place], np.int32)
        filling = _write(filling, values, where, sharding=of_param, plus=source.plus)
    return filling


def _reader(
    files: TensorFiles, name: str, source: Source, cut: _Cut, start: Sequence[int]
) -> Callable[[Index], np.ndarray]:
    """What each device writes of one piece, by the index of its part in the pieces of all."""
    rows: dict[int, np.ndarray] = {}
    after = cut.axis + 1
    skipped = source.rows[0] * math.prod(source.shape[1:]) if source.rows else 0
    strides = [math.prod(cut.view[axis + 1 :]) for axis in range(len(cut.view))]
    count = cut.extent[cut.axis] * strides[cut.axis]

    def read(index: Index) -> np.ndarray:
        blocks = [0] * len(cut.view)
        for axis, part in zip(source.order, index, strict=True):
            blocks[axis] = (part.start or 0) // cut.extent[axis]
        begin = [
            number * size + first
            for number, size, first in zip(blocks, cut.block, start, strict=True)
        ]
        flat = skipped + sum(
            first * stride for first, stride in zip(begin[:after], strides, strict=False)
        )
        if flat not in rows:
            rows[flat] = _as_jax_has_it(files.read(name, flat, flat + count))
        whole = rows[flat].reshape(*cut.extent[:after], *cut.view[after:])
        kept = [slice(None)] * after + [
            slice(first, first + size)
            for first, size in zip(begin[after:], cut.extent[after:], strict=True)
        ]
        # Transposed on the way to the device, by JAX's own blocked copy: on the CPU 1 GB/s
        # where the same inside the compiled function makes 0.4.
        return whole[tuple(kept)].transpose(source.order)

    return read


def _as_jax_has_it(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32) if values.dtype == np.float64 else values


@functools.partial(jax.jit, donate_argnums=0, static_argnames=("sharding", "plus"))
def _write(
    filling: Filling, values: jax.Array, where: jax.Array, *, sharding: NamedSharding, plus: float
) -> Filling:
    """Each device's part of `values` into its own block of the parameter.

    Args:
        where: the tensor's number, then the place in the block.
    """
    missing = filling.param.ndim - values.ndim

    def write(filling: Filling, part: jax.Array, where: jax.Array) -> Filling:
        wide = part.astype(jnp.float32) + plus if plus else part
        part = jnp.expand_dims(wide.astype(filling.param.dtype), range(missing))
        return Filling(
            jax.lax.dynamic_update_slice(filling.param, part, list(where[1:])),
            filling.finite.at[..., where[0]].min(jnp.isfinite(part).all()),
        )

    laid_out = Filling(sharding.spec, PartitionSpec(*sharding.mesh.axis_names))
    in_specs = (laid_out, PartitionSpec(*sharding.spec[missing:]), PartitionSpec())
    # Unchecked: what a device found of its part is its own, where devices have one part too.
    on_each = jax.shard_map(
        write, mesh=sharding.mesh, in_specs=in_specs, out_specs=laid_out, check_vma=False
    )
    return on_each(filling, values, where)


def _shards(mesh: Mesh, entry: str | tuple[str, ...] | None) -> int:
    names = (entry,) if isinstance(entry, str) else entry or ()
    return math.prod(mesh.shape[name] for name in names)
