"""What a store directory holds; README.md beside this file says the same for other readers."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from minillm.core.errors import UserError

SCHEMA = "store/1"
SPAN_SCHEMA = "span_store/1"
TOP_K = "top_k"
SPAN_LIKELIHOODS = "span_likelihoods"


class TeacherTargets(NamedTuple):
    """A teacher's truncated distribution over the next token, at each position.

    Candidates stand in descending order of probability, unused slots (id -1, log-probability
    -inf) last. The tail is the log of the mass outside the candidates, -inf where there is none.
    A position that predicts nothing has no candidates and no tail. Arrays are numpy's or jax's.
    """

    candidate_ids: Int[Any, "*rows T C"]
    candidate_log_probs: Float[Any, "*rows T C"]
    tail_log_prob: Float[Any, "*rows T"]


class SpanTargets(NamedTuple):
    """The likelihoods that a teacher of another tokenizer gives to stretches of a row's text.

    A span stands where its last token is predicted: at position t it is the `span_lengths[t]`
    tokens up to t + 1, and its log-likelihood the teacher's of the same bytes in its own tokens.
    Spans do not overlap. Elsewhere both are 0. Arrays are numpy's.
    """

    span_lengths: Int[Any, "*rows T"]
    span_log_likelihoods: Float[Any, "*rows T"]


@dataclasses.dataclass(frozen=True)
class StoreConfig:
    """The `config` of a store's manifest: everything a reader needs to decode a record."""

    candidates: int
    vocab_size: int
    row_length: int
    rows_per_shard: int
    mode: str = TOP_K
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in ("candidates", "vocab_size", "row_length", "rows_per_shard"):
            _require_positive(name, getattr(self, name))
        if self.candidates > self.vocab_size:
            raise UserError(
                field="store.candidates",
                got=self.candidates,
                wanted=f"at most the vocabulary of {self.vocab_size} tokens",
                fix="store fewer candidates",
            )
        if (self.mode, self.temperature) != (TOP_K, 1.0):
            raise UserError(
                field="store.mode, store.temperature",
                got=(self.mode, self.temperature),
                wanted=(TOP_K, 1.0),
                fix="read the store with the version of minillm that wrote it",
            )

    @property
    def id_dtype(self) -> np.dtype:
        """Little-endian integers just wide enough for the vocabulary."""
        return np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<u4")

    def shard_rows(self, rows: int) -> list[range]:
        """Which rows each shard holds: shard k the rows from k · rows_per_shard on, always."""
        return _shard_rows(rows, self.rows_per_shard)


@dataclasses.dataclass(frozen=True)
class SpanStoreConfig:
    """The `config` of the manifest of a store of likelihoods of spans."""

    row_length: int
    rows_per_shard: int
    mode: str = SPAN_LIKELIHOODS

    def __post_init__(self) -> None:
        for name in ("row_length", "rows_per_shard"):
            _require_positive(name, getattr(self, name))
        if self.mode != SPAN_LIKELIHOODS:
            raise UserError(
                field="store.mode",
                got=self.mode,
                wanted=SPAN_LIKELIHOODS,
                fix="read the store with the version of minillm that wrote it",
            )

    @property
    def length_dtype(self) -> np.dtype:
        """Little-endian integers just wide enough for a span of a whole row."""
        return np.dtype("<u2" if self.row_length < 1 << 16 else "<u4")

    def shard_rows(self, rows: int) -> list[range]:
        """As `StoreConfig.shard_rows`."""
        return _shard_rows(rows, self.rows_per_shard)


def _shard_rows(rows: int, step: int) -> list[range]:
    return [range(first, min(first + step, rows)) for first in range(0, rows, step)]


def _require_positive(name: str, value: object) -> None:
    if not isinstance(value, int) or value < 1:
        raise UserError(
            field=f"store.{name}", got=value, wanted="an integer from 1", fix="raise it"
        )


def shard_name(index: int) -> str:
    """File name of shard `index`."""
    return f"targets-{index:05d}.array_record"
