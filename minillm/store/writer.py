"""Writing a store: shard by shard, each whole or absent, the same bytes however often it is cut."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from minillm.core import hosts
from minillm.core.errors import UserError
from minillm.core.manifest import (
    Manifest,
    Shard,
    file_sha256,
    found_stage,
    open_stage,
    read_manifest,
    verify_shards,
    write_manifest,
)
from minillm.core.progress import progress
from minillm.data.rows import RowsReader
from minillm.store.codec import StoredRow, encode_row
from minillm.store.schema import SCHEMA, StoreConfig, TeacherTargets, shard_name

ROWS_PER_SHARD = 1024
# One record a group, so that a row can be read without its neighbours; the level is array-record's
# own default, named because the bytes of a store must not change with it.
_WRITER_OPTIONS = "group_size:1,zstd:3"

# Bytes of what hosts tell each other of a shard: its size, its SHA-256.
_FACTS = 8 + 32

Batch = Mapping[str, np.ndarray]
Score = Callable[[Batch], TeacherTargets]


def write_store(
    directory: epath.PathLike,
    rows: RowsReader,
    score: Score,
    *,
    teacher_fingerprint: str,
    tokenizer_fingerprint: str,
    vocab_size: int,
    candidates: int,
    batch_size: int,
    rows_per_shard: int = ROWS_PER_SHARD,
    description: str = "teacher targets",
) -> Manifest:
    """Score every row and write what the teacher says; a part is gone on with, a whole one kept.

    Shard k holds rows [k · rows_per_shard, (k + 1) · rows_per_shard) and is scored in batches
    counted from its own first row, so that it comes out the same whatever ran before. Shards
    written earlier are checked by SHA-256; a damaged one is written anew.

    Several hosts that have joined write one store between them, in a directory that all of them
    see: each of them every so many-th missing shard, in step, since `score` may need them all.
    Only the first writes the manifest. Otherwise one process at a time may write into a directory.

    Args:
        score: from a batch of rows (arrays of [batch_size, ...], by the names of `RowsReader`) to
            targets of [B, T, C], [B, T, C] and [B, T], in numpy or on a device. Always called
            with full batches: a shard's last one is filled up with copies of its last row. Of
            several hosts each calls it with its own rows, all equally often.
        tokenizer_fingerprint: of the teacher's tokenizer.
        vocab_size: of the teacher's logits; every id is below it.
        batch_size: rows that this host gives at a time.
        description: what the progress bar is called.

    Raises:
        UserError: rows of another tokenizer or with ids the teacher does not have, a directory
            made from something else or not seen by all hosts, targets that are no distribution.
        RuntimeError: a write failed; the message gives the file and the cause.
    """
    config = StoreConfig(
        candidates=candidates,
        vocab_size=vocab_size,
        row_length=rows.row_length,
        rows_per_shard=rows_per_shard,
    )
    _check_inputs(rows, tokenizer_fingerprint, batch_size)
    inputs = {
        "rows": rows.fingerprint,
        "teacher": teacher_fingerprint,
        "tokenizer": tokenizer_fingerprint,
    }
    directory = epath.Path(directory)
    manifest = _open(directory, config, inputs)
    if manifest.complete:
        return manifest
    manifest = dataclasses.replace(manifest, measured={"batch_size": batch_size * hosts.count()})
    scored = sum(shard.records for shard in manifest.shards)
    with _Progress(description, len(rows), scored) as bar:
        for turn in _turns(config, len(rows), manifest):
            new = _write_turn(directory, turn, rows, score, batch_size, config, bar)
            shards = sorted((*manifest.shards, *new), key=lambda shard: shard.first)
            manifest = dataclasses.replace(manifest, shards=tuple(shards))
            _write_manifest(directory, manifest)
    counts = {
        "rows": len(rows),
        "tokens": rows.manifest.counts["tokens"],
        "bytes": sum(shard.bytes for shard in manifest.shards),
    }
    manifest = dataclasses.replace(manifest, complete=True, counts=counts)
    _write_manifest(directory, manifest)
    hosts.wait_for_all("store written")
    return manifest


def _open(directory: epath.Path, config: StoreConfig, inputs: Mapping[str, str]) -> Manifest:
    """The store to go on with, its damaged shards left out, the same on every host."""
    stage: dict[str, Any] = {
        "schema": SCHEMA,
        "config": dataclasses.asdict(config),
        "inputs": inputs,
    }
    # On all hosts before one of them writes: an error must not leave the others waiting.
    found_stage(directory, **stage)
    hosts.wait_for_all("store checked")
    if hosts.is_first_host():
        manifest = _keep_intact(directory, open_stage(directory, **stage))
        if not manifest.complete:
            for leftover in directory.glob(".*.part"):
                leftover.unlink()
    hosts.wait_for_all("store opened")
    found = read_manifest(directory)
    if found is None:
        raise UserError(
            field="output_dir",
            got=f"{directory}, in which host {hosts.index()} does not see what the first one wrote",
            wanted="one folder that all hosts see",
            fix="give a shared disk",
        )
    return found


def _turns(config: StoreConfig, rows: int, manifest: Manifest) -> list[list[tuple[int, range]]]:
    """Number and rows of the shards that are missing, as many in a turn as there are hosts."""
    there = {shard.first for shard in manifest.shards}
    missing = [
        (number, wanted)
        for number, wanted in enumerate(config.shard_rows(rows))
        if wanted.start not in there
    ]
    step = hosts.count()
    return [missing[first : first + step] for first in range(0, len(missing), step)]


def _write_turn(
    directory: epath.Path,
    turn: list[tuple[int, range]],
    rows: RowsReader,
    score: Score,
    batch_size: int,
    config: StoreConfig,
    bar: "_Progress",
) -> list[Shard]:
    """Each host writes its shard of the turn; then all of them know of all shards."""
    batches = max(-(-len(wanted) // batch_size) for _, wanted in turn)
    mine = hosts.index() < len(turn)
    # A host without a shard in the last turn takes part in the others' computation.
    number, wanted = turn[hosts.index()] if mine else (-1, range(0))
    bar.share = sum(len(each) for _, each in turn) / max(1, len(wanted))
    records = _encoded(rows, wanted, batches, score, batch_size, config, bar)
    facts = bytes(_FACTS)
    if mine:
        shard = _write_shard(directory, shard_name(number), wanted, records)
        facts = shard.bytes.to_bytes(8) + bytes.fromhex(shard.sha256)
    else:
        assert not list(records)
    return [
        Shard(shard_name(k), each.start, len(each), int.from_bytes(fact[:8]), fact[8:].hex())
        for (k, each), fact in zip(turn, hosts.gathered(facts)[: len(turn)], strict=True)
    ]


def _write_manifest(directory: epath.Path, manifest: Manifest) -> None:
    if hosts.is_first_host():
        write_manifest(directory, manifest)


def _check_inputs(rows: RowsReader, tokenizer_fingerprint: str, batch_size: int) -> None:
    rows_tokenizer = rows.manifest.inputs["tokenizer"]
    if rows_tokenizer != tokenizer_fingerprint:
        raise UserError(
            field="teacher's tokenizer",
            got=f"fingerprint {tokenizer_fingerprint}",
            wanted=f"{rows_tokenizer}, with which the rows in {rows.directory} were made",
            fix="pack the text into rows with the teacher's tokenizer",
        )
    if batch_size < 1:
        raise UserError(field="batch_size", got=batch_size, wanted="1 or more", fix="try 8")


def _keep_intact(directory: epath.Path, manifest: Manifest) -> Manifest:
    """The manifest without the shards whose bytes are no longer what it says."""
    intact = []
    for shard in manifest.shards:
        try:
            verify_shards(directory, dataclasses.replace(manifest, shards=(shard,)))
            intact.append(shard)
        except UserError as error:
            logging.warning("writing a damaged shard anew: %s", error)
    if len(intact) == len(manifest.shards):
        return manifest
    manifest = dataclasses.replace(manifest, complete=False, counts={}, shards=tuple(intact))
    write_manifest(directory, manifest)
    return manifest


def _encoded(
    rows: RowsReader,
    wanted: range,
    batches: int,
    score: Score,
    batch_size: int,
    config: StoreConfig,
    bar: "_Progress",
) -> Iterator[bytes]:
    """The records of one shard, scored batch by batch, in at least as many as the other hosts."""
    for start in range(wanted.start, wanted.start + batches * batch_size, batch_size):
        group = [rows[i] for i in range(start, min(start + batch_size, wanted.stop))]
        # One shape for every call: a shorter batch would be compiled by itself, and could round
        # otherwise.
        shown = group or [rows[0]]
        full = shown + shown[-1:] * (batch_size - len(shown))
        batch = {name: np.stack([row[name] for row in full]) for name in full[0]}
        _check_tokens(batch["tokens"], start, config.vocab_size)
        targets = [np.asarray(part) for part in score(batch)]
        for offset, row in enumerate(group):
            mine = TeacherTargets(*(part[offset] for part in targets))
            stored = _only_where_a_token_follows(mine, row["segment_ids"])
            yield encode_row(StoredRow(start + offset, row["digest"].tobytes(), stored), config)
        bar.update(group)


def _check_tokens(tokens: np.ndarray, first: int, vocab_size: int) -> None:
    # On a device an id outside the embedding is clamped without a word.
    if tokens.max() >= vocab_size:
        raise UserError(
            field=f"rows from {first} on",
            got=f"token id {tokens.max()}",
            wanted=f"ids below the teacher's vocabulary of {vocab_size}",
            fix="give the teacher that belongs to the rows' tokenizer",
        )


def _only_where_a_token_follows(targets: TeacherTargets, segments: np.ndarray) -> TeacherTargets:
    """Blank the ends of documents and the padding: what a teacher says there is about nothing."""
    follows = np.append((segments[1:] == segments[:-1]) & (segments[1:] != 0), False)
    return TeacherTargets(
        np.where(follows[:, None], targets.candidate_ids, -1),
        np.where(follows[:, None], targets.candidate_log_probs, -np.inf),
        np.where(follows, targets.tail_log_prob, -np.inf),
    )


def _write_shard(directory: epath.Path, name: str, rows: range, records: Iterator[bytes]) -> Shard:
    aside = directory / f".{name}.part"
    with contextlib.closing(ArrayRecordWriter(os.fspath(aside), _WRITER_OPTIONS)) as writer:
        for record in records:
            writer.write(record)
    # On disk before the manifest speaks of it: a power cut must not leave an empty shard behind.
    with open(aside, "rb+") as stream:
        os.fsync(stream.fileno())
    shard = Shard(name, rows.start, len(rows), aside.stat().length, file_sha256(aside))
    aside.replace(directory / name)
    return shard


class _Progress:
    """A bar over rows that also shows tokens a second, padding left out.

    Attributes:
        share: rows of all hosts for each row of this one. The others' are not counted one by one:
            they keep in step.
    """

    def __init__(self, description: str, total: int, done: int) -> None:
        self._bar = progress(
            total, description=description, unit="row", initial=done, shown=hosts.is_first_host()
        )
        self.share = 1.0
        self._rows = float(done)
        self._tokens = 0.0
        self._started = time.monotonic()

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, rows: list[dict[str, np.ndarray]]) -> None:
        """Count rows that are scored and encoded."""
        tokens = sum(int(np.count_nonzero(row["segment_ids"])) for row in rows)
        self._tokens += tokens * self.share
        self._rows += len(rows) * self.share
        rate = self._tokens / max(time.monotonic() - self._started, 1e-9)
        self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        self._bar.update(round(self._rows) - self._bar.n)
