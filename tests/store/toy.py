"""A small teacher in numpy, so that a store can be written in milliseconds and by a subprocess."""

import sys
import time

import numpy as np

from minillm.core.manifest import Manifest
from minillm.data.rows import RowsReader
from minillm.store.schema import TeacherTargets
from minillm.store.writer import write_store

CANDIDATES = 6
ROWS_PER_SHARD = 5


def log_probs(batch, vocab_size):
    """float32[B, T, V]: random, by what was read of the row so far."""
    table = np.random.default_rng(0).normal(scale=4, size=(97, vocab_size)).astype(np.float32)
    logits = table[np.cumsum(batch["tokens"], axis=-1) % 97]
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def scorer(vocab_size, candidates=CANDIDATES, pause=0.0):
    def score(batch):
        time.sleep(pause)
        dense = log_probs(batch, vocab_size)
        order = np.argsort(-dense, axis=-1, kind="stable")
        ids, rest = order[..., :candidates], order[..., candidates:]
        with np.errstate(divide="ignore"):
            tail = np.log(np.exp(np.take_along_axis(dense, rest, -1)).sum(-1))
        return TeacherTargets(ids, np.take_along_axis(dense, ids, -1), tail)

    return score


def write(directory, rows, vocab_size, *, score=None, candidates=CANDIDATES, **changes) -> Manifest:
    options = {
        "teacher_fingerprint": "toy",
        "tokenizer_fingerprint": rows.manifest.inputs["tokenizer"],
        "vocab_size": vocab_size,
        "candidates": candidates,
        "batch_size": 2,
        "rows_per_shard": ROWS_PER_SHARD,
    }
    score = score or scorer(vocab_size, candidates)
    return write_store(directory, rows, score, **{**options, **changes})


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


if __name__ == "__main__":
    target, source, vocab, pause = sys.argv[1:]
    reader = RowsReader(source)
    write(target, reader, int(vocab), score=scorer(int(vocab), pause=float(pause)))
