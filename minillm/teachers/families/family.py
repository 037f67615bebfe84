"""What a family of Hugging Face models is to minillm."""

import dataclasses
from collections.abc import Callable

from minillm.model.config import ModelConfig
from minillm.teachers.config_reader import ConfigReader
from minillm.teachers.weights import WeightMap


@dataclasses.dataclass(frozen=True)
class Family:
    """How models of a kind are read.

    Attributes:
        model_types: the values of `model_type` in config.json that name it.
        config: from config.json to the configuration. What it does not read is refused where it
            would change the function.
        weights: the map of the tensors, by the names that the causal language model has:
            "model.…" and "lm_head.weight". Under other prefixes `describe` finds them.
        ignored: names of further tensors that say nothing to a language model, as patterns of
            `fnmatch`.
    """

    model_types: tuple[str, ...]
    config: Callable[[ConfigReader], ModelConfig]
    weights: Callable[[ModelConfig], WeightMap]
    ignored: tuple[str, ...] = ()
