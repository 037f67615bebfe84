"""The loop: stops at a bad loss, goes on bit for bit, counts what it saw."""

import jax
import numpy as np
import pytest

from minillm.core.checkpoint import Checkpointer, abstract_like
from minillm.core.metrics import MetricWriter, read_metrics
from minillm.core.sharding import MeshConfig, make_mesh
from minillm.data import loader
from minillm.model.config import ModelConfig
from minillm.model.functional import ModelFunction
from minillm.train.loop import LoopConfig, NonFiniteError, train
from minillm.train.optimizer import OptimizerConfig, make_optimizer, make_schedule
from minillm.train.step import LossConfig, TrainState, init_state, make_train_step

ROWS, LENGTH, STEPS = 12, 16, 8
MODEL = ModelConfig(
    vocab_size=32,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=16,
)


class Source:
    """Random rows of twelve tokens and four of padding."""

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        random = np.random.default_rng(index)
        segment_ids = np.ones(LENGTH, np.int32)
        segment_ids[12:] = 0
        return {
            "tokens": random.integers(0, 32, LENGTH).astype(np.int32),
            "segment_ids": segment_ids,
            "positions": np.arange(LENGTH, dtype=np.int32) * segment_ids,
            "loss_mask": segment_ids.astype(np.uint8),
        }


@pytest.fixture(scope="module")
def compiled():
    """The parts that are slow to make, made once."""
    function = ModelFunction(MODEL)
    settings = OptimizerConfig(name="muon", learning_rate=1e-2, warmup_steps=2)
    optimizer = make_optimizer(settings, STEPS, function.axes)
    step = make_train_step(function, optimizer, make_schedule(settings, STEPS), LossConfig())
    return function, optimizer, step


def run(directory, compiled, *, steps=STEPS, checkpoint_every=3, step_function=None):
    """Train in `directory`, going on from what is there."""
    function, optimizer, step = compiled
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    batches = iter(loader.batches(Source(), batch_size=4, seed=0))
    fresh = init_state(function, optimizer, function.init(0, mesh), mesh)
    saved = Checkpointer(directory)
    restored = saved.restore(
        params=abstract_like(fresh.params), optimizer=abstract_like(fresh.optimizer)
    )
    state, used = fresh, {"tokens": 0, "seconds": 0.0}
    if restored is not None:
        state = TrainState(restored.params, restored.optimizer, fresh.step + restored.step)
        batches.set_state(restored.progress["data"])
        used = {name: restored.progress[name] for name in used}
    metrics = MetricWriter(directory, resume_step=int(state.step))
    try:
        return train(
            LoopConfig(steps=steps, log_every=2, checkpoint_every=checkpoint_every),
            state=state,
            step_function=step_function or step,
            batches=batches,
            mesh=mesh,
            checkpointer=saved,
            metrics=metrics,
            run_facts={},
            description="test",
            **used,
        )
    finally:
        metrics.close()
        saved.close()


def test_run_cut_off_and_gone_on_ends_with_the_same_parameters_bit_for_bit(tmp_path, compiled):
    whole = run(tmp_path / "whole", compiled)
    # Cut off in the middle of step 5: the last checkpoint is that of step 3.
    calls = []

    def cut_off(state, batch):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return compiled[2](state, batch)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", compiled, step_function=cut_off)
    resumed = run(tmp_path / "cut", compiled)
    jax.tree.map(np.testing.assert_array_equal, resumed.state.params, whole.state.params)
    jax.tree.map(np.testing.assert_array_equal, resumed.state.optimizer, whole.state.optimizer)
    assert resumed.tokens == whole.tokens == STEPS * 4 * 12
    times = {"seconds", "tokens_per_s", "data_wait_share"}
    lines = [
        [
            {k: v for k, v in line.items() if k not in times}
            for line in read_metrics(tmp_path / name)
        ]
        for name in ("whole", "cut")
    ]
    assert [line["step"] for line in lines[0]] == [2, 3, 4, 6, 8]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
def test_value_that_is_not_finite_stops_at_its_step_and_keeps_the_last_good_state(
    tmp_path, compiled, name
):
    def broken(state, batch):
        before = int(state.step)
        state, metrics = compiled[2](state, batch)
        return state, {**metrics, name: metrics[name] * (np.nan if before == 4 else 1.0)}

    with pytest.raises(NonFiniteError, match=f"{name} at step 5.*checkpoint 3") as caught:
        run(tmp_path, compiled, step_function=broken)
    assert (caught.value.step, caught.value.checkpoint) == (5, 3)
    saved = Checkpointer(tmp_path)
    assert saved.latest_step == 3
    saved.close()


def test_stop_says_what_is_kept():
    assert "(checkpoint 3 is the last good state)" in str(NonFiniteError("loss", 5, np.nan, 3))
    assert "(no checkpoint was made yet);" in str(NonFiniteError("loss", 5, np.nan, None))


def test_training_lowers_the_loss_it_reports(tmp_path, compiled):
    run(tmp_path, compiled)
    lines = read_metrics(tmp_path)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["loss"] == pytest.approx(lines[-1]["cross_entropy"], rel=1e-6)
    assert 0 <= lines[-1]["data_wait_share"] <= 1


def test_run_of_no_steps_leaves_a_random_model(tmp_path, compiled):
    result = run(tmp_path, compiled, steps=0)
    saved = Checkpointer(tmp_path)
    assert saved.latest_step == 0 and result.tokens == 0
    saved.close()
