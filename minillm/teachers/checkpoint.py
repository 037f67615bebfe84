"""A teacher from a minillm model folder: model.json, tokenizer.model, checkpoints/."""

import dataclasses

from etils import epath
from jax.sharding import Mesh

from minillm.core.checkpoint import MODEL_DESCRIPTION, load_params, read_model_description
from minillm.core.errors import UserError
from minillm.data.load_tokenizer import load_tokenizer
from minillm.data.tokenizer_protocol import Tokenizer
from minillm.model.config import Dtype, ModelConfig
from minillm.model.functional import ModelFunction
from minillm.teachers.teacher import Teacher


def checkpoint_description(
    directory: epath.Path, dtype: Dtype | None = None
) -> tuple[ModelConfig, Tokenizer]:
    """What the model and its tokenizer are, without the weights.

    Raises:
        UserError: a part of the folder is missing or the two do not fit together.
    """
    description = directory / MODEL_DESCRIPTION
    config = ModelConfig.from_dict(read_model_description(directory), field=str(description))
    tokenizer = load_tokenizer(directory)
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            field=f"{directory}: its tokenizer",
            got=f"{tokenizer.vocab_size} tokens",
            wanted=f"{config.vocab_size}, the vocabulary of the model beside it",
            fix="put the tokenizer there with which the model was trained",
        )
    return dataclasses.replace(config, compute_dtype=dtype or config.compute_dtype), tokenizer


def checkpoint_teacher(directory: epath.Path, *, mesh: Mesh, dtype: Dtype | None = None) -> Teacher:
    """The newest checkpoint of a folder that a training wrote, each tensor onto its own shards.

    Args:
        dtype: of matrices and activations; None as the model was trained.

    Raises:
        UserError: a part of the folder is missing or is none of that model's.
    """
    config, tokenizer = checkpoint_description(directory, dtype)
    function = ModelFunction(config)
    params = load_params(directory, function.abstract(mesh, dtype or "float32"))
    return Teacher(function.bind(params), tokenizer=tokenizer)
