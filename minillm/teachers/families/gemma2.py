"""Gemma 2: norms before and after, soft caps, GeGLU, scaled embeddings, every other layer local.

Scales of norms are stored as their distance from 1.
"""

import dataclasses

from minillm.model.config import ModelConfig
from minillm.teachers.config_reader import ConfigReader
from minillm.teachers.decoder import (
    attention_weights,
    decoder_config,
    layer_windows,
    mlp_weights,
    norm_weights,
    pattern_of,
    table_weights,
)
from minillm.teachers.families.family import Family
from minillm.teachers.rope_config import read_rope
from minillm.teachers.weights import WeightMap


def config(values: ConfigReader) -> ModelConfig:
    base = gemma_config(values, num_key_value_heads=4, head_dim=256, max_position_embeddings=8192)
    layers, window = base.num_layers, values.integer_or_none("sliding_window", 4096)
    rope = read_rope(values, base.max_length)
    windows = layer_windows(values, layers, window, [at % 2 == 0 for at in range(layers)])
    return dataclasses.replace(
        base,
        attention_soft_cap=values.number_or_none("attn_logit_softcapping", 50.0),
        logit_soft_cap=values.number_or_none("final_logit_softcapping", 30.0),
        **pattern_of([(window, rope) for window in windows]),
    )


def gemma_config(values: ConfigReader, **defaults: int) -> ModelConfig:
    """What Gemma 2 and 3 share. Arguments as of `decoder_config`."""
    base = decoder_config(
        values,
        activation="hidden_activation",
        hidden_activation="gelu_pytorch_tanh",
        tie_word_embeddings=True,
        **defaults,
    )
    bias = values.flag("attention_bias", False)
    return dataclasses.replace(
        base,
        norms="both",
        attention_bias=bias,
        output_bias=bias,
        embedding_scale=base.hidden_size**0.5,
        attention_scale=values.number("query_pre_attn_scalar", 256) ** -0.5,
    )


def weights(config: ModelConfig) -> WeightMap:
    norms = norm_weights(
        config,
        plus=1.0,
        attention_norm="input_layernorm",
        attention_post_norm="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
    )
    tables = table_weights(config, plus=1.0)
    return tables | norms | attention_weights(config) | mlp_weights(config)


FAMILY = Family(model_types=("gemma2",), config=config, weights=weights)
