"""From a path to a teacher."""

import os

from etils import epath
from jax.sharding import Mesh

from minillm.core.checkpoint import MODEL_DESCRIPTION
from minillm.core.errors import UserError
from minillm.core.sharding import MeshConfig, make_mesh
from minillm.teachers.checkpoint import checkpoint_teacher
from minillm.teachers.mock import mock_teacher
from minillm.teachers.teacher import Teacher

MOCK = "mock"
_HUGGING_FACE = ("config.json", "model_index.json")


def load_teacher(
    path: epath.PathLike,
    *,
    vocab_size: int | None = None,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> Teacher:
    """Load a teacher.

    Args:
        path: a folder that a minillm training wrote, or "mock" for a tiny random model.
        vocab_size: of the tokenizer it will read; "mock" is made with it, any other teacher must
            have as many at least (`data.vocabulary` compares what they mean). None takes the
            teacher's own.
        seed: of the weights of "mock".
        mesh: where the weights go; None spreads batches over all devices.

    Raises:
        UserError: nothing there, no model, or one of another vocabulary.
    """
    mesh = make_mesh(MeshConfig()) if mesh is None else mesh
    if os.fspath(path) == MOCK:
        if vocab_size is None:
            raise UserError(
                field="vocab_size",
                got="none",
                wanted='the size of the tokenizer that the teacher "mock" shall read',
                fix="give vocab_size=tokenizer.vocab_size",
            )
        return mock_teacher(vocab_size, seed=seed, mesh=mesh)
    directory = epath.Path(path)
    check_folder(directory)
    teacher = checkpoint_teacher(directory, mesh=mesh)
    if vocab_size is not None and vocab_size > teacher.config.vocab_size:
        raise UserError(
            field=f"teacher {directory}",
            got=f"a vocabulary of {teacher.config.vocab_size} tokens",
            wanted=f"at least {vocab_size}, as the rows have",
            fix="pack the text into rows with the teacher's tokenizer",
        )
    return teacher


def check_folder(directory: epath.Path) -> None:
    """Raise UserError unless the folder holds a kind of model that can be a teacher."""
    if (directory / MODEL_DESCRIPTION).exists():
        return
    got = "a folder that is no model" if directory.is_dir() else "no such folder"
    fix = 'correct the path, or try "mock"'
    if any((directory / name).exists() for name in _HUGGING_FACE):
        got = "a Hugging Face folder"
        fix = "train a teacher with launch/train.py; Hugging Face folders come with a later version"
    raise UserError(
        field="teacher",
        got=f"{directory}, {got}",
        wanted=f"a minillm model folder ({MODEL_DESCRIPTION}, tokenizer.model, checkpoints/)",
        fix=fix,
    )
