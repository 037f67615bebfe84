"""The T5 encoder against transformers: hidden states, padding, packed rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minillm.model.t5_encoder import T5Encoder, offset_buckets
from minillm.teachers.t5 import t5_config, t5_weights
from minillm.teachers.weights import LAYER
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


def encoder(theirs, **changes):
    """Ours with their weights, put together as the map says."""
    settings = theirs.config.to_dict()
    tensors = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
    config = dataclasses.replace(t5_config(settings, field="config.json"), **changes)
    assembled: dict = {}
    for path, sources in t5_weights(config, tensors).items():
        layers = range(config.num_layers) if path[0] == "blocks" else [None]
        stack = [np.concatenate(*parts(sources, tensors, layer)) for layer in layers]
        node = assembled
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = jnp.asarray(np.stack(stack) if path[0] == "blocks" else stack[0])
    graph, state = nnx.split(nnx.eval_shape(lambda: T5Encoder(config, rngs=nnx.Rngs(0))))
    shapes = jax.tree.map(jnp.shape, nnx.to_pure_dict(state))
    assert jax.tree.map(jnp.shape, assembled) == shapes
    nnx.replace_by_pure_dict(state, assembled)
    return nnx.merge(graph, state)


def parts(sources, tensors, layer):
    arrays = []
    for source in sources:
        tensor = tensors[source.name.replace(LAYER, str(layer))]
        assert tensor.shape == source.shape
        arrays.append(tensor.reshape(source.view).transpose(source.order))
    return arrays, sources[0].at[0] if sources[0].at else 0


def reference_states(theirs, tokens, mask=None):
    mask = None if mask is None else torch.from_numpy(mask)
    with torch.no_grad():
        return theirs(torch.from_numpy(tokens), attention_mask=mask).last_hidden_state.numpy()


@nnx.jit
def states(model, tokens, segment_ids=None, positions=None):
    return model.hidden(tokens, segment_ids=segment_ids, positions=positions)


def draw(*shape):
    return np.random.default_rng(3).integers(0, VOCAB, shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_hidden_states_equal_those_of_transformers(shape):
    theirs = reference_encoder(shape)
    tokens = draw(2, 37)
    expected = reference_states(theirs, tokens)
    assert float(np.abs(expected).max()) > 1
    got = states(encoder(theirs), tokens)
    np.testing.assert_allclose(got, expected, atol=TOLERANCES["float32"].logits)


def test_blocks_of_queries_and_a_rest_give_the_states_of_a_long_row():
    theirs = reference_encoder("gated")
    tokens = draw(1, 300)
    got = states(encoder(theirs), tokens)
    expected = reference_states(theirs, tokens)
    np.testing.assert_allclose(got, expected, atol=TOLERANCES["float32"].logits)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_as_segment_0_is_the_mask_of_transformers(side):
    theirs = reference_encoder("gated")
    tokens, mask = draw(2, 20), np.ones((2, 20), np.int64)
    mask[0, :7] = 0
    mask[1, :12] = 0
    mask = mask if side == "left" else mask[:, ::-1].copy()
    expected = reference_states(theirs, tokens, mask)
    got = states(encoder(theirs), tokens, mask)
    tolerance = TOLERANCES["float32"].logits
    np.testing.assert_allclose(got[mask == 1], expected[mask == 1], atol=tolerance)
    assert np.isfinite(got).all()


@pytest.mark.parametrize("restart", [False, True])
def test_documents_of_a_packed_row_get_the_states_they_have_alone(restart):
    theirs = reference_encoder("relu")
    tokens, lengths = draw(1, 30), (9, 4, 13)
    segments = np.concatenate([np.full(n, i + 1) for i, n in enumerate(lengths)] + [[0] * 4])
    starting = np.concatenate([np.arange(n) for n in (*lengths, 4)])
    positions = starting[None] if restart else None
    got = states(encoder(theirs), tokens, segments[None], positions)
    for index in range(3):
        own = segments == index + 1
        expected = reference_states(theirs, tokens[:, own])
        np.testing.assert_allclose(got[:, own], expected, atol=TOLERANCES["float32"].logits)


def test_bfloat16_is_as_close_to_float32_as_in_transformers():
    theirs = reference_encoder("gated")
    tokens = draw(2, 25)
    exact = reference_states(theirs, tokens)
    got = states(encoder(theirs, compute_dtype="bfloat16"), tokens)
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
