"""The Transformer, for students and teachers alike: a family is a configuration and a weight map.

Its three passes (training, reading prompts, decoding) run the same blocks and differ only in what
attention looks at.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from minillm.core import axes
from minillm.core.sharding import constrain
from minillm.model import cache as caches
from minillm.model.attention import (
    Attention,
    Keys,
    Queries,
    Values,
    attend_cache,
    attend_rows,
)
from minillm.model.cache import Cache
from minillm.model.config import ModelConfig
from minillm.model.layers import (
    GatedMLP,
    RMSNorm,
    Rotation,
    random_weight,
    rope_rotation,
    segment_lengths,
    soft_cap,
)
from minillm.model.rope import LongStretch, Rope
from minillm.model.stack import run_layers

Attend = Callable[[Queries, Keys, Values], tuple[Queries, Any]]

_STREAM = (axes.BATCH, axes.LENGTH, axes.ACTIVATION_EMBED)


class Block(nnx.Module):
    """One layer: attention and MLP, each normed as configured and added to the stream."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        stack = (config.num_layers,)
        self._before, self._after = config.norms != "after", config.norms != "before"
        if self._before:
            self.attention_norm = RMSNorm(config, stack=stack)
            self.mlp_norm = RMSNorm(config, stack=stack)
        if self._after:
            self.attention_post_norm = RMSNorm(config, stack=stack)
            self.mlp_post_norm = RMSNorm(config, stack=stack)
        self.attention = Attention(config, rngs=rngs)
        self.mlp = GatedMLP(config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T D"], rotation: Rotation | None, attend: Attend
    ) -> tuple[Float[Array, "B T D"], Any]:
        """The layer on one slice of the stack.

        Args:
            rotation: of its queries and keys; None in a layer without positions.
            attend: attention itself, which differs between training, prefill and decoding;
                returns what the heads found and whatever the caller wants back.
        """
        with jax.named_scope("attention"):
            normed = self.attention_norm(x) if self._before else x
            mixed, made = attend(*self.attention.project(normed, rotation))
            found = self.attention.merge(mixed)
            found = self.attention_post_norm(found) if self._after else found
            x = constrain(x + found, _STREAM)
        with jax.named_scope("mlp"):
            found = self.mlp(self.mlp_norm(x) if self._before else x)
            found = self.mlp_post_norm(found) if self._after else found
            x = constrain(x + found, _STREAM)
        return x, made


class Transformer(nnx.Module):
    """A decoder-only language model. Parameters are float32 and carry their logical axes."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        table = (config.vocab_size, config.hidden_size)
        names = (axes.VOCAB, axes.EMBED)
        self.embedding = random_weight(rngs, table, names, config.hidden_size**-0.5)
        self.blocks = Block(config, rngs=rngs)
        self.final_norm = RMSNorm(config)
        if not config.tie_embeddings:
            self.head = random_weight(rngs, table, names, config.hidden_size**-0.5)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits of the next token at every position, float32. See `hidden`."""
        return self.logits(self.hidden(tokens, positions=positions, segment_ids=segment_ids))

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        *,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """The stream after the last norm, in the compute dtype.

        Args:
            positions: for RoPE; 0, 1, … where absent. Only differences within a segment matter,
                so a packed row gives the same logits with or without restarts.
            segment_ids: attention stays within equal ids; 0 is padding, whose output is
                meaningless. One segment where absent.
        """
        x, _ = self._read(tokens, positions, segment_ids, keep_states=False)
        return self.final_norm(x)

    def layer_states(
        self,
        tokens: Int[Array, "B T"],
        *,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "L1 B T D"]:
        """The stream before the first layer and after each of the L, in the compute dtype.

        The last of them has not gone through the last norm. Arguments as of `hidden`.
        """
        _, states = self._read(tokens, positions, segment_ids, keep_states=True)
        # Layer l is entry l // P of slot l % P; the slots beyond the rest are one entry shorter.
        period = len(self.config.windows)
        layers = [states[at % period][at // period] for at in range(self.config.num_layers)]
        return jnp.stack([self._embed(tokens), *layers])

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """The output head, float32."""
        with jax.named_scope("head"):
            table = self.embedding if self.config.tie_embeddings else self.head
            scores = jnp.einsum(
                "...d,vd->...v",
                hidden,
                table[...].astype(hidden.dtype),
                preferred_element_type=jnp.float32,
            )
            return soft_cap(scores, self.config.logit_soft_cap)

    def prefill(
        self,
        tokens: Int[Array, "B T"],
        *,
        max_length: int,
        valid: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Read prompts of different lengths at once.

        Args:
            tokens: prompts, padded on the left or on the right with anything.
            max_length: positions the cache has room for, prompt included.
            valid: true at the prompts' own tokens, at least one a row; all where absent.

        Returns:
            Logits after each prompt's last token, and the cache from which to go on.
        """
        config = self.config
        caches.check_room(tokens.shape[1], max_length)
        caches.check_reach(config, max_length)
        valid = jnp.ones(tokens.shape, bool) if valid is None else valid
        span = caches.prompt_span(valid)
        sizes = caches.ring_sizes(config, max_length)
        segment_ids = valid.astype(jnp.int32)

        def step(x: Any, block: Block, slot: int, repeat: Any) -> tuple[Any, Any]:
            def attend(queries: Queries, keys: Keys, values: Values) -> tuple[Queries, Any]:
                rings = [caches.fill_ring(part, span, sizes[slot]) for part in (keys, values)]
                return self._attend(queries, keys, values, slot, segment_ids), rings

            return block(x, rotations[slot], attend)

        positions = jnp.arange(tokens.shape[1]) - span.start[:, None]
        rotations = self._rotations(positions, segment_ids)
        x, rings = run_layers(config, self.blocks, self._embed(tokens), step)
        last = (span.start + span.length - 1)[:, None, None]
        x = self.final_norm(jnp.take_along_axis(x, last, axis=1)[:, 0])
        keys, values = (tuple(ring[part] for ring in rings) for part in (0, 1))
        return self.logits(x), Cache(keys, values, span.length)

    def decode_step(
        self, tokens: Int[Array, " B"], cache: Cache
    ) -> tuple[Float[Array, "B V"], Cache]:
        """One token further in every sequence: logits of the token after it, and the new cache."""
        lengths = cache.lengths

        def step(carry: Any, block: Block, slot: int, repeat: Any) -> tuple[Any, None]:
            def attend(queries: Queries, new_keys: Keys, new_values: Values) -> tuple[Queries, Any]:
                keys[slot] = caches.append(keys[slot], repeat, new_keys[:, 0], lengths)
                values[slot] = caches.append(values[slot], repeat, new_values[:, 0], lengths)
                mixed = attend_cache(
                    self.config,
                    queries[:, 0],
                    keys[slot][repeat],
                    values[slot][repeat],
                    lengths + 1,
                )
                return mixed[:, None], None

            x, keys, values = carry[0], list(carry[1]), list(carry[2])
            x, _ = block(x, rotations[slot], attend)
            return (x, tuple(keys), tuple(values)), None

        rotations = self._rotations(lengths[:, None], jnp.ones_like(lengths[:, None]))
        carry = (self._embed(tokens[:, None]), cache.keys, cache.values)
        (x, keys, values), _ = run_layers(self.config, self.blocks, carry, step)
        logits = self.logits(self.final_norm(x[:, 0]))
        return logits, Cache(keys, values, lengths + 1)

    def _read(
        self, tokens: Array, positions: Array | None, segments: Array | None, *, keep_states: bool
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Whole rows through all layers: the stream, and each slot's `[R, B, T, D]` on the way."""

        def step(x: Any, block: Block, slot: int, repeat: Any) -> tuple[Any, Any]:
            def attend(queries: Queries, keys: Keys, values: Values) -> tuple[Queries, None]:
                return self._attend(queries, keys, values, slot, segments), None

            x, _ = block(x, rotations[slot], attend)
            return x, x if keep_states else None

        positions = jnp.arange(tokens.shape[1])[None] if positions is None else positions
        rotations = self._rotations(positions, segments)
        remat = self.config.remat
        return run_layers(self.config, self.blocks, self._embed(tokens), step, remat=remat)

    def _embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        with jax.named_scope("embed"):
            # jnp.take answers NaN for an id outside the table, where indexing would clamp it.
            x = jnp.take(self.embedding[...], tokens, axis=0).astype(self.config.compute_dtype)
            if self.config.embedding_scale != 1.0:
                # The factor is rounded to the compute dtype first, as Gemma was trained.
                x = x * jnp.asarray(self.config.embedding_scale, x.dtype)
            return constrain(x, _STREAM)

    def _rotations(
        self, positions: Int[Array, "#B T"], segment_ids: Int[Array, "B T"] | None
    ) -> tuple[Rotation | None, ...]:
        """For each slot of the window pattern; slots that turn alike share one."""
        ropes = [self.config.rope(slot) for slot in range(len(self.config.windows))]
        made = {rope: self._rotation(rope, positions, segment_ids) for rope in ropes}
        return tuple(made[rope] for rope in ropes)

    def _rotation(
        self,
        rope: Rope | None,
        positions: Int[Array, "#B T"],
        segment_ids: Int[Array, "B T"] | None,
    ) -> Rotation | None:
        if rope is None:
            return None
        head_dim = self.config.head_dim
        known = rope.divisors(head_dim)
        divisors = None if known is None else jnp.asarray(known, jnp.float32)
        if divisors is not None and isinstance(rope.stretch, LongStretch):
            segments = jnp.zeros_like(positions) if segment_ids is None else segment_ids
            is_long = segment_lengths(segments) > rope.stretch.original_length
            long = jnp.asarray(rope.stretch.long, jnp.float32)
            divisors = jnp.where(is_long[..., None], long, divisors)
        return rope_rotation(
            positions, rope.size(head_dim), rope.theta, divisors=divisors, magnitude=rope.magnitude
        )

    def _attend(
        self,
        queries: Queries,
        keys: Keys,
        values: Values,
        slot: int,
        segment_ids: Int[Array, "B T"] | None,
    ) -> Queries:
        window = self.config.windows[slot]
        return attend_rows(
            self.config, queries, keys, values, window=window, segment_ids=segment_ids
        )


def param_axes(state: nnx.State) -> dict[str, Any]:
    """The logical axes of every parameter, as a plain tree like `nnx.to_pure_dict(state)`."""
    return nnx.to_pure_dict(state, extract_fn=lambda leaf: leaf.get_metadata()["logical_axes"])
