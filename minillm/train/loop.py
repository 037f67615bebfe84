"""The one training loop: pre-training, distillation and fine-tune all run through it."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from minillm.core.checkpoint import Checkpointer
from minillm.core.configs import require_at_least
from minillm.core.errors import UserError
from minillm.core.metrics import MetricWriter
from minillm.core.progress import progress
from minillm.core.sharding import shard_batch
from minillm.train.step import Batch, TrainState


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long to run, and how often to look up from it.

    Attributes:
        steps: updates in total, those before a restart included; None where passes over the data
            are to decide, which a stage turns into steps before it trains.
        log_every: steps between lines of metrics.
        checkpoint_every: steps between checkpoints; the last step always makes one.
    """

    steps: int | None = None
    log_every: int = 20
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        if self.steps is not None:
            require_at_least(0, steps=self.steps)
        require_at_least(1, log_every=self.log_every, checkpoint_every=self.checkpoint_every)

    @property
    def total(self) -> int:
        """`steps`, once they are decided.

        Raises:
            UserError: they are not.
        """
        if self.steps is None:
            raise UserError(
                field="loop.steps", got=None, wanted="a number of updates", fix="set it, or epochs"
            )
        return self.steps


class Batches(Protocol):
    """Rows in batches, with a position that can be saved: a Grain iterator."""

    def __next__(self) -> dict[str, np.ndarray]: ...
    def get_state(self) -> Any: ...


class NonFiniteError(UserError):
    """The loss or its gradient became NaN or infinite; the last good checkpoint is kept."""

    def __init__(self, name: str, step: int, value: float, checkpoint: int | None) -> None:
        kept = (
            "no checkpoint was made yet"
            if checkpoint is None
            else f"checkpoint {checkpoint} is the last good state"
        )
        super().__init__(
            field=f"{name} at step {step}",
            got=value,
            wanted=f"a finite number ({kept})",
            fix="lower the learning rate (in another folder), or look at the rows of that step",
        )
        self.step = step
        self.checkpoint = checkpoint


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a finished run says of itself.

    Attributes:
        tokens: tokens of the rows trained on, padding left out.
        seconds: wall time in the loop, compilation included; what a kill lost is not.
    """

    state: TrainState
    tokens: int
    seconds: float


def train(
    config: LoopConfig,
    *,
    state: TrainState,
    step_function: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]],
    batches: Batches,
    mesh: Mesh,
    checkpointer: Checkpointer,
    metrics: MetricWriter,
    run_facts: dict[str, Any],
    description: str,
    tokens: int = 0,
    seconds: float = 0.0,
) -> TrainResult:
    """Run from `state` to step `config.total`.

    Args:
        run_facts: saved with every checkpoint beside the data position (fingerprints, seed).
        tokens, seconds: what the run had used up to `state`.

    Raises:
        NonFiniteError: before anything of the bad state is saved.
    """
    start = int(state.step)
    window = _Window(start)

    def keep(state: TrainState, step: int) -> None:
        facts = {**run_facts, "tokens": tokens, "seconds": seconds, "data": batches.get_state()}
        checkpointer.save(step, params=state.params, optimizer=state.optimizer, progress=facts)

    if config.total == 0 and checkpointer.latest_step is None:
        # A run of no steps leaves a model of random weights: what `mock` teachers are.
        keep(state, 0)
    with (
        jax.set_mesh(mesh),
        progress(config.total, initial=start, description=description, unit="step") as bar,
    ):
        for step in range(start + 1, config.total + 1):
            batch = window.wait_for(batches)
            state, values = step_function(state, shard_batch(batch, mesh))
            window.add(values)
            save = step % config.checkpoint_every == 0 or step == config.total
            # Looked at before every save too, so that a bad state is never the one that is kept.
            if save or step % config.log_every == 0:
                line = window.close(step, checkpointer)
                tokens, seconds = tokens + line["tokens"], seconds + line["seconds"]
                metrics.write(step, {**line, "train_tokens": tokens})
                bar.set_postfix(loss=f"{line['loss']:.3f}", tok_s=f"{line['tokens_per_s']:.0f}")
            if save:
                keep(state, step)
            bar.update(1)
    checkpointer.wait()
    return TrainResult(state, tokens, seconds)


class _Window:
    """The steps since the last line of metrics; device values are fetched once, at its end."""

    def __init__(self, step: int) -> None:
        self._reset(step)

    def _reset(self, step: int) -> None:
        self._before = step
        self._values: list[dict[str, jax.Array]] = []
        self._waited = 0.0
        self._started = time.perf_counter()

    def wait_for(self, batches: Batches) -> dict[str, np.ndarray]:
        """The next batch, with the time it took."""
        asked = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - asked
        return batch

    def add(self, values: dict[str, jax.Array]) -> None:
        self._values.append(values)

    def close(self, step: int, checkpointer: Checkpointer) -> dict[str, Any]:
        """Means over the window's steps; terms are divided once, totals by weights."""
        rows = jax.device_get(self._values)
        for offset, row in enumerate(rows, start=1):
            for name in ("loss", "gradient_norm"):
                if not math.isfinite(row[name]):
                    checkpointer.wait()
                    where = self._before + offset
                    raise NonFiniteError(name, where, float(row[name]), checkpointer.latest_step)
        sums = {name: float(np.sum([row[name] for row in rows])) for name in rows[0]}
        line: dict[str, Any] = {
            name: sums[name] / len(rows) for name in ("loss", "gradient_norm", "learning_rate")
        }
        for name in sums:
            if name.endswith("_total"):
                term = name.removesuffix("_total")
                line[term] = sums[name] / max(sums[f"{term}_weight"], 1.0)
        seconds = time.perf_counter() - self._started
        line |= {
            "tokens": int(sums["tokens"]),
            "seconds": seconds,
            "tokens_per_s": sums["tokens"] / seconds,
            "data_wait_share": self._waited / seconds,
        }
        self._reset(step)
        return line
