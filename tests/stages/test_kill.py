"""kill -9 at any moment, run again: the same result as a run that was never killed."""

import json
import os
import random
import signal
import subprocess
import sys

import pytest

from minillm.core.manifest import file_sha256, read_manifest
from minillm.stages.quickstart import MODELS

KILLS = 6


def start(workdir):
    command = [sys.executable, "launch/quickstart.py", f"--workdir={workdir}"]
    return subprocess.Popen(
        [*command, "--config.scale=smoke"],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A group of its own, so that a kill reaches the corpus's worker processes too.
        start_new_session=True,
    )


def finish(process):
    out, _ = process.communicate()
    assert process.returncode == 0, out


@pytest.mark.slow
def test_run_killed_at_random_moments_ends_like_one_that_was_not(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole))
    delays = random.Random(0)
    kills = 0
    while kills < KILLS:
        process = start(killed)
        try:
            process.wait(timeout=delays.uniform(8, 40))
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills >= 3, "the run is too short to be killed: raise its size"
    finish(start(killed))
    for name in MODELS:
        weights = [read_manifest(root / "models" / name).counts for root in (whole, killed)]
        assert weights[0] == weights[1], name
        results = [
            json.loads((root / "evaluation" / name / "result.json").read_text())
            for root in (whole, killed)
        ]
        assert results[0] == results[1], name
    for name in ("train", "heldout"):
        shards = sorted((whole / "store" / name).glob("*.array_record"))
        assert shards
        for shard in shards:
            twin = killed / "store" / name / shard.name
            assert file_sha256(shard) == file_sha256(twin)
