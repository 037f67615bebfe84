"""The losses against float64 numpy, torch, and the cases where peers go wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minillm import losses
from minillm.losses import LossSum
from tests.tolerances import TOLERANCES

EXACT = TOLERANCES["float32"]

# Compiled, and few shapes below: that is where the time of these tests goes.
kl = jax.jit(losses.distillation_kl, static_argnames="temperature")
contrast = jax.jit(losses.contrastive, static_argnames=("temperature", "max_negatives"))
cross_entropy, matching = jax.jit(losses.cross_entropy), jax.jit(losses.hidden_state_matching)
agreement = jax.jit(losses.agreement)


@functools.partial(jax.jit, static_argnames="temperature")
def kl_and_gradient(logits, ids, log_p, tail, weights, temperature=1.0):
    def total(logits):
        options = {"temperature": temperature}
        return losses.distillation_kl(logits, ids, log_p, tail, weights, **options).total

    return jax.value_and_grad(total)(logits)


def log_softmax64(x):
    x = np.asarray(x, np.float64)
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def truncate64(log_probs, count):
    """Top `count` of each distribution and the log of the rest, summed from the rest itself."""
    order = np.argsort(-log_probs, axis=-1, kind="stable")
    ids, rest = order[..., :count], order[..., count:]
    with np.errstate(divide="ignore"):
        tail = np.log(np.exp(np.take_along_axis(log_probs, rest, -1)).sum(-1))
    return ids, np.take_along_axis(log_probs, ids, -1), tail


def bucket_kl64(logits, ids, log_p, log_tail, temperature=1.0):
    """The definition, position by position, with Python loops over the candidates."""
    log_q = log_softmax64(logits)
    result = np.zeros(ids.shape[:2])
    for place in np.ndindex(*ids.shape[:2]):
        used = [int(i) for i in ids[place] if i >= 0]
        outside = np.setdiff1d(np.arange(log_q.shape[-1]), used)
        p = np.exp([*log_p[place][: len(used)], log_tail[place]]) ** (1 / temperature)
        q = np.array([*np.exp(log_q[place][used]), np.exp(log_q[place][outside]).sum()])
        q = q ** (1 / temperature)
        if temperature != 1.0:
            p, q = p / p.sum(), q / q.sum()
        held = p > 0
        result[place] = (p[held] * np.log(p[held] / q[held])).sum()
    return result


def draw(seed, batch=2, length=3, vocab=11, count=4, scale=3.0):
    rng = np.random.default_rng(seed)
    student = (scale * rng.normal(size=(batch, length, vocab))).astype(np.float32)
    teacher = log_softmax64(scale * rng.normal(size=(batch, length, vocab)))
    return student, teacher, *truncate64(teacher, count)


def close(result, expected, tolerance=EXACT.output):
    scale = max(1.0, float(np.max(np.abs(expected))))
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance * scale)


def test_sums_combine_so_that_the_mean_is_over_positions_and_not_over_batches():
    short = LossSum(jnp.float32(10), jnp.float32(1))
    long = LossSum(jnp.float32(6), jnp.float32(3))
    assert float(short.combine(long).mean()) == 4.0
    assert float((short + long).mean()) == 4.0
    assert float((short.mean() + long.mean()) / 2) == 6.0


def test_the_mean_of_nothing_is_zero_with_a_zero_gradient():
    def mean(x):
        return LossSum(jnp.sum(0 * x), jnp.sum(0 * x)).mean()

    value, gradient = jax.value_and_grad(mean)(jnp.ones(3))
    assert float(value) == 0.0
    assert np.all(np.isfinite(gradient))


def test_targets_stop_at_segment_ends_at_padding_and_where_the_mask_says_so():
    tokens = jnp.array([[1, 5, 6, 2, 1, 7, 2, 0]])
    segments = jnp.array([[1, 1, 1, 1, 2, 2, 2, 0]])
    mask = jnp.array([[0, 0, 1, 1, 0, 1, 1, 0]], jnp.uint8)
    targets, weights = losses.next_token_targets(tokens, segments, mask)
    assert targets.tolist() == [[5, 6, 2, 1, 7, 2, 0, 0]]
    assert weights.tolist() == [[0, 1, 1, 0, 1, 1, 0, 0]]
    assert weights.dtype == jnp.float32


def test_the_first_token_of_a_document_is_never_a_target_even_if_its_mask_is_set():
    ones = jnp.ones((1, 4), jnp.uint8)
    _, weights = losses.next_token_targets(jnp.arange(4)[None], jnp.array([[1, 1, 2, 2]]), ones)
    assert weights.tolist() == [[1, 0, 1, 0]]


def test_cross_entropy_is_the_weighted_sum_of_negative_log_likelihoods():
    student, *_ = draw(0)
    targets = np.array([[1, 2, 3], [4, 5, 10]])
    weights = np.array([[1, 0, 0.5], [1, 1, 0]], np.float32)
    picked = np.take_along_axis(log_softmax64(student), targets[..., None], -1)[..., 0]
    result = cross_entropy(jnp.asarray(student), jnp.asarray(targets), jnp.asarray(weights))
    close(result.total, -(weights * picked).sum())
    assert float(result.weight) == 3.5


def test_cross_entropy_is_summed_in_float32_when_the_logits_are_bfloat16():
    logits = jnp.zeros((4, 64, 100), jnp.bfloat16)
    targets, weights = jnp.zeros((4, 64), jnp.int32), jnp.ones((4, 64))
    result = cross_entropy(logits, targets, weights)
    assert result.total.dtype == result.weight.dtype == jnp.float32
    close(result.mean(), np.log(100))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("count", [1, 4, 11])
def test_kl_follows_its_definition_at_every_number_of_candidates(count, temperature):
    student, _, ids, log_p, tail = draw(count, count=count)
    weights = np.array([[1, 0.25, 1], [0, 1, 1]], np.float32)
    result = kl(student, ids, log_p, tail, weights, temperature=temperature)
    expected = bucket_kl64(student, ids, log_p, tail, temperature)
    close(result.total, (weights * expected).sum())
    assert float(result.weight) == 4.25


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kl_over_all_tokens_is_the_dense_kl(temperature):
    student, teacher, ids, log_p, tail = draw(7, count=11)
    assert np.all(np.isneginf(tail))
    soft, log_q = log_softmax64(teacher / temperature), log_softmax64(student / temperature)
    result = kl(student, ids, log_p, tail, np.ones((2, 3), np.float32), temperature=temperature)
    close(result.total, (np.exp(soft) * (soft - log_q)).sum())


@pytest.mark.reference
def test_kl_over_all_tokens_is_that_of_torch():
    torch = pytest.importorskip("torch")
    student, teacher, ids, log_p, tail = draw(8, count=11)
    result = kl(student, ids, log_p, tail, np.ones((2, 3), np.float32))
    log_q, log_t = (torch.log_softmax(torch.from_numpy(x), -1) for x in (student, teacher))
    by_torch = torch.nn.functional.kl_div(log_q, log_t, reduction="sum", log_target=True)
    close(result.total, float(by_torch))


def test_a_student_with_a_tenth_of_its_mass_on_the_candidates_pays_for_the_rest():
    # Ten candidates hold 99.75 % of the teacher; the student spreads 10 % over them in the same
    # proportions, so that targets renormalised without their tail would find nothing wrong. The
    # teacher's rest lies on 18 tokens, the student's on 990: a hundredth of a nat in the tail.
    vocab, count = 1000, 10
    teacher = np.full(vocab, 1e-30)
    teacher[:count], teacher[count : count + 18] = 0.09975, 0.0025 / 18
    student = np.full(vocab, 0.9 / (vocab - count))
    student[:count] = 0.01
    dense = float((teacher * np.log(teacher / student)).sum())
    renormalised = np.full(count, 0.1) * np.log(np.full(count, 0.1) / (student[:count] / 0.1))
    result = kl(
        jnp.log(student)[None, None],
        jnp.arange(count)[None, None],
        jnp.log(teacher[:count])[None, None],
        jnp.full((1, 1), np.log(0.0025)),
        jnp.ones((1, 1)),
    )
    assert abs(renormalised.sum()) < 1e-9
    assert dense == pytest.approx(2.29, abs=0.001)
    assert float(result.mean()) == pytest.approx(2.28, abs=0.001)


def test_truncation_never_overstates_the_kl():
    for seed in range(20, 28):
        student, teacher, ids, log_p, tail = draw(seed)
        dense = (np.exp(teacher) * (teacher - log_softmax64(student))).sum()
        result = kl(student, ids, log_p, tail, np.ones((2, 3), np.float32))
        assert 0 < float(result.total) <= dense * (1 + 1e-6)


def test_a_teacher_whose_mass_is_not_one_can_give_a_negative_sum_and_it_is_not_hidden():
    half = jnp.log(jnp.full((1, 1, 1), 0.5))
    empty = jnp.full((1, 1), -jnp.inf)
    result = kl(
        jnp.array([[[20.0, 0.0]]]), jnp.zeros((1, 1, 1), jnp.int32), half, empty, jnp.ones((1, 1))
    )
    close(result.total, 0.5 * np.log(0.5))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_unused_slots_change_neither_the_value_nor_the_gradient(temperature):
    student, _, ids, log_p, tail = draw(3)
    weights = np.ones((2, 3), np.float32)
    unused = ((0, 0), (0, 0), (0, 7))
    more_ids = np.pad(ids, unused, constant_values=-1)
    more_log_p = np.pad(log_p, unused, constant_values=-np.inf)
    plain = kl_and_gradient(student, ids, log_p, tail, weights, temperature)
    padded = kl_and_gradient(student, more_ids, more_log_p, tail, weights, temperature)
    close(padded[0], plain[0])
    close(padded[1], plain[1])


def central_differences(function, x, step=1e-5):
    gradient = np.zeros(x.shape)
    for place in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[place] += step
        down[place] -= step
        gradient[place] = (function(up) - function(down)) / (2 * step)
    return gradient


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("count", [4, 11])
def test_kl_gradient_matches_finite_differences_in_float64(count, temperature):
    student, _, ids, log_p, tail = draw(40 + count, count=count)
    weights = np.array([[1, 0, 0.5], [2, 1, 1]], np.float32)

    def reference(x):
        return (weights * bucket_kl64(x, ids, log_p, tail, temperature)).sum()

    _, gradient = kl_and_gradient(student, ids, log_p, tail, weights, temperature)
    close(gradient, central_differences(reference, student.astype(np.float64)), EXACT.gradient)


def test_a_tail_far_below_float32_rounding_keeps_its_value_and_gradient():
    # One candidate with logit 40: the rest is 1e-17 of the mass, which 1 - q rounds to 0.
    logits = jnp.array([[[40.0, 1.0, 0.5, -1.0]]])
    log_p, tail = np.log([[[0.9]]]), np.log([[0.1]])
    weights, ids = jnp.ones((1, 1)), jnp.zeros((1, 1, 1), jnp.int32)

    total, gradient = kl_and_gradient(logits, ids, log_p, tail, weights)
    close(total, bucket_kl64(np.asarray(logits), np.asarray(ids), log_p, tail).sum())
    reference = central_differences(
        lambda x: bucket_kl64(x, np.asarray(ids), log_p, tail).sum(), np.asarray(logits, float)
    )
    close(gradient, reference, EXACT.gradient)


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30])
def test_what_stands_in_padding_never_reaches_a_sum(poison):
    student, _, ids, log_p, tail = draw(5)
    weights = np.ones((2, 3), np.float32)
    weights[1, 2] = 0
    poisoned = student.copy()
    poisoned[1, 2] = poison
    targets, top = np.zeros((2, 3), np.int32), np.zeros((2, 3), np.int32)

    def every_loss(x):
        yield cross_entropy(x, targets, weights)
        yield agreement(x, top, weights)
        yield kl(x, ids, log_p, tail, weights)
        yield matching(x, student, weights)
        yield contrast(x, student, weights, temperature=0.1, max_negatives=8)

    pairs = zip(every_loss(jnp.asarray(student)), every_loss(jnp.asarray(poisoned)), strict=True)
    for clean, dirty in pairs:
        assert float(clean.weight) == 5.0
        assert float(clean.total) == float(dirty.total)


def test_a_position_without_targets_contributes_nothing_even_if_it_is_weighted():
    student, *_ = draw(6)
    ids, log_p = np.full((2, 3, 4), -1), np.full((2, 3, 4), -np.inf, np.float32)
    tail, weights = np.full((2, 3), -np.inf, np.float32), np.ones((2, 3), np.float32)

    total, gradient = kl_and_gradient(student, ids, log_p, tail, weights, 2.5)
    assert float(total) == 0.0
    assert not np.any(gradient)


def test_one_sum_over_a_batch_equals_the_combined_sums_of_its_unequal_parts():
    student, _, ids, log_p, tail = draw(8, batch=4)
    weights = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]], np.float32)
    whole = kl(student, ids, log_p, tail, weights)
    parts = [kl(*(x[i : i + 1] for x in (student, ids, log_p, tail, weights))) for i in range(4)]
    combined = parts[0] + parts[1] + parts[2] + parts[3]
    close(combined.mean(), whole.mean())
    mean_of_means = np.mean([float(part.mean()) for part in parts])
    assert abs(mean_of_means - float(whole.mean())) > 0.01


def test_agreement_counts_equal_argmaxes_by_weight():
    logits = jnp.array([[[0.0, 1, 2], [3, 1, 2], [0, 5, 2], [1, 0, 0]]])
    weights = jnp.array([[1.0, 1, 0, 1]])
    result = agreement(logits, jnp.array([[2, 1, 1, -1]]), weights)
    assert (float(result.total), float(result.weight)) == (1.0, 3.0)


def test_hidden_state_matching_is_zero_at_equality_one_at_zero_and_blind_to_scale():
    rng = np.random.default_rng(9)
    teacher = rng.normal(size=(2, 3, 8)).astype(np.float32)
    student = rng.normal(size=(2, 3, 8)).astype(np.float32)
    weights = np.array([[1, 1, 0], [1, 1, 1]], np.float32)

    def mean(student, teacher):
        return float(matching(student, teacher, weights).mean())

    shares = ((student - teacher) ** 2).sum(-1) / (teacher**2).sum(-1)
    assert mean(teacher, teacher) == 0.0
    assert mean(0 * teacher, teacher) == pytest.approx(1.0, abs=EXACT.output)
    close(mean(student, teacher), (weights * shares).sum() / 5)
    close(mean(16 * student, 16 * teacher), mean(student, teacher))


def contrastive64(student, teacher, weights, temperature):
    """InfoNCE with every other counted position as a negative."""
    s, t = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (student, teacher))
    s, t = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (s, t))
    similarities = s @ t.T / temperature
    counted = weights.reshape(-1) > 0
    total = 0.0
    for i in np.flatnonzero(counted):
        total += np.log(np.exp(similarities[i, counted]).sum()) - similarities[i, i]
    return total


def test_contrastive_with_all_negatives_is_info_nce_and_its_gradient_is_that_of_float64():
    rng = np.random.default_rng(10)
    student, teacher = rng.normal(size=(2, 2, 4, 5)).astype(np.float32)
    weights = np.array([[1, 1, 0, 1], [1, 1, 1, 0]], np.float32)

    def value(x):
        loss = contrast(x, teacher, weights, temperature=0.5, max_negatives=100)
        return loss.total

    def reference(x):
        return contrastive64(x, teacher, weights, 0.5)

    total, gradient = jax.value_and_grad(value)(jnp.asarray(student))
    close(total, reference(student))
    close(gradient, central_differences(reference, student.astype(np.float64)), EXACT.gradient)


def test_contrastive_never_compares_with_more_negatives_than_its_cap():
    states = np.random.default_rng(11).normal(size=(4, 64, 8)).astype(np.float32)
    weights = np.ones((4, 64), np.float32)

    def value(x):
        return losses.contrastive(x, x, weights, temperature=0.1, max_negatives=16).total

    widths = {
        variable.aval.shape[-1]
        for equation in jax.make_jaxpr(value)(states).eqns
        for variable in equation.outvars
        if variable.aval.ndim == 2 and variable.aval.shape[0] == 256
    }
    assert max(widths) == 17


def test_contrastive_prefers_the_matching_position():
    states = np.random.default_rng(12).normal(size=(2, 8, 16)).astype(np.float32)
    weights = np.ones((2, 8), np.float32)
    options = {"temperature": 0.1, "max_negatives": 16}
    matched = contrast(states, states, weights, **options).mean()
    shifted = contrast(np.roll(states, 1, axis=1), states, weights, **options).mean()
    assert float(matched) < 0.1 < float(shifted)


def test_no_gradient_reaches_the_teacher():
    states = jnp.asarray(np.random.default_rng(13).normal(size=(1, 4, 6)).astype(np.float32))
    weights = jnp.ones((1, 4))
    for loss in (
        lambda t: matching(states, t, weights).total,
        lambda t: contrast(states, t, weights, temperature=1.0, max_negatives=4).total,
    ):
        assert not np.any(jax.grad(loss)(states + 1))
