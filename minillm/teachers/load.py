"""From a path to a teacher."""

import os

from etils import epath
from jax.sharding import Mesh

from minillm.core.checkpoint import MODEL_DESCRIPTION
from minillm.core.errors import UserError
from minillm.core.sharding import MeshConfig, make_mesh
from minillm.teachers.checkpoint import checkpoint_teacher
from minillm.teachers.flux import PIPELINE_INDEX, pipeline_folder
from minillm.teachers.huggingface import Folder, folder_teacher, huggingface_folder
from minillm.teachers.huggingface_config import CONFIG
from minillm.teachers.mock import mock_teacher
from minillm.teachers.teacher import Teacher

MOCK = "mock"


def load_teacher(
    path: epath.PathLike,
    *,
    vocab_size: int | None = None,
    seed: int = 0,
    mesh: Mesh | None = None,
    dtype: str | None = None,
) -> Teacher:
    """Load a teacher.

    Args:
        path: a Hugging Face folder, a FLUX pipeline's, one that a minillm training wrote, or
            "mock" for a tiny random model.
        vocab_size: of the tokenizer it will read; "mock" is made with it, any other teacher must
            have as many at least (`data.vocabulary` compares what they mean). None takes the
            teacher's own.
        seed: of the weights of "mock".
        mesh: where the weights go; None spreads batches over all devices.
        dtype: of a Hugging Face model's matrices and activations, "float32" or "bfloat16"; None
            is float32.

    Raises:
        UserError: nothing there, no model, or one of another vocabulary.
    """
    if dtype not in (None, "float32", "bfloat16"):
        raise UserError(
            field="dtype", got=dtype, wanted="float32 or bfloat16", fix="leave it out for float32"
        )
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
    if _is_there(directory / MODEL_DESCRIPTION):
        teacher = checkpoint_teacher(directory, mesh=mesh)
    else:
        teacher = folder_teacher(_foreign(directory, dtype), mesh=mesh)
    if vocab_size is not None and vocab_size > teacher.config.vocab_size:
        raise UserError(
            field=f"teacher {directory}",
            got=f"a vocabulary of {teacher.config.vocab_size} tokens",
            wanted=f"at least {vocab_size}, as the rows have",
            fix="pack the text into rows with the teacher's tokenizer",
        )
    return teacher


def check_folder(directory: epath.Path) -> None:
    """Raise UserError unless the folder holds a model that can be a teacher.

    No weights are read, but all else is: what is wrong with a folder is found here.
    """
    if not _is_there(directory / MODEL_DESCRIPTION):
        _foreign(directory)


def _foreign(directory: epath.Path, dtype: str | None = None) -> Folder:
    """What another project's folder holds, but for the weights."""
    if _is_there(directory / CONFIG):
        return huggingface_folder(directory, dtype)
    if _is_there(directory / PIPELINE_INDEX):
        return pipeline_folder(directory, dtype)
    got = "a folder that is no model" if directory.is_dir() else "no such folder"
    fix = 'correct the path, or try "mock"'
    if directory.is_file():
        got, fix = "a file", "give the folder that it lies in"
    raise UserError(
        field="teacher",
        got=f"{directory}, {got}",
        wanted=f"a model folder, with {CONFIG} (Hugging Face), {PIPELINE_INDEX} (FLUX) or "
        f"{MODEL_DESCRIPTION} (minillm)",
        fix=fix,
    )


def _is_there(path: epath.Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise UserError(
            field="teacher",
            got=f"{path}: {error}",
            wanted="a folder that can be read",
            fix="check the path and its permissions",
        ) from None
