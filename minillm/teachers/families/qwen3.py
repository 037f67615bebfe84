"""Qwen3: Qwen2 with a norm on queries and keys in place of their biases."""

import dataclasses

from minillm.model.config import ModelConfig
from minillm.teachers.config_reader import ConfigReader
from minillm.teachers.decoder import decoder_config, qk_norm_weights
from minillm.teachers.families import llama, qwen2
from minillm.teachers.families.family import Family
from minillm.teachers.weights import WeightMap


def config(values: ConfigReader) -> ModelConfig:
    base = decoder_config(
        values, num_key_value_heads=32, head_dim=128, max_position_embeddings=32768
    )
    bias = values.flag("attention_bias", False)
    return dataclasses.replace(
        base, qk_norm=True, attention_bias=bias, output_bias=bias, **qwen2.layers(values, base)
    )


def weights(config: ModelConfig) -> WeightMap:
    return llama.weights(config) | qk_norm_weights(config)


FAMILY = Family(model_types=("qwen3",), config=config, weights=weights)
