"""The parameters of a Transformer from the tensors of a checkpoint, straight to their shards.

They are read a piece at a time into the places where they stay: beside its shards a host holds a
few pieces, however large a tensor is.
"""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from minillm.core.errors import UserError
from minillm.core.sharding import mesh_of
from minillm.teachers.pieces import Part
from minillm.teachers.safetensors_files import DTYPES, TensorFiles, some
from minillm.teachers.shards import DeviceShards, HostShards
from minillm.teachers.weights import LAYER, Path, Source, WeightMap

Params = dict[str, Any]

# The first axis of parameters below it is the layer.
_STACKED = "blocks"
# How many names an error lists.
_NAMED = 5
_SAVED_TOGETHER = "give the config.json that was saved with these weights, and all of them"


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
        ignored: patterns of `fnmatch` for names of tensors that may stay unread.

    Raises:
        UserError: before anything is read, a tensor that is missing, of another shape, of no
            weight's type, or there without being asked for; afterwards, values not finite.
    """
    leaves = _leaves(abstract)
    _require_whole(weight_map, leaves)
    layers = max((leaf.shape[0] for path, leaf in leaves.items() if path[0] == _STACKED), default=0)
    check_tensors(files, weight_map, layers, ignored=ignored)
    tensors = list(_tensors(weight_map, layers))
    # All are asked for their memory before the first is read: where it is short, this is when.
    params = {path: _shards(leaf, len(tensors)) for path, leaf in leaves.items()}

    def write(number: int) -> None:
        name, source, path, layer = tensors[number]
        params[path].write(Part(files, name, source, leaves[path].sharding, layer), number)

    in_files = sorted(range(len(tensors)), key=lambda number: files.place(tensors[number].name))
    pool = ThreadPoolExecutor(min(param.writers for param in params.values()))
    try:
        for _ in pool.map(write, in_files):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    finite = np.logical_and.reduce([param.finite() for param in params.values()])
    _require_finite(files, [tensor.name for tensor in tensors], finite)
    return _tree({path: param.array() for path, param in params.items()})


class _Tensor(NamedTuple):
    """A source in one layer, or in a parameter without layers."""

    name: str
    source: Source
    path: Path
    layer: int | None


def _tensors(weight_map: WeightMap, layers: int) -> Iterator[_Tensor]:
    for path, sources in weight_map.items():
        for layer in range(layers) if path[0] == _STACKED else (None,):
            for source in sources:
                yield _Tensor(source.name.replace(LAYER, str(layer)), source, path, layer)


def check_tensors(
    files: TensorFiles, weight_map: WeightMap, layers: int, *, ignored: Sequence[str] = ()
) -> None:
    """Raise UserError unless the files hold what the map asks for, and nothing else.

    Args:
        layers: how many the model has.
        ignored: patterns of `fnmatch` for names of tensors that may stay unread.
    """
    present = set(files.names)
    wanted: dict[str, tuple[int, ...]] = {}
    missing: list[str] = []
    for tensor in _tensors(weight_map, layers):
        wanted[tensor.name] = tensor.source.shape
        if tensor.name not in present and tensor.name not in missing:
            missing.append(tensor.name)
        # A mistyped number of layers may be too large to go through.
        if len(missing) > _NAMED:
            break
    if missing:
        raise UserError(
            field=f"{files.directory}: weights",
            got=f"no {some(missing, _NAMED)}",
            wanted="all tensors of the model in config.json",
            fix=_SAVED_TOGETHER,
        )
    unread = [
        name
        for name in files.names
        if name not in wanted and not any(fnmatch.fnmatchcase(name, one) for one in ignored)
    ]
    if unread:
        raise UserError(
            field=f"{files.directory}: weights",
            got=f"{some(unread, _NAMED)}, for which the model has no place",
            wanted=f"the {len(wanted)} tensors of the model in config.json and no others",
            fix=_SAVED_TOGETHER,
        )
    for name, shape in wanted.items():
        if files.shape(name) != shape:
            raise UserError(
                field=f"{files.file(name)}: tensor {name}",
                got=f"shape {list(files.shape(name))}",
                wanted=f"{list(shape)}, by config.json",
                fix=_SAVED_TOGETHER,
            )
        if files.dtype(name) not in DTYPES:
            raise UserError(
                field=f"{files.file(name)}: tensor {name}",
                got=f"values of type {files.dtype(name)}",
                wanted=" or ".join(DTYPES),
                fix="give the weights as they were before they were quantised",
            )


def _require_whole(weight_map: WeightMap, leaves: Mapping[Path, Any]) -> None:
    """Raise ValueError unless the map makes all of every parameter: a family's mistake."""
    if leaves.keys() != weight_map.keys():
        wrong = sorted(".".join(path) for path in leaves.keys() ^ weight_map.keys())
        raise ValueError(f"the weight map and the model differ in {', '.join(wrong)}")
    for path, leaf in leaves.items():
        shape = leaf.shape[path[0] == _STACKED :]
        filled = 0
        for source in weight_map[path]:
            part = [source.view[axis] for axis in source.order]
            axis, start = source.at or (0, 0)
            good = start == filled and part[:axis] + part[axis + 1 :] == [
                *shape[:axis],
                *shape[axis + 1 :],
            ]
            filled += part[axis]
            if not good or filled > shape[axis]:
                raise ValueError(f"{source.name}: {part} at {start} of {'.'.join(path)} {shape}")
        if filled != shape[axis]:
            raise ValueError(f"{'.'.join(path)}: only {filled} of {shape[axis]} along axis {axis}")


def _shards(leaf: jax.ShapeDtypeStruct, tensors: int) -> HostShards | DeviceShards:
    on_host = mesh_of(leaf).devices.flat[0].platform == "cpu"
    return (HostShards if on_host else DeviceShards)(leaf, tensors)


def _require_finite(files: TensorFiles, names: Sequence[str], finite: np.ndarray) -> None:
    """Raise UserError for tensors with other values: no target that they make would be finite."""
    if jax.process_count() > 1:
        # All hosts come to one answer, of which each saw its own parts.
        finite = multihost_utils.process_allgather(finite).all(axis=0)
    if not finite.all():
        bad = [name for name, is_good in zip(names, finite, strict=True) if not is_good]
        raise UserError(
            field=f"{files.directory}: weights",
            got=f"infinite values, or what is no number, in {some(bad, _NAMED)}",
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
