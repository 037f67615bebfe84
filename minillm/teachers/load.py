"""From a path to a teacher."""

import dataclasses
import os

from etils import epath
from jax.sharding import Mesh

from minillm.core.checkpoint import MODEL_DESCRIPTION
from minillm.core.errors import UserError
from minillm.core.sharding import MeshConfig, make_mesh
from minillm.data.tokenizer_protocol import Tokenizer
from minillm.model.config import Dtype, ModelConfig
from minillm.model.t5_encoder import T5Config
from minillm.teachers.checkpoint import checkpoint_description, checkpoint_teacher
from minillm.teachers.flux import PIPELINE_INDEX, find_text_encoder, pipeline_folder
from minillm.teachers.huggingface import Folder, huggingface_folder, huggingface_teacher
from minillm.teachers.huggingface_config import CONFIG
from minillm.teachers.mock import mock_config, mock_teacher
from minillm.teachers.safetensors_files import ADAPTER_FILES, adapter
from minillm.teachers.teacher import Teacher, require_decoder

MOCK = "mock"


def load_teacher(
    path: epath.PathLike,
    *,
    vocab_size: int | None = None,
    seed: int = 0,
    mesh: Mesh | None = None,
    dtype: Dtype | None = None,
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
        dtype: of matrices and activations; None takes what a minillm model was trained in, and
            float32 for any other.

    Raises:
        UserError: nothing there, no model, or one of another vocabulary.
    """
    mesh = make_mesh(MeshConfig()) if mesh is None else mesh
    folder = None if os.fspath(path) == MOCK else _foreign_folder(epath.Path(path), dtype)
    if folder is not None:
        _require_ids(path, folder.config, vocab_size, folder.tokenizer)
        return huggingface_teacher(folder, mesh=mesh)
    config, _ = describe_teacher(path, vocab_size=vocab_size, dtype=dtype)
    if os.fspath(path) == MOCK:
        return mock_teacher(config.vocab_size, seed=seed, mesh=mesh, dtype=dtype)
    return checkpoint_teacher(epath.Path(path), mesh=mesh, dtype=dtype)


def describe_teacher(
    path: epath.PathLike, *, vocab_size: int | None = None, dtype: Dtype | None = None
) -> tuple[ModelConfig, Tokenizer | None]:
    """The configuration with which `load_teacher` would load a teacher of logits; its tokenizer.

    No weights are read: what can be wrong with a folder's descriptions is found here.

    Raises:
        UserError: as `load_teacher`, or the teacher has hidden states alone.
    """
    if os.fspath(path) == MOCK:
        if vocab_size is None:
            raise UserError(
                field="vocab_size",
                got="none",
                wanted='the size of the tokenizer that the teacher "mock" shall read',
                fix="give vocab_size=tokenizer.vocab_size",
            )
        config = mock_config(vocab_size)
        return dataclasses.replace(config, compute_dtype=dtype or config.compute_dtype), None
    directory = epath.Path(path)
    folder = _foreign_folder(directory, dtype)
    if folder is not None:
        _require_ids(path, folder.config, vocab_size, folder.tokenizer)
        return require_decoder(folder.config), folder.tokenizer
    own, tokenizer = checkpoint_description(directory, dtype)
    _require_ids(path, own, vocab_size, tokenizer)
    return own, tokenizer


def _require_ids(
    path: epath.PathLike,
    config: ModelConfig | T5Config,
    vocab_size: int | None,
    tokenizer: Tokenizer,
) -> None:
    # Of its own tokenizer's ids, the folder's check has let through those that it may have beyond.
    if vocab_size is not None and vocab_size > max(config.vocab_size, tokenizer.vocab_size):
        raise UserError(
            field=f"teacher {os.fspath(path)}",
            got=f"a vocabulary of {config.vocab_size} tokens",
            wanted=f"at least {vocab_size}, as the rows have",
            fix="pack the text into rows with the teacher's tokenizer",
        )


def check_folder(directory: epath.Path) -> None:
    """Raise UserError unless the folder holds a model that can be a teacher of logits.

    No weights are read. Of another project's folder all else is: what is wrong is found here.
    """
    folder = _foreign_folder(directory)
    if folder is not None:
        require_decoder(folder.config)


def tokenizer_folder(directory: epath.Path) -> epath.Path:
    """Where a teacher's tokenizer lies: with the model, or where a pipeline's index says."""
    is_pipeline = _is_there(directory / PIPELINE_INDEX) and not any(
        _is_there(directory / name) for name in (MODEL_DESCRIPTION, CONFIG)
    )
    return find_text_encoder(directory).tokenizer if is_pipeline else directory


def _foreign_folder(directory: epath.Path, dtype: Dtype | None = None) -> Folder | None:
    """What a folder of another project holds, but for the weights; None of a minillm one.

    Raises:
        UserError: it is neither.
    """
    if _is_there(directory / MODEL_DESCRIPTION):
        return None
    if _is_there(directory / CONFIG):
        return huggingface_folder(directory, dtype)
    if _is_there(directory / PIPELINE_INDEX):
        return pipeline_folder(directory, dtype)
    if any(_is_there(directory / name) for name in ADAPTER_FILES):
        raise adapter(directory)
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
