"""Mistral: Llama's layout with one sliding window for all layers."""

import dataclasses

from minillm.model.config import ModelConfig
from minillm.teachers.config_reader import ConfigReader
from minillm.teachers.decoder import decoder_config, pattern_of
from minillm.teachers.families import llama
from minillm.teachers.families.family import Family
from minillm.teachers.rope_config import read_rope


def config(values: ConfigReader) -> ModelConfig:
    base = decoder_config(values, num_key_value_heads=8, max_position_embeddings=131072)
    layer = values.integer_or_none("sliding_window", 4096), read_rope(values, base.max_length)
    return dataclasses.replace(base, **pattern_of([layer] * base.num_layers))


FAMILY = Family(model_types=("mistral",), config=config, weights=llama.weights)
