"""A diffusers pipeline's text encoder: which it is, and where it and its tokenizer lie.

FLUX.2 reads its prompts with a language model: Mistral 3 in FLUX.2-dev, Qwen3 in FLUX.2-klein.
Either is a decoder as any other, with logits; the pipelines take the stream after layers 10, 20,
30 (dev) or 9, 18, 27 (klein), side by side. FLUX.1 reads them with two encoders: T5 1.1, whose
last states it takes, and CLIP, which gives one vector for the whole prompt and is no teacher.
(FLUX.1 pads prompts to 512 tokens, and its T5 sees the padding: rows of one segment, padded with
id 0, get the states that the pipeline gets.)
"""

import dataclasses
import json
from typing import Any

from etils import epath

from minillm.core.errors import UserError
from minillm.data.special_tokens import read_object
from minillm.model.config import Dtype
from minillm.teachers.huggingface import Folder, huggingface_folder
from minillm.teachers.t5 import t5_folder

PIPELINE_INDEX = "model_index.json"
# As the index names them; `text_encoder_2` has its tokenizer in `tokenizer_2`.
_COMPONENTS = ("text_encoder", "text_encoder_2", "text_encoder_3")
_DECODERS = ("Mistral3ForConditionalGeneration", "Qwen3ForCausalLM")
_ENCODER = "T5EncoderModel"


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """What the index says of the model that reads prompts.

    Attributes:
        architecture: its class in transformers.
        directory, tokenizer: folders of the model and of its tokenizer.
    """

    architecture: str
    directory: epath.Path
    tokenizer: epath.Path

    @property
    def is_decoder(self) -> bool:
        """Whether it has logits."""
        return self.architecture in _DECODERS


def find_text_encoder(pipeline: epath.PathLike) -> TextEncoder:
    """The text encoder of a pipeline folder that can be a teacher.

    Raises:
        UserError: the index is none, names no such model, or a folder it names is not there.
    """
    pipeline = epath.Path(pipeline)
    path = pipeline / PIPELINE_INDEX
    index = _read_index(path)
    classes = {name: _class_name(index[name]) for name in _COMPONENTS if name in index}
    known = (*_DECODERS, _ENCODER)
    chosen = next((name for name, found in classes.items() if found in known), None)
    if chosen is None:
        listed = ", ".join(f"{name}: {found}" for name, found in classes.items())
        raise UserError(
            field=str(path),
            got=f"{index.get('_class_name', 'a pipeline')} with {listed or 'no text encoder'}",
            wanted=f"a text encoder that is one of {', '.join(known)}",
            fix="give the folder of a whole FLUX.1 or FLUX.2 pipeline; the diffusion transformer "
            "alone knows no text",
        )
    tokenizer = chosen.replace("text_encoder", "tokenizer")
    if tokenizer not in index:
        raise UserError(
            field=str(path),
            got=f"{chosen} without {tokenizer}",
            wanted=f"an entry {tokenizer}, the tokenizer of {chosen}",
            fix="download the pipeline's own model_index.json again",
        )
    _require_folders(pipeline, chosen, tokenizer)
    return TextEncoder(classes[chosen], pipeline / chosen, pipeline / tokenizer)


def pipeline_folder(pipeline: epath.PathLike, dtype: Dtype | None = None) -> Folder:
    """The pipeline's text encoder but for its weights; it has logits, or hidden states alone.

    Args:
        dtype: of matrices and activations; None is float32.

    Raises:
        UserError: as `find_text_encoder`, or a file of the two folders is missing or broken, or
            they do not fit together.
    """
    found = find_text_encoder(pipeline)
    if found.is_decoder:
        return huggingface_folder(found.directory, dtype, tokenizer=found.tokenizer)
    return t5_folder(found.directory, found.tokenizer, dtype)


def _require_folders(pipeline: epath.Path, *names: str) -> None:
    missing = [name for name in names if not (pipeline / name).is_dir()]
    if missing:
        present = sorted(entry.name for entry in pipeline.iterdir() if entry.is_dir())
        raise UserError(
            field=str(pipeline),
            got=f"folders {', '.join(present) or 'none'}",
            wanted=f"{' and '.join(missing)} too, as {PIPELINE_INDEX} says",
            fix=f"download {' and '.join(f'{name}/' for name in missing)}; nothing else of the "
            "pipeline is read",
        )


def _class_name(entry: Any) -> str:
    """The class in an entry ["transformers", "T5EncoderModel"]; any other entry as it stands."""
    match entry:
        case ["transformers", str(name)]:
            return name
        case _:
            return json.dumps(entry)[:80]


def _read_index(path: epath.Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except OSError as error:
        raise UserError(
            field=str(path),
            got=str(error),
            wanted="the index of a diffusers pipeline",
            fix="correct the path, or download the file again",
        ) from error
