"""Reading stores: by row, at random, checked; alone, or joined to the rows they speak of."""

import os
from collections.abc import Sequence
from typing import Literal

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath

from minillm.core import configs
from minillm.core.errors import UserError
from minillm.core.manifest import (
    MANIFEST_NAME,
    fingerprint_of,
    read_manifest,
    require_complete,
    verify_shards,
)
from minillm.data.rows import RowsReader
from minillm.store.codec import StoredRow, decode_row
from minillm.store.schema import (
    SCHEMA,
    SPAN_SCHEMA,
    SpanStoreConfig,
    StoreConfig,
    TeacherTargets,
)
from minillm.store.spans import StoredSpans, decode_spans, span_ids

# What a batch holds of each kind of store.
_NAMES = (TeacherTargets._fields, ("span_ids", "span_log_likelihoods"))


class StoreReader:
    """A finished store, by row; can be pickled and read from several threads.

    `reader[row_id]` is a `StoredRow`: row_id, digest, and targets int32[T, C], float32[T, C],
    float32[T]; or, of a store of spans (`config` is a `SpanStoreConfig`), a `StoredSpans`.

    Args:
        verify: "size" compares the size of every shard with the manifest; "sha256" reads every
            byte. Either way a record is checked against its own checksum when it is read.

    Raises:
        UserError: no finished store of this schema, or a shard that is missing, cut short or (by
            "sha256") changed; on reading, a damaged record. All name the file.
    """

    def __init__(
        self, directory: epath.PathLike, *, verify: Literal["size", "sha256"] = "size"
    ) -> None:
        self.directory = epath.Path(directory)
        found = read_manifest(self.directory)
        of_spans = found is not None and found.schema == SPAN_SCHEMA
        self.manifest = require_complete(self.directory, SPAN_SCHEMA if of_spans else SCHEMA)
        field = f"{self.directory / MANIFEST_NAME}: config"
        kind: type[StoreConfig | SpanStoreConfig] = SpanStoreConfig if of_spans else StoreConfig
        self.config = configs.build(kind, self.manifest.config, field=field)
        verify_shards(self.directory, self.manifest, checksums=verify == "sha256")
        self._check_layout()
        paths = [os.fspath(self.directory / shard.name) for shard in self.manifest.shards]
        try:
            self._records = ArrayRecordDataSource(paths)
        except RuntimeError as error:
            raise self._damaged(str(error)) from error
        if len(self._records) != len(self):
            raise self._damaged(f"{len(self._records)} records where there should be {len(self)}")

    @property
    def fingerprint(self) -> str:
        """Names the content of the store and all it was made from."""
        return self.manifest.fingerprint

    def __len__(self) -> int:
        return self.manifest.counts["rows"]

    def __getitem__(self, row_id: int) -> StoredRow | StoredSpans:
        row_id = int(row_id)
        if not 0 <= row_id < len(self):
            raise IndexError(f"row {row_id} of {len(self)}")
        try:
            row = self._decode(self._records[row_id])
            if row.row_id != row_id:
                raise ValueError(f"the record says that it is row {row.row_id}")
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(f"row {row_id}: {error}", row_id) from error
        return row

    def _decode(self, record: bytes) -> StoredRow | StoredSpans:
        if isinstance(self.config, SpanStoreConfig):
            return decode_spans(record, self.config)
        return decode_row(record, self.config)

    def _check_layout(self) -> None:
        wanted = [(rows.start, len(rows)) for rows in self.config.shard_rows(len(self))]
        got = [(shard.first, shard.records) for shard in self.manifest.shards]
        if got != wanted:
            raise self._damaged(f"shards of (first row, rows) {got} where {wanted} belong")

    def _damaged(self, what: str, row_id: int | None = None) -> UserError:
        place = self.directory
        if row_id is not None:
            place /= self.manifest.shards[row_id // self.config.rows_per_shard].name
        return UserError(
            field=str(place),
            got=f"a damaged store ({what})",
            wanted="the bytes that were written",
            fix="run launch/precompute_teacher.py on it again: it writes damaged shards anew",
        )


class JoinedRows:
    """A random-access source of rows and their targets; can be pickled, as Grain needs it.

    `joined[i]` is the dict of `rows[i]` with what its stores hold. Of stores of candidates these
    are candidate_ids int32[T, C], candidate_log_probs float32[T, C] and tail_log_prob float32[T];
    with several stores they have an axis of teachers behind T, in the order given, and C is the
    largest one's: the others' slots are filled up with unused ones. Of stores of spans these are
    span_ids int32[T] (the span, from 1, of each position's next token; 0 for none) and
    span_log_likelihoods float32[T] (at the last position of each span), with the same axis where
    there are several.

    Raises:
        UserError: no store; one made from other rows or with another tokenizer; on reading, one
            whose record belongs to another row. All name both sides.
    """

    def __init__(self, rows: RowsReader, stores: Sequence[StoreReader]) -> None:
        if not stores:
            raise UserError(
                field="teacher_store", got="none", wanted="at least one", fix="give its path"
            )
        self.rows = rows
        self.stores = tuple(stores)
        sizes = [s.config.candidates for s in self.stores if isinstance(s.config, StoreConfig)]
        self._candidates = max(sizes, default=0)
        for store in self.stores:
            _check_same(store, rows, "rows", rows.fingerprint)
            _check_same(store, rows, "tokenizer", rows.manifest.inputs["tokenizer"])

    @property
    def fingerprint(self) -> str:
        """Names the content of the rows and of every store."""
        return fingerprint_of([self.rows.fingerprint, *(s.fingerprint for s in self.stores)])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = self.rows[index]
        found = [self._targets(store, row) for store in self.stores]
        joined = dict(row)
        for names in _NAMES:
            same = [targets for targets in found if targets.keys() == set(names)]
            for name in names if same else ():
                parts = [targets[name] for targets in same]
                joined[name] = np.stack(parts, axis=1) if len(parts) > 1 else parts[0]
        return joined

    def _targets(self, store: StoreReader, row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        stored = store[int(row["row_id"])]
        digest = row["digest"].tobytes()
        if stored.digest != digest:
            raise UserError(
                field=f"{store.directory}, row {stored.row_id}",
                got=f"targets for the row with digest {stored.digest.hex()}",
                wanted=f"{digest.hex()}, as in {self.rows.directory}",
                fix="run launch/precompute_teacher.py on these rows",
            )
        if isinstance(stored, StoredSpans):
            lengths, values = stored.targets
            return {"span_ids": span_ids(lengths), "span_log_likelihoods": values}
        ids, log_probs, tail = stored.targets
        unused = ((0, 0), (0, self._candidates - ids.shape[-1]))
        return TeacherTargets(
            np.pad(ids, unused, constant_values=-1),
            np.pad(log_probs, unused, constant_values=-np.inf),
            tail,
        )._asdict()


def _check_same(store: StoreReader, rows: RowsReader, name: str, wanted: str) -> None:
    got = store.manifest.inputs[name]
    if got != wanted:
        raise UserError(
            field=f"{store.directory}: {name}",
            got=f"made from {name} {got}",
            wanted=f"{name} {wanted}, as in {rows.directory}",
            fix="give the store of these rows, or run launch/precompute_teacher.py on them",
        )
