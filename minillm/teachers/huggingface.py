"""A teacher from a Hugging Face folder: config.json, safetensors files, a tokenizer."""

import dataclasses
from typing import Any, NamedTuple

from etils import epath
from jax.sharding import Mesh

from minillm.core.errors import UserError
from minillm.core.manifest import file_sha256, fingerprint_of
from minillm.data.load_tokenizer import load_tokenizer
from minillm.data.tokenizer_protocol import Tokenizer
from minillm.data.vocabulary import needs_beyond
from minillm.model.config import Dtype, ModelConfig
from minillm.model.functional import ModelFunction
from minillm.model.t5_encoder import T5Config, T5Encoder
from minillm.model.transformer import Transformer
from minillm.teachers.huggingface_config import describe
from minillm.teachers.loading import Params, check_tensors, load_weights
from minillm.teachers.safetensors_files import TensorFiles
from minillm.teachers.teacher import Teacher
from minillm.teachers.weights import WeightMap

# Tables are padded to what divides well, by some hundred rows at most in the models known.
_PADDING = 1024


class Folder(NamedTuple):
    """A folder whose parts were read and fit together; of the weights only where they stand.

    Attributes:
        config: of the Transformer or of the encoder, computing in the type asked for.
        weights: where each of its parameters comes from.
        ignored: patterns of names of tensors that nobody needs to read.
        files: the tensors.
        tokenizer: the one that goes with them.
    """

    config: ModelConfig | T5Config
    weights: WeightMap
    ignored: tuple[str, ...]
    files: TensorFiles
    tokenizer: Tokenizer


def huggingface_folder(
    directory: epath.PathLike,
    dtype: Dtype | None = None,
    *,
    tokenizer: epath.PathLike | None = None,
) -> Folder:
    """Everything but the weights, and whether they are those that the configuration asks for.

    Args:
        dtype: of matrices and activations; None is float32.
        tokenizer: where it lies, if not in the folder.

    Raises:
        UserError: a part is missing or broken, or two do not fit together.
    """
    config, weights, ignored, files = _model(directory, dtype)
    place = directory if tokenizer is None else tokenizer
    loaded = load_tokenizer(place)
    require_same_vocabulary(place, config.vocab_size, loaded)
    return Folder(config, weights, ignored, files, loaded)


def huggingface_teacher(folder: Folder, *, mesh: Mesh) -> Teacher:
    """The model of a folder, each tensor read straight onto its shards.

    Raises:
        UserError: weights that are not finite.
    """
    model = T5Encoder if isinstance(folder.config, T5Config) else Transformer
    function: ModelFunction[Any] = ModelFunction(folder.config, model)
    abstract = function.abstract(mesh, folder.config.compute_dtype)
    params = load_weights(folder.files, folder.weights, abstract, ignored=folder.ignored)
    return Teacher(
        function.bind(params),
        tokenizer=folder.tokenizer,
        weights_fingerprint=lambda: files_fingerprint(folder.files, folder.config.compute_dtype),
    )


def load_model(
    directory: epath.PathLike, *, mesh: Mesh, dtype: Dtype | None = None
) -> tuple[ModelConfig, Params]:
    """As `huggingface_teacher`, without a tokenizer."""
    config, weights, ignored, files = _model(directory, dtype)
    abstract = ModelFunction(config).abstract(mesh, config.compute_dtype)
    return config, load_weights(files, weights, abstract, ignored=ignored)


def files_fingerprint(files: TensorFiles, dtype: str) -> str:
    """SHA-256 (hex) over what the files hold, not what they are called, and the type used."""
    return fingerprint_of({"files": [file_sha256(path) for path in files.paths], "dtype": dtype})


def _model(
    directory: epath.PathLike, dtype: Dtype | None
) -> tuple[ModelConfig, WeightMap, tuple[str, ...], TensorFiles]:
    files = TensorFiles(directory)
    config, weights, ignored = describe(directory, files.names)
    check_tensors(files, weights, config.num_layers, ignored=ignored)
    return dataclasses.replace(config, compute_dtype=dtype or "float32"), weights, ignored, files


def require_same_vocabulary(place: epath.PathLike, vocab_size: int, tokenizer: Tokenizer) -> None:
    """Raise UserError where tokenizer and embedding table are not of one model.

    The table must have a row for every token that text can become. Special tokens beyond it are
    let through: a model that also reads images has some that stand for an image, and text never
    becomes one. Rows without a token are padding, of which there may be some.
    """
    padding = vocab_size - tokenizer.vocab_size
    if needs_beyond(tokenizer, vocab_size) or padding > max(_PADDING, vocab_size // 10):
        raise UserError(
            field=f"{place}: its tokenizer",
            got=f"{tokenizer.vocab_size:,} tokens",
            wanted=f"about {vocab_size:,}, for which the model beside it has a table",
            fix="put the tokenizer there with which the model was trained",
        )
