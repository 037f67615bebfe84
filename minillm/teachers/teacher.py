"""What a teacher is once it is loaded, whatever it was loaded from."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from minillm.core import configs
from minillm.core.checkpoint import tree_fingerprint
from minillm.core.manifest import fingerprint_of
from minillm.data.tokenizer_protocol import Tokenizer
from minillm.model.config import ModelConfig
from minillm.model.transformer import Transformer

Params = dict[str, Any]


class Teacher:
    """A model to learn from, with the tokenizer that goes with it.

    Attributes:
        model: the Transformer, its weights on the mesh they were loaded onto.
        config: of the model.
        tokenizer: None for a teacher that reads the ids of any tokenizer (`mock`).

    Args:
        weights_fingerprint: of the files that the weights came from, where it is cheaper to read
            them than to gather the weights; asked for when it is needed.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        tokenizer: Tokenizer | None,
        weights_fingerprint: Callable[[], str] | None = None,
    ) -> None:
        self._weights_fingerprint = weights_fingerprint
        self.model = model
        self.config: ModelConfig = model.config
        self.tokenizer = tokenizer
        self._graph, self._state = nnx.split(model)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over configuration and weights: what decides the logits."""
        of_files = self._weights_fingerprint
        weights = of_files() if of_files else tree_fingerprint(nnx.to_pure_dict(self._state))
        return fingerprint_of({"model": configs.to_dict(self.config), "weights": weights})

    def logits(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits of the next token at every position, float32; attention stays in its segment."""
        return _logits(self._graph, self._state, tokens, segment_ids, positions)

    def hidden_states(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """What the output head reads: the stream after the last norm."""
        return _hidden_states(self._graph, self._state, tokens, segment_ids, positions)


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
