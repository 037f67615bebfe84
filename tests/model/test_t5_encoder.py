"""The T5 encoder against its formulas, written out in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minillm.core.errors import UserError
from minillm.core.sharding import MeshConfig, make_mesh
from minillm.model.functional import ModelFunction
from minillm.model.t5_encoder import T5Config, T5Encoder
from tests.tolerances import TOLERANCES

SMALL = T5Config(
    vocab_size=23,
    hidden_size=12,
    num_layers=2,
    num_heads=3,
    head_dim=5,
    intermediate_size=18,
    num_buckets=8,
    max_distance=9,
)
CONFIGS = {
    "relu": SMALL,
    "gated-gelu": T5Config(**{**vars(SMALL), "activation": "gated-gelu", "scan_layers": False}),
}


def random_params(config):
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        mean = 1.0 if "norm" in path[-1].key else 0.0
        return rng.normal(mean, 0.3, leaf.shape).astype(np.float32)

    abstract = ModelFunction(config, T5Encoder).abstract(make_mesh(MeshConfig()))
    return jax.tree_util.tree_map_with_path(fill, abstract)


def norm(x, scale, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * scale


def bucket(offset, buckets, reach):
    """Half of the buckets for keys that follow; of a half, half for single distances."""
    half, distance = buckets // 2, abs(offset)
    single = half // 2
    found = distance
    if distance >= single:
        share = math.log(distance / single) / math.log(reach / single)
        found = min(single + int(share * (half - single)), half - 1)
    return found + (half if offset > 0 else 0)


def states_by_formula(config, params, tokens):
    """One text, position by position and head by head."""
    params = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    blocks, eps, count = params["blocks"], config.norm_eps, len(tokens)
    x = params["embedding"][tokens]
    for layer in range(config.num_layers):
        qkv = np.einsum(
            "td,dcnh->cnth", norm(x, blocks["attention_norm"][layer], eps), blocks["qkv"][layer]
        )
        mixed = np.zeros((count, config.num_heads, config.head_dim))
        for head in range(config.num_heads):
            queries, keys, values = qkv[:, head]
            for at in range(count):
                where = [
                    bucket(s - at, config.num_buckets, config.max_distance) for s in range(count)
                ]
                scores = keys @ queries[at] + params["position_bias"][head, where]
                weights = np.exp(scores - scores.max())
                mixed[at, head] = weights / weights.sum() @ values
        x = x + np.einsum("tnh,nhd->td", mixed, blocks["output"][layer])
        up = np.einsum("td,dcf->ctf", norm(x, blocks["mlp_norm"][layer], eps), blocks["up"][layer])
        if config.activation == "relu":
            inner = np.maximum(up[0], 0)
        else:
            cubed = up[0] + 0.044715 * up[0] ** 3
            inner = 0.5 * up[0] * (1 + np.tanh(math.sqrt(2 / math.pi) * cubed)) * up[1]
        x = x + inner @ blocks["down"][layer]
    return norm(x, params["final_norm"], eps)


@pytest.mark.parametrize("activation", CONFIGS)
def test_states_of_packed_texts_are_those_of_the_formulas_for_each(activation):
    config, params = CONFIGS[activation], random_params(CONFIGS[activation])
    model = ModelFunction(config, T5Encoder).bind(jax.tree.map(jnp.asarray, params))
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, 31)
    lengths = (17, 11, 3)
    segments = np.repeat([1, 2, 0], lengths)
    run = jax.jit(lambda tokens, segments: model.hidden(tokens, segment_ids=segments))
    got = run(tokens[None], segments[None])[0]
    for text in (1, 2):
        expected = states_by_formula(config, params, tokens[segments == text])
        assert np.abs(expected).max() > 1
        tolerance = TOLERANCES["float32"].logits
        np.testing.assert_allclose(got[segments == text], expected, atol=tolerance)


def test_the_encoder_of_flux_1_has_the_bytes_that_its_published_index_says():
    config = T5Config(
        vocab_size=32128,
        hidden_size=4096,
        num_layers=24,
        num_heads=64,
        head_dim=64,
        intermediate_size=10240,
        activation="gated-gelu",
    )
    shapes = ModelFunction(config, T5Encoder).abstract(make_mesh(MeshConfig()))
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    # total_size in text_encoder_2/model.safetensors.index.json, in bfloat16.
    assert 2 * parameters == 9_524_621_312


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 0}, "num_heads: got 0"),
        ({"num_buckets": 3}, "num_buckets: got 3"),
        ({"max_distance": 2}, "max_distance: got 2; wanted at least 3"),
        ({"activation": "gelu"}, "activation: got gelu; wanted one of gated-gelu, relu"),
        ({"compute_dtype": "float16"}, "compute_dtype: got float16"),
    ],
)
def test_a_configuration_out_of_range_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        T5Config(**{**vars(SMALL), **change})
