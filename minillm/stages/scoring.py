"""A teacher over batches of rows: one computation, compiled once, for a batch that fits."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from minillm.core import axes, hosts
from minillm.core.errors import UserError
from minillm.core.sharding import logical_sharding, rounded_up
from minillm.model.config import ModelConfig
from minillm.model.functional import ModelFunction, Params, by_layer
from minillm.model.transformer import Transformer
from minillm.store import TeacherTargets, top_candidates

Batch = dict[str, Any]
# From a model, its hidden states [B, T, D], the batch, and the number of positions whose logits may
# exist at a time, to arrays of [B, T, …].
Reading = Callable[[Transformer, Array, Batch, int], Any]
INPUTS = ("tokens", "segment_ids", "positions")
# Tokens that a device takes at a time where nobody says: with more it gets no faster.
ENOUGH_TOKENS = {"cpu": 2048, "gpu": 32_768, "tpu": 32_768}
# Of the memory, what a computation may plan with: allocators waste some, and on CPU it is shared.
SHARE = {"cpu": 0.5, "gpu": 0.9, "tpu": 0.9}
# Positions whose logits a device holds at a time: as fast on CPU as all at once, in a thirtieth
# of the memory at 1,024 positions and 32,000 tokens.
_POSITIONS_AT_A_TIME = 128


@dataclasses.dataclass(frozen=True)
class Scorer:
    """A teacher's reading of batches of `batch_size` rows over all hosts.

    Attributes:
        compiled: from parameters, laid out by `placed`, and a batch on the mesh to what is read.
        needed: bytes of a device's memory that it takes, weights and batch included.
    """

    compiled: jax.stages.Compiled
    mesh: Mesh
    batch_size: int
    needed: int

    @property
    def rows_of_a_host(self) -> int:
        """How many rows each host gives at a time."""
        return self.batch_size // jax.process_count()

    def __call__(self, params: Params, rows: Mapping[str, np.ndarray]) -> Any:
        """What is read of this host's rows, in numpy; every host calls this at the same time."""
        # All rows to all hosts, integers all: the devices of one row may be on several of them.
        whole = hosts.joined({name: rows[name] for name in INPUTS})
        sharding = _row_sharding(self.mesh)
        on_mesh = {
            name: jax.make_array_from_callback(part.shape, sharding, part.__getitem__)
            for name, part in whole.items()
        }
        first, count = jax.process_index() * self.rows_of_a_host, self.rows_of_a_host
        found = self.compiled(params, on_mesh)
        return jax.tree.map(lambda part: hosts.local_rows(part, first, count), found)


def compile_scorer(
    config: ModelConfig,
    mesh: Mesh,
    *,
    row_length: int,
    rows: int,
    candidates: int,
    vocab_size: int,
    batch_size: int | None,
    memory: int | None = None,
) -> Scorer:
    """The teacher's `TeacherTargets` of `batch_size` rows, or of as many as pay and fit.

    Args:
        config: of the teacher; its parameters come in the compute dtype.
        rows: how many there are to score.
        vocab_size: of the tokenizer; logits beyond it are cut off.
        memory: bytes of each device; None asks the device.

    Raises:
        UserError: the batch does not fit, or not even the smallest; says what it takes.
    """

    def reading(model: Transformer, hidden: Array, batch: Batch, at_a_time: int) -> TeacherTargets:
        return targets_of(model, hidden, candidates, at_a_time, vocab_size)

    sizes = [batch_size] if batch_size else sizes_that_pay(mesh, row_length, rows)
    return compile_reading(config, mesh, reading, row_length=row_length, sizes=sizes, memory=memory)


def compile_reading(
    config: ModelConfig,
    mesh: Mesh,
    reading: Reading,
    *,
    row_length: int,
    sizes: Sequence[int],
    memory: int | None = None,
) -> Scorer:
    """The computation for the first of these numbers of rows that fits.

    Nothing is loaded and nothing run: the compiler says what a batch would take.

    Args:
        config: of the teacher; its parameters come in the compute dtype.
        sizes: multiples of `smallest_batch`, falling.
        memory: bytes of each device; None asks the devices.

    Raises:
        UserError: not even the last fits; says what it takes.
    """
    memory = device_memory(mesh) if memory is None else memory
    needed: int | None = None
    for size in sizes:
        compiled, needed = _compiled(config, mesh, reading, row_length, size)
        if compiled is not None and (memory is None or needed <= memory):
            return Scorer(compiled, mesh, size, needed)
    raise _too_large(config, mesh, row_length, sizes, needed, memory)


def compile_logits(
    config: ModelConfig, mesh: Mesh, *, rows: int, row_length: int
) -> jax.stages.Compiled:
    """The forward pass alone, from `placed` parameters and a batch to all logits: for timing."""
    function = ModelFunction(config)

    def logits(params: Params, batch: Batch) -> Float[Array, "B T V"]:
        model, hidden = _read(function, params, batch)
        return model.logits(hidden)

    with jax.set_mesh(mesh):
        lowered = jax.jit(logits).lower(*_abstract(function, mesh, rows, row_length))
        return lowered.compile()


def placed(params: Params, mesh: Mesh) -> Params:
    """Parameters as the compiled computations take them: on CPU layer by layer."""
    return by_layer(params) if mesh.local_devices[0].platform == "cpu" else params


def smallest_batch(mesh: Mesh) -> int:
    """The fewest rows that the mesh and the hosts share evenly."""
    return int(np.lcm(rounded_up(1, mesh, axes.BATCH), jax.process_count()))


def device_memory(mesh: Mesh) -> int | None:
    """Bytes that a device's computation may take; None where no device says.

    The least of all hosts, which have to come to the same batch: on CPU each has its own.
    """
    device = mesh.local_devices[0]
    share = SHARE.get(device.platform, 0.9)
    if device.platform == "cpu":
        there = _available_on_host() // len(mesh.local_devices)
    else:
        there = (device.memory_stats() or {}).get("bytes_limit", 0)
    told = [int.from_bytes(each) for each in hosts.gathered(int(share * there).to_bytes(8))]
    return min((each for each in told if each), default=None)


def _available_on_host() -> int:
    # What Linux would give without swapping, caches included; elsewhere what is free.
    path = Path("/proc/meminfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def sizes_that_pay(mesh: Mesh, row_length: int, rows: int) -> list[int]:
    """What to try, the largest first: mostly it fits, and is then the one that is compiled.

    Powers of two times the smallest that the mesh and the hosts share evenly, at most what `rows`
    need, and at most ENOUGH_TOKENS a device.
    """
    smallest = smallest_batch(mesh)
    shards = rounded_up(1, mesh, axes.BATCH)
    enough = ENOUGH_TOKENS.get(mesh.local_devices[0].platform, ENOUGH_TOKENS["gpu"])
    sizes = [smallest]
    while sizes[-1] < rows and sizes[-1] * row_length < enough * shards:
        sizes.append(2 * sizes[-1])
    return sizes[::-1]


def _compiled(
    config: ModelConfig, mesh: Mesh, reading: Reading, row_length: int, size: int
) -> tuple[jax.stages.Compiled | None, int]:
    """The computation for `size` rows, and the bytes it takes; without it, at least so many."""
    function = ModelFunction(config)
    params, batch = _abstract(function, mesh, size, row_length)
    at_a_time = positions_at_a_time(mesh, size)

    def score(params: Params, batch: Batch) -> Any:
        model, hidden = _read(function, params, batch)
        return reading(model, hidden, batch, at_a_time)

    with jax.set_mesh(mesh):
        lowered = jax.jit(score, out_shardings=_row_sharding(mesh)).lower(params, batch)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            # A TPU's compiler says itself when something does not fit.
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return None, _bytes_of(params)
    memory = compiled.memory_analysis()
    if memory is None:
        return compiled, _bytes_of(params)
    return compiled, (
        memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )


def _abstract(
    function: ModelFunction, mesh: Mesh, rows: int, row_length: int
) -> tuple[Params, Batch]:
    params = function.abstract(mesh, function.config.compute_dtype)
    shape = jax.ShapeDtypeStruct((rows, row_length), jnp.int32, sharding=_row_sharding(mesh))
    return placed(params, mesh), dict.fromkeys(INPUTS, shape)


def _read(
    function: ModelFunction, params: Params, batch: Batch
) -> tuple[Transformer, Float[Array, "B T D"]]:
    model = function.bind(params)
    tokens, segments, positions = (batch[name] for name in INPUTS)
    return model, model.hidden(tokens, segment_ids=segments, positions=positions)


def targets_of(
    model: Transformer,
    hidden: Float[Array, "B T D"],
    candidates: int,
    at_a_time: int,
    vocab_size: int,
) -> TeacherTargets:
    """Logits and their candidates for `at_a_time` positions of every row after the other.

    All logits at once would be the largest array of the whole computation.
    """
    # A slice of a single turn's candidates would bring about what `top_candidates` avoids.
    at_a_time = min(at_a_time, hidden.shape[1])
    found = by_turns(
        lambda part: top_candidates(model.logits(part)[..., :vocab_size], candidates),
        hidden,
        at_a_time,
    )
    return TeacherTargets(*found)


def positions_at_a_time(mesh: Mesh, rows: int) -> int:
    """Of each of so many rows, how many positions go through the output head at a time."""
    return max(1, _POSITIONS_AT_A_TIME * rounded_up(1, mesh, axes.BATCH) // rows)


def by_turns(function: Callable[[Any], Any], parts: Any, at_a_time: int) -> Any:
    """`function` of a tree of [B, T, …] arrays, for `at_a_time` positions of T after the others.

    Args:
        function: from [B, at_a_time, …] to a tree of such arrays, each position by itself; it is
            also called with zeros, where the last turn is filled up.
    """
    batch, length = jax.tree.leaves(parts)[0].shape[:2]
    turns = -(-length // at_a_time)

    def cut(part: Array) -> Array:
        rest = [(0, 0), (0, turns * at_a_time - length)] + [(0, 0)] * (part.ndim - 2)
        # Every turn takes each `turns`-th position: rows cut along T stay on their devices.
        padded = jnp.pad(part, rest).reshape(batch, at_a_time, turns, *part.shape[2:])
        return jnp.moveaxis(padded, 2, 0)

    def in_order(part: Array) -> Array:
        part = jnp.moveaxis(part, 0, 2)
        return part.reshape(batch, turns * at_a_time, *part.shape[3:])[:, :length]

    found = jax.lax.map(function, jax.tree.map(cut, parts))
    return jax.tree.map(in_order, found)


def _bytes_of(params: Params) -> int:
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(params)
    )


def _row_sharding(mesh: Mesh) -> jax.sharding.NamedSharding:
    return logical_sharding(mesh, (axes.BATCH, axes.LENGTH))


def _too_large(
    config: ModelConfig,
    mesh: Mesh,
    row_length: int,
    sizes: Sequence[int],
    needed: int | None,
    memory: int | None,
) -> UserError:
    dtype = config.compute_dtype
    weights = _bytes_of(ModelFunction(config).abstract(mesh, dtype))
    advice = ["mesh.fsdp or mesh.tensor to share the weights among more devices"]
    asked = sizes[-1] > smallest_batch(mesh)
    if asked:
        advice.insert(0, "a smaller batch_size, or none to have it found")
    if dtype == "float32":
        advice.append("dtype=bfloat16")
    advice.append("shorter rows (rows.row_length)")
    there = "less" if memory is None else f"{_gib(memory)} to plan with"
    return UserError(
        field="batch_size" if asked else "memory",
        got=f"{_gib(needed or weights)} a device for batches of {sizes[-1]} rows of {row_length} "
        f"tokens, {_gib(weights)} of it weights in {dtype}",
        wanted=f"what a device has: {there}",
        fix="try " + ", or ".join(advice),
    )


def _gib(count: int) -> str:
    return f"{count:,} bytes ({count / 2**30:.2f} GiB)"
