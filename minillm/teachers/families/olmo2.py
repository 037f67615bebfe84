"""OLMo 2: norms after attention and MLP only, and a QK norm over all heads at once."""

import dataclasses

from minillm.model.config import ModelConfig
from minillm.teachers.config_reader import ConfigReader
from minillm.teachers.decoder import (
    attention_weights,
    decoder_config,
    mlp_weights,
    norm_weights,
    pattern_of,
    qk_norm_weights,
    table_weights,
)
from minillm.teachers.families.family import Family
from minillm.teachers.rope_config import read_rope
from minillm.teachers.weights import WeightMap


def config(values: ConfigReader) -> ModelConfig:
    base = decoder_config(values, rms_norm_eps=1e-5)
    bias = values.flag("attention_bias", False)
    return dataclasses.replace(
        base,
        norms="after",
        joint_qk_norm=True,
        attention_bias=bias,
        output_bias=bias,
        **pattern_of([(None, read_rope(values, base.max_length))] * base.num_layers),
    )


def weights(config: ModelConfig) -> WeightMap:
    norms = norm_weights(
        config,
        attention_post_norm="post_attention_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
    )
    attention = attention_weights(config) | qk_norm_weights(config)
    return table_weights(config) | norms | attention | mlp_weights(config)


FAMILY = Family(model_types=("olmo2",), config=config, weights=weights)
