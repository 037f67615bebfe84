import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minillm.core.errors import UserError
from minillm.inference.sampling import GREEDY, Sampler, keep_top_k, keep_top_p

PROBABILITIES = np.array([0.05, 0.4, 0.2, 0.25, 0.1])
LOGITS = jnp.log(jnp.asarray(PROBABILITIES, jnp.float32))
DRAWS = 20_000


def frequencies(sampler):
    keys = jax.random.split(jax.random.key(3), DRAWS)
    tokens = sampler(jnp.broadcast_to(LOGITS, (DRAWS, 5)), keys)
    return np.bincount(np.asarray(tokens), minlength=5)


def assert_drawn_from(counts, expected):
    """Pearson's chi-squared against the 99.9 % quantile for at most 4 degrees of freedom."""
    possible = expected > 0
    assert counts[~possible].sum() == 0
    mean = expected[possible] * DRAWS
    assert np.sum((counts[possible] - mean) ** 2 / mean) < 18.5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_takes_the_power_of_the_probabilities(temperature):
    expected = PROBABILITIES ** (1 / temperature)
    assert_drawn_from(frequencies(Sampler(temperature)), expected / expected.sum())


def test_top_k_draws_from_the_k_most_probable():
    expected = np.where(PROBABILITIES >= 0.2, PROBABILITIES, 0)
    assert_drawn_from(frequencies(Sampler(1.0, top_k=3)), expected / expected.sum())


def test_top_p_draws_from_the_fewest_that_reach_p():
    # 0.4 + 0.25 = 0.65 reaches 0.6; 0.4 alone does not.
    expected = np.where(PROBABILITIES >= 0.25, PROBABILITIES, 0)
    assert_drawn_from(frequencies(Sampler(1.0, top_p=0.6)), expected / expected.sum())


def test_top_p_counts_what_top_k_left():
    # Of the three left, 0.4 / 0.85 and 0.25 / 0.85 are 0.76 of the mass.
    expected = np.where(PROBABILITIES >= 0.25, PROBABILITIES, 0)
    counts = frequencies(Sampler(1.0, top_k=3, top_p=0.7))
    assert_drawn_from(counts, expected / expected.sum())


def test_the_most_probable_token_survives_any_cut():
    logits = jnp.array([[0.0, 10.0, 1.0], [3.0, 2.0, 1.0]])
    for kept in (keep_top_k(logits, 1), keep_top_p(logits, 1e-6)):
        np.testing.assert_array_equal(jnp.isfinite(kept), [[0, 1, 0], [1, 0, 0]])


def test_cuts_that_leave_everything_change_nothing():
    logits = LOGITS[None]
    np.testing.assert_array_equal(keep_top_k(logits, 50), logits)
    np.testing.assert_array_equal(keep_top_p(logits, 1.0), logits)


def test_greedy_takes_the_largest_logit_whatever_the_key():
    logits = jnp.array([[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]])
    for seed in range(3):
        keys = jax.random.split(jax.random.key(seed), 2)
        np.testing.assert_array_equal(GREEDY(logits, keys), [1, 0])


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", -0.1), ("top_k", 0), ("top_p", 0.0), ("top_p", 1.5)]
)
def test_a_bad_setting_is_an_error_that_names_it(field, value):
    with pytest.raises(UserError) as caught:
        Sampler(**{field: value})
    assert caught.value.field == f"sampler.{field}"
