"""Several hosts that run the same command: who writes, and when the others may read."""

import os

import jax
from jax.experimental import multihost_utils

from minillm.core.errors import UserError


def join_hosts() -> None:
    """Connect this process with the others of the job, as its environment says.

    TPU VMs, Slurm and Open MPI are recognised by JAX itself. Elsewhere three variables say it:
    JAX_COORDINATOR_ADDRESS (host:port of the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID. Call it
    before any other JAX function.

    Raises:
        UserError: the three variables are set in part, or are no numbers.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [os.environ.get(name) for name in names]
    if not any(given[1:]):
        jax.distributed.initialize()
        return
    address, count, index = given
    if not (address and count and index and count.isdigit() and index.isdigit()):
        raise UserError(
            field="multihost",
            got=dict(zip(names, given, strict=True)),
            wanted="host:port, the number of processes, and this one's index from 0",
            fix="set all three variables on every host",
        )
    jax.distributed.initialize(address, int(count), int(index))


def is_first_host() -> bool:
    """Whether this process is the one that writes manifests, metrics and descriptions."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Return when every process has come to the point of that name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
