"""A pipeline's index leads to its text encoder, or an error says what is missing."""

import pytest
from etils import epath

from minillm.core.errors import UserError
from minillm.teachers import tokenizer_folder
from minillm.teachers.flux import find_text_encoder
from tests.teachers.pipelines import FLUX_1, FLUX_2, KLEIN, write_index

FOLDERS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae")


def pipeline(directory, index, folders=FOLDERS):
    write_index(directory, index)
    for name in folders:
        (directory / name).mkdir()
    return directory


@pytest.mark.parametrize(
    ("index", "architecture", "suffix", "decoder"),
    [
        (FLUX_1, "T5EncoderModel", "_2", False),
        (FLUX_2, "Mistral3ForConditionalGeneration", "", True),
        (KLEIN, "Qwen3ForCausalLM", "", True),
    ],
)
def test_the_index_says_which_model_reads_prompts(tmp_path, index, architecture, suffix, decoder):
    found = find_text_encoder(pipeline(tmp_path, index))
    assert (found.architecture, found.is_decoder) == (architecture, decoder)
    assert (found.directory.name, found.tokenizer.name) == (
        f"text_encoder{suffix}",
        f"tokenizer{suffix}",
    )


def without(index, *names):
    return {name: value for name, value in index.items() if name not in names}


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (without(FLUX_2, "text_encoder"), "Flux2Pipeline with no text encoder; wanted .*Qwen3For"),
        (
            {**FLUX_2, "text_encoder": [None, None]},
            r"text_encoder: \[null, null\]; wanted .*T5EncoderModel",
        ),
        (
            {**FLUX_2, "text_encoder": ["transformers", "GemmaModel"]},
            "text_encoder: GemmaModel; wanted",
        ),
        ({**FLUX_2, "text_encoder": ["my_code", "Qwen3ForCausalLM"]}, "text_encoder: .*my_code"),
        ({**FLUX_2, "text_encoder": {"Qwen3ForCausalLM": 1}}, "text_encoder: .*: 1}; wanted"),
        (without(FLUX_1, "text_encoder_2"), "text_encoder: CLIPTextModel; wanted"),
        (without(FLUX_1, "tokenizer_2"), "text_encoder_2 without tokenizer_2"),
        ({}, "a pipeline with no text encoder"),
        ([1, 2], "a JSON list; wanted"),
        ('{"text_encoder": ', "model_index.json: got no JSON"),
        ("\x00", "model_index.json: got no JSON"),
        ("[" * 100_000, "model_index.json: got no JSON"),
    ],
)
def test_an_index_without_a_known_text_encoder_is_refused(tmp_path, index, message):
    with pytest.raises(UserError, match=message):
        find_text_encoder(pipeline(tmp_path, index))


def test_a_download_of_the_diffusion_transformer_alone_says_what_to_download(tmp_path):
    folder = pipeline(tmp_path, FLUX_2, ("transformer", "vae"))
    with pytest.raises(UserError, match="folders transformer, vae; wanted text_encoder and token"):
        find_text_encoder(folder)


def test_a_folder_that_the_index_names_must_be_there(tmp_path):
    folder = pipeline(tmp_path, FLUX_1, ("text_encoder", "text_encoder_2", "tokenizer"))
    with pytest.raises(UserError, match="wanted tokenizer_2 too.*download tokenizer_2/;"):
        find_text_encoder(folder)


def test_the_tokenizer_lies_where_the_index_says_and_else_with_the_model(tmp_path):
    folder = epath.Path(pipeline(tmp_path, FLUX_1))
    assert tokenizer_folder(folder) == folder / "tokenizer_2"
    assert tokenizer_folder(folder / "text_encoder_2") == folder / "text_encoder_2"
