"""From a Hugging Face folder's config.json and list of tensors to a Transformer's configuration
and the map of its weights."""

import dataclasses
import difflib
import json
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from etils import epath

from minillm.core.errors import UserError
from minillm.model.config import ModelConfig
from minillm.teachers.config_reader import ConfigReader
from minillm.teachers.families import FAMILIES
from minillm.teachers.safetensors_files import unreadable
from minillm.teachers.weights import LAYER, Source, WeightMap

CONFIG = "config.json"
# Old files hold a table that follows from the configuration.
_IGNORED = ("*rotary_emb.inv_freq",)

# Where the tensors "model.…" and "lm_head.…" of a language model stand: alone; beside a vision
# tower, under one of the two names that transformers has had for it; or as a model saved without
# its head, inside such a pair or alone.
_PLACES = (
    ("model.", ""),
    ("model.language_model.", ""),
    ("language_model.model.", "language_model."),
    ("language_model.", ""),
    ("", ""),
)
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


class Description(NamedTuple):
    """What a checkpoint is.

    Attributes:
        config: of the Transformer.
        weights: where each of its parameters comes from, by the names that the files have.
        ignored: names of tensors that nobody needs to read, as patterns of `fnmatch`.
    """

    config: ModelConfig
    weights: WeightMap
    ignored: tuple[str, ...]


def read_config(directory: epath.PathLike) -> dict[str, Any]:
    """The fields of a folder's config.json.

    Raises:
        UserError: there is none that can be read, or it is no JSON object.
    """
    path = epath.Path(directory) / CONFIG
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise _bad_file(path, "no such file") from None
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, RecursionError) as error:
        raise _bad_file(path, f"no JSON: {error}") from error
    if not isinstance(values, dict):
        raise _bad_file(path, f"JSON of a {type(values).__name__}")
    return values


def describe(
    source: epath.PathLike | Mapping[str, Any], tensor_names: Collection[str]
) -> Description:
    """What model a checkpoint is, and where its parameters stand.

    Args:
        source: the folder, or the fields of its config.json.
        tensor_names: of all its files. They tell under which prefix the language model stands,
            and whether the head is a table of its own: where the file has one it is read, also if
            the configuration calls it tied, since such a file may hold another one.

    Raises:
        UserError: an unknown `model_type`, or a field that is missing, ill-typed, out of range,
            or of a function that no family here computes.
    """
    if isinstance(source, Mapping):
        values, where = source, f"{CONFIG}: "
    else:
        values, where = read_config(source), f"{epath.Path(source) / CONFIG}: "
    family = FAMILIES[_model_type(values, where)]
    reader = ConfigReader(values, field=where)
    try:
        config = family.config(reader)
    except UserError as error:
        if error.field.startswith(where):
            raise
        # What fits field by field may still not fit together.
        raise UserError(
            field=f"{where}{error.field}", got=error.got, wanted=error.wanted, fix=error.fix
        ) from error
    reader.refuse_rest()
    untied = family.weights(dataclasses.replace(config, tie_embeddings=False))
    place = max(_PLACES, key=lambda place: _found(untied, place, tensor_names))
    has_head = _placed(_HEAD, place) in tensor_names
    only_head = config.tie_embeddings and _placed(_EMBEDDING, place) not in tensor_names
    if has_head and not only_head:
        config = dataclasses.replace(config, tie_embeddings=False)
    renamed = {_EMBEDDING: _HEAD} if has_head and only_head else {}
    weights = {
        path: tuple(_moved(part, place, renamed) for part in parts)
        for path, parts in family.weights(config).items()
    }
    return Description(config, weights, (*_IGNORED, *family.ignored))


def _model_type(values: Mapping[str, Any], where: str) -> str:
    model_type = values.get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES:
        return model_type
    near = difflib.get_close_matches(str(model_type), FAMILIES, n=1, cutoff=0.0)
    raise UserError(
        field=f"{where}model_type",
        got="nothing" if model_type is None else f"{model_type!r:.80}",
        wanted=f"one of {', '.join(sorted(FAMILIES))}",
        fix=f"take a model of one of these families; the nearest is {near[0]}",
    )


def _found(weights: WeightMap, place: tuple[str, str], names: Collection[str]) -> int:
    """How many of the tensors that the map asks for are there, of the first layer's."""
    wanted = {part.name.replace(LAYER, "0") for parts in weights.values() for part in parts}
    return sum(_placed(name, place) in names for name in wanted)


def _placed(name: str, place: tuple[str, str]) -> str:
    body, head = place
    return body + name.removeprefix("model.") if name.startswith("model.") else head + name


def _moved(part: Source, place: tuple[str, str], renamed: Mapping[str, str]) -> Source:
    return dataclasses.replace(part, name=_placed(renamed.get(part.name, part.name), place))


def _bad_file(path: epath.Path, got: str) -> UserError:
    return UserError(
        field=str(path),
        got=got,
        wanted="the configuration that transformers writes beside the weights",
        fix="give the folder of a Hugging Face model",
    )
