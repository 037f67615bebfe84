"""kill -9 at any moment, run again: the same result as a run that was never killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from minillm.core.manifest import file_sha256, read_manifest
from minillm.stages.quickstart import MODELS
from tests.stages.processes import descendants, wait_until_ended

# A kill comes a moment after the first file that matches appears. Files, not seconds: how far a
# run is after so many seconds differs by machine.
MOMENTS = (
    "corpus",
    "rows/train",
    "models/teacher/checkpoints/*",
    "store/train/*.array_record",
    "models/distilled/checkpoints/*",
    "models/finetuned/checkpoints/*",
    "evaluation/baseline/*",
)
LONGEST_WAIT = 300  # seconds
# Of a worker whose parent was killed, in seconds: it may have a chunk of SymPy's in hand.
LONGEST_LIFE = 20

CORPUS = """
import sys
from minillm.stages.corpus import CorpusConfig, make_corpus

if __name__ == "__main__":
    make_corpus(sys.argv[1], CorpusConfig(train_problems=100_000))
"""


def start(workdir):
    command = [sys.executable, "launch/quickstart.py", f"--workdir={workdir}"]
    # To a file: a pipe that nobody reads fills up and stops the run.
    with log_of(workdir).open("ab") as log:
        return subprocess.Popen(
            [*command, "--config.scale=smoke"],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def log_of(workdir):
    return workdir.with_suffix(".log")


def finish(workdir):
    assert start(workdir).wait() == 0, log_of(workdir).read_text()


def kill_after(workdir, pattern, delay):
    """Start a run, kill it `delay` seconds after `pattern` matches a file, and see what is left."""
    process = start(workdir)
    deadline = time.monotonic() + LONGEST_WAIT
    while not any(workdir.glob(pattern)):
        assert process.poll() is None, f"no {pattern}: {log_of(workdir).read_text()}"
        assert time.monotonic() < deadline, f"no {pattern} after {LONGEST_WAIT} s"
        time.sleep(0.01)
    time.sleep(delay)
    assert process.poll() is None, f"ended before it could be killed after {pattern}"
    kill_alone(process)


def kill_alone(process):
    """Kill one process as `kill -9` does, and see the ones that it started end by themselves."""
    below = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    left = wait_until_ended(below, LONGEST_LIFE)
    assert not left, f"{len(left)} of {len(below)} processes outlive their parent"
    return below


def test_workers_of_a_corpus_end_with_the_process_that_started_them(tmp_path):
    script = tmp_path / "make.py"
    script.write_text(CORPUS)
    process = subprocess.Popen(
        [sys.executable, script, tmp_path / "corpus"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + LONGEST_WAIT
    # The pool's workers and the tracker of their shared memory.
    while len(descendants(process.pid)) < 2 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    # Past the start of Python, so that the workers are at work.
    time.sleep(3)
    assert len(kill_alone(process)) >= 2


@pytest.mark.slow
def test_run_killed_at_random_moments_ends_like_one_that_was_not(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(whole)
    delays = random.Random(0)
    for pattern in MOMENTS:
        kill_after(killed, pattern, delays.uniform(0, 0.5))
    assert not (killed / "report.json").exists()
    finish(killed)
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
