"""The truncation of logits, against float64 numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from minillm.store.candidates import top_candidates
from tests.tolerances import TOLERANCES


def dense64(logits):
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize("count", [1, 5, 16, 17])
def test_candidates_and_tail_are_those_of_a_sort_in_float64(count):
    logits = (4 * np.random.default_rng(count).normal(size=(2, 3, 17))).astype(np.float32)
    targets = top_candidates(jnp.asarray(logits), count)
    dense = dense64(logits)
    order = np.argsort(-dense, axis=-1)
    assert np.array_equal(targets.candidate_ids, order[..., :count])
    best = np.take_along_axis(dense, order, -1)
    tolerance = {"rtol": TOLERANCES["float32"].output, "atol": TOLERANCES["float32"].output}
    np.testing.assert_allclose(targets.candidate_log_probs, best[..., :count], **tolerance)
    with np.errstate(divide="ignore"):
        tail = np.log(np.exp(best[..., count:]).sum(-1))
    np.testing.assert_allclose(targets.tail_log_prob, tail, **tolerance)


def test_the_tail_is_empty_only_when_every_token_is_a_candidate():
    logits = jnp.asarray([[[60.0, 0, 0, 0]]])
    tail = float(top_candidates(logits, 1).tail_log_prob[0, 0])
    assert tail == pytest.approx(np.log(3) - 60, rel=1e-6)
    assert np.isneginf(top_candidates(logits, 4).tail_log_prob[0, 0])


def test_equal_logits_go_to_the_lower_id():
    targets = top_candidates(jnp.zeros((1, 1, 9)), 4)
    assert targets.candidate_ids.tolist() == [[[0, 1, 2, 3]]]


def test_bfloat16_logits_are_normalised_in_float32():
    targets = top_candidates(jnp.zeros((1, 1, 1000), jnp.bfloat16), 2)
    assert targets.candidate_log_probs.dtype == jnp.float32
    np.testing.assert_allclose(targets.candidate_log_probs, -np.log(1000), rtol=1e-6)
