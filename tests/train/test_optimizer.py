"""Schedules, and which parameters Muon takes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minillm.core import axes
from minillm.core.errors import UserError
from minillm.train.optimizer import OptimizerConfig, make_optimizer, make_schedule

AXES = {
    "table": (axes.VOCAB, axes.EMBED),
    "into_heads": (axes.LAYERS, axes.EMBED, axes.HEADS, axes.HEAD_DIM),
    "out_of_heads": (axes.LAYERS, axes.HEADS, axes.HEAD_DIM, axes.EMBED),
    "scale": (axes.LAYERS, axes.EMBED),
    "bias": (axes.LAYERS, axes.KV_HEADS, None, axes.HEAD_DIM),
}
SHAPES = {
    "table": (7, 8),
    "into_heads": (3, 8, 2, 4),
    "out_of_heads": (3, 2, 4, 8),
    "scale": (3, 8),
    "bias": (3, 2, 3, 4),
}


def test_learning_rate_rises_to_its_peak_and_falls_to_the_final_fraction():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10, final_fraction=0.1)
    rates = [float(make_schedule(config, 100)(step)) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0) == rates[9]
    assert rates[100] == pytest.approx(0.1)
    assert all(later <= earlier + 1e-6 for earlier, later in itertools.pairwise(rates[10:]))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("steps", [0, 1, 2, 20])
def test_every_schedule_is_positive_in_runs_shorter_than_the_warm_up(schedule, steps):
    made = make_schedule(OptimizerConfig(schedule=schedule, warmup_steps=20), steps)
    assert all(float(made(step)) > 0 for step in range(steps + 1))


@pytest.mark.parametrize(
    "settings",
    [{"clip_norm": 0.0}, {"beta1": 1.5}, {"beta2": 1.0}, {"beta1": -0.1}, {"final_fraction": -1.0}],
)
def test_settings_that_would_stop_or_blow_up_the_updates_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        OptimizerConfig(**settings)


def test_muon_updates_matrices_to_equal_singular_values_and_leaves_the_rest_to_adamw():
    key = jax.random.key(0)
    params = {name: jax.random.normal(key, shape) for name, shape in SHAPES.items()}
    config = OptimizerConfig(
        name="muon", learning_rate=1.0, warmup_steps=0, schedule="constant", weight_decay=0.0
    )
    optimizer = make_optimizer(config, 10, AXES)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    for name, flat in (("into_heads", (3, 8, 8)), ("out_of_heads", (3, 8, 8))):
        for layer in np.asarray(updates[name]).reshape(flat):
            values = np.linalg.svd(layer, compute_uv=False)
            # Five Newton-Schulz steps leave the singular values between 0.7 and 1.2 of the target.
            assert values.max() / values.min() < 2.0
        assert np.sqrt(np.mean(np.square(updates[name]))) == pytest.approx(0.2, rel=0.15)
    for name in ("table", "scale", "bias"):
        # The first update of AdamW (here with Nesterov momentum) is as large everywhere, and
        # goes against the gradient.
        sizes = np.asarray(-updates[name] * np.sign(params[name]))
        np.testing.assert_allclose(sizes, sizes.flat[0], rtol=1e-3)
        assert sizes.flat[0] > 0


def test_weight_decay_leaves_scales_and_biases_alone():
    params = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=0, weight_decay=0.5)
    optimizer = make_optimizer(config, 10, AXES)
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(nothing, optimizer.init(params), params)
    assert float(jnp.abs(updates["scale"]).max()) == 0.0
    assert float(jnp.abs(updates["bias"]).max()) == 0.0
    assert float(jnp.abs(updates["into_heads"]).min()) == pytest.approx(0.5)
