"""The distance of sorted probabilities, against float64 and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minillm.stages.benchmark.sorted_distance import sorted_distance
from tests.test_losses import close, log_softmax64
from tests.tolerances import TOLERANCES

EXACT = TOLERANCES["float32"]
LENGTH, VOCAB = 7, 5


def drawn(seed):
    logits = 2 * np.random.default_rng(seed).normal(size=(2, LENGTH, VOCAB))
    return logits.astype(np.float32)


def ranked64(logits, count):
    """Descending probabilities and the mass of the rest, in float64."""
    probs = np.sort(np.exp(log_softmax64(logits)), axis=-1)[..., ::-1]
    return probs[..., :count], probs[..., count:].sum(-1)


def sorted_teacher(seed, vocab, count):
    logits = 2 * np.random.default_rng(seed).normal(size=(2, LENGTH, vocab))
    largest, rest = ranked64(logits, count)
    unused = np.full((2, LENGTH, max(0, count - vocab)), -np.inf)
    with np.errstate(divide="ignore"):
        ranks = np.concatenate([np.log(largest), unused], -1)
        return ranks.astype(np.float32), np.log(rest).astype(np.float32)


@pytest.mark.parametrize(("vocab", "count"), [(9, 3), (9, 7), (3, 4), (4, 4)])
def test_distance_of_sorted_probabilities_is_as_defined(vocab, count):
    logits = drawn(5)
    ranks, tail = sorted_teacher(6, vocab, count)
    weights = np.array([[1, 1, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]], np.float32)
    found = sorted_distance(logits, ranks, tail, weights)
    mine, rest = ranked64(logits, count)
    mine = np.concatenate([mine, np.zeros((2, LENGTH, max(0, count - VOCAB)))], -1)
    expected = np.abs(np.exp(ranks, dtype=np.float64) - mine).sum(-1)
    expected += np.abs(np.exp(tail, dtype=np.float64) - rest)
    close(found.total, (weights * expected).sum())
    assert float(found.weight) == weights.sum()


def test_gradient_of_the_sorted_distance_matches_finite_differences():
    logits = drawn(7)
    ranks, tail = sorted_teacher(8, 9, 3)
    weights = np.ones((2, LENGTH), np.float32)

    def expected_total(logits):
        mine, rest = ranked64(logits, 3)
        distance = np.abs(np.exp(ranks, dtype=np.float64) - mine).sum(-1)
        return (distance + np.abs(np.exp(tail, dtype=np.float64) - rest)).sum()

    gradient = jax.grad(lambda x: sorted_distance(x, ranks, tail, weights).total)(
        jnp.asarray(logits)
    )
    expected, step = np.zeros(logits.shape), 1e-6
    for place in np.ndindex(*logits.shape):
        there = np.zeros(logits.shape)
        there[place] = step
        expected[place] = (expected_total(logits + there) - expected_total(logits - there)) / (
            2 * step
        )
    close(gradient, expected, EXACT.gradient)
