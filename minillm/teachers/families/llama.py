"""Llama 1 to 3.x, and what has its layout: SmolLM, TinyLlama and others."""

import dataclasses

from minillm.model.config import ModelConfig
from minillm.teachers.config_reader import ConfigReader
from minillm.teachers.decoder import (
    attention_weights,
    decoder_config,
    mlp_weights,
    norm_weights,
    pattern_of,
    table_weights,
)
from minillm.teachers.families.family import Family
from minillm.teachers.rope_config import read_rope
from minillm.teachers.weights import WeightMap


def config(values: ConfigReader) -> ModelConfig:
    base = decoder_config(values)
    bias = values.flag("attention_bias", False)
    return dataclasses.replace(
        base,
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=values.flag("mlp_bias", False),
        **pattern_of([(None, read_rope(values, base.max_length))] * base.num_layers),
    )


def weights(config: ModelConfig) -> WeightMap:
    norms = norm_weights(
        config, attention_norm="input_layernorm", mlp_norm="post_attention_layernorm"
    )
    return table_weights(config) | norms | attention_weights(config) | mlp_weights(config)


FAMILY = Family(model_types=("llama",), config=config, weights=weights)
