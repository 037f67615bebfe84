"""One row's targets to bytes and back.

Log-probabilities are kept as float16. For a finite x the value read back differs from it by at
most `error_bound(x)`; below -65504, where float16 ends, it is -65504. Minus infinity, which marks
an unused slot or an empty tail, comes back as itself, and never from anything else.
"""

from typing import NamedTuple

import msgpack
import numpy as np
from jaxtyping import Float

from minillm.core.errors import UserError
from minillm.store.schema import StoreConfig, TeacherTargets

_LOWEST = float(np.finfo(np.float16).min)
LOG_PROB = np.dtype("<f2")
# Float32 sums of the whole vocabulary stay well inside; targets that lost their tail do not.
_MASS_TOLERANCE = 1e-3


class StoredRow(NamedTuple):
    """One record of a store: targets of [T, C], [T, C] and [T], and the row they belong to."""

    row_id: int
    digest: bytes
    targets: TeacherTargets


def error_bound(log_prob: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Largest error of a stored log-probability between -65504 and 0, in nats.

    Half a unit in the last of float16's 11 bits, or half of its smallest number near zero.
    """
    return np.maximum(np.abs(log_prob) * 2.0**-11, 2.0**-25)


def encode_row(row: StoredRow, config: StoreConfig) -> bytes:
    """The record of one row.

    Raises:
        ValueError: shapes, ids or masses that no teacher's targets can have.
    """
    _check(row, config)
    ids, log_probs, tail = (np.asarray(part) for part in row.targets)
    return msgpack.packb(
        {
            "row_id": row.row_id,
            "digest": row.digest,
            # What stands in an unused slot is decided by its log-probability.
            "ids": to_planes(np.maximum(ids, 0).astype(config.id_dtype)),
            "log_probs": to_planes(to_half(log_probs)),
            "tail": to_planes(to_half(tail)),
        }
    )


def decode_row(record: bytes, config: StoreConfig) -> StoredRow:
    """The row in a record; ids as int32, log-probabilities as float32.

    Raises:
        ValueError: the bytes are no record of this configuration.
    """
    fields = msgpack.unpackb(record)
    shape = (config.row_length, config.candidates)
    ids = from_planes(fields["ids"], config.id_dtype, shape).astype(np.int32)
    log_probs = from_planes(fields["log_probs"], LOG_PROB, shape).astype(np.float32)
    tail = from_planes(fields["tail"], LOG_PROB, shape[:1]).astype(np.float32)
    targets = TeacherTargets(np.where(np.isneginf(log_probs), -1, ids), log_probs, tail)
    return StoredRow(fields["row_id"], fields["digest"], targets)


def to_half(log_probs: np.ndarray) -> np.ndarray:
    """As float16, where a finite number stays finite."""
    # A finite value must not round to -inf: it would turn a candidate into an unused slot.
    held = np.where(np.isneginf(log_probs), -np.inf, np.maximum(log_probs, _LOWEST))
    return held.astype(LOG_PROB)


def to_planes(array: np.ndarray) -> bytes:
    """All lowest bytes, then all next bytes: a third smaller once compressed than in place."""
    array = np.ascontiguousarray(array)
    return array.view(np.uint8).reshape(-1, array.itemsize).T.tobytes()


def from_planes(data: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The array that `to_planes` wrote."""
    planes = np.frombuffer(data, np.uint8).reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(planes.T).view(dtype).reshape(shape)


def _check(row: StoredRow, config: StoreConfig) -> None:
    ids, log_probs, tail = (np.asarray(part) for part in row.targets)
    shape = (config.row_length, config.candidates)
    got = (ids.shape, log_probs.shape, tail.shape)
    if got != (shape, shape, shape[:1]):
        raise ValueError(f"row {row.row_id}: targets of shapes {got}; wanted {shape} and a tail")
    used = ~np.isneginf(log_probs)
    if np.any(used & ((ids < 0) | (ids >= config.vocab_size))):
        raise UserError(
            field=f"teacher targets of row {row.row_id}",
            got=f"ids from {ids[used].min()} to {ids[used].max()}",
            wanted=f"0 to {config.vocab_size - 1}",
            fix="give the store the teacher's vocabulary size",
        )
    mass = np.exp(log_probs, dtype=np.float64).sum(-1) + np.exp(tail, dtype=np.float64)
    empty = ~used.any(-1) & np.isneginf(tail)
    # Written so that a NaN counts as wrong.
    wrong = ~empty & ~(np.abs(mass - 1) <= _MASS_TOLERANCE)
    if np.any(wrong):
        first = int(np.argmax(wrong))
        raise UserError(
            field=f"teacher targets of row {row.row_id}, position {first}",
            got=f"a total mass of {mass[first]:.6g}",
            wanted="1, tail included",
            fix="check the teacher's weights for NaN, and that its targets keep their tail",
        )
