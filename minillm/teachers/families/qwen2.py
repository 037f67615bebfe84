"""Qwen2 and Qwen2.5: biases on queries, keys and values; the upper layers may have a window."""

import dataclasses
from typing import Any

from minillm.model.config import ModelConfig
from minillm.teachers.config_reader import ConfigReader
from minillm.teachers.decoder import decoder_config, layer_windows, pattern_of
from minillm.teachers.families import llama
from minillm.teachers.families.family import Family
from minillm.teachers.rope_config import read_rope


def config(values: ConfigReader) -> ModelConfig:
    base = decoder_config(values, num_key_value_heads=32, max_position_embeddings=32768)
    return dataclasses.replace(base, attention_bias=True, **layers(values, base))


def layers(values: ConfigReader, base: ModelConfig) -> dict[str, Any]:
    """Windows and rotations: fields of `ModelConfig`."""
    window = values.integer_or_none("sliding_window", 4096)
    if not values.flag("use_sliding_window", False):
        window = None
    first = values.integer("max_window_layers", 28, minimum=0)
    usual = [window is not None and layer >= first for layer in range(base.num_layers)]
    rope = read_rope(values, base.max_length)
    windows = layer_windows(values, base.num_layers, window, usual)
    return pattern_of([(window, rope) for window in windows])


FAMILY = Family(model_types=("qwen2",), config=config, weights=llama.weights)
