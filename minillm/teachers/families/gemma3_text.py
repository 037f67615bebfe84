"""Gemma 3, its text model: Gemma 2 with a QK norm, and local layers that turn in another way."""

import dataclasses

from minillm.model.config import ModelConfig
from minillm.model.rope import Rope
from minillm.teachers.config_reader import ConfigReader
from minillm.teachers.decoder import layer_windows, pattern_of, qk_norm_weights
from minillm.teachers.families import gemma2
from minillm.teachers.families.family import Family
from minillm.teachers.rope_config import Lengths, rope_of
from minillm.teachers.weights import WeightMap


def config(values: ConfigReader) -> ModelConfig:
    # The text part of the published files leaves out what is as in the smallest model.
    base = gemma2.gemma_config(
        values,
        vocab_size=262208,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        max_position_embeddings=131072,
    )
    layers, window = base.num_layers, values.integer_or_none("sliding_window", 4096)
    period = values.integer("sliding_window_pattern", 6)
    local, everywhere = _ropes(values, base.max_length)
    usual = [(at + 1) % period != 0 for at in range(layers)]
    windows = layer_windows(values, layers, window, usual)
    # transformers reads `attn_logit_softcapping` but applies it nowhere: not read here either,
    # so that a file with one is refused.
    return dataclasses.replace(
        base,
        qk_norm=True,
        logit_soft_cap=values.number_or_none("final_logit_softcapping"),
        **pattern_of([(each, everywhere if each is None else local) for each in windows]),
    )


def _ropes(values: ConfigReader, longest: int) -> tuple[Rope, Rope]:
    """How the local layers turn queries and keys, and how the global ones do.

    New files say it under `rope_parameters`, in a group for each kind of layer. Old ones have a
    theta for each kind, and one `rope_scaling`, which stretches the global layers alone.
    """
    by_type = values.group("rope_parameters") or ConfigReader({}, field="")
    stretched = values.group("rope_scaling")
    if stretched is not None and not stretched.has("rope_type"):
        # transformers does not hear the older "type" here: it would leave the stretch out.
        raise stretched.error("rope_type", "the kind of the stretch under this name")
    lengths = Lengths(longest)
    plain = ConfigReader({}, field="")
    local = Rope(values.number("rope_local_base_freq", 10_000.0))
    other = Rope(values.number("rope_theta", 1_000_000.0))
    groups = by_type.group("sliding_attention"), by_type.group("full_attention")
    by_type.refuse_unread()
    return (
        rope_of(groups[0] or plain, local, lengths),
        rope_of(stretched or groups[1] or plain, other, lengths),
    )


def weights(config: ModelConfig) -> WeightMap:
    return gemma2.weights(config) | qk_norm_weights(config, plus=1.0)


FAMILY = Family(model_types=("gemma3_text",), config=config, weights=weights)
