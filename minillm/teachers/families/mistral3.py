"""Mistral 3: Mistral beside a vision tower, which is left alone (FLUX.2's text encoder)."""

import dataclasses

from minillm.model.config import ModelConfig
from minillm.teachers.config_reader import ConfigReader
from minillm.teachers.families import llama, mistral
from minillm.teachers.families.family import Family


def config(values: ConfigReader) -> ModelConfig:
    text = values.required_group("text_config")
    text.choice("model_type", {"mistral": None}, "mistral")
    base = mistral.config(text)
    text.refuse_rest()
    # The tie that counts is the whole model's.
    return dataclasses.replace(base, tie_embeddings=values.flag("tie_word_embeddings", True))


FAMILY = Family(
    model_types=("mistral3",),
    config=config,
    weights=llama.weights,
    ignored=("*vision_tower.*", "*multi_modal_projector.*"),
)
