"""Likelihoods of spans: from a teacher's tokens onto a row's positions, to bytes, and back."""

from typing import NamedTuple

import msgpack
import numpy as np
from jaxtyping import Float, Int32

from minillm.core.errors import UserError
from minillm.data.alignment import Spans
from minillm.store.codec import LOG_PROB, from_planes, to_half, to_planes
from minillm.store.schema import SpanStoreConfig, SpanTargets


class StoredSpans(NamedTuple):
    """One record of a span store: targets of [T] each, and the row they belong to."""

    row_id: int
    digest: bytes
    targets: SpanTargets


def span_targets(
    spans: Spans, log_likelihoods: Float[np.ndarray, " n"], row_length: int
) -> SpanTargets:
    """What the store keeps of one row.

    Args:
        spans: of the row's tokens and of the teacher's, as `align_row` gives them.
        log_likelihoods: the teacher's of each of its tokens, given those before it.
    """
    # Differences of one running sum, in float64: float32 would lose what stands behind a long row.
    sums = np.append(0.0, np.cumsum(log_likelihoods, dtype=np.float64))
    lengths = np.zeros(row_length, np.int32)
    values = np.zeros(row_length, np.float32)
    at = spans.student_stop - 2
    lengths[at] = spans.student_stop - spans.student_start
    values[at] = np.minimum(sums[spans.teacher_stop] - sums[spans.teacher_start], 0.0)
    return SpanTargets(lengths, values)


def span_ids(span_lengths: Int32[np.ndarray, " T"]) -> Int32[np.ndarray, " T"]:
    """For every position the span, from 1, that the token behind it belongs to; 0 for none."""
    ids = np.zeros(len(span_lengths), np.int32)
    for number, last in enumerate(np.flatnonzero(span_lengths), start=1):
        ids[last + 1 - span_lengths[last] : last + 1] = number
    return ids


def encode_spans(row: StoredSpans, config: SpanStoreConfig) -> bytes:
    """The record of one row.

    Raises:
        UserError: log-likelihoods that are none, or spans that overlap or begin before the row.
    """
    lengths, values = (np.asarray(part) for part in row.targets)
    shape = (config.row_length,)
    if (lengths.shape, values.shape) != (shape, shape):
        raise ValueError(f"row {row.row_id}: spans of shapes {lengths.shape}, {values.shape}")
    at = np.flatnonzero(lengths)
    # Written so that a NaN counts as wrong.
    if not np.all((values <= 0) & np.isfinite(values)):
        raise UserError(
            field=f"teacher targets of row {row.row_id}",
            got=f"a span's log-likelihood of {values[~((values <= 0) & np.isfinite(values))][0]}",
            wanted="a finite number of at most 0",
            fix="check the teacher's weights for NaN",
        )
    if np.any(lengths < 0) or np.any(at - lengths[at] < np.append(-1, at[:-1])):
        raise ValueError(f"row {row.row_id}: spans overlap, or begin before the row")
    return msgpack.packb(
        {
            "row_id": row.row_id,
            "digest": row.digest,
            "lengths": to_planes(lengths.astype(config.length_dtype)),
            "log_likelihoods": to_planes(to_half(values)),
        }
    )


def decode_spans(record: bytes, config: SpanStoreConfig) -> StoredSpans:
    """The row in a record; lengths as int32, log-likelihoods as float32.

    Raises:
        ValueError: the bytes are no record of this configuration.
    """
    fields = msgpack.unpackb(record)
    shape = (config.row_length,)
    lengths = from_planes(fields["lengths"], config.length_dtype, shape).astype(np.int32)
    values = from_planes(fields["log_likelihoods"], LOG_PROB, shape).astype(np.float32)
    return StoredSpans(fields["row_id"], fields["digest"], SpanTargets(lengths, values))
