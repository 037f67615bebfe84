"""Rows to bytes and back, within the stated error."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minillm.core.errors import UserError
from minillm.store import codec
from minillm.store.codec import StoredRow
from minillm.store.schema import StoreConfig, TeacherTargets


def config(vocab_size, candidates, row_length):
    return StoreConfig(candidates, vocab_size, row_length, rows_per_shard=8)


def distribution(seed, vocab_size, candidates, row_length=5, scale=5.0):
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(row_length, vocab_size))
    dense = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    order = np.argsort(-dense, axis=-1)
    with np.errstate(divide="ignore"):
        rest = np.take_along_axis(dense, order[:, candidates:], -1)
        tail = np.log(np.exp(rest).sum(-1))
    ids = order[:, :candidates]
    return TeacherTargets(ids, np.take_along_axis(dense, ids, -1).astype(np.float32), tail)


def there_and_back(targets, settings):
    record = codec.encode_row(StoredRow(3, b"d" * 16, targets), settings)
    return codec.decode_row(record, settings)


def assert_within_bound(got, wanted):
    held = ~np.isneginf(wanted)
    assert np.array_equal(np.isneginf(got), ~held)
    exact = np.maximum(wanted[held].astype(np.float64), -65504)
    assert np.all(np.abs(got[held] - exact) <= codec.error_bound(exact))


@settings(max_examples=300, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        st.integers(1, 40),
        elements=st.one_of(
            st.floats(-100, 0, width=32),
            st.floats(max_value=0, allow_nan=False, width=32),
            st.just(-np.inf),
        ),
    )
)
def test_any_log_probability_comes_back_within_the_stated_bound(log_probs):
    assert_within_bound(codec.to_half(log_probs).astype(np.float32), log_probs)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([2, 300, 1 << 16, (1 << 16) + 1]),
    st.integers(1, 40),
    st.floats(0.1, 30),
)
def test_a_row_comes_back_with_its_ids_exact(seed, vocab_size, candidates, scale):
    candidates = min(candidates, vocab_size)
    targets = distribution(seed, vocab_size, candidates, row_length=2, scale=scale)
    row = there_and_back(targets, config(vocab_size, candidates, 2))
    assert (row.row_id, row.digest) == (3, b"d" * 16)
    assert np.array_equal(row.targets.candidate_ids, targets.candidate_ids)
    assert_within_bound(row.targets.candidate_log_probs, targets.candidate_log_probs)
    assert_within_bound(row.targets.tail_log_prob, targets.tail_log_prob)
    assert row.targets.candidate_ids.dtype == np.int32
    assert row.targets.tail_log_prob.dtype == np.float32


@pytest.mark.parametrize(("vocab_size", "width"), [(1 << 16, 2), ((1 << 16) + 1, 4)])
def test_ids_are_as_wide_as_the_vocabulary_needs(vocab_size, width):
    assert config(vocab_size, 1, 1).id_dtype.itemsize == width


def test_an_empty_tail_stays_empty_when_every_token_is_a_candidate():
    targets = distribution(0, 9, 9)
    assert np.all(np.isneginf(targets.tail_log_prob))
    decoded = there_and_back(targets, config(9, 9, 5)).targets
    assert np.all(np.isneginf(decoded.tail_log_prob))


def test_unused_slots_come_back_with_id_minus_one_whatever_stood_there():
    ids = np.array([[4, 0], [7, 8]])
    log_probs = np.array([[0.0, -np.inf], [-np.inf, -np.inf]], np.float32)
    tail = np.full(2, -np.inf, np.float32)
    decoded = there_and_back(TeacherTargets(ids, log_probs, tail), config(9, 2, 2)).targets
    assert decoded.candidate_ids.tolist() == [[4, -1], [-1, -1]]


def test_the_least_likely_token_is_not_mistaken_for_an_unused_slot():
    log_probs = np.array([[0.0, -1e9]], np.float32)
    tail = np.full(1, -np.inf, np.float32)
    settings = config(9, 2, 1)
    decoded = there_and_back(TeacherTargets(np.array([[0, 5]]), log_probs, tail), settings).targets
    assert decoded.candidate_ids.tolist() == [[0, 5]]
    assert decoded.candidate_log_probs.tolist() == [[0.0, -65504.0]]


@pytest.mark.parametrize("damage", ["renormalised", "nan", "no_tail"])
def test_targets_that_are_no_distribution_are_refused(damage):
    ids, log_probs, tail = distribution(1, 50, 4, scale=1.0)
    if damage == "renormalised":
        log_probs = log_probs - np.log(np.exp(log_probs).sum(-1, keepdims=True))
    if damage == "nan":
        log_probs = np.full_like(log_probs, np.nan)
    if damage == "no_tail":
        tail = np.full_like(tail, -np.inf)
    with pytest.raises(UserError, match=r"row 3, position 0: got a total mass of .*; wanted 1"):
        there_and_back(TeacherTargets(ids, log_probs, tail), config(50, 4, 5))


def test_an_id_outside_the_vocabulary_is_refused_and_never_wraps():
    ids, log_probs, tail = distribution(2, 50, 4)
    with pytest.raises(UserError, match="wanted 0 to 49"):
        there_and_back(TeacherTargets(ids + 50, log_probs, tail), config(50, 4, 5))


def test_targets_of_another_shape_are_refused():
    targets = distribution(3, 50, 4)
    with pytest.raises(ValueError, match="shapes"):
        there_and_back(targets, config(50, 5, 5))
