"""The mesh and the table of logical axes."""

import jax
import pytest
from jax.sharding import PartitionSpec

from minillm.core import axes, sharding
from minillm.core.errors import UserError
from minillm.core.sharding import MeshConfig


def test_axes_left_open_take_the_remaining_devices():
    devices = [jax.devices()[0]] * 8
    mesh = sharding.make_mesh(MeshConfig(data=-1, tensor=2), devices)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "context": 1, "tensor": 2}


@pytest.mark.parametrize(
    "config", [MeshConfig(data=3), MeshConfig(data=-1, fsdp=-1), MeshConfig(tensor=0)]
)
def test_mesh_that_does_not_match_the_devices_is_an_error(config):
    # Where it stands in the configuration differs by stage: no error says more than `mesh`.
    with pytest.raises(UserError, match=r"^mesh: (?!.*--config)"):
        sharding.make_mesh(config, [jax.devices()[0]] * 8)


def test_logical_axes_map_through_the_table():
    spec = sharding.logical_spec((axes.BATCH, axes.LENGTH, axes.HEADS, None))
    assert spec == PartitionSpec(("data", "fsdp"), "context", "tensor", None)


def test_two_dimensions_on_one_mesh_axis_raise():
    with pytest.raises(ValueError, match="tensor"):
        sharding.logical_spec((axes.HEADS, axes.MLP))


def test_unknown_logical_axis_raises():
    with pytest.raises(ValueError, match="headz"):
        sharding.logical_spec(("headz",))


def test_batch_that_does_not_divide_is_told_what_would():
    mesh = sharding.make_mesh(MeshConfig(data=4, fsdp=2), [jax.devices()[0]] * 8)
    with pytest.raises(UserError, match="try 16"):
        sharding.check_divides("batch_size", 12, mesh, axes.BATCH)


def test_weight_that_does_not_divide_stays_whole():
    mesh = sharding.make_mesh(MeshConfig(fsdp=4, tensor=2), [jax.devices()[0]] * 8)
    found = sharding.fitting_sharding(mesh, (axes.VOCAB, axes.EMBED), (511, 64))
    assert found.spec == PartitionSpec(None, "fsdp")


@pytest.mark.parametrize(
    ("config", "batch_size", "used"),
    [
        (MeshConfig(), 4, 4),
        (MeshConfig(), 7, 7),
        (MeshConfig(), 64, 8),
        (MeshConfig(fsdp=2, tensor=2), 4, 8),
        (MeshConfig(fsdp=2), 6, 6),
        # Nothing to choose, or nothing that fits: all of them, for the checks to refuse.
        (MeshConfig(data=8), 4, 8),
        (MeshConfig(fsdp=4), 6, 8),
        (MeshConfig(fsdp=-1), 4, 8),
    ],
)
def test_small_batch_takes_as_many_devices_as_divide_it(config, batch_size, used):
    assert len(sharding.devices_for(config, batch_size, [jax.devices()[0]] * 8)) == used


def test_batch_that_may_be_padded_is_rounded_up_to_the_shards():
    mesh = sharding.make_mesh(MeshConfig(data=3, fsdp=2), [jax.devices()[0]] * 6)
    assert [sharding.rounded_up(size, mesh, axes.BATCH) for size in (1, 64, 66)] == [6, 66, 66]
