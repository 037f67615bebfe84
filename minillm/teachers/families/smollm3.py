"""SmolLM3: Llama's layout; every fourth layer has no positions, and may have a window instead."""

import dataclasses

from minillm.model.config import ModelConfig
from minillm.teachers.config_reader import ConfigReader
from minillm.teachers.decoder import decoder_config, layer_windows, pattern_of
from minillm.teachers.families import llama
from minillm.teachers.families.family import Family
from minillm.teachers.rope_config import read_rope


def config(values: ConfigReader) -> ModelConfig:
    base = decoder_config(
        values, num_key_value_heads=4, max_position_embeddings=32768, tie_word_embeddings=True
    )
    layers, bias = base.num_layers, values.flag("attention_bias", False)
    interval = values.integer("no_rope_layer_interval", 4)
    turned = values.by_layer("no_rope_layers", {0: False, 1: True}, layers) or tuple(
        (at + 1) % interval != 0 for at in range(layers)
    )
    window = values.integer_or_none("sliding_window")
    has_window = values.flag("use_sliding_window", False) and window is not None
    windows = layer_windows(values, layers, window, [has_window and not turns for turns in turned])
    rope = read_rope(values, base.max_length, theta=2_000_000.0)
    pattern = [
        (window, rope if turns else None) for window, turns in zip(windows, turned, strict=True)
    ]
    return dataclasses.replace(
        base,
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=values.flag("mlp_bias", False),
        **pattern_of(pattern),
    )


FAMILY = Family(model_types=("smollm3",), config=config, weights=llama.weights)
