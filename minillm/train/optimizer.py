"""Optimizers and schedules, all from optax."""

import dataclasses
from typing import Any, Literal

import jax
import optax

from minillm.core import axes
from minillm.core.configs import require_at_least
from minillm.core.errors import UserError

Axes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How parameters are updated.

    Attributes:
        name: "adamw", or "muon" (matrices by Muon, everything else by AdamW).
        learning_rate: the peak, reached after `warmup_steps` and brought down to
            `final_fraction` of it by the last step.
        schedule: the way down: "cosine", "linear", or "constant" (no way down).
        weight_decay: decoupled, on matrices only (norm scales and biases are left alone).
        clip_norm: largest global norm of the gradient.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    warmup_steps: int = 20
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_fraction: float = 0.1
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95

    def __post_init__(self) -> None:
        require_at_least(0, learning_rate=self.learning_rate, warmup_steps=self.warmup_steps)
        require_at_least(0, weight_decay=self.weight_decay, final_fraction=self.final_fraction)
        # A norm of 0 would clip every gradient to nothing.
        require_at_least(1e-9, clip_norm=self.clip_norm)
        require_at_least(0, beta1=self.beta1, beta2=self.beta2)
        for name in ("beta1", "beta2"):
            if getattr(self, name) >= 1:
                raise UserError(
                    field=name, got=getattr(self, name), wanted="less than 1", fix="try 0.95"
                )


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate by step, for a run of `steps` steps."""
    peak, final = config.learning_rate, config.learning_rate * config.final_fraction
    warmup = min(config.warmup_steps, max(steps - 1, 0))
    way = max(steps - warmup, 1)
    ways = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, way, config.final_fraction),
        "linear": lambda: optax.linear_schedule(peak, final, way),
        "constant": lambda: optax.constant_schedule(peak),
    }
    # The first step counts as 1/warmup, not 0: a step that changes nothing is a step wasted.
    rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, ways[config.schedule]()], [warmup])


def make_optimizer(
    config: OptimizerConfig, steps: int, param_axes: Any
) -> optax.GradientTransformation:
    """Clipping, then AdamW or Muon.

    Args:
        param_axes: a tree like the parameters, with each one's tuple of logical axes as a leaf.
    """
    schedule = make_schedule(config, steps)
    is_matrix = jax.tree.map(lambda names: _matrix(names) is not None, param_axes, is_leaf=_is_axes)
    if config.name == "adamw":
        update = optax.adamw(
            schedule,
            b1=config.beta1,
            b2=config.beta2,
            weight_decay=config.weight_decay,
            mask=is_matrix,
        )
    else:
        update = optax.contrib.muon(
            schedule,
            beta=0.95,
            weight_decay=config.weight_decay,
            weight_decay_mask=is_matrix,
            adam_b1=config.beta1,
            adam_b2=config.beta2,
            muon_weight_dimension_numbers=jax.tree.map(_matrix, param_axes, is_leaf=_is_axes),
            # Updates of the size AdamW's have (root mean square 0.2), so that one learning rate
            # serves both: Liu et al., "Muon is scalable for LLM training", 2025.
            consistent_rms=0.2,
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def _is_axes(value: Any) -> bool:
    return isinstance(value, tuple)


def _matrix(names: Axes) -> "optax.contrib.MuonDimensionNumbers | None":
    """Which dimensions of a weight are inputs and which outputs; None for what is no matrix.

    A weight maps from the model width (`embed` first) or onto it (`embed` last); the stacked
    `layers` dimension is a batch. Embeddings are tables, not maps, and stay with AdamW, as do
    biases.
    """
    dims = [index for index, name in enumerate(names) if name != axes.LAYERS]
    if len(dims) < 2 or axes.EMBED not in names or axes.VOCAB in names:
        return None
    if names[dims[0]] == axes.EMBED:
        return optax.contrib.MuonDimensionNumbers((dims[0],), tuple(dims[1:]))
    return optax.contrib.MuonDimensionNumbers(tuple(dims[:-1]), (dims[-1],))
