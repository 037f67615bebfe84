"""config.json is read as transformers reads it, or refused with the field's name."""

import dataclasses
import json

import pytest

from minillm.core.errors import UserError
from minillm.model.rope import LinearStretch, Rope
from minillm.teachers.families import FAMILIES
from minillm.teachers.huggingface_config import describe, read_config
from tests.teachers.family_cases import GLOBAL, LLAMA3, LOCAL, LONG, YARN

SIZES = {
    "vocab_size": 41,
    "hidden_size": 32,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
MISTRAL = {**SIZES, "num_attention_heads": 8}
# The published files of these leave their sizes out where they are the usual ones.
MINIMAL = {
    "gemma3_text": {key: SIZES[key] for key in ("hidden_size", "num_hidden_layers")}
    | {"intermediate_size": 48},
    "gemma3": {"text_config": {"hidden_size": 32, "num_hidden_layers": 7, "intermediate_size": 48}},
    "mistral3": {"text_config": MISTRAL},
}
KEY_HEADS = {
    "num_attention_heads": 32,
    "hidden_size": 64,
}


def minimal(model_type):
    return {"model_type": model_type, **MINIMAL.get(model_type, {**SIZES, **KEY_HEADS})}


def config_of(values):
    return describe(values, ()).config


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.reference
def test_what_a_file_leaves_out_is_as_transformers_has_it(model_type):
    values = minimal(model_type)
    assert config_of(values) == config_of(as_transformers_saves(values))


def as_transformers_saves(values):
    """The same configuration as the newest transformers writes it."""
    transformers = pytest.importorskip("transformers")
    fields = {key: value for key, value in values.items() if key != "model_type"}
    fields = json.loads(json.dumps(fields))
    config = transformers.AutoConfig.for_model(values["model_type"], **fields)
    return json.loads(config.to_json_string(use_diff=True))


OLD_LLAMA3 = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
OLD_LONG = {
    "type": "su",
    "short_factor": [1.0],
    "long_factor": [2.0],
    "original_max_position_embeddings": 4096,
}
LINEAR = {"type": "linear", "factor": 4}
NEW_LINEAR = {"rope_type": "linear", "factor": 4}
SPELLINGS = [
    ("llama", {"rope_theta": 7e5}),
    ("llama", {"rope_theta": 7e5, "rope_scaling": OLD_LLAMA3}),
    ("llama", {"rope_scaling": LINEAR, "rope_parameters": LLAMA3}),
    ("llama", {"rope_theta": 9.0, "rope_parameters": YARN}),
    ("llama", {"rope_scaling": {"type": "yarn", "factor": 4.0}, "max_position_embeddings": 512}),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 0.7}}),
    ("llama", {"rope_scaling": {}, "rope_parameters": None, "num_key_value_heads": None}),
    ("mistral", {"sliding_window": None, "head_dim": None}),
    ("mistral", {"sliding_window": None, "layer_types": [GLOBAL] * 7}),
    ("mistral", {"sliding_window": 9, "layer_types": [LOCAL] * 7}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}),
    ("qwen2", {"sliding_window": 9, "max_window_layers": 0}),
    ("qwen3", {"layer_types": [GLOBAL] * 7, "rope_theta": 1e6}),
    ("gemma2", {"sliding_window": 9, "final_logit_softcapping": None}),
    ("gemma3_text", {"sliding_window_pattern": 3, "rope_theta": 2e6, "rope_scaling": NEW_LINEAR}),
    ("gemma3_text", {"rope_local_base_freq": 5e3, "sliding_window": 9}),
    ("gemma3_text", {"rope_parameters": {LOCAL: {"rope_theta": 8.0}, GLOBAL: None}}),
    ("phi3", {"rope_scaling": OLD_LONG, "max_position_embeddings": 8192}),
    ("phi3", {"partial_rotary_factor": 1.0, "sliding_window": 2047}),
    ("smollm3", {"no_rope_layer_interval": 3, "rope_theta": 5e6}),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 9}),
    ("olmo2", {"rope_theta": 5e5, "attention_bias": True}),
]


@pytest.mark.parametrize(("model_type", "fields"), SPELLINGS)
@pytest.mark.reference
def test_old_spellings_mean_what_transformers_makes_of_them(model_type, fields):
    values = {**minimal(model_type), **fields}
    saved = as_transformers_saves(values)
    assert "rope_scaling" not in saved
    assert config_of(values) == config_of(saved)


@pytest.mark.parametrize(
    ("model_type", "layers", "period"), [("gemma3_text", 26, 6), ("gemma2", 26, 2)]
)
def test_layers_are_the_shortest_pattern_that_repeats(model_type, layers, period):
    values = {**minimal(model_type), "num_hidden_layers": layers, "sliding_window": 9}
    windows = config_of(values).windows
    assert windows == (9,) * (period - 1) + (None,)


def test_layers_without_a_pattern_are_listed_one_by_one():
    fields = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 4}
    assert config_of({**minimal("qwen2"), **fields}).windows == (None,) * 4 + (9,) * 3


def test_only_global_layers_are_stretched_by_the_old_spelling_of_gemma3():
    config = config_of(
        {**minimal("gemma3_text"), "rope_scaling": {"rope_type": "linear", "factor": 8}}
    )
    assert config.ropes == (Rope(1e4),) * 5 + (Rope(1e6, stretch=LinearStretch(8.0)),)


def test_an_unknown_family_names_the_nearest_one():
    with pytest.raises(UserError, match="model_type: got 'gemma_2'.*nearest is gemma2"):
        describe({**minimal("llama"), "model_type": "gemma_2"}, ())
    for bad in ({}, {"model_type": None}, {"model_type": ["llama"]}, {"model_type": 3}):
        with pytest.raises(UserError, match="model_type"):
            describe({**SIZES, **bad}, ())


LONG_FIELDS = {"rope_parameters": LONG, "head_dim": 8}
REFUSED = [
    *[("llama", {key: None}, f"{key}: got None") for key in SIZES],
    ("llama", {"hidden_size": "64"}, "hidden_size: got '64'"),
    ("llama", {"hidden_size": True}, "hidden_size: got True"),
    ("llama", {"hidden_size": 64.0}, "hidden_size"),
    ("llama", {"hidden_size": 0}, "hidden_size"),
    ("llama", {"hidden_size": 65}, "num_attention_heads"),
    ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ("llama", {"num_attention_heads": 2**30, "head_dim": 8}, "num_attention_heads: got 1073741824"),
    *[
        ("llama", {key: 2**30}, f"{key}: got 1073741824; wanted an integer from 1 to 16777216")
        for key in ("vocab_size", "hidden_size", "intermediate_size", "head_dim")
    ],
    ("llama", {"num_key_value_heads": 5}, "num_key_value_heads: got 5; wanted a divisor"),
    ("llama", {"head_dim": 7}, "head_dim"),
    ("llama", {"rms_norm_eps": -1e-5}, "rms_norm_eps"),
    ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ("llama", {"rms_norm_eps": 10**400}, "rms_norm_eps"),
    ("llama", {"hidden_act": "relu"}, "hidden_act: got 'relu'; wanted one of silu"),
    ("llama", {"hidden_act": {}}, "hidden_act"),
    ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings"),
    ("llama", {"attention_bias": "no"}, "attention_bias"),
    ("llama", {"rope_theta": float("inf")}, "rope_theta"),
    ("llama", {"rope_scaling": "linear"}, "rope_scaling: got 'linear'"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type: got 'dynamic'"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor: got nothing"),
    ("llama", {"rope_scaling": {**LINEAR, "fators": 1}}, "rope_scaling.fators"),
    ("llama", {"rope_parameters": {**LLAMA3, "high_freq_factor": 1}}, "high_freq_factor: got 1"),
    ("llama", {"rope_parameters": {**YARN, "rope_theta": 1.0}}, "rope_theta: got 1.0"),
    ("llama", {"rope_parameters": {**YARN, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama", {"num_local_experts": 8}, "num_local_experts: got 8; wanted null or 0: "),
    ("llama", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("llama", {"sliding_window": 9}, "sliding_window: got 9"),
    ("llama", {"layer_types": [LOCAL] * 7}, 'layer_types: got .*; wanted "full_attention" for'),
    ("llama", {"is_encoder_decoder": True}, "is_encoder_decoder: got True; wanted null or f"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved"),
    ("mistral", {"sliding_window": 0}, "sliding_window: got 0"),
    ("mistral", {"attention_bias": True}, "attention_bias"),
    (
        "mistral",
        {"layer_types": [LOCAL] * 6 + [GLOBAL], "sliding_window": 9},
        "layer_types: got .*; wanted sliding_attention everywhere: sliding_window=9",
    ),
    ("mistral", {"layer_types": [GLOBAL] * 7}, "wanted sliding_.*: sliding_window=4096"),
    ("mistral", {"layer_types": [LOCAL] * 7, "sliding_window": None}, "sliding_window: got None"),
    ("mistral", {"layer_types": [LOCAL] * 6}, "layer_types.*a list of 7"),
    ("qwen2", {"layer_types": [LOCAL] * 7}, "sliding_window"),
    ("qwen2", {"layer_types": [GLOBAL] * 6}, "layer_types.*a list of 7"),
    ("qwen2", {"layer_types": ["chunked_attention"] * 7}, "layer_types"),
    ("qwen2", {"layer_types": [[]] * 7}, "layer_types"),
    ("qwen3", {"num_experts": 64}, "num_experts"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma2", {"hidden_activation": None}, "hidden_activation"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("gemma3_text", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters.rope_type"),
    ("gemma3_text", {"rope_scaling": LINEAR}, "rope_scaling.rope_type: got nothing"),
    ("gemma3", {"text_config": 3}, "text_config: got 3"),
    ("gemma3", {"text_config": None}, "text_config: got None"),
    ("gemma3", {"text_config": {**SIZES, "model_type": "llama"}}, "text_config.model_type"),
    ("gemma3", {"text_config": {**SIZES, "final_logit_softcapping": 3.0}}, "final_logit_soft"),
    ("mistral3", {"text_config": {**MISTRAL, "num_experts": 3}}, "text_config.num_experts: got 3"),
    ("phi3", {**LONG_FIELDS, "head_dim": 16}, "short"),
    ("phi3", {"rope_scaling": {**OLD_LONG, "short_factor": 3}}, "rope_scaling.short_factor"),
    ("phi3", {"rope_scaling": {**OLD_LONG, "long_factor": [2.0, "x"]}}, "rope_scaling.long_factor"),
    ("phi3", {"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
    ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
    ("smollm3", {"no_rope_layers": [2] * 7}, "no_rope_layers"),
    ("olmo2", {"clip_qkv": 8.0}, "clip_qkv"),
]


@pytest.mark.parametrize(("model_type", "fields", "message"), REFUSED)
def test_what_cannot_be_computed_is_refused_by_the_name_of_its_field(model_type, fields, message):
    values = {**minimal(model_type), **fields}
    with pytest.raises(UserError, match=message) as caught:
        describe(values, ())
    assert caught.value.field.startswith("config.json: ")
    assert caught.value.fix


@pytest.mark.parametrize("key", SIZES)
def test_a_size_that_is_missing_is_named(key):
    values = {name: value for name, value in minimal("llama").items() if name != key}
    with pytest.raises(UserError, match=f"config.json: {key}: got nothing"):
        describe(values, ())


def test_what_says_nothing_about_the_function_is_let_through():
    harmless = {
        "architectures": ["LlamaForCausalLM"],
        "attention_dropout": 0.1,
        "auto_map": {"AutoModelForCausalLM": "modeling.Mine"},
        "bos_token_id": [1, 2],
        "dtype": "bfloat16",
        "layer_types": [GLOBAL] * 7,
        "num_local_experts": 0,
        "pretraining_tp": 2,
        "sliding_window": None,
        "torch_dtype": "float16",
        "use_cache": False,
    }
    values = minimal("llama")
    assert config_of({**values, **harmless}) == config_of(values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "no JSON"),
        ("[1]", "JSON of a list"),
        ("[" * 10**5, "no JSON"),
        (b"\xff\xfe{", "no JSON"),
    ],
    ids=["none", "cut off", "a list", "deep", "no text"],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, content, message):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        describe(tmp_path, ())
    assert caught.value.field == str(path)


def test_a_folder_in_its_place_is_named_as_one(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match="Is a directory.*wanted a file that can be read") as caught:
        describe(tmp_path, ())
    assert caught.value.field == str(tmp_path / "config.json")


def test_a_folder_is_read_by_its_path_and_errors_name_the_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(minimal("qwen3")))
    assert read_config(tmp_path) == minimal("qwen3")
    assert describe(tmp_path, ()).config == config_of(minimal("qwen3"))
    (tmp_path / "config.json").write_text(json.dumps({**minimal("qwen3"), "head_dim": "x"}))
    with pytest.raises(UserError, match="config.json: head_dim") as caught:
        describe(str(tmp_path), ())
    assert str(tmp_path) in caught.value.field


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ALONE = ("model.norm.weight", "model.layers.0.mlp.up_proj.weight")


@pytest.mark.parametrize(
    ("tied", "there", "ties", "read"),
    [
        (True, [EMBEDDING], True, [EMBEDDING]),
        (False, [EMBEDDING, HEAD], False, [EMBEDDING, HEAD]),
        (True, [EMBEDDING, HEAD], False, [EMBEDDING, HEAD]),
        (True, [HEAD], True, [HEAD]),
        (False, [EMBEDDING], False, [EMBEDDING, HEAD]),
    ],
    ids=["tied", "untied", "called tied, with a head", "only the head", "head missing"],
)
def test_the_head_is_read_wherever_the_file_has_one(tied, there, ties, read):
    values = {**minimal("llama"), "tie_word_embeddings": tied}
    description = describe(values, [*ALONE, *there])
    assert description.config.tie_embeddings == ties
    tables = ("embedding",), ("head",)
    parts = [part for path in tables for part in description.weights.get(path, ())]
    assert [part.name for part in parts] == read


def test_num_params_counts_what_the_maps_read():
    for model_type in FAMILIES:
        description = describe(minimal(model_type), ())
        count = 0
        for path, parts in description.weights.items():
            layers = description.config.num_layers if path[0] == "blocks" else 1
            for part in parts:
                size = 1
                for factor in part.view:
                    size *= factor
                count += layers * size
        assert count == description.config.num_params(), model_type


def test_the_configuration_survives_json():
    for model_type, fields in SPELLINGS:
        config = config_of({**minimal(model_type), **fields})
        again = type(config).from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config == dataclasses.replace(again)
