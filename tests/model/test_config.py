import dataclasses
import json
import time

import jax
import pytest
from flax import nnx

from minillm.core.errors import UserError
from minillm.model.config import ModelConfig
from minillm.model.rope import LinearStretch, Llama3Stretch, LongStretch, Rope, YarnStretch
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
        {"output_bias": True, "mlp_bias": True},
        {"norms": "after"},
        {"norms": "both"},
        {"qk_norm": False, "joint_qk_norm": True},
    ],
)
def test_num_params_counts_what_is_built(changes):
    config = dataclasses.replace(SMALL, **changes)
    state = nnx.eval_shape(lambda: nnx.state(Transformer(config, rngs=nnx.Rngs(0))))
    assert config.num_params() == sum(leaf.size for leaf in jax.tree.leaves(state))


STRETCHES = [
    None,
    LinearStretch(4.0),
    Llama3Stretch(8.0, 1.0, 4.0, 8192),
    YarnStretch(4.0, 4096, 32.0, 1.0, True),
    LongStretch((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 4096),
]


@pytest.mark.parametrize("stretch", STRETCHES)
def test_a_config_survives_json(stretch):
    ropes = (Rope(1e4, fraction=0.75, stretch=stretch, magnitude=1.5), None)
    config = dataclasses.replace(SMALL, ropes=ropes)
    text = json.dumps(config.to_dict())
    assert ModelConfig.from_dict(json.loads(text)) == config


def test_a_description_from_before_these_options_means_what_it_meant():
    added = ("ropes", "norms", "embedding_scale", "output_bias", "mlp_bias", "joint_qk_norm")
    values = {key: value for key, value in SMALL.to_dict().items() if key not in added}
    del values["attention_scale"]
    assert ModelConfig.from_dict(values) == SMALL
    assert [SMALL.rope(slot) for slot in (0, 1)] == [Rope(SMALL.rope_theta)] * 2


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
        ("norms", "around"),
        ("embedding_scale", 0.0),
        ("attention_scale", -1.0),
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


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: dataclasses.replace(SMALL, ropes=(None,)), "ropes"),
        (
            lambda: dataclasses.replace(SMALL, ropes=(Rope(1e4, fraction=0.4), None)),
            "ropes.fraction",
        ),
        (
            lambda: dataclasses.replace(SMALL, ropes=(Rope(1e4, stretch=STRETCHES[4]), None)),
            "ropes.short",
        ),
        (lambda: dataclasses.replace(SMALL, joint_qk_norm=True), "joint_qk_norm"),
        (lambda: Rope(0.0), "ropes.theta"),
        (lambda: Rope(1e4, fraction=1.5), "ropes.fraction"),
        (lambda: Rope(1e4, magnitude=float("inf")), "ropes.magnitude"),
        (lambda: Rope(1.0, stretch=STRETCHES[3]), "ropes.theta"),
        (lambda: LinearStretch(0.0), "ropes.factor"),
        (lambda: Llama3Stretch(8.0, 4.0, 1.0, 8192), "ropes.high_frequency_factor"),
        (lambda: YarnStretch(4.0, 0, 32.0, 1.0, True), "ropes.original_length"),
        (lambda: LongStretch((1.0, 0.0), (1.0, 1.0), 8), "ropes.short"),
    ],
)
def test_a_rotation_that_cannot_be_is_an_error_that_names_its_field(build, field):
    with pytest.raises(UserError) as caught:
        build()
    assert caught.value.field == f"model.{field}"


def test_a_fix_for_the_key_heads_divides_the_heads():
    with pytest.raises(UserError, match="num_heads=12; fix: try 4"):
        dataclasses.replace(SMALL, num_heads=12, num_kv_heads=8)


def test_a_config_of_very_many_heads_is_made_and_refused_at_once():
    start = time.monotonic()
    many = dataclasses.replace(SMALL, num_heads=2**40, num_kv_heads=2**20)
    assert many.groups == 2**20
    with pytest.raises(UserError, match="num_kv_heads"):
        dataclasses.replace(SMALL, num_heads=2**40, num_kv_heads=3)
    assert time.monotonic() - start < 1
