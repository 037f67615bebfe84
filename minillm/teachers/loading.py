"""The parameters of a Transformer from the tensors of a checkpoint, straight to their shards.

Every parameter is laid out on the mesh first and then filled piece by piece, in place: beside its
shards a host never holds more than two pieces, however large a tensor is.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from minillm.core.errors import UserError
from minillm.core.sharding import mesh_of
from minillm.teachers.pieces import Filling, all_finite, fill
from minillm.teachers.safetensors_files import DTYPES, TensorFiles, some
from minillm.teachers.weights import LAYER, Path, Source, WeightMap

Params = dict[str, Any]

# Parameters below are stacked: their first axis is the layer.
_STACKED = "blocks"


def load_weights(
    files: TensorFiles,
    weight_map: WeightMap,
    abstract: Params,
    *,
    ignored: Sequence[str] = (),
) -> Params:
    """Parameters of a model from its files; of several hosts each reads what its devices keep.

    Args:
        weight_map: the parts of every parameter in `abstract`.
        abstract: a tree of `jax.ShapeDtypeStruct` with shardings on one mesh.
        ignored: regular expressions; a tensor may stay unread if one matches its whole name.

    Raises:
        UserError: before anything is read, a tensor that is missing, of another shape, of no
            weight's type, or there without being asked for; afterwards, values not finite.
    """
    leaves = _leaves(abstract)
    _require_same_parameters(leaves, weight_map)
    check_tensors(files, weight_map, leaves, ignored=ignored)
    params = _leaves(_zeros(abstract))
    # Files are read from front to back, as disks are fastest.
    place = {name: number for number, name in enumerate(files.names)}
    order = [
        (path, layer, source, name)
        for path, leaf in leaves.items()
        for layer, source, name in _tensors(path, leaf, weight_map[path])
    ]
    finite = all_finite(mesh_of(params), len(place))
    for path, layer, source, name in sorted(order, key=lambda entry: place[entry[3]]):
        filling = Filling(params[path], finite)
        params[path], finite = fill(filling, files, name, source, number=place[name], layer=layer)
    _require_finite(files, finite)
    return _tree(params)


def check_tensors(
    files: TensorFiles,
    weight_map: WeightMap,
    leaves: Mapping[Path, Any],
    *,
    ignored: Sequence[str] = (),
) -> None:
    """Raise UserError unless the files hold what the map asks for, and nothing else."""
    wanted = {
        name: source
        for path, leaf in leaves.items()
        for _, source, name in _tensors(path, leaf, weight_map[path])
    }
    saved_together = "give the config.json that was saved with these weights, and all of them"
    present = set(files.names)
    if missing := [name for name in wanted if name not in present]:
        raise UserError(
            field=f"{files.directory}: weights",
            got=f"no {some(missing)}",
            wanted=f"the {len(wanted)} tensors of the model in config.json",
            fix=saved_together,
        )
    may_stay = [re.compile(pattern) for pattern in ignored]
    unread = [
        name
        for name in files.names
        if name not in wanted and not any(pattern.fullmatch(name) for pattern in may_stay)
    ]
    if unread:
        raise UserError(
            field=f"{files.directory}: weights",
            got=f"{some(unread)}, for which the model has no place",
            wanted=f"the {len(wanted)} tensors of the model in config.json and no others",
            fix=saved_together,
        )
    for name, source in wanted.items():
        if files.shape(name) != source.shape:
            raise UserError(
                field=f"{files.file(name)}: tensor {name}",
                got=f"shape {list(files.shape(name))}",
                wanted=f"{list(source.shape)}, by config.json",
                fix=saved_together,
            )
        if files.dtype(name) not in DTYPES:
            raise UserError(
                field=f"{files.file(name)}: tensor {name}",
                got=f"values of type {files.dtype(name)}",
                wanted=" or ".join(DTYPES),
                fix="give the weights as they were before they were quantised",
            )


def _require_same_parameters(leaves: Mapping[Path, Any], weight_map: WeightMap) -> None:
    """A family's mistake, and no user's."""
    if leaves.keys() != weight_map.keys():
        wrong = sorted(".".join(path) for path in leaves.keys() ^ weight_map.keys())
        raise ValueError(f"the weight map and the model differ in {', '.join(wrong)}")


def _tensors(
    path: Path, leaf: Any, sources: Sequence[Source]
) -> Iterator[tuple[int | None, Source, str]]:
    """Layer, source and name of every tensor that goes into a parameter."""
    for layer in range(leaf.shape[0]) if path[0] == _STACKED else (None,):
        for source in sources:
            yield layer, source, source.name.replace(LAYER, str(layer))


def _zeros(abstract: Params) -> Params:
    def make() -> Params:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract)

    return jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))()


def _require_finite(files: TensorFiles, finite: jax.Array) -> None:
    """Raise UserError for tensors with values that are not: no target made of them would be."""
    # Every host comes to the same answer.
    everywhere = NamedSharding(mesh_of(finite), PartitionSpec())
    good = jax.jit(lambda found: found.all(axis=(0, 1, 2, 3)), out_shardings=everywhere)(finite)
    if bad := [
        name for name, is_good in zip(files.names, good.tolist(), strict=True) if not is_good
    ]:
        raise UserError(
            field=f"{files.directory}: weights",
            got=f"infinite values, or what is no number, in {some(bad)}",
            wanted="finite numbers, in the type that they are loaded in",
            fix="download the weights again, or load them in float32",
        )


def _leaves(tree: Mapping[str, Any], above: Path = ()) -> dict[Path, Any]:
    """The leaves of nested dicts, by their keys from the root on."""
    found: dict[Path, Any] = {}
    for key, value in tree.items():
        path = (*above, key)
        found |= _leaves(value, path) if isinstance(value, Mapping) else {path: value}
    return found


def _tree(leaves: Mapping[Path, Any]) -> Params:
    tree: Params = {}
    for path, leaf in leaves.items():
        below = tree
        for key in path[:-1]:
            below = below.setdefault(key, {})
        below[path[-1]] = leaf
    return tree
