"""Two processes on one machine, as two hosts of a job."""

import os
import socket
import subprocess
import sys

import pytest


def run_pair(what):
    """What each of the two prints; much sooner than JAX gives up on a barrier (five minutes)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    pair = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.core.run_first_host", what],
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(index),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]
    try:
        found = [process.communicate(timeout=100)[0].splitlines() for process in pair]
    finally:
        for process in pair:
            process.kill()
    # JAX's own transport prints, too.
    return [[line for line in lines if not line.startswith("[Gloo]")] for lines in found]


@pytest.mark.parametrize(
    ("what", "first", "second"),
    [
        ("succeed", "inside", "inside"),
        (
            "fail",
            "ValueError: no space left",
            "UserError: multihost: got an error on the first host; wanted rows packed there, "
            "before the others go on; fix: see what the first host says, and run it again on all",
        ),
    ],
)
def test_the_other_host_follows_the_first_or_is_told_that_it_failed(what, first, second):
    assert run_pair(what) == [[first], [second]]
