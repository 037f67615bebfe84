"""Two processes that join hands train as one does."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from minillm.core.metrics import read_metrics
from minillm.data.corpus import Example
from minillm.data.rows import write_rows
from minillm.data.tokenizer import BPETokenizer
from tests.stages import tiny
from tests.train.test_mesh import LOSS_TOLERANCE


def start(work, output, **variables):
    mode = "together" if variables else "alone"
    return subprocess.Popen(
        [sys.executable, "-m", "tests.train.run_two_hosts", str(work), str(output), mode],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return int(out.splitlines()[-1])


@pytest.mark.slow
def test_losses_of_two_processes_are_those_of_one(tmp_path):
    texts = [f"{n} and {n + 1} make {2 * n + 1}.\n" * 5 for n in range(40)]
    tokenizer = BPETokenizer(tiny.MODEL.vocab_size, only_seen_commands=True).train(texts)
    tokenizer.save(tmp_path)
    examples = [Example("", text) for text in texts]
    write_rows(
        tmp_path / "rows", examples, tokenizer=tokenizer, row_length=64, config={}, inputs={}
    )
    alone = finish(start(tmp_path, tmp_path / "alone"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    pair = [
        start(tmp_path, tmp_path / "pair", **shared, JAX_PROCESS_ID=str(index)) for index in (0, 1)
    ]
    assert [finish(process) for process in pair] == [alone, alone]
    losses = {
        name: [line["loss"] for line in read_metrics(tmp_path / name)] for name in ("alone", "pair")
    }
    assert len(losses["alone"]) == 4
    np.testing.assert_allclose(losses["pair"], losses["alone"], rtol=LOSS_TOLERANCE)
