"""Phi-3 and Phi-4-mini: fused projections, a part of the head turned, LongRoPE."""

import dataclasses

from minillm.model.config import ModelConfig
from minillm.teachers.config_reader import ConfigReader
from minillm.teachers.decoder import (
    decoder_config,
    fused_attention_weights,
    fused_mlp_weights,
    norm_weights,
    pattern_of,
    table_weights,
)
from minillm.teachers.families.family import Family
from minillm.teachers.rope_config import read_rope
from minillm.teachers.weights import WeightMap


def config(values: ConfigReader) -> ModelConfig:
    base = decoder_config(values, max_position_embeddings=4096, rms_norm_eps=1e-5)
    rope = read_rope(
        values,
        base.max_length,
        original=4096,
        partial=True,
        # What the first files called it; of no other kind has there been a Phi-3.
        aliases={"su": "longrope", "yarn": "longrope"},
    )
    layer = values.integer_or_none("sliding_window"), rope
    return dataclasses.replace(base, **pattern_of([layer] * base.num_layers))


def weights(config: ModelConfig) -> WeightMap:
    norms = norm_weights(
        config, attention_norm="input_layernorm", mlp_norm="post_attention_layernorm"
    )
    layer = fused_attention_weights(config) | fused_mlp_weights(config)
    return table_weights(config) | norms | layer


FAMILY = Family(model_types=("phi3",), config=config, weights=weights)
