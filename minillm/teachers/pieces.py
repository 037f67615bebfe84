"""One tensor of a file as its part in a sharded parameter, cut into pieces that fit in memory."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from minillm.teachers.safetensors_files import TensorFiles
from minillm.teachers.weights import Source

# Bytes that are read at a time: little beside a tensor that matters, much beside a call.
PIECE_BYTES = 16 << 20

Place = tuple[int, ...]


class Part:
    """What one tensor gives to a parameter, or to one layer of it.

    A mesh cuts a parameter into blocks of one shape. Each block's share of the tensor is cut into
    pieces, again of one shape and at the same places in every block, so that devices can write
    theirs at once. A piece has one entry along the tensor's first axes, a few rows along the next,
    and everything along the rest, so that it stands together in the file.

    Args:
        name: of the tensor.
        sharding: of the parameter.
        layer: which entry of its first axis; None for a parameter that has none for layers.

    Attributes:
        plus: added to every value.
        axes: how many a piece has; the parameter has one more where it has layers.
    """

    def __init__(
        self,
        files: TensorFiles,
        name: str,
        source: Source,
        sharding: NamedSharding,
        layer: int | None,
    ) -> None:
        self.name = name
        self.plus = source.plus
        self.axes = len(source.order)
        self._files, self._source, self._layer = files, source, layer
        spec = tuple(sharding.spec)[layer is not None :]
        counts = [_blocks(sharding.mesh.shape, entry) for entry in spec]
        if source.at and counts[source.at[0]] != 1:
            raise ValueError(f"{self.name}: joined with others along an axis that the mesh cuts")
        by_view = [counts[source.order.index(axis)] for axis in range(len(source.view))]
        self._block = tuple(n // count for n, count in zip(source.view, by_view, strict=True))
        self._axis, rows = self._cut(by_view, sharding.mesh.size)
        self._extent = (1,) * self._axis + (rows,) + self._block[self._axis + 1 :]
        self._counts = tuple(counts)
        self._sharding = NamedSharding(sharding.mesh, PartitionSpec(*spec))

    def _cut(self, counts: Sequence[int], devices: int) -> tuple[int, int]:
        """The axis of the tensor along which to cut, and how many rows at a time."""
        view = self._source.view
        value = self._files.itemsize(self.name)
        # Alike on all hosts, since they run the same program.
        devices = max(1, devices // jax.process_count())
        for axis in range(len(view)):
            # A row is read whole, and once for all blocks that have a part in it.
            together = min(math.prod(counts[: axis + 1]), devices)
            row = value * math.prod(view[axis + 1 :]) * together
            # Along an axis of one entry nothing can be left to other hosts.
            if row <= PIECE_BYTES and view[axis] > 1:
                break
        return axis, min(self._block[axis], max(1, PIECE_BYTES // row))

    def starts(self) -> Iterator[Place]:
        """Where the pieces of a block start, along the tensor's axes."""
        step, size = self._extent[self._axis], self._block[self._axis]
        # The last piece overlaps the one before: another shape would have to be compiled.
        rows = [min(row, size - step) for row in range(0, size, step)]
        rest = (0,) * (len(self._block) - self._axis - 1)
        for before in itertools.product(*map(range, self._block[: self._axis])):
            for row in rows:
                yield (*before, row, *rest)

    def place(self, start: Place) -> Place:
        """Where the piece goes in its block of the parameter."""
        found = [start[axis] for axis in self._source.order]
        if self._source.at:
            found[self._source.at[0]] += self._source.at[1]
        return (self._layer, *found) if self._layer is not None else tuple(found)

    def reader(self, start: Place) -> Callable[[Place], np.ndarray]:
        """A function from a block's place among the blocks to its piece, in the parameter's axes.

        The piece is a view of what was read, which is kept for other blocks.
        """
        view, axes = self._source.view, range(len(self._source.view))
        after = self._axis + 1
        strides = [math.prod(view[axis + 1 :]) for axis in axes]
        count = self._extent[self._axis] * strides[self._axis]
        skipped = (
            self._source.rows[0] * math.prod(self._source.shape[1:]) if self._source.rows else 0
        )
        rows: dict[int, np.ndarray] = {}

        def read(block: Place) -> np.ndarray:
            numbers = [block[self._source.order.index(axis)] for axis in axes]
            begin = [numbers[axis] * self._block[axis] + start[axis] for axis in axes]
            first = skipped + sum(begin[axis] * strides[axis] for axis in axes[:after])
            if first not in rows:
                rows[first] = self._read(first, first + count)
            whole = rows[first].reshape(*self._extent[:after], *view[after:])
            kept = [slice(None)] * after + [
                slice(begin[axis], begin[axis] + self._extent[axis]) for axis in axes[after:]
            ]
            return whole[tuple(kept)].transpose(self._source.order)

        return read

    def on_mesh(self, start: Place) -> jax.Array:
        """The pieces of all blocks, each on the devices that have the block."""
        piece = [self._extent[axis] for axis in self._source.order]
        shape = tuple(size * count for size, count in zip(piece, self._counts, strict=True))
        read = self.reader(start)
        return jax.make_array_from_callback(
            shape, self._sharding, lambda index: read(blocks_of(index, piece))
        )

    def _read(self, start: int, stop: int) -> np.ndarray:
        values = self._files.read(self.name, start, stop)
        # JAX has no float64 unless all of a program is in it.
        return values.astype(np.float32) if values.dtype == np.float64 else values


def blocks_of(index: Any, shape: Sequence[int]) -> Place:
    """The place among blocks of that shape of the one with this index, a tuple of slices."""
    return tuple((part.start or 0) // size for part, size in zip(index, shape, strict=True))


def _blocks(mesh: Mapping[str, int], entry: Any) -> int:
    """How many a mesh makes along an axis with this entry in its partition."""
    names = (entry,) if isinstance(entry, str) else entry or ()
    return math.prod(mesh[name] for name in names)
