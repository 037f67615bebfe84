"""The device mesh, and the one table that lays logical axes onto it."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from minillm.core import axes
from minillm.core.errors import UserError

# Which mesh axes share the work of each logical axis. Weights are split by `fsdp` along their
# model width and by `tensor` along heads, feed-forward width and vocabulary; batches are split
# by `data` and `fsdp` together, sequences by `context`.
RULES: dict[str, tuple[str, ...]] = {
    axes.BATCH: (axes.DATA, axes.FSDP),
    axes.LENGTH: (axes.CONTEXT,),
    axes.EMBED: (axes.FSDP,),
    axes.HEADS: (axes.TENSOR,),
    axes.KV_HEADS: (axes.TENSOR,),
    axes.HEAD_DIM: (),
    axes.MLP: (axes.TENSOR,),
    axes.VOCAB: (axes.TENSOR,),
    axes.LAYERS: (),
    axes.ACTIVATION_EMBED: (),
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1, for one axis at most, takes all that are left."""

    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh `(data, fsdp, context, tensor)` over `devices` (all of them by default).

    Raises:
        UserError: the product of the axes is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [getattr(config, name) for name in axes.MESH_AXES]
    free = [name for name, size in zip(axes.MESH_AXES, sizes, strict=True) if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(
            field="mesh",
            got=dict(zip(axes.MESH_AXES, sizes, strict=True)),
            wanted="positive numbers, with -1 for one axis at most",
            fix="give every axis but one its size",
        )
    fixed = math.prod(size for size in sizes if size != -1)
    shape = [len(devices) // fixed if size == -1 else size for size in sizes]
    if math.prod(shape) != len(devices):
        raise UserError(
            field="mesh",
            got=dict(zip(axes.MESH_AXES, sizes, strict=True)),
            wanted=f"sizes whose product is the number of devices, {len(devices)}",
            fix=f"try data=-1 with other sizes whose product divides {len(devices)}",
        )
    grid = np.asarray(devices, dtype=object).reshape(shape)
    return Mesh(grid, axes.MESH_AXES, axis_types=(AxisType.Auto,) * len(axes.MESH_AXES))


def devices_for(
    config: MeshConfig, batch_size: int, devices: Sequence[jax.Device] | None = None
) -> list[jax.Device]:
    """The first of `devices` (all by default), as many as share a batch of that size evenly.

    Only a mesh whose `data` is left open has such a choice; any other gets all of them, and
    `make_mesh` and `check_divides` say what does not fit.
    """
    devices = list(jax.devices() if devices is None else devices)
    others = [config.fsdp, config.context, config.tensor]
    if config.data != -1 or min(others) < 1:
        return devices
    fixed = math.prod(others)
    counts = range(len(devices) // fixed, 0, -1)
    fitting = (count for count in counts if batch_size % (count * config.fsdp) == 0)
    count = next(fitting, None)
    return devices if count is None else devices[: count * fixed]


def mesh_of(tree: Any) -> Mesh:
    """The mesh that a tree of arrays lies on; one of a single device if they were put on none."""
    sharding = jax.tree.leaves(tree)[0].sharding
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        return sharding.mesh
    return make_mesh(MeshConfig(), sorted(sharding.device_set, key=lambda device: device.id)[:1])


def logical_spec(names: Sequence[str | None]) -> PartitionSpec:
    """The partition of an array whose dimensions are named by logical axes.

    Raises:
        ValueError: an unknown name, or two dimensions that ask for the same mesh axis.
    """
    taken: set[str] = set()
    entries: list[str | tuple[str, ...] | None] = []
    for name in names:
        wanted = () if name is None else RULES.get(name)
        if wanted is None:
            raise ValueError(f"logical axis {name!r} has no rule; the table has {sorted(RULES)}")
        if clash := taken.intersection(wanted):
            raise ValueError(f"axes {tuple(names)} lay two dimensions onto mesh axis {clash}")
        taken.update(wanted)
        entries.append(wanted if len(wanted) > 1 else wanted[0] if wanted else None)
    return PartitionSpec(*entries)


def logical_sharding(mesh: Mesh, names: Sequence[str | None]) -> NamedSharding:
    """`logical_spec` bound to a mesh."""
    return NamedSharding(mesh, logical_spec(names))


def fitting_sharding(
    mesh: Mesh, names: Sequence[str | None], shape: Sequence[int]
) -> NamedSharding:
    """As `logical_sharding`, but a dimension that its mesh axes do not divide stays whole.

    For weights: a norm's scale or an odd vocabulary is small enough to keep on every device.
    """
    spec = logical_spec(names)
    kept = []
    for entry, size in zip(spec, shape, strict=True):
        parts = (entry,) if isinstance(entry, str) else entry or ()
        count = math.prod(mesh.shape[part] for part in parts)
        kept.append(entry if size % count == 0 else None)
    return NamedSharding(mesh, PartitionSpec(*kept))


def constrain(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """Pin an activation to its layout under the mesh of `jax.set_mesh`; elsewhere do nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, logical_spec(names))


def on_each_shard(
    function: Callable[..., jax.Array],
    inputs: Sequence[Sequence[str | None]],
    output: Sequence[str | None],
) -> Callable[..., jax.Array]:
    """`function` called by every device on its own part, under the mesh of `jax.set_mesh`.

    For what the partitioner cannot cut, such as a kernel. A dimension named None comes whole.
    Without a mesh, or with one device, it is `function` itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function
    specs = tuple(logical_spec(names) for names in inputs)
    # Unchecked: what a kernel writes carries no record of the axes it varies over.
    return jax.shard_map(function, in_specs=specs, out_specs=logical_spec(output), check_vma=False)


def check_divides(field: str, value: int, mesh: Mesh, logical: str) -> None:
    """Raise UserError unless the mesh axes of `logical` divide `value`."""
    fitting = rounded_up(value, mesh, logical)
    if value != fitting:
        raise UserError(
            field=field,
            got=value,
            wanted=f"a multiple of {_shards(mesh, logical)}, the shards of "
            f"{'×'.join(RULES[logical])}",
            fix=f"try {fitting}",
        )


def rounded_up(value: int, mesh: Mesh, logical: str) -> int:
    """The next multiple of what the mesh axes of `logical` divide."""
    shards = _shards(mesh, logical)
    return -(-value // shards) * shards


def _shards(mesh: Mesh, logical: str) -> int:
    return math.prod(mesh.shape[name] for name in RULES[logical])


def shard_batch(batch: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Put a host's part of a batch of rows `[B, T, ...]` onto the mesh.

    Each process gives its own rows; together they form the global batch. What names a row
    (`row_id`, `digest`) stays on the host.
    """
    return {
        name: jax.make_array_from_process_local_data(
            logical_sharding(
                mesh,
                ([axes.BATCH, axes.LENGTH] + [None] * value.ndim)[: value.ndim],
            ),
            value,
        )
        for name, value in batch.items()
        if name not in ("row_id", "digest")
    }
