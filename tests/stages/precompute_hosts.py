"""Processes that precompute a teacher's targets, alone or as two hosts."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

TEACHER_AND_ROWS = {"teacher": "teacher", "rows": "rows"}


def start(work, output, sizes, *, inputs=TEACHER_AND_ROWS, pause=0.0, devices=1, **variables):
    """One process of tests/stages/run_precompute.py.

    Args:
        inputs: of `precompute`, by name, folders in `work`.
        pause: seconds before each batch.
        variables: of the environment that join it with others; without any it is alone.
    """
    mode = "together" if variables else "alone"
    folders = {name: str(Path(work) / folder) for name, folder in inputs.items()}
    command = [sys.executable, "-m", "tests.stages.run_precompute", json.dumps(folders), output]
    return subprocess.Popen(
        [*map(str, command), mode, json.dumps(sizes), str(pause)],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            **variables,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_pair(work, output, sizes, **options):
    """Two such processes that join on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [
        start(work, output, sizes, **options, **shared, JAX_PROCESS_ID=str(index))
        for index in (0, 1)
    ]


def finish(process):
    """The last line it printed, and all of its standard error."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out.splitlines()[-1], err
