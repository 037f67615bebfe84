"""Checkpoints: the newest whole one, in the shape that is asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minillm.core import checkpoint
from minillm.core.checkpoint import Checkpointer, abstract_like
from minillm.core.errors import UserError

PARAMS = {"layer": {"weight": jnp.arange(6.0).reshape(2, 3)}, "scale": jnp.ones(3)}
MOMENTS = (jnp.zeros(3), {"count": jnp.asarray(4, jnp.int32)})


def save(directory, *steps, keep=2):
    saved = Checkpointer(directory, keep=keep)
    for step in steps:
        moved = jax.tree.map(lambda leaf, step=step: leaf + step, PARAMS)
        saved.save(step, params=moved, optimizer=MOMENTS, progress={"data": {"next_index": step}})
    saved.close()


def test_newest_checkpoint_comes_back_with_optimizer_and_data_position(tmp_path):
    save(tmp_path, 3, 7)
    saved = Checkpointer(tmp_path)
    found = saved.restore(params=abstract_like(PARAMS), optimizer=abstract_like(MOMENTS))
    saved.close()
    assert found.step == 7 and found.progress == {"data": {"next_index": 7}}
    np.testing.assert_array_equal(found.params["layer"]["weight"], PARAMS["layer"]["weight"] + 7)
    jax.tree.map(np.testing.assert_array_equal, found.optimizer, MOMENTS)


def test_only_the_newest_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, keep=2)
    kept = {path.name for path in (tmp_path / checkpoint.CHECKPOINTS).iterdir()}
    assert kept == {"2", "3"}


def test_checkpoint_that_was_cut_off_while_written_is_not_seen(tmp_path):
    assert not checkpoint.has_checkpoint(tmp_path)
    save(tmp_path, 5)
    half = tmp_path / checkpoint.CHECKPOINTS / "9.orbax-checkpoint-tmp"
    half.mkdir()
    assert checkpoint.has_checkpoint(tmp_path)
    saved = Checkpointer(tmp_path)
    assert saved.latest_step == 5
    saved.close()


def test_parameters_alone_are_loaded_without_the_optimizer(tmp_path):
    save(tmp_path, 2)
    loaded = checkpoint.load_params(tmp_path, abstract_like(PARAMS))
    np.testing.assert_array_equal(loaded["scale"], PARAMS["scale"] + 2)


def test_other_parameters_than_the_model_has_are_named(tmp_path):
    save(tmp_path, 2)
    other = {**PARAMS, "scale": jnp.ones(4)}
    with pytest.raises(UserError, match=r"parameter \['scale'\].*\(3,\).*\(4,\)"):
        checkpoint.load_params(tmp_path, abstract_like(other))


def test_fingerprint_follows_every_bit_and_every_name():
    base = checkpoint.tree_fingerprint(PARAMS)
    nudged = jnp.nextafter(PARAMS["scale"], 2.0)
    assert checkpoint.tree_fingerprint({**PARAMS, "scale": nudged}) != base
    assert checkpoint.tree_fingerprint({"layer": PARAMS["layer"], "s": PARAMS["scale"]}) != base
    assert checkpoint.tree_fingerprint(jax.tree.map(jnp.copy, PARAMS)) == base
