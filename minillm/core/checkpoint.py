"""Orbax checkpoints of a training run, and the folder a trained model lives in.

A model folder holds `model.json` (the model's configuration), its tokenizer's files, and
`checkpoints/<step>/` with the items `params`, `optimizer`, `progress`. Only `params` is needed
to run the model.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from minillm.core.errors import UserError
from minillm.core.manifest import write_json

MODEL_DESCRIPTION = "model.json"
CHECKPOINTS = "checkpoints"

Tree = Any


class Restored(NamedTuple):
    """What a run needs to go on: arrays, and the JSON-able rest."""

    step: int
    params: Tree
    optimizer: Tree
    progress: dict[str, Any]


class Checkpointer:
    """Saves in the background, keeps the newest `keep`, never leaves half a checkpoint.

    Orbax writes a checkpoint aside and renames it when every file is there, so whatever
    `latest_step` reports is whole.
    """

    def __init__(self, directory: epath.PathLike, *, keep: int = 2) -> None:
        self._checkpointer = ocp.training.Checkpointer(
            epath.Path(directory).resolve() / CHECKPOINTS,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    @property
    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, *, params: Tree, optimizer: Tree, progress: dict[str, Any]) -> None:
        """Begin a save; arrays are copied before this returns, files are written meanwhile.

        Args:
            progress: JSON-able: data position, random state, fingerprints.
        """
        # Orbax declines a save that overlaps with another one; waiting keeps every save.
        self.wait()
        self._checkpointer.save_checkpointables_async(
            step, {"params": params, "optimizer": optimizer, "progress": progress}, force=True
        )

    def restore(self, *, params: Tree, optimizer: Tree) -> Restored | None:
        """The newest checkpoint, laid out as the given abstract arrays say; None if there is none.

        Args:
            params, optimizer: trees of `jax.ShapeDtypeStruct` with shardings.
        """
        if self.latest_step is None:
            return None
        step = self.latest_step
        loaded = self._checkpointer.load_checkpointables(
            step, {"params": params, "optimizer": optimizer, "progress": None}
        )
        return Restored(step, loaded["params"], loaded["optimizer"], loaded["progress"])

    def wait(self) -> None:
        """Block until the save under way is on disk; raises what went wrong with it."""
        self._checkpointer.wait()

    def close(self) -> None:
        """Wait, then release the background threads."""
        self.wait()
        self._checkpointer.close()


def has_checkpoint(directory: epath.PathLike) -> bool:
    """Whether a model folder has a whole checkpoint; Orbax renames one to its step when it is."""
    folder = epath.Path(directory) / CHECKPOINTS
    return folder.exists() and any(child.name.isdigit() for child in folder.iterdir())


def require_checkpoint(directory: epath.PathLike) -> None:
    """Raise UserError where a finished model folder has lost its parameters."""
    if not has_checkpoint(directory):
        raise UserError(
            field=str(epath.Path(directory) / CHECKPOINTS),
            got="no checkpoint, in a folder whose manifest says complete",
            wanted="the checkpoints that the training wrote",
            fix="restore them, or delete the model folder to train anew",
        )


def abstract_like(tree: Tree) -> Tree:
    """Shapes, dtypes and shardings of a tree of arrays: the form in which to restore it."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def tree_fingerprint(tree: Tree) -> str:
    """SHA-256 (hex) over the names, shapes, dtypes and bytes of a tree of arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        value = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {value.shape} {value.dtype}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def write_model_description(directory: epath.PathLike, config: Mapping[str, Any]) -> None:
    """Write `model.json`."""
    write_json(epath.Path(directory) / MODEL_DESCRIPTION, dict(config))


def _where_the_model_is(directory: epath.Path) -> str:
    inside = directory / "model"
    if (inside / MODEL_DESCRIPTION).exists():
        return f"give {inside}"
    if (directory / "config.json").exists():
        return (
            "a Hugging Face folder is a teacher: precompute its targets and distil a student first"
        )
    return "give the model folder that the training script printed"


def read_model_description(directory: epath.PathLike) -> dict[str, Any]:
    """The model's configuration as a plain dict.

    Raises:
        UserError: the folder holds no minillm model.
    """
    path = epath.Path(directory) / MODEL_DESCRIPTION
    if not path.exists():
        raise UserError(
            field=str(directory),
            got=f"no {MODEL_DESCRIPTION}" if path.parent.exists() else "no such folder",
            wanted="a minillm model folder (model.json, a tokenizer, checkpoints/)",
            fix=_where_the_model_is(path.parent),
        )
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            field=str(path), got=str(error), wanted="JSON", fix="restore or retrain the model"
        ) from error


def load_params(directory: epath.PathLike, abstract: Tree) -> Tree:
    """The newest parameters in a model folder, laid out as `abstract` says.

    Args:
        directory: a model folder.
        abstract: tree of `jax.ShapeDtypeStruct` with shardings, as the model needs it.

    Raises:
        UserError: the folder has no finished checkpoint, or one of other parameters.
    """
    directory = epath.Path(directory).resolve()
    checkpointer = ocp.training.Checkpointer(directory / CHECKPOINTS)
    try:
        if checkpointer.latest is None:
            raise UserError(
                field=str(directory / CHECKPOINTS),
                got="no finished checkpoint",
                wanted="at least one",
                fix="let the training run reach its first save, or give another folder",
            )
        step = checkpointer.latest.step
        stored = checkpointer.checkpointables_metadata(step).metadata["params"]
        _check_same_shapes(directory, stored, abstract)
        return checkpointer.load_checkpointables(step, {"params": abstract})["params"]
    finally:
        checkpointer.close()


def _check_same_shapes(directory: epath.Path, stored: Tree, wanted: Tree) -> None:
    """Compare before reading: Orbax names no parameter, and leaves the reads it began behind."""
    have, want = (
        {
            jax.tree_util.keystr(path): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (stored, wanted)
    )
    for name in sorted(have.keys() | want.keys()):
        if have.get(name) != want.get(name):
            raise UserError(
                field=f"{directory}: parameter {name}",
                got=have.get(name, "none in the checkpoint"),
                wanted=want.get(name, f"none, by {MODEL_DESCRIPTION}"),
                fix=f"restore the {MODEL_DESCRIPTION} that the training wrote",
            )
