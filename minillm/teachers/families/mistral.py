"""Mistral: Llama's layout with one sliding window for all layers."""

import dataclasses

from minillm.model.config import ModelConfig
from minillm.teachers.config_reader import ConfigReader
from minillm.teachers.decoder import decoder_config, layer_windows, pattern_of
from minillm.teachers.families import llama
from minillm.teachers.families.family import Family
from minillm.teachers.rope_config import read_rope


def config(values: ConfigReader) -> ModelConfig:
    base = decoder_config(values, num_key_value_heads=8, max_position_embeddings=131072)
    window = values.integer_or_none("sliding_window", 4096)
    layers = base.num_layers
    slides = window is not None
    # transformers' Mistral does not read it, and gives all layers the one window. A file that
    # says otherwise was made for another program, of which nothing is known here.
    if layer_windows(values, layers, window, [slides] * layers) != [window] * layers:
        kind = "sliding" if slides else "full"
        raise values.error("layer_types", f"{kind}_attention everywhere: sliding_window={window}")
    layer = window, read_rope(values, base.max_length)
    return dataclasses.replace(base, **pattern_of([layer] * layers))


FAMILY = Family(model_types=("mistral",), config=config, weights=llama.weights)
