import dataclasses
import json

import jax
import pytest
from flax import nnx

from minillm.core.errors import UserError
from minillm.model.config import ModelConfig
from minillm.model.transformer import Transformer
from tests.model.models import SMALL


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": True},
        {"attention_bias": False},
        {"qk_norm": False},
        {"num_kv_heads": 4, "head_dim": 6},
    ],
)
def test_num_params_counts_what_is_built(changes):
    config = dataclasses.replace(SMALL, **changes)
    state = nnx.eval_shape(lambda: nnx.state(Transformer(config, rngs=nnx.Rngs(0))))
    assert config.num_params() == sum(leaf.size for leaf in jax.tree.leaves(state))


def test_a_config_survives_json():
    text = json.dumps(SMALL.to_dict())
    assert ModelConfig.from_dict(json.loads(text)) == SMALL


def test_an_unknown_key_names_the_nearest_known_one():
    values = {**SMALL.to_dict(), "num_layer": 3}
    with pytest.raises(UserError, match="num_layers"):
        ModelConfig.from_dict(values)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 0),
        ("num_layers", -1),
        ("num_kv_heads", 3),
        ("head_dim", 7),
        ("windows", ()),
        ("windows", (0,)),
        ("windows", (4,) * 6),
        ("rope_theta", 0.0),
        ("logit_soft_cap", -1.0),
        ("activation", "relu"),
        ("compute_dtype", "float16"),
        ("remat", "some"),
    ],
)
def test_a_bad_value_is_an_error_that_names_its_field(field, value):
    with pytest.raises(UserError) as caught:
        dataclasses.replace(SMALL, **{field: value})
    assert caught.value.field == f"model.{field}"
    assert caught.value.got == value
    assert caught.value.fix
