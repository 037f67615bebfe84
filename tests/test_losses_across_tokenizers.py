"""The losses for teachers of another tokenizer, against float64 loops and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minillm import losses
from tests.test_losses import close, log_softmax64
from tests.tolerances import TOLERANCES

EXACT = TOLERANCES["float32"]
LENGTH, VOCAB = 7, 5
# Two rows: spans of 1, 3 and 2 targets with one target in none; one span, at the very end.
SPAN_IDS = np.array([[1, 0, 2, 2, 2, 3, 3], [0, 0, 0, 0, 0, 1, 1]], np.int32)
LASTS = [[0, 4, 6], [6]]


@functools.partial(jax.jit, static_argnames="temperature")
def span_kl_and_gradient(logits, targets, span_ids, values, temperature=1.0):
    def total(logits):
        given = (logits, targets, span_ids, values)
        return losses.span_likelihood_kl(*given, temperature=temperature)

    (found, gradient) = total(logits), jax.grad(lambda x: total(x).total)(logits)
    return found, gradient


def span_kl64(logits, targets, span_ids, values, temperature=1.0):
    """Span by span from the definition, in float64."""
    log_q = log_softmax64(logits)
    total, spans = 0.0, 0
    for b, ids in enumerate(span_ids):
        for span in sorted(set(ids.tolist()) - {0}):
            places = np.flatnonzero(ids == span)
            q = np.exp(sum(log_q[b, t, targets[b, t]] for t in places) / temperature)
            p = np.exp(values[b, places[-1]] / temperature)
            kl = p * np.log(p / q) + (1 - p) * (np.log1p(-p) - np.log1p(-q))
            total += temperature * kl
            spans += 1
    return total, spans


def drawn(seed, scale=2.0):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(2, LENGTH, VOCAB))).astype(np.float32)
    targets = rng.integers(0, VOCAB, (2, LENGTH)).astype(np.int32)
    values = np.zeros((2, LENGTH), np.float32)
    for b, places in enumerate(LASTS):
        values[b, places] = -rng.exponential(2.0, len(places))
    return logits, targets, SPAN_IDS, values


@pytest.mark.parametrize("temperature", [1.0, 100.0])
@pytest.mark.parametrize("seed", range(4))
def test_spans_are_compared_as_their_definition_says(seed, temperature):
    given = drawn(seed)
    found, _ = span_kl_and_gradient(*given, temperature=temperature)
    total, spans = span_kl64(*given, temperature)
    assert found.total.dtype == found.weight.dtype == jnp.float32
    assert float(found.weight) == spans == 4
    close(found.total, total)


@pytest.mark.parametrize("temperature", [1.0, 100.0])
@pytest.mark.parametrize("seed", range(3))
def test_span_gradients_match_finite_differences_in_float64(seed, temperature):
    logits, *rest = drawn(seed)
    _, gradient = span_kl_and_gradient(logits, *rest, temperature=temperature)
    expected, step = np.zeros(logits.shape), 1e-5
    for place in np.ndindex(*logits.shape):
        there = np.zeros(logits.shape)
        there[place] = step
        expected[place] = (
            span_kl64(logits + there, *rest, temperature)[0]
            - span_kl64(logits - there, *rest, temperature)[0]
        ) / (2 * step)
    close(gradient, expected, EXACT.gradient)
    outside = rest[1] == 0
    assert not np.any(np.asarray(gradient)[outside])


def test_equal_likelihoods_cost_nothing_and_pull_nowhere():
    logits, targets, span_ids, _ = drawn(9)
    log_q = log_softmax64(logits)
    values = np.zeros((2, LENGTH), np.float32)
    for b, places in enumerate(LASTS):
        for span, last in enumerate(places, start=1):
            here = np.flatnonzero(span_ids[b] == span)
            values[b, last] = sum(log_q[b, t, targets[b, t]] for t in here)
    found, gradient = span_kl_and_gradient(logits, targets, span_ids, values)
    close(found.total, 0.0)
    close(gradient, 0.0, EXACT.gradient)


@pytest.mark.parametrize("margin", [10.0, 20.0, 60.0, 200.0])
@pytest.mark.parametrize("value", [-1e-9, -1e-3, -1.0, -200.0, 0.0])
def test_certain_students_and_teachers_give_exact_finite_losses(margin, value):
    """1 - q is 2e-9 at a margin of 20, where float32 takes q for 1; at 200 it has no float32."""
    logits = np.zeros((1, 1, 3), np.float32)
    logits[0, 0, 1] = margin
    targets, ids = np.ones((1, 1), np.int32), np.ones((1, 1), np.int32)
    values = np.full((1, 1), value, np.float32)
    found, gradient = span_kl_and_gradient(logits, targets, ids, values)
    assert np.isfinite(float(found.total)) and np.all(np.isfinite(gradient))
    if margin < 100:
        p, against_p = np.exp(np.float64(values[0, 0])), -np.expm1(np.float64(values[0, 0]))
        log_q = -np.log1p(2 * np.exp(-margin))
        against_q = np.log(-np.expm1(log_q))
        first = p * (np.float64(values[0, 0]) - log_q)
        expected = first + (against_p * (np.log(against_p) - against_q) if against_p else 0.0)
        close(found.total, expected)
        q = np.exp(log_q)
        close(gradient[0, 0, 1], q - p, EXACT.gradient)


def test_at_a_high_temperature_surprisals_are_compared():
    logits, targets, span_ids, values = drawn(4)
    found, _ = span_kl_and_gradient(logits, targets, span_ids, values, temperature=1e4)
    log_q, expected = log_softmax64(logits), 0.0
    for b, places in enumerate(LASTS):
        for span, last in enumerate(places, start=1):
            here = np.flatnonzero(span_ids[b] == span)
            s_q = -sum(log_q[b, t, targets[b, t]] for t in here)
            s_p = -np.float64(values[b, last])
            expected += s_p * np.log(s_p / s_q) - s_p + s_q
    # What the limit leaves out is of the order of a surprisal over the temperature.
    np.testing.assert_allclose(float(found.total), expected, rtol=2e-3)


def test_rows_without_spans_weigh_nothing():
    logits, targets, span_ids, values = drawn(1)
    found, gradient = span_kl_and_gradient(logits, targets, 0 * span_ids, 0 * values)
    assert (float(found.total), float(found.weight)) == (0.0, 0.0)
    assert not np.any(gradient)


def test_a_span_of_every_token_is_matched_like_its_tokens_of_two_outcomes():
    """With two outcomes and spans of one token the binary KL is the whole KL."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(1, 4, 2)).astype(np.float32)
    teacher = log_softmax64(rng.normal(size=(1, 4, 2)))
    targets = rng.integers(0, 2, (1, 4)).astype(np.int32)
    values = np.take_along_axis(teacher, targets[..., None], -1)[..., 0].astype(np.float32)
    found, _ = span_kl_and_gradient(logits, targets, np.array([[1, 2, 3, 4]], np.int32), values)
    whole = losses.distillation_kl(
        jnp.asarray(logits), np.broadcast_to(np.arange(2, dtype=np.int32), (1, 4, 2)),
        teacher.astype(np.float32), np.full((1, 4), -np.inf, np.float32), np.ones((1, 4)),
    )  # fmt: skip
    close(found.total, float(whole.total))
