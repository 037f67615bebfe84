"""What a teacher is once it is loaded, whatever it was loaded from."""

import functools
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from minillm.core import configs
from minillm.core.checkpoint import tree_fingerprint
from minillm.core.errors import UserError
from minillm.core.manifest import fingerprint_of
from minillm.data.tokenizer import BPETokenizer
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
    """

    def __init__(self, model: Transformer | T5Encoder, *, tokenizer: BPETokenizer | None) -> None:
        self.model = model
        self.config: ModelConfig | T5Config = model.config
        self.tokenizer = tokenizer
        self._graph, self._state = nnx.split(model)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over configuration and weights: what decides the logits."""
        weights = tree_fingerprint(nnx.to_pure_dict(self._state))
        return fingerprint_of({"model": configs.to_dict(self.config), "weights": weights})

    def require_logits(self) -> None:
        """Raise UserError where the model knows of no next token.

        For who wants `logits`, before any work.
        """
        if isinstance(self.model, T5Encoder):
            raise UserError(
                field="teacher",
                got="a T5 encoder, which sees the whole text and predicts no next token",
                wanted="a decoder, for targets that are distributions of the next token",
                fix="match its hidden states instead (Teacher.hidden_states), or take the text "
                "encoder of FLUX.2, which is a decoder",
            )

    def logits(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits of the next token at every position, float32; attention stays in its segment.

        Raises:
            UserError: the model has none; see `require_logits`.
        """
        self.require_logits()
        return _logits(self._graph, self._state, tokens, segment_ids, positions)

    def hidden_states(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """What an output head reads: the stream after the last norm."""
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
