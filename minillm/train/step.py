"""One training step: forward, losses, gradient, update, as one compiled program."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from minillm import losses
from minillm.core.checkpoint import abstract_like
from minillm.core.configs import require_at_least
from minillm.core.sharding import fitting_sharding
from minillm.losses import LossSum
from minillm.model.functional import ModelFunction, Params
from minillm.model.transformer import Transformer

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms. Cross-entropy is always measured, whatever its weight.

    Attributes:
        cross_entropy: on the next token of the row.
        distillation: forward KL from the teacher's stored distribution, tail included; 0 leaves it
            out, and needs no targets.
        span_likelihoods: the same for a teacher of another tokenizer: binary KL from the
            likelihoods that it gives to spans of the text.
        temperature: divides both sides' logits before the KL.
        span_temperature: the same for the log-likelihoods of spans; `launch/benchmark.py
            cross_tokenizer` found 100 better than 1.
    """

    cross_entropy: float = 1.0
    distillation: float = 0.0
    span_likelihoods: float = 0.0
    temperature: float = 1.0
    span_temperature: float = 100.0

    def __post_init__(self) -> None:
        require_at_least(
            0,
            cross_entropy=self.cross_entropy,
            distillation=self.distillation,
            span_likelihoods=self.span_likelihoods,
        )
        require_at_least(1e-3, temperature=self.temperature, span_temperature=self.span_temperature)


class TrainState(NamedTuple):
    """Everything a step changes. Randomness is a function of (seed, step), so it needs no room."""

    params: Params
    optimizer: Any
    step: jax.Array


def loss_terms(model: Transformer, batch: Batch, config: LossConfig) -> dict[str, LossSum]:
    """Every loss term that has a weight, as sums over the batch's counting tokens.

    Args:
        batch: tokens, segment_ids, positions, loss_mask `[B, T]`, and for distillation
            candidate_ids, candidate_log_probs `[B, T, C]`, tail_log_prob `[B, T]`, and for spans
            span_ids, span_log_likelihoods `[B, T]`, each with an axis of teachers behind T where
            there are several.
    """
    logits = model(batch["tokens"], positions=batch["positions"], segment_ids=batch["segment_ids"])
    targets, weights = losses.next_token_targets(
        batch["tokens"], batch["segment_ids"], batch["loss_mask"]
    )
    terms = {"cross_entropy": losses.cross_entropy(logits, targets, weights)}
    if config.distillation:
        terms["distillation"] = _distillation(logits, batch, weights, config.temperature)
    if config.span_likelihoods:
        terms["span_likelihoods"] = _span_likelihoods(
            logits, targets, batch, config.span_temperature
        )
    return terms


def _distillation(
    logits: jax.Array, batch: Batch, weights: jax.Array, temperature: float
) -> LossSum:
    """KL from one teacher, or the mean over several that are joined along an axis behind T."""
    ids, log_probs, tail = (
        batch[name] for name in ("candidate_ids", "candidate_log_probs", "tail_log_prob")
    )
    if tail.ndim == 2:
        ids, log_probs, tail = ids[:, :, None], log_probs[:, :, None], tail[:, :, None]
    each = [
        losses.distillation_kl(
            logits,
            ids[:, :, one],
            log_probs[:, :, one],
            tail[:, :, one],
            weights,
            temperature=temperature,
        )
        for one in range(tail.shape[2])
    ]
    return functools.reduce(LossSum.combine, each)


def _span_likelihoods(
    logits: jax.Array, targets: jax.Array, batch: Batch, temperature: float
) -> LossSum:
    """Binary KL of spans from one teacher, or the mean over the spans of several."""
    ids, values = batch["span_ids"], batch["span_log_likelihoods"]
    if ids.ndim == 2:
        ids, values = ids[:, :, None], values[:, :, None]
    each = [
        losses.span_likelihood_kl(
            logits, targets, ids[:, :, one], values[:, :, one], temperature=temperature
        )
        for one in range(ids.shape[2])
    ]
    return functools.reduce(LossSum.combine, each)


def total_loss(terms: dict[str, LossSum], config: LossConfig) -> jax.Array:
    """The weighted sum of the terms' means: the one division of each."""
    parts = [getattr(config, name) * term.mean() for name, term in terms.items()]
    return jnp.sum(jnp.stack(parts))


def make_train_step(
    function: ModelFunction,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: LossConfig,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted step. The old state is donated.

    Returns:
        A function `(state, batch) -> (state, metrics)`; metrics are scalars: `loss`, `tokens`
        (of all hosts, padding left out), `gradient_norm`, `learning_rate`, and each term's
        `<name>_total` and `<name>_weight`.
    """

    def objective(params: Params, batch: Batch) -> tuple[jax.Array, dict[str, LossSum]]:
        terms = loss_terms(function.bind(params), batch, config)
        return total_loss(terms, config), terms

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        (loss, terms), gradient = jax.value_and_grad(objective, has_aux=True)(state.params, batch)
        updates, moments = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "tokens": jnp.count_nonzero(batch["segment_ids"]),
            "gradient_norm": optax.tree.norm(gradient),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        for name, term in terms.items():
            metrics[f"{name}_total"], metrics[f"{name}_weight"] = term
        return TrainState(params, moments, state.step + 1), metrics

    return jax.jit(step, donate_argnums=0)


def make_eval_step(function: ModelFunction) -> Callable[[Params, Batch], dict[str, LossSum]]:
    """A jitted `(params, batch) -> sums`: cross-entropy, and agreement with a teacher's first
    candidate where the batch carries targets."""

    def evaluate(params: Params, batch: Batch) -> dict[str, LossSum]:
        model = function.bind(params)
        logits = model(
            batch["tokens"], positions=batch["positions"], segment_ids=batch["segment_ids"]
        )
        targets, weights = losses.next_token_targets(
            batch["tokens"], batch["segment_ids"], batch["loss_mask"]
        )
        sums = {"cross_entropy": losses.cross_entropy(logits, targets, weights)}
        if "candidate_ids" in batch:
            top = batch["candidate_ids"][..., 0]
            sums["agreement"] = losses.agreement(logits, top, weights)
        return sums

    return jax.jit(evaluate)


def init_state(
    function: ModelFunction, optimizer: optax.GradientTransformation, params: Params, mesh: Mesh
) -> TrainState:
    """A state at step 0; the optimizer's moments lie where their parameters lie."""
    shapes = jax.eval_shape(optimizer.init, abstract_like(params))
    shardings = _moment_shardings(shapes, params, mesh)
    moments = jax.jit(optimizer.init, out_shardings=shardings)(params)
    step = jax.device_put(jnp.zeros((), jnp.int32), fitting_sharding(mesh, (), ()))
    return TrainState(params, moments, step)


def _moment_shardings(shapes: Any, params: Params, mesh: Mesh) -> Any:
    """A moment's path ends in its parameter's path: it lies where the parameter lies."""
    placed = dict(jax.tree_util.tree_leaves_with_path(params))
    whole = fitting_sharding(mesh, (), ())

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        tails = (path[start:] for start in range(len(path)))
        owner = next((placed[tail] for tail in tails if tail in placed), None)
        return owner.sharding if owner is not None and owner.shape == leaf.shape else whole

    return jax.tree_util.tree_map_with_path(place, shapes)
