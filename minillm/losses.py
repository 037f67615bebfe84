"""Losses as pure functions: float32 sums beside the weights they were taken with.

Every function returns a `LossSum`. The one division, `LossSum.mean`, comes after micro-batches
and devices have been added up, so that a position counts the same wherever it stood. A position
of weight 0 adds nothing to either part.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

_WEYL = 2654435769  # 2^32 divided by the golden ratio
_LEAST_SURPRISAL = 1e-30  # of a certain span: where float32 has a logarithm of 1 - p left
_LEAST_SQUARES = 1e-12  # keeps a state of zeros from dividing by zero; far below any real state


class LossSum(NamedTuple):
    """A sum over positions and the sum of their weights, both float32 scalars."""

    total: Float[Array, ""]
    weight: Float[Array, ""]

    def combine(self, other: "LossSum") -> "LossSum":
        """The sum over both sets of positions."""
        return LossSum(self.total + other.total, self.weight + other.weight)

    def __add__(self, other: "LossSum") -> "LossSum":  # type: ignore[override]
        # A tuple's own `+` would concatenate the two into four numbers without a word.
        return self.combine(other)

    def mean(self) -> Float[Array, ""]:
        """Total over weight; 0 where nothing was counted, so look at `weight` before reporting."""
        counted = self.weight > 0
        return jnp.where(counted, self.total / jnp.where(counted, self.weight, 1.0), 0.0)


def next_token_targets(
    tokens: Int[Array, "B T"], segment_ids: Int[Array, "B T"], loss_mask: Num[Array, "B T"]
) -> tuple[Int[Array, "B T"], Float[Array, "B T"]]:
    """What each position has to predict, and whether that counts.

    Args:
        segment_ids: 0 for padding, one number for each document of a row.
        loss_mask: 1 where the token itself is a target that counts.

    Returns:
        targets: the token at t + 1 (0 in the last column, where nothing follows).
        weights: float32, 1 where t + 1 is in the same document as t and is a target that counts.
    """
    following = [jnp.pad(x[:, 1:], ((0, 0), (0, 1))) for x in (tokens, segment_ids, loss_mask)]
    targets, next_segment, counts = following
    inside = (segment_ids != 0) & (next_segment == segment_ids)
    return targets, jnp.where(inside, counts, 0).astype(jnp.float32)


def cross_entropy(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"], weights: Float[Array, "B T"]
) -> LossSum:
    """Negative log-likelihood of the targets in nats."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return _weighted(jax.nn.logsumexp(logits, axis=-1) - picked, weights)


def agreement(
    logits: Float[Array, "B T V"], teacher_top1_ids: Int[Array, "B T"], weights: Float[Array, "B T"]
) -> LossSum:
    """How often the student's likeliest token is the teacher's; -1 agrees with nothing."""
    agrees = jnp.argmax(logits, axis=-1) == teacher_top1_ids
    return _weighted(agrees.astype(jnp.float32), weights)


def distillation_kl(
    logits: Float[Array, "B T V"],
    candidate_ids: Int[Array, "B T C"],
    candidate_log_probs: Float[Array, "B T C"],
    tail_log_prob: Float[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    temperature: float = 1.0,
) -> LossSum:
    """Forward KL(teacher || student) in nats over the C candidates and one bucket for the rest.

    The tail bucket holds the mass of all tokens that are no candidates, the teacher's as stored
    and the student's as computed here. By the data-processing inequality the result is at most
    the KL over the whole vocabulary, and it equals it when every token is a candidate. Nothing is
    renormalised: a student with its mass elsewhere pays for it through the tail.

    Args:
        candidate_ids: distinct tokens; -1 in an unused slot.
        candidate_log_probs: the teacher's, at temperature 1; -inf in an unused slot.
        tail_log_prob: log of the teacher's mass outside the candidates; -inf where there is none.
        temperature: both bucket distributions are raised to 1/temperature and normalised before
            they are compared (at C = V: the usual softened KL, without a factor temperature²).
    """
    log_q_candidates, log_q_tail = _bucket_log_probs(logits.astype(jnp.float32), candidate_ids)
    log_p = jnp.concatenate([candidate_log_probs, tail_log_prob[..., None]], axis=-1)
    log_p = jax.lax.stop_gradient(log_p.astype(jnp.float32))
    log_q = jnp.concatenate([log_q_candidates, log_q_tail[..., None]], axis=-1)
    if temperature != 1.0:
        log_p, log_q = _soften(log_p, temperature), _soften(log_q, temperature)
    p = jnp.exp(log_p)
    # Where p is 0 the term is 0 in the limit, but -inf minus -inf is not.
    difference = jnp.where(p > 0, log_p, 0.0) - jnp.where(p > 0, log_q, 0.0)
    return _weighted(jnp.sum(p * difference, axis=-1), weights)


def span_likelihood_kl(
    logits: Float[Array, "B T V"],
    targets: Int[Array, "B T"],
    span_ids: Int[Array, "B T"],
    span_log_likelihoods: Float[Array, "B T"],
    *,
    temperature: float = 1.0,
) -> LossSum:
    """Binary KL(teacher || student) in nats of whether the text goes on with this very span.

    For teachers of another tokenizer: both give a span of text a likelihood p, the product over
    their own tokens of it, and are compared as distributions over (this span, anything else).
    "Approximate likelihood matching", Minixhofer et al. 2025 (arXiv 2503.20083), with the KL as
    its divergence and without its debiasing. At temperature 1 the KL over all that could follow
    is at least as large, by the data-processing inequality. The sum is over spans, and the weight
    is their number.

    Args:
        targets: what each position has to predict.
        span_ids: the span, from 1, of each position's target, rising by one from span to span; 0
            for a target in no span.
        span_log_likelihoods: the teacher's of a whole span, at its last position; 0 elsewhere.
        temperature: likelihoods are raised to 1/temperature before they are compared, and the KL
            is multiplied by it. The higher it is, the more the spans count that both find
            unlikely; with surprisals s = -log p the limit is s_p log(s_p / s_q) - s_p + s_q.
    """
    length = targets.shape[1]
    tokens = jnp.where(span_ids > 0, _log_likelihoods(logits, targets), 0.0)
    last = (span_ids > 0) & (span_ids != jnp.pad(span_ids[:, 1:], ((0, 0), (0, 1))))
    add = jax.vmap(lambda values, ids: jax.ops.segment_sum(values, ids, length + 1)[1:])
    log_q = add(tokens, span_ids)
    log_p = add(jax.lax.stop_gradient(span_log_likelihoods.astype(jnp.float32)), span_ids)
    weights = add(last.astype(jnp.float32), span_ids)
    # A slot without a span gets numbers at which every function below has a gradient.
    log_q, log_p = (jnp.where(weights > 0, x, -1.0) / temperature for x in (log_q, log_p))
    return _weighted(temperature * _binary_kl(log_p, log_q), weights)


def hidden_state_matching(
    student: Float[Array, "B T D"], teacher: Float[Array, "B T D"], weights: Float[Array, "B T"]
) -> LossSum:
    """Squared distance of the states as a share of the teacher's squared length, by position.

    1 is what a student of zeros gets, whatever the scale of the teacher's layer. The student's
    states come in already projected to the teacher's width; no gradient reaches the teacher.
    """
    student = student.astype(jnp.float32)
    teacher = jax.lax.stop_gradient(teacher.astype(jnp.float32))
    energy = jnp.sum(teacher**2, axis=-1)
    distance = jnp.sum((student - teacher) ** 2, axis=-1)
    return _weighted(distance / jnp.maximum(energy, _LEAST_SQUARES), weights)


def contrastive(
    student: Float[Array, "B T E"],
    teacher: Float[Array, "B T E"],
    weights: Float[Array, "B T"],
    *,
    temperature: float,
    max_negatives: int,
) -> LossSum:
    """InfoNCE over positions (van den Oord et al. 2018, eq. 4) in nats, on cosine similarities.

    The positive of a student's position is the teacher's state at the same position; the
    negatives are the teacher's states at `max_negatives` other positions of positive weight,
    the same ones for all, spread evenly over the batch. Memory is B·T·max_negatives at most.
    """
    unit_student = _unit(student.astype(jnp.float32).reshape(-1, student.shape[-1]))
    unit_teacher = _unit(jax.lax.stop_gradient(teacher.astype(jnp.float32)))
    unit_teacher = unit_teacher.reshape(unit_student.shape)
    negatives, usable = _spread_choice(weights.reshape(-1) > 0, max_negatives)
    positive = jnp.sum(unit_student * unit_teacher, axis=-1) / temperature
    against = unit_student @ unit_teacher[negatives].T / temperature
    own = negatives[None, :] == jnp.arange(len(unit_student))[:, None]
    against = jnp.where(usable[None, :] & ~own, against, -jnp.inf)
    everything = jnp.concatenate([positive[:, None], against], axis=-1)
    loss = jax.nn.logsumexp(everything, axis=-1) - positive
    return _weighted(loss.reshape(weights.shape), weights)


def _weighted(values: Float[Array, "B T"], weights: Float[Array, "B T"]) -> LossSum:
    weights = weights.astype(jnp.float32)
    # 0 times an infinity or NaN of a padded position would be NaN.
    return LossSum(jnp.sum(jnp.where(weights > 0, weights * values, 0.0)), jnp.sum(weights))


def _log_likelihoods(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """log q of the targets, to a relative precision of float32 also where q is nearly 1."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    others = jnp.arange(logits.shape[-1]) != targets[..., None]
    # As logit minus log-sum-exp of all, what is left of 1 - q below 1e-7 would be lost.
    rest = jax.nn.logsumexp(jnp.where(others, logits, -jnp.inf), axis=-1)
    return -jax.nn.softplus(rest - picked[..., 0])


def _binary_kl(log_p: Float[Array, "..."], log_q: Float[Array, "..."]) -> Float[Array, "..."]:
    """KL of (p, 1 - p) from (q, 1 - q), from logarithms of p and q."""
    log_p, log_q = (jnp.minimum(x, -_LEAST_SURPRISAL) for x in (log_p, log_q))
    against_p, against_q = _log_one_minus_exp(log_p), _log_one_minus_exp(log_q)
    return jnp.exp(log_p) * (log_p - log_q) + jnp.exp(against_p) * (against_p - against_q)


def _log_one_minus_exp(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """log(1 - exp(x)) for x < 0; Mächler 2012: near 0 by expm1, far from it by log1p."""
    near = x > -0.6931472
    # Each branch where it is exact: elsewhere it could give an infinity, and NaN as a gradient.
    by_expm1 = jnp.log(-jnp.expm1(jnp.where(near, x, -1.0)))
    by_log1p = jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x)))
    return jnp.where(near, by_expm1, by_log1p)


@jax.custom_vjp
def _bucket_log_probs(
    logits: Float[Array, "B T V"], ids: Int[Array, "B T C"]
) -> tuple[Float[Array, "B T C"], Float[Array, "B T"]]:
    """The student's log-probability of each candidate (-inf in slots with id -1) and of the rest.

    The gradient is written out by hand: derived from the forward pass it has to differentiate a
    log-sum-exp that may be empty, and it keeps three arrays of [B, T, V] instead of one.
    """
    return _bucket_forward(logits, ids)[0]


def _bucket_forward(logits: Array, ids: Array) -> tuple[tuple[Array, Array], tuple]:
    used = ids >= 0
    picked = jnp.take_along_axis(logits, jnp.where(used, ids, 0), axis=-1)
    picked = jnp.where(used, picked, -jnp.inf)
    # The tail is summed from its own logits. As 1 minus the candidates' mass it would be lost to
    # cancellation, in float32 below 1e-7.
    log_tail = jax.nn.logsumexp(_put(logits, ids, jnp.full_like(picked, -jnp.inf)), axis=-1)
    log_all = jnp.logaddexp(jax.nn.logsumexp(picked, axis=-1), log_tail)
    outputs = picked - log_all[..., None], log_tail - log_all
    return outputs, (logits, ids, outputs, log_tail)


def _bucket_backward(residuals: tuple, cotangents: tuple[Array, Array]) -> tuple[Array, None]:
    logits, ids, (log_q, log_q_tail), log_tail = residuals
    to_candidates, to_tail = cotangents
    to_candidates = jnp.where(ids >= 0, to_candidates, 0.0)
    total = jnp.sum(to_candidates, axis=-1) + to_tail
    # d log q_tail / d logit_v = q_v / q_tail - q_v and d log q_c / d logit_v = -q_v, for every v
    # outside; what the first line makes of the candidates' own places is overwritten.
    share = jnp.exp(logits - log_tail[..., None])
    outside = share * (to_tail - total * jnp.exp(log_q_tail))[..., None]
    inside = to_candidates - total[..., None] * jnp.exp(log_q)
    return _put(outside, ids, inside), None


_bucket_log_probs.defvjp(_bucket_forward, _bucket_backward)


def _put(
    array: Float[Array, "B T V"], ids: Int[Array, "B T C"], values: Float[Array, "B T C"]
) -> Float[Array, "B T V"]:
    """The array with `values` in the places `ids`; -1 writes nowhere."""
    # Out of range rather than -1, which would count from the end. Mapped over B and T, so that
    # the compiler knows that no write crosses a row and keeps a sharded batch where it is.
    places = jnp.where(ids >= 0, ids, array.shape[-1])
    put = jax.vmap(jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop")))
    return put(array, places, values)


def _soften(log_probs: Float[Array, "B T K"], temperature: float) -> Float[Array, "B T K"]:
    empty = jnp.isneginf(log_probs)
    scaled = jnp.where(empty, -jnp.inf, jnp.where(empty, 0.0, log_probs) / temperature)
    normaliser = jax.nn.logsumexp(scaled, axis=-1, keepdims=True)
    return jnp.where(empty, -jnp.inf, scaled - normaliser)


def _unit(x: Float[Array, "... E"]) -> Float[Array, "... E"]:
    # The floor stands under the root: the gradient of a norm is undefined at zero.
    squares = jnp.sum(x**2, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, _LEAST_SQUARES))


def _spread_choice(
    eligible: Bool[Array, " N"], limit: int
) -> tuple[Int[Array, " K"], Bool[Array, " K"]]:
    """Up to `limit` eligible indices spread over the whole range, and which of them are real.

    Multiples of the golden ratio modulo 1 order the indices evenly (a Weyl sequence), and the
    same way on every device and in every run.
    """
    count = eligible.shape[0]
    phase = jnp.arange(count, dtype=jnp.uint32) * jnp.uint32(_WEYL)
    priority = jnp.where(eligible, (phase >> 8).astype(jnp.float32), -1.0)
    values, chosen = jax.lax.top_k(priority, min(limit, count))
    return chosen, values >= 0
