"""What a teacher is once it is loaded, whatever it was loaded from."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from minillm.core import configs
from minillm.core.checkpoint import tree_fingerprint
from minillm.core.errors import UserError
from minillm.core.manifest import fingerprint_of
from minillm.data.tokenizer_protocol import Tokenizer
from minillm.model.config import ModelConfig
from minillm.model.t5_encoder import T5Config, T5Encoder
from minillm.model.transformer import Transformer

Params = dict[str, Any]


class Teacher:
    """A model to learn from, with the tokenizer that goes with it.

    Attributes:
        model: the Transformer, its weights on the mesh they were loaded onto; or an encoder,
            which has hidden states only.
        config: of the model.
        tokenizer: None for a teacher that reads the ids of any tokenizer (`mock`).

    Args:
        weights_fingerprint: of the files that the weights came from, where it is cheaper to read
            them than to gather the weights; asked for when it is needed.
    """

    def __init__(
        self,
        model: Transformer | T5Encoder,
        *,
        tokenizer: Tokenizer | None,
        weights_fingerprint: Callable[[], str] | None = None,
    ) -> None:
        self._weights_fingerprint = weights_fingerprint
        self.model = model
        self.config: ModelConfig | T5Config = model.config
        self.tokenizer = tokenizer
        self._graph, self._state = nnx.split(model)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over configuration and weights: what decides the logits."""
        of_files = self._weights_fingerprint
        weights = of_files() if of_files else tree_fingerprint(nnx.to_pure_dict(self._state))
        return fingerprint_with(self.config, weights)

    def logits(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits of the next token at every position, float32; attention stays in its segment.

        An id outside the vocabulary gives NaN.

        Raises:
            UserError: the model has none; see `require_decoder`.
        """
        require_decoder(self.config)
        return _logits(self._graph, self._state, tokens, segment_ids, positions)

    def hidden_states(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        *,
        layers: Sequence[int] | None = None,
    ) -> Float[Array, "B T *S D"]:
        """What an output head reads: the stream after the last norm.

        Args:
            layers: instead of it the stream after these layers, one beside the other along S,
                without the last norm; 0 is the stream before the first layer.
        """
        if layers is None:
            return _hidden_states(self._graph, self._state, tokens, segment_ids, positions)
        wrong = [layer for layer in layers if not 0 <= layer <= self.config.num_layers]
        if wrong or not layers:
            raise UserError(
                field="layers",
                got=list(layers),
                wanted=f"numbers from 0 to {self.config.num_layers}, the layers of the teacher",
                fix="leave out those it does not have",
            )
        graph, state = self._graph, self._state
        return _layer_states(graph, tuple(layers), state, tokens, segment_ids, positions)


def fingerprint_with(config: ModelConfig | T5Config, weights: str) -> str:
    """SHA-256 (hex) of a model of that configuration, with weights of that fingerprint."""
    return fingerprint_of({"model": configs.to_dict(config), "weights": weights})


def require_decoder(config: ModelConfig | T5Config) -> ModelConfig:
    """The configuration itself; UserError where the model knows of no next token.

    For who wants logits, before any work.
    """
    if isinstance(config, ModelConfig):
        return config
    raise UserError(
        field="teacher",
        got="a T5 encoder, which sees the whole text and predicts no next token",
        wanted="a decoder, for targets that are distributions of the next token",
        fix="match its hidden states instead (Teacher.hidden_states), or take the text encoder of "
        "FLUX.2, which is a decoder",
    )


# Weights come in as an argument: closed over, they would be compiled into the program as
# constants, once more in memory.
@functools.partial(jax.jit, static_argnums=0)
def _logits(
    graph: nnx.GraphDef, state: nnx.State, tokens: Array, segments: Any, positions: Any
) -> Array:
    return nnx.merge(graph, state)(tokens, segment_ids=segments, positions=positions)


@functools.partial(jax.jit, static_argnums=0)
def _hidden_states(
    graph: nnx.GraphDef, state: nnx.State, tokens: Array, segments: Any, positions: Any
) -> Array:
    return nnx.merge(graph, state).hidden(tokens, segment_ids=segments, positions=positions)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _layer_states(
    graph: nnx.GraphDef,
    layers: tuple[int, ...],
    state: nnx.State,
    tokens: Array,
    segments: Any,
    positions: Any,
) -> Array:
    model = nnx.merge(graph, state)
    states = model.layer_states(tokens, segment_ids=segments, positions=positions)
    return jnp.moveaxis(states[jnp.array(layers)], 0, 2)
