"""Packed rows on disk: array-record shards with a manifest, read at random, checked on reading."""

import bisect
import contextlib
import dataclasses
import hashlib
import itertools
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath

from minillm.core.errors import UserError
from minillm.core.manifest import (
    Manifest,
    Shard,
    file_sha256,
    open_stage,
    require_complete,
    verify_shards,
    write_manifest,
)
from minillm.data.corpus import Example
from minillm.data.packing import PackedRow, cut, pack, tokenize
from minillm.data.tokenizer_protocol import Tokenizer

SCHEMA = "rows/1"
ROWS_PER_SHARD = 4096
# One record a group: a row can be read without unpacking its neighbours.
_WRITER_OPTIONS = "group_size:1"
# Rows are read in shuffled order: reading ahead would fetch what is not asked for.
_READER_OPTIONS = "readahead_buffer_size:0"
_FIELDS: dict[str, np.dtype] = {
    "tokens": np.dtype("<i4"),
    "segment_ids": np.dtype("<i4"),
    "positions": np.dtype("<i4"),
    "loss_mask": np.dtype("u1"),
}


def row_digest(tokens: np.ndarray, segment_ids: np.ndarray) -> bytes:
    """16 bytes that name a row's content; what is stored about a row elsewhere carries them."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(np.ascontiguousarray(tokens, "<i4").tobytes())
    digest.update(np.ascontiguousarray(segment_ids, "<i4").tobytes())
    return digest.digest()


def encode_row(row_id: int, row: PackedRow) -> bytes:
    """A row as it stands in a shard: a msgpack map of raw little-endian arrays."""
    arrays = {
        name: np.ascontiguousarray(getattr(row, name), dtype).tobytes()
        for name, dtype in _FIELDS.items()
    }
    digest = row_digest(row.tokens, row.segment_ids)
    return msgpack.packb({"row_id": row_id, "digest": digest, **arrays})


def decode_row(record: bytes) -> dict[str, np.ndarray]:
    """The inverse of `encode_row`; `digest` comes as uint8[16], so that rows can be stacked.

    Raises:
        ValueError: the record is no row, or its digest is not that of its tokens.
    """
    try:
        fields = msgpack.unpackb(record)
        row = {name: np.frombuffer(fields[name], dtype) for name, dtype in _FIELDS.items()}
        row["row_id"] = np.asarray(fields["row_id"], np.int64)
        row["digest"] = np.frombuffer(fields["digest"], np.uint8)
    except (KeyError, TypeError, ValueError, msgpack.UnpackException) as error:
        raise ValueError(f"no packed row: {error!r}") from error
    if row["digest"].tobytes() != row_digest(row["tokens"], row["segment_ids"]):
        raise ValueError("the digest is not that of the tokens")
    return row


def write_rows(
    directory: epath.PathLike,
    documents: Iterable[Example],
    *,
    tokenizer: Tokenizer,
    row_length: int,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    rows_per_shard: int = ROWS_PER_SHARD,
) -> Manifest:
    """Tokenise, pack and write; a finished directory is left as it is, a part is gone on with.

    Plain text longer than a row is cut; a problem with its solution that is longer than a row is
    left out and counted, since half a solution teaches the wrong end.

    Args:
        documents: the same ones in the same order whenever `inputs` are the same.
        config: what else decided about the documents; the manifest records it.
        inputs: fingerprints of what the documents were made from, by name.

    Raises:
        UserError: no document fits, the directory was made from something else, or the shards of
            a part hold other rows than these documents give.
    """
    if row_length < 2:
        raise UserError(
            field="row_length", got=row_length, wanted="2 or more", fix="try 256, or 1024"
        )
    directory = epath.Path(directory)
    manifest = open_stage(
        directory,
        schema=SCHEMA,
        config={**config, "row_length": row_length, "rows_per_shard": rows_per_shard},
        inputs={**inputs, "tokenizer": tokenizer.fingerprint},
    )
    if manifest.complete:
        return manifest
    for leftover in directory.glob(".*.part"):
        leftover.unlink()
    verify_shards(directory, manifest)
    counts = _Counts()
    pieces = counts.documents_that_fit(documents, tokenizer, row_length)
    rows = counts.rows_seen(pack(pieces, row_length, pad_id=tokenizer.pad_id))
    for number in itertools.count():
        first = number * rows_per_shard
        group = list(itertools.islice(rows, rows_per_shard))
        if not group:
            break
        if number < len(manifest.shards):
            _check_same(directory, manifest.shards[number], group)
            continue
        shard = _write_shard(directory, f"rows-{number:05d}.array_record", first, group)
        manifest = dataclasses.replace(manifest, shards=(*manifest.shards, shard))
        write_manifest(directory, manifest)
    if not manifest.shards:
        raise UserError(
            field="row_length",
            got=f"{row_length}, and {counts.dropped} of {counts.documents} documents are longer",
            wanted="room for at least one document",
            fix="raise it, or give more documents",
        )
    summary = {**counts.summary(row_length), "vocab_size": tokenizer.vocab_size}
    manifest = dataclasses.replace(manifest, complete=True, counts=summary)
    write_manifest(directory, manifest)
    return manifest


class RowsReader:
    """Rows of a finished directory, by index; can be pickled and read from several threads.

    `reader[i]` is a dict of tokens, segment_ids and positions int32[T], loss_mask uint8[T],
    row_id int64 (equal to i) and digest uint8[16].

    Raises:
        UserError: the directory is unfinished or a shard is missing or cut short; on reading,
            a damaged record. All name the file.
    """

    def __init__(self, directory: epath.PathLike) -> None:
        self.directory = epath.Path(directory)
        self.manifest = require_complete(self.directory, SCHEMA)
        # Sizes only: checksums of a large set would take minutes, and records carry digests.
        verify_shards(self.directory, self.manifest, checksums=False)
        self._firsts = [shard.first for shard in self.manifest.shards]
        self._clear()

    @property
    def fingerprint(self) -> str:
        """Names the content of the rows and all they were made from."""
        return self.manifest.fingerprint

    @property
    def row_length(self) -> int:
        """T, the number of tokens in a row."""
        return self.manifest.config["row_length"]

    def __len__(self) -> int:
        return sum(shard.records for shard in self.manifest.shards)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = bisect.bisect_right(self._firsts, index) - 1
        shard = self.manifest.shards[number]
        reader = self._reader(number)
        try:
            row = decode_row(reader.read([index - shard.first])[0])
            if row["row_id"] != index:
                raise ValueError(f"the record says that it is row {row['row_id']}")
        except (RuntimeError, ValueError) as error:
            raise _damaged(self.directory / shard.name, f"{error} at row {index}") from error
        return row

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self.directory, "manifest": self.manifest, "_firsts": self._firsts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear()

    def _clear(self) -> None:
        self._open: dict[int, ArrayRecordReader] = {}
        self._lock = threading.Lock()

    def _reader(self, number: int) -> ArrayRecordReader:
        with self._lock:
            if number not in self._open:
                self._open[number] = _open(self.directory, self.manifest.shards[number])
            return self._open[number]


@dataclasses.dataclass
class _Counts:
    documents: int = 0
    dropped: int = 0
    rows: int = 0
    tokens: int = 0
    targets: int = 0

    def documents_that_fit(
        self, examples: Iterable[Example], tokenizer: Tokenizer, row_length: int
    ) -> Iterator:
        for example in examples:
            document = tokenize(example, tokenizer)
            self.documents += 1
            if len(document.tokens) <= row_length:
                yield document
            elif example.prompt:
                self.dropped += 1
            else:
                yield from cut(document, row_length)

    def rows_seen(self, rows: Iterable[PackedRow]) -> Iterator[PackedRow]:
        for row in rows:
            self.rows += 1
            self.tokens += int(np.count_nonzero(row.segment_ids))
            self.targets += int(row.loss_mask.sum())
            yield row

    def summary(self, row_length: int) -> dict[str, float]:
        return {
            "rows": self.rows,
            "tokens": self.tokens,
            "target_tokens": self.targets,
            "documents": self.documents,
            "dropped_documents": self.dropped,
            "padding_share": round(1 - self.tokens / (self.rows * row_length), 6),
        }


def _write_shard(directory: epath.Path, name: str, first: int, rows: list[PackedRow]) -> Shard:
    aside = directory / f".{name}.part"
    writer = ArrayRecordWriter(os.fspath(aside), _WRITER_OPTIONS)
    for offset, row in enumerate(rows):
        writer.write(encode_row(first + offset, row))
    writer.close()
    # On disk before the manifest speaks of it: a power cut must not leave an empty shard behind.
    with open(aside, "rb+") as stream:
        os.fsync(stream.fileno())
    shard = Shard(name, first, len(rows), aside.stat().length, file_sha256(aside))
    aside.replace(directory / name)
    return shard


def _check_same(directory: epath.Path, shard: Shard, rows: list[PackedRow]) -> None:
    """A shard written before, row by row, against what would be written now."""
    with contextlib.closing(_open(directory, shard)) as reader:
        there = [decode_row(record)["digest"].tobytes() for record in reader.read_all()]
    if there != [row_digest(row.tokens, row.segment_ids) for row in rows]:
        raise UserError(
            field=str(directory / shard.name),
            got="rows of other documents",
            wanted="the rows that these documents give",
            fix="delete the directory; documents must be the same whenever inputs are",
        )


def _open(directory: epath.Path, shard: Shard) -> ArrayRecordReader:
    path = directory / shard.name
    try:
        reader = ArrayRecordReader(os.fspath(path), _READER_OPTIONS)
        records = reader.num_records()
    except RuntimeError as error:
        raise _damaged(path, str(error)) from error
    # A file that is cut short opens without a word and has 0 records.
    if records != shard.records:
        raise _damaged(path, f"{records} records where the manifest says {shard.records}")
    return reader


def _damaged(path: epath.Path, what: str) -> UserError:
    return UserError(
        field=str(path),
        got=f"a damaged shard ({what})",
        wanted="the bytes its stage wrote",
        fix="restore the file, or delete the directory and run its stage again",
    )
