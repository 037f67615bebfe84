"""Several hosts that run the same command: who writes, and when the others may read."""

import contextlib
import os
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from minillm.core.errors import UserError

# What the first host tells the others of its work.
_DONE, _FAILED = b"\1", b"\0"


def join_hosts() -> None:
    """Connect this process with the others of the job, as its environment says.

    TPU VMs, Slurm and Open MPI are recognised by JAX itself. Elsewhere three variables say it:
    JAX_COORDINATOR_ADDRESS (host:port of the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID. Call it
    before any other JAX function.

    Raises:
        UserError: the three variables are needed and not all set, or are no numbers.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [os.environ.get(name) for name in names]
    refused = UserError(
        field="multihost",
        got=dict(zip(names, given, strict=True)),
        wanted="host:port, the number of processes, and this one's index from 0",
        fix="set all three variables on every host",
    )
    if not any(given[1:]):
        try:
            jax.distributed.initialize()
        except ValueError as error:
            # No cluster that JAX knows, so that the address or the numbers are missing.
            raise refused from error
        return
    address, count, index = given
    if not (address and count and index and count.isdigit() and index.isdigit()):
        raise refused
    jax.distributed.initialize(address, int(count), int(index))


def is_first_host() -> bool:
    """Whether this process is the one that writes manifests, metrics and descriptions."""
    return jax.process_index() == 0


def count() -> int:
    """How many processes have joined."""
    return jax.process_count()


def index() -> int:
    """Which of them this is, from 0."""
    return jax.process_index()


@contextlib.contextmanager
def first_host_first(what: str) -> Iterator[None]:
    """The first host does what is inside, then the others do: they find the stage complete.

    Args:
        what: is done then, in words for the others: rows packed.

    Raises:
        UserError: on the others, where the first host raised.
    """
    if not is_first_host():
        if gathered(_DONE)[0] != _DONE:
            raise UserError(
                field="multihost",
                got="an error on the first host",
                wanted=f"{what} there, before the others go on",
                fix="see what the first host says, and run it again on all",
            )
        yield
        return
    try:
        yield
    except BaseException:
        # The others wait: unless they are told, they do so until JAX gives up.
        gathered(_FAILED)
        raise
    gathered(_DONE)


def require_one_host(what: str) -> None:
    """Raise UserError where several processes have joined for what only one can do."""
    if jax.process_count() > 1:
        raise UserError(
            field="multihost",
            got=f"{jax.process_count()} processes for {what}",
            wanted="one: several hosts can share a training, not yet this stage",
            fix="run it on one host, without --multihost, and the training on all",
        )


def wait_for_all(name: str) -> None:
    """Return when every process has come to the point of that name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def joined(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every host's rows, one host's after the other's, on all hosts; all give as many."""
    if jax.process_count() == 1:
        return rows
    return jax.tree.map(np.asarray, multihost_utils.process_allgather(rows, tiled=True))


def gathered(value: bytes) -> list[bytes]:
    """What every host gives, in their order, on all hosts; all give as many bytes."""
    if jax.process_count() == 1:
        return [value]
    found = multihost_utils.process_allgather(np.frombuffer(value, np.uint8))
    return [row.tobytes() for row in np.asarray(found)]


def local_rows(array: jax.Array, first: int, count: int) -> np.ndarray:
    """Rows [first, first + count) of an array, which devices of this host hold among them."""
    if array.is_fully_addressable:
        return np.asarray(array)[first : first + count]
    rows = np.empty((count, *array.shape[1:]), array.dtype)
    for shard in array.addressable_shards:
        start = shard.index[0].start or 0
        stop = start + shard.data.shape[0]
        low, high = max(start, first), min(stop, first + count)
        if low < high:
            place = (slice(low - first, high - first), *shard.index[1:])
            rows[place] = np.asarray(shard.data)[low - start : high - start]
    return rows
