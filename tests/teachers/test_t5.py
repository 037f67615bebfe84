"""The T5 encoder against transformers: hidden states, padding, packed rows."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minillm.core.errors import UserError
from minillm.core.sharding import MeshConfig, make_mesh
from minillm.model.t5_encoder import offset_buckets
from minillm.teachers import Teacher
from minillm.teachers.huggingface import huggingface_teacher
from minillm.teachers.t5 import t5_folder
from tests.teachers.pipelines import write_byte_level, write_unigram
from tests.tolerances import TOLERANCES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.reference

# Head sizes that are odd, or no part of the width; few buckets, so that far ones are reached.
SHAPES = {
    "gated": {"d_model": 24, "d_kv": 7, "num_heads": 3, "d_ff": 40, "num_layers": 3},
    "relu": {"d_model": 32, "d_kv": 5, "num_heads": 4, "d_ff": 20, "num_layers": 2},
    "gated few buckets": {
        "d_model": 20,
        "d_kv": 12,
        "num_heads": 1,
        "d_ff": 33,
        "num_layers": 4,
        "relative_attention_num_buckets": 10,
        "relative_attention_max_distance": 11,
    },
}
VOCAB = 61
GATED = {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": True}


def reference_encoder(shape, seed=0):
    activation = "gated-gelu" if shape.startswith("gated") else "relu"
    settings = transformers.T5Config(
        vocab_size=VOCAB, feed_forward_proj=activation, **SHAPES[shape]
    )
    torch.manual_seed(seed)
    model = transformers.T5EncoderModel(settings).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Norm scales too, whose default of 1 would hide a wrong place; and biases that count.
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


class Pair(NamedTuple):
    """Theirs, the folder it was saved to, and what is loaded from there."""

    theirs: Any
    folder: Path
    teacher: Teacher


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    made = {}
    for shape in SHAPES:
        theirs, folder = reference_encoder(shape), tmp_path_factory.mktemp("t5")
        theirs.save_pretrained(folder)
        write_unigram(folder)
        made[shape] = Pair(theirs, folder, load(folder))
    return made


def load(folder, **settings):
    return huggingface_teacher(t5_folder(folder, folder, **settings), mesh=make_mesh(MeshConfig()))


def reference_states(theirs, tokens, mask=None):
    mask = None if mask is None else torch.from_numpy(mask)
    with torch.no_grad():
        return theirs(torch.from_numpy(tokens), attention_mask=mask).last_hidden_state.numpy()


def draw(*shape):
    return np.random.default_rng(3).integers(0, VOCAB, shape)


def assert_close(got, expected):
    np.testing.assert_allclose(got, expected, atol=TOLERANCES["float32"].logits)


@pytest.mark.parametrize("shape", SHAPES)
def test_hidden_states_equal_those_of_transformers(pairs, shape):
    theirs, _, teacher = pairs[shape]
    tokens = draw(2, 37)
    expected = reference_states(theirs, tokens)
    assert float(np.abs(expected).max()) > 1
    assert_close(teacher.hidden_states(tokens), expected)


def test_states_after_chosen_layers_equal_those_of_transformers(pairs):
    theirs, _, teacher = pairs["gated"]
    tokens, last = draw(2, 11), theirs.config.num_layers
    layers = (last - 1, 0, 1)
    with torch.no_grad():
        states = theirs(torch.from_numpy(tokens), output_hidden_states=True).hidden_states
    expected = np.stack([states[layer].numpy() for layer in layers], axis=2)
    assert_close(teacher.hidden_states(tokens, layers=layers), expected)


def test_blocks_of_queries_and_a_rest_give_the_states_of_a_long_row(pairs):
    theirs, _, teacher = pairs["gated"]
    tokens = draw(1, 300)
    assert_close(teacher.hidden_states(tokens), reference_states(theirs, tokens))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_as_segment_0_is_the_mask_of_transformers(pairs, side):
    theirs, _, teacher = pairs["gated"]
    tokens, mask = draw(2, 20), np.ones((2, 20), np.int64)
    mask[0, :7] = 0
    mask[1, :12] = 0
    mask = mask if side == "left" else mask[:, ::-1].copy()
    expected = reference_states(theirs, tokens, mask)
    got = teacher.hidden_states(tokens, mask)
    assert_close(got[mask == 1], expected[mask == 1])
    assert np.isfinite(got).all()


@pytest.mark.parametrize("restart", [False, True])
def test_documents_of_a_packed_row_get_the_states_they_have_alone(pairs, restart):
    theirs, _, teacher = pairs["relu"]
    tokens, lengths = draw(1, 30), (9, 4, 13)
    segments = np.concatenate([np.full(n, i + 1) for i, n in enumerate(lengths)] + [[0] * 4])
    starting = np.concatenate([np.arange(n) for n in (*lengths, 4)])
    positions = starting[None] if restart else None
    got = teacher.hidden_states(tokens, segments[None], positions)
    for index in range(3):
        own = segments == index + 1
        assert_close(got[:, own], reference_states(theirs, tokens[:, own]))


def test_bfloat16_is_as_close_to_float32_as_in_transformers(pairs):
    theirs = reference_encoder("gated")
    tokens = draw(2, 25)
    exact = reference_states(theirs, tokens)
    got = load(pairs["gated"].folder, dtype="bfloat16").hidden_states(tokens)
    assert got.dtype == jnp.bfloat16

    def distance(rounded):
        return float(np.sqrt(np.mean((np.asarray(rounded, np.float32) - exact) ** 2)))

    with torch.no_grad():
        half = theirs.bfloat16()(torch.from_numpy(tokens)).last_hidden_state
    # The same roundings in another order: neither is ahead by more than chance.
    assert 0 < distance(got) < 1.2 * distance(half.float().numpy())


@pytest.mark.parametrize(("buckets", "reach"), [(32, 128), (10, 11), (4, 3), (7, 50), (64, 500)])
def test_buckets_are_those_of_transformers_at_every_offset(buckets, reach):
    module = transformers.models.t5.modeling_t5.T5Attention
    offsets = torch.arange(-reach - 40, reach + 41)
    expected = module._relative_position_bucket(offsets, True, buckets, reach).numpy()
    got = offset_buckets(buckets, reach)[np.clip(offsets.numpy(), -reach, reach) + reach]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("names", [["encoder.embed_tokens"], ["shared", "encoder.embed_tokens"]])
def test_the_embedding_is_found_under_either_name(pairs, tmp_path, names):
    theirs, folder, _ = pairs["relu"]
    shutil.copytree(folder, tmp_path / "t5")
    tensors = load_file(folder / "model.safetensors")
    table = tensors.pop("shared.weight")
    tensors |= {f"{name}.weight": table.copy() for name in names}
    save_file(tensors, tmp_path / "t5" / "model.safetensors")
    tokens = draw(1, 9)
    expected = reference_states(theirs, tokens)
    assert_close(load(tmp_path / "t5").hidden_states(tokens), expected)


def test_of_a_whole_t5_the_encoder_is_read(tmp_path):
    settings = transformers.T5Config(vocab_size=VOCAB, num_decoder_layers=1, **SHAPES["relu"])
    torch.manual_seed(1)
    whole = transformers.T5ForConditionalGeneration(settings).float().eval()
    whole.save_pretrained(tmp_path)
    write_unigram(tmp_path)
    tokens = draw(1, 12)
    expected = reference_states(whole.get_encoder(), tokens)
    assert_close(load(tmp_path).hidden_states(tokens), expected)


def test_logits_are_refused_and_the_error_says_what_to_do_instead(pairs):
    with pytest.raises(UserError, match="predicts no next token; .*hidden states instead"):
        pairs["relu"].teacher.logits(draw(1, 5))


@pytest.mark.parametrize("layers", [(3,), (-1,), ()])
def test_layers_that_the_teacher_does_not_have_are_refused(pairs, layers):
    with pytest.raises(UserError, match="layers: got .*numbers from 0 to 2"):
        pairs["relu"].teacher.hidden_states(draw(1, 5), layers=layers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feed_forward_proj": "gated-silu"}, "config.json: feed_forward_proj: got 'gated-silu'"),
        ({"dense_act_fn": "silu"}, "config.json: dense_act_fn: got 'silu'; wanted one of relu"),
        ({"is_gated_act": True}, "config.json: is_gated_act: got True; wanted false"),
        ({"relative_attention_max_distance": 2**31}, "max_distance: got 2147483648"),
        ({"is_decoder": True}, "config.json: is_decoder: got True"),
        ({"model_type": "mt5"}, "config.json: model_type: got 'mt5'"),
        ({"num_heads": 0}, "config.json: num_heads: got 0"),
        ({"num_heads": 2**30}, "config.json: num_heads: got 1073741824"),
        ({"num_layers": 2**30}, "config.json: num_layers: got 1073741824"),
        ({"d_kv": 6}, r"SelfAttention.*shape \[20, 32\]; wanted \[24, 32\]"),
        ({"num_layers": 3}, "got no encoder.block.2"),
        ({"num_layers": 1}, "encoder.block.1.*for which the model has no place"),
        ({"feed_forward_proj": "gated-gelu"}, "config.json: dense_act_fn: got 'relu'"),
        (GATED, "no encoder.block.0.layer.1.DenseReluDense.wi_0"),
        ({"relative_attention_num_buckets": 3}, "num_buckets: got 3; wanted an integer from 4"),
        ({"relative_attention_max_distance": 8}, "max_distance: got 8; wanted an integer from 9"),
        ({"vocab_size": 40}, r"shared.weight: got shape \[61, 32\]; wanted \[40, 32\]"),
        ({"quantization_config": {"bits": 4}}, "config.json: quantization_config"),
    ],
)
def test_a_configuration_that_the_encoder_is_not_of_is_refused(pairs, tmp_path, change, message):
    folder = shutil.copytree(pairs["relu"].folder, tmp_path / "t5")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **change}))
    with pytest.raises(UserError, match=message):
        load(folder)


def test_a_tokenizer_with_more_tokens_than_the_encoder_is_refused(pairs, tmp_path):
    write_byte_level(tmp_path)
    with pytest.raises(UserError, match="its tokenizer: got 258 tokens; wanted about 61"):
        t5_folder(pairs["relu"].folder, tmp_path)
