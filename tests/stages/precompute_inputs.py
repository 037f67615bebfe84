"""Rows of several documents each, and a small teacher folder to run over them."""

import dataclasses

import numpy as np
from flax import nnx

from minillm.core.checkpoint import Checkpointer, write_model_description
from minillm.core.sharding import MeshConfig, make_mesh
from minillm.data.corpus import Example
from minillm.data.rows import RowsReader, write_rows
from minillm.data.tokenizer import BPETokenizer
from minillm.model.config import ModelConfig
from minillm.model.functional import ModelFunction

ROW_LENGTH = 64
ROWS_PER_SHARD = 5
# Heads, widths and vocabulary that 2 and 4 devices share evenly, and a window that bites.
MODEL = ModelConfig(
    vocab_size=288,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=4,
    head_dim=8,
    intermediate_size=64,
    windows=(5, None),
    qk_norm=True,
    max_length=ROW_LENGTH,
)


def write_inputs(directory):
    """`rows/` and `teacher/` in the directory; the rows' reader."""
    texts = [f"{n} and {n + 1} make {2 * n + 1}." + "!" * (n % 5) for n in range(90)]
    tokenizer = BPETokenizer(MODEL.vocab_size, only_seen_commands=True).train(texts)
    examples = [Example("", text) for text in texts]
    write_rows(
        directory / "rows",
        examples,
        tokenizer=tokenizer,
        row_length=ROW_LENGTH,
        config={},
        inputs={},
    )
    write_teacher(directory / "teacher", tokenizer)
    return RowsReader(directory / "rows")


def write_teacher(directory, tokenizer, seed=3):
    """A folder as a training leaves it, with random weights of three times the usual size."""
    config = dataclasses.replace(MODEL, vocab_size=tokenizer.vocab_size)
    model = ModelFunction(config)
    params = model.init(seed, make_mesh(MeshConfig()))
    # Freshly drawn weights give nearly the same logits everywhere, which would hide errors.
    params = nnx.to_pure_dict(nnx.state(model.bind(params)))
    params["embedding"] = 3 * params["embedding"]
    checkpointer = Checkpointer(directory)
    checkpointer.save(1, params=params, optimizer={"count": np.zeros(())}, progress={"step": 1})
    checkpointer.close()
    write_model_description(directory, config.to_dict())
    tokenizer.save(directory)


def stacked(rows, ids):
    """Those rows as one batch."""
    found = [rows[row_id] for row_id in ids]
    return {name: np.stack([row[name] for row in found]) for name in found[0]}
