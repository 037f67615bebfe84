"""Batches for training through Grain: shuffled by seed, cut for hosts, resumed at the batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np

from minillm.core.errors import UserError

READ_THREADS = 2
# Batches that may wait in memory, ready to be used.
READ_AHEAD = 4


def batches(
    source: Sequence[Mapping[str, np.ndarray]],
    *,
    batch_size: int,
    seed: int,
    epochs: int | None = None,
    shard_index: int = 0,
    num_shards: int = 1,
    read_threads: int = READ_THREADS,
) -> grain.IterDataset[dict[str, np.ndarray]]:
    """Batches of a random-access sequence of rows; `iter()` of it has get_state and set_state.

    Every epoch holds `len(source) // batch_size` batches in an order of its own, and leaves out
    the rows that fill no batch: other ones in each epoch. The rows of a global batch are the same
    for any number of shards; a shard holds every num_shards-th of them.

    The iterator's state counts what was read and knows nothing else: keep `loader_fingerprint`
    beside it and call `check_restorable` before `set_state`.

    Args:
        source: `len()` and `[i]`, a dict of arrays of one shape each; read from several threads.
        batch_size: rows in a global batch, over all shards.
        epochs: None goes on for ever.
        shard_index: which part this host loads, of `num_shards`.
        read_threads: 0 reads in the calling thread.

    Raises:
        UserError: a batch that no shard can split evenly, or more rows in a batch than there are.
    """
    rows = len(source)
    if batch_size < 1 or num_shards < 1 or batch_size % num_shards:
        raise UserError(
            field="batch_size",
            got=batch_size,
            wanted=f"a multiple of the {num_shards} data shards",
            fix=f"try {max(1, batch_size // max(1, num_shards)) * max(1, num_shards)}",
        )
    if not 0 <= shard_index < num_shards:
        raise UserError(
            field="shard_index",
            got=shard_index,
            wanted=f"0 to {num_shards - 1}",
            fix="give each host its own index, from 0",
        )
    if rows < batch_size:
        raise UserError(
            field="batch_size",
            got=batch_size,
            wanted=f"at most {rows}, the number of rows",
            fix="lower it, or give more text",
        )
    if epochs is not None and epochs < 1:
        raise UserError(field="epochs", got=epochs, wanted="1 or more, or None", fix="try 1")
    if not 0 <= seed < 2**32:
        raise UserError(field="seed", got=seed, wanted="0 to 2**32 - 1", fix="try 0")
    # `seed` before `shuffle` spreads the seed: a bare shuffle(seed) adds the epoch to it, so that
    # seed 1 would start with the second epoch of seed 0.
    shuffled = grain.MapDataset.source(source).seed(seed).shuffle()
    share = shuffled[: rows - rows % batch_size][shard_index::num_shards]
    options = grain.ReadOptions(
        num_threads=read_threads,
        prefetch_buffer_size=READ_AHEAD * batch_size if read_threads else 0,
    )
    stream = share.repeat(epochs).to_iter_dataset(options)
    return stream.batch(batch_size // num_shards, drop_remainder=True)


def loader_fingerprint(
    *, dataset: str, rows: int, batch_size: int, seed: int, num_shards: int = 1
) -> dict[str, Any]:
    """What an iterator's state depends on but does not hold; JSON-able.

    Args:
        dataset: fingerprint of the source, for a join that of all its parts.
        rows: `len(source)`.
    """
    return {
        "dataset": dataset,
        "rows": rows,
        "batch_size": batch_size,
        "seed": seed,
        "num_shards": num_shards,
    }


def check_restorable(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse to set an iterator's state that was saved under another fingerprint.

    Raises:
        UserError: names everything that differs.
    """
    differing = [
        name for name in sorted({*saved, *current}) if saved.get(name) != current.get(name)
    ]
    if differing:
        raise UserError(
            field=f"data position ({', '.join(differing)})",
            got="; ".join(f"{name}={current.get(name)!r}" for name in differing),
            wanted="; ".join(f"{name}={saved.get(name)!r}" for name in differing)
            + ", as when the checkpoint was written",
            fix="go on with the same data and settings, or train into a new directory",
        )
