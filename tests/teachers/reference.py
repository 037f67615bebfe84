"""Random models of transformers, saved, and their tensors put together as our maps say."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

from minillm.model.transformer import Transformer
from minillm.teachers.huggingface_config import Description, describe
from minillm.teachers.weights import LAYER, Source
from tests.model.models import bind, shapes_of


def random_model(build: Callable[..., Any], *args: Any) -> Any:
    """The torch model `build(*args)` with every parameter random, in evaluation.

    Norm scales and biases too: their defaults of 1 and 0 would hide a wrong place.
    """
    import torch

    torch.manual_seed(0)
    model = build(*args)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.float().eval()


def tensors_of(directory: pathlib.Path) -> dict[str, np.ndarray]:
    return load_file(directory / "model.safetensors")


def assembled(description: Description, tensors: dict[str, np.ndarray]) -> Transformer:
    """Our model, each parameter put together from its sources."""

    def part(source: Source, layer: int) -> np.ndarray:
        tensor = tensors[source.name.replace(LAYER, str(layer))]
        assert tensor.shape == source.shape, source
        rows = tensor if source.rows is None else tensor[slice(*source.rows)]
        return rows.reshape(source.view).transpose(source.order) + np.float32(source.plus)

    def parameter(path: Any, leaf: Any) -> np.ndarray:
        sources = description.weights[tuple(key.key for key in path)]
        stacked = path[0].key == "blocks"
        layers = range(description.config.num_layers if stacked else 1)
        # NaN shows what no source fills.
        whole = np.full(leaf.shape if stacked else (1, *leaf.shape), np.nan, np.float32)
        for layer in layers:
            for source in sources:
                new = part(source, layer)
                axis, start = source.at or (0, 0)
                where = [slice(None)] * new.ndim
                where[axis] = slice(start, start + new.shape[axis])
                whole[layer][tuple(where)] = new
        assert not np.isnan(whole).any(), path
        return whole if stacked else whole[0]

    weights = jax.tree_util.tree_map_with_path(parameter, shapes_of(description.config))
    return bind(description.config, jax.tree.map(jax.numpy.asarray, weights))


def saved(model: Any, directory: pathlib.Path) -> tuple[Description, dict[str, np.ndarray]]:
    """A torch model's folder as it is read back: its description and its tensors."""
    model.save_pretrained(directory)
    tensors = tensors_of(directory)
    return describe(directory, tensors.keys()), tensors


def names_read(description: Description) -> set[str]:
    """Every tensor that the map asks for."""
    return {
        source.name.replace(LAYER, str(layer))
        for sources in description.weights.values()
        for source in sources
        for layer in range(description.config.num_layers)
    }
