"""The folder a store goes to: what it may hold before a teacher is run over rows."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from etils import epath

from minillm.core import hosts
from minillm.core.errors import UserError
from minillm.core.manifest import Manifest, found_stage, require_writable, verify_shards
from minillm.data.rows import RowsReader
from minillm.store.schema import SpanStoreConfig, StoreConfig


class RowsFacts(NamedTuple):
    """What is known of rows also before they are packed.

    Attributes:
        place: where they lie or will lie.
        vocab_size: of their tokenizer.
        tokenizer: its fingerprint.
        fingerprint: of the rows themselves; None before they are packed.
    """

    place: epath.PathLike
    row_length: int
    vocab_size: int
    tokenizer: str
    fingerprint: str | None = None

    @classmethod
    def of(cls, rows: RowsReader) -> "RowsFacts":
        """Those of packed rows."""
        made = rows.manifest
        vocab_size, tokenizer = int(made.counts["vocab_size"]), made.inputs["tokenizer"]
        return cls(rows.directory, rows.row_length, vocab_size, tokenizer, rows.fingerprint)

    @property
    def inputs(self) -> dict[str, str]:
        """What a store's manifest says of them, as far as it is known."""
        known = {} if self.fingerprint is None else {"rows": self.fingerprint}
        return {**known, "tokenizer": self.tokenizer}


def found_store(
    directory: epath.PathLike,
    schema: str,
    config: StoreConfig | SpanStoreConfig,
    inputs: Mapping[str, str],
) -> Manifest | None:
    """What the directory holds of this store; inputs that are not given are not compared.

    Raises:
        UserError: it holds something else, or cannot be written to.
    """
    found = found_stage(
        directory,
        schema=schema,
        config=dataclasses.asdict(config),
        inputs=inputs,
        all_inputs=False,
    )
    if found is None or not found.complete:
        require_writable(directory)
    return found


def finished_store(directory: epath.PathLike, found: Manifest | None, teacher: str | None) -> bool:
    """Whether nothing is left to do: the store is complete and none of its files is damaged.

    Every host calls this, and all get the same answer.

    Args:
        found: what `found_store` did.
        teacher: its fingerprint; None where it is not known yet.

    Raises:
        UserError: the store, finished or begun, is another teacher's.
    """
    if found is not None and teacher is not None:
        inputs = {**found.inputs, "teacher": teacher}
        found_stage(directory, schema=found.schema, config=found.config, inputs=inputs)
    whole = found is not None and found.complete and teacher is not None
    if whole and found is not None:
        try:
            # One host reads all bytes; the others see whether they have the same files.
            verify_shards(directory, found, checksums=hosts.is_first_host())
        except UserError:
            whole = False  # What is damaged is written anew.
    return all(any(told) for told in hosts.gathered(bytes([whole])))
