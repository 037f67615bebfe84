"""Shapes of every family: the class of transformers, and the fields of its configuration.

Each family has several head counts, key/value heads fewer than heads, a head size that is not
D / N, an odd vocabulary, windows shorter than the row, and depths that are no multiple of the
pattern, as far as its configuration can say so.
"""

from typing import Any, NamedTuple

# Rows have 24 tokens; the windows 5 and 7 are shorter.
SMALL = {
    "vocab_size": 41,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
LOCAL, GLOBAL = "sliding_attention", "full_attention"


class Case(NamedTuple):
    """Attributes:
    family: the class in transformers is `{family}ForCausalLM`.
    name: of the shape.
    fields: of the configuration, over those of SMALL.
    windowed: whether a layer's window is shorter than the row.
    quick: whether it is run by default; the others with `pytest -m "slow or not slow"`.
    """

    family: str
    name: str
    fields: dict[str, Any]
    windowed: bool = False
    quick: bool = False


def rope(kind: str, theta: float = 5000.0, **fields: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": theta, **fields}


LLAMA3 = rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=16)
# Three quarters of heads of 8 features, or half of heads of 12: three pairs are turned.
LONG = rope(
    "longrope",
    short_factor=[1.0, 1.1, 1.3],
    long_factor=[1.5, 4.0, 9.0],
    partial_rotary_factor=0.75,
)

CASES = [
    Case("Llama", "plain", {}),
    Case(
        "Llama",
        "llama3 rope, biases",
        {
            "rope_parameters": LLAMA3,
            "num_key_value_heads": 1,
            "attention_bias": True,
            "mlp_bias": True,
        },
        quick=True,
    ),
    Case(
        "Llama",
        "linear rope, tied",
        {
            "rope_parameters": rope("linear", factor=4.0),
            "tie_word_embeddings": True,
            "vocab_size": 57,
            "head_dim": 12,
        },
    ),
    Case(
        "Llama",
        "yarn rope",
        {"rope_parameters": YARN, "num_attention_heads": 8, "num_hidden_layers": 3},
    ),
    Case(
        "Llama",
        "yarn rope, all said",
        {
            "rope_parameters": {
                **YARN,
                "beta_fast": 8.0,
                "beta_slow": 0.5,
                "mscale": 0.8,
                "mscale_all_dim": 0.5,
                "truncate": False,
            },
            "hidden_act": "gelu",
        },
    ),
    Case(
        "Llama",
        "SmolLM",
        {
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "hidden_size": 36,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-5,
        },
    ),
    Case("Mistral", "window", {"sliding_window": 7, "layer_types": [LOCAL] * 2}, True, quick=True),
    Case(
        "Mistral",
        "window, head size",
        {
            "sliding_window": 5,
            "head_dim": 12,
            "num_key_value_heads": 1,
            "num_hidden_layers": 3,
            "vocab_size": 53,
        },
        True,
    ),
    Case(
        "Mistral",
        "no window",
        {
            "sliding_window": None,
            "num_attention_heads": 6,
            "hidden_size": 48,
            "num_key_value_heads": 3,
            "rope_parameters": rope("default", 1e9),
        },
    ),
    Case("Qwen2", "plain", {"tie_word_embeddings": True}),
    Case(
        "Qwen2",
        "upper layers local",
        {
            "use_sliding_window": True,
            "sliding_window": 7,
            "max_window_layers": 1,
            "num_hidden_layers": 3,
            "rope_parameters": YARN,
        },
        True,
        quick=True,
    ),
    Case(
        "Qwen2",
        "layer types",
        {
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": [LOCAL, GLOBAL, LOCAL],
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "vocab_size": 37,
        },
        True,
    ),
    Case("Qwen3", "head size", {"head_dim": 12}),
    Case(
        "Qwen3",
        "biases, one key head, tied",
        {
            "head_dim": 8,
            "attention_bias": True,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            "rope_parameters": YARN,
        },
        quick=True,
    ),
    Case(
        "Qwen3",
        "layer types",
        {
            "head_dim": 16,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": [GLOBAL, GLOBAL, LOCAL, GLOBAL],
            "num_hidden_layers": 4,
        },
        True,
    ),
    Case(
        "Gemma2",
        "alternating",
        {
            "head_dim": 12,
            "query_pre_attn_scalar": 20,
            "sliding_window": 7,
            "num_hidden_layers": 3,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 5.0,
        },
        True,
        quick=True,
    ),
    Case(
        "Gemma2",
        "without caps, untied",
        {
            "head_dim": 8,
            "num_key_value_heads": 1,
            "sliding_window": 5,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
            "attention_bias": True,
        },
        True,
    ),
    Case(
        "Gemma2",
        "layer types",
        {
            "head_dim": 16,
            "hidden_size": 40,
            "vocab_size": 61,
            "sliding_window": 5,
            "layer_types": [GLOBAL, LOCAL, GLOBAL, GLOBAL],
            "num_hidden_layers": 4,
            "query_pre_attn_scalar": 144,
        },
        True,
    ),
    Case(
        "Gemma3",
        "5 to 1",
        {"head_dim": 12, "sliding_window": 5, "num_hidden_layers": 8, "query_pre_attn_scalar": 20},
        True,
    ),
    Case(
        "Gemma3",
        "stretched global layers",
        {
            "head_dim": 8,
            "num_key_value_heads": 1,
            "sliding_window": 7,
            "num_hidden_layers": 3,
            "layer_types": [LOCAL, LOCAL, GLOBAL],
            "rope_parameters": {
                LOCAL: rope("default", 100.0),
                GLOBAL: rope("linear", 9000.0, factor=8.0),
            },
            "final_logit_softcapping": 5.0,
        },
        True,
        quick=True,
    ),
    Case(
        "Gemma3",
        "untied, biases",
        {
            "head_dim": 16,
            "hidden_size": 40,
            "vocab_size": 61,
            "sliding_window": 5,
            "num_hidden_layers": 2,
            "layer_types": [GLOBAL, LOCAL],
            "tie_word_embeddings": False,
            "attention_bias": True,
            "hidden_activation": "gelu",
        },
        True,
    ),
    Case("Phi3", "plain", {}),
    Case(
        "Phi3",
        "window, part turned",
        {
            "sliding_window": 7,
            "num_key_value_heads": 1,
            "num_hidden_layers": 3,
            "rope_parameters": rope("default", partial_rotary_factor=0.5),
            "vocab_size": 53,
        },
        True,
    ),
    Case(
        "Phi3",
        "longrope",
        {
            "rope_parameters": LONG,
            "original_max_position_embeddings": 16,
            "tie_word_embeddings": True,
        },
    ),
    Case(
        "Phi3",
        "longrope, window",
        {
            "rope_parameters": {**LONG, "partial_rotary_factor": 0.5},
            "original_max_position_embeddings": 16,
            "hidden_size": 48,
            "sliding_window": 5,
        },
        True,
        quick=True,
    ),
    Case("SmolLM3", "every fourth without rope", {"num_hidden_layers": 5}),
    Case(
        "SmolLM3",
        "windows without rope",
        {
            "num_hidden_layers": 3,
            "no_rope_layer_interval": 2,
            "use_sliding_window": True,
            "sliding_window": 5,
            "num_key_value_heads": 1,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
        },
        True,
        quick=True,
    ),
    Case(
        "SmolLM3",
        "said by layer",
        {
            "num_hidden_layers": 3,
            "no_rope_layers": [0, 1, 1],
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "hidden_size": 48,
            "rope_parameters": YARN,
            "vocab_size": 53,
        },
    ),
    Case("Olmo2", "plain", {}, quick=True),
    Case(
        "Olmo2",
        "one key head, biases",
        {
            "num_key_value_heads": 1,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "vocab_size": 53,
        },
    ),
    Case(
        "Olmo2",
        "more heads",
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "rope_parameters": LLAMA3,
        },
    ),
]
