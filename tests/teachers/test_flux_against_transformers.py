"""Pipeline folders written by transformers' own classes: the text encoder's logits and states."""

import numpy as np
import pytest
from etils import epath

from minillm.core.errors import UserError
from minillm.teachers import check_folder, describe_teacher, load_teacher
from tests.teachers.pipelines import (
    FLUX_1,
    FLUX_2,
    KLEIN,
    write_byte_level,
    write_index,
    write_unigram,
)
from tests.tolerances import TOLERANCES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.reference

VOCAB = 262
TEXT = {"vocab_size": VOCAB, "num_hidden_layers": 4, "max_position_embeddings": 64}
SHAPES = [
    {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12},
    {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 8},
    {"hidden_size": 20, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 6},
]


def mistral3(shape):
    text = transformers.MistralConfig(**TEXT, **shape, intermediate_size=44, sliding_window=None)
    vision = transformers.PixtralVisionConfig(
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    settings = transformers.Mistral3Config(
        text_config=text, vision_config=vision, image_token_index=10, tie_word_embeddings=False
    )
    return transformers.Mistral3ForConditionalGeneration(settings)


def qwen3(shape):
    settings = transformers.Qwen3Config(**TEXT, **shape, intermediate_size=52)
    return transformers.Qwen3ForCausalLM(settings)


def t5(shape):
    settings = transformers.T5Config(
        vocab_size=VOCAB,
        d_model=shape["hidden_size"],
        d_kv=shape["head_dim"] - 1,
        num_heads=shape["num_attention_heads"],
        d_ff=36,
        num_layers=2,
        feed_forward_proj="gated-gelu",
    )
    return transformers.T5EncoderModel(settings)


# What is written where, by pipeline.
PIPELINES = {
    "FLUX.1": (FLUX_1, t5, "_2", write_unigram),
    "FLUX.2-dev": (FLUX_2, mistral3, "", write_byte_level),
    "FLUX.2-klein": (KLEIN, qwen3, "", write_byte_level),
}


def write_pipeline(directory, name, shape):
    index, make, suffix, write_tokenizer = PIPELINES[name]
    torch.manual_seed(0)
    model = make(shape).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Norm scales and biases too: their defaults of 1 and 0 would hide a wrong place.
            parameter.add_(torch.randn_like(parameter) * 0.2)
    write_index(directory, index)
    model.save_pretrained(directory / f"text_encoder{suffix}")
    write_tokenizer(directory / f"tokenizer{suffix}")
    return model


def assert_close(got, expected):
    assert float(np.abs(expected).max()) > 1
    np.testing.assert_allclose(got, expected, atol=TOLERANCES["float32"].logits)


@pytest.mark.parametrize("shape", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
@pytest.mark.parametrize("name", ["FLUX.2-dev", "FLUX.2-klein"])
def test_the_text_encoder_of_flux_2_gives_the_logits_of_transformers(tmp_path, name, shape):
    theirs = write_pipeline(tmp_path, name, SHAPES[shape])
    tokens = np.random.default_rng(1).integers(0, 250, (2, 19))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    assert_close(load_teacher(tmp_path).logits(tokens), expected)


@pytest.mark.parametrize(("name", "shape"), [("FLUX.2-dev", 1), ("FLUX.2-klein", 0)])
def test_the_text_encoder_of_flux_2_gives_the_states_that_the_pipeline_takes(tmp_path, name, shape):
    theirs = write_pipeline(tmp_path, name, SHAPES[shape])
    teacher = load_teacher(tmp_path)
    tokens = np.random.default_rng(1).integers(0, 250, (2, 19))
    with torch.no_grad():
        states = theirs(torch.from_numpy(tokens), output_hidden_states=True).hidden_states
    assert_close(teacher.hidden_states(tokens), states[-1].numpy())
    # As the pipelines lay three layers' states side by side, for the transformer that paints.
    layers = (1, 2, 3)
    prompt = torch.stack([states[layer] for layer in layers], dim=1)
    prompt = prompt.permute(0, 2, 1, 3).reshape(*tokens.shape, -1).numpy()
    assert_close(teacher.hidden_states(tokens, layers=layers).reshape(prompt.shape), prompt)


@pytest.mark.parametrize("name", ["FLUX.2-dev", "FLUX.2-klein"])
def test_padding_and_packed_segments_of_flux_2_are_texts_alone(tmp_path, name):
    theirs = write_pipeline(tmp_path, name, SHAPES[0])
    tokens = np.random.default_rng(2).integers(0, 250, (1, 20))
    segments = np.array([[1] * 8 + [2] * 9 + [0] * 3])
    logits = load_teacher(tmp_path).logits(tokens, segments)
    for document in (1, 2):
        own = segments[0] == document
        with torch.no_grad():
            expected = theirs(torch.from_numpy(tokens[:, own])).logits.numpy()
        assert_close(logits[:, own], expected)


def test_the_t5_of_flux_1_gives_the_states_that_the_pipeline_takes(tmp_path):
    theirs = write_pipeline(tmp_path, "FLUX.1", SHAPES[0])
    teacher = load_teacher(tmp_path)
    # The pipeline pads prompts and gives no mask.
    words = teacher.tokenizer.encode("the king sings")
    prompt = [*words, teacher.tokenizer.eos_id]
    tokens = np.array([prompt + [0] * (24 - len(prompt))])
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens))[0].numpy()
    assert_close(teacher.hidden_states(tokens), expected)
    with pytest.raises(UserError, match="T5 encoder.*FLUX.2, which is a decoder"):
        teacher.logits(tokens)
    # What asks for logits is told before anything is loaded or packed.
    with pytest.raises(UserError, match="T5 encoder.*FLUX.2, which is a decoder"):
        check_folder(epath.Path(tmp_path))
    with pytest.raises(UserError, match="T5 encoder.*FLUX.2, which is a decoder"):
        describe_teacher(tmp_path)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_tokenizer_of_the_pipeline_goes_with_its_text_encoder(tmp_path, name):
    write_pipeline(tmp_path, name, SHAPES[1])
    suffix = PIPELINES[name][2]
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / f"tokenizer{suffix}")
    ours, text = load_teacher(tmp_path).tokenizer, "the rain in spain keeps falling"
    assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
    assert ours.eos_id == theirs.eos_token_id
    assert ours.decode(ours.encode(text)) == text
