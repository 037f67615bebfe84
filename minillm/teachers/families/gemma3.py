"""Gemma 3 beside a vision tower, which is left alone."""

import dataclasses

from minillm.model.config import ModelConfig
from minillm.teachers.config_reader import ConfigReader
from minillm.teachers.families import gemma3_text
from minillm.teachers.families.family import Family


def config(values: ConfigReader) -> ModelConfig:
    text = values.required_group("text_config")
    text.choice("model_type", {"gemma3_text": None}, "gemma3_text")
    base = gemma3_text.config(text)
    text.refuse_rest()
    if base.logit_soft_cap is not None:
        raise text.error("final_logit_softcapping", "null: transformers does not apply it here")
    # The tie that counts is the whole model's.
    return dataclasses.replace(base, tie_embeddings=values.flag("tie_word_embeddings", True))


FAMILY = Family(
    model_types=("gemma3",),
    config=config,
    weights=gemma3_text.weights,
    ignored=("*vision_tower.*", "*multi_modal_projector.*"),
)
