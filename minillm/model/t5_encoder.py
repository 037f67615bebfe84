"""The encoder of T5 1.1 (Raffel et al., 2020): hidden states for tokens, and nothing else.

Other than in a `Transformer`, every position sees its whole segment; where a key stands is told
by a learned bias on the scores, one for each head and each range of distances; scores are not
divided by √H.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from minillm.core import axes
from minillm.core.configs import require_at_least
from minillm.core.errors import UserError
from minillm.core.sharding import constrain
from minillm.model.layers import constant_weight, random_weight, rms_norm

_STREAM = (axes.BATCH, axes.LENGTH, axes.ACTIVATION_EMBED)
# Scores of this many queries exist at once: T5-XXL has 64 heads, whose scores for one row of
# 2,048 tokens would be 1 GiB.
_QUERIES_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Everything that decides which function a T5 encoder computes, and how.

    Attributes:
        vocab_size, hidden_size, num_layers, num_heads, head_dim, intermediate_size: V, D, L, N,
            H, F.
        num_buckets: how many biases each head has, half for keys before the query and half after.
        max_distance: from here on, all distances share one bias.
        norm_eps: added to the mean square in every RMSNorm.
        activation: "gated-gelu" (tanh form) for `down(gelu(gate(x)) · up(x))`, as in T5 1.1;
            "relu" for `down(relu(up(x)))`.
        compute_dtype: of activations and of weights where they are used; norms, scores and
            softmax are float32. (Transformers keeps `down` in float32 for float16 alone, whose
            range its products leave; bfloat16 has the range of float32.)
        scan_layers: run the layers as a loop, so that compile time does not grow with depth.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    intermediate_size: int
    num_buckets: int = 32
    max_distance: int = 128
    norm_eps: float = 1e-6
    activation: Literal["gated-gelu", "relu"] = "relu"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    scan_layers: bool = True

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "num_layers", "num_heads", "head_dim")
        require_at_least(1, **{name: getattr(self, name) for name in sizes})
        require_at_least(1, intermediate_size=self.intermediate_size)
        require_at_least(0, norm_eps=self.norm_eps)
        require_at_least(4, num_buckets=self.num_buckets)
        # Below it, no distance would be left for the buckets that hold more than one.
        require_at_least(self.num_buckets // 4 + 1, max_distance=self.max_distance)
        for name, choices in (
            ("activation", ("gated-gelu", "relu")),
            ("compute_dtype", ("float32", "bfloat16")),
        ):
            if getattr(self, name) not in choices:
                raise UserError(
                    field=name,
                    got=getattr(self, name),
                    wanted=f"one of {', '.join(choices)}",
                    fix=f"try {choices[0]}",
                )

    @property
    def projections(self) -> int:
        """How many projections lead into the feed-forward width: gate and up, or up alone."""
        return 2 if self.activation == "gated-gelu" else 1


class OffsetBias(NamedTuple):
    """The bias of every head by how far the key stands after the query.

    Attributes:
        by_offset: for offsets -M … M; beyond, the outermost ones hold.
        positions: of the tokens; one row of them serves any batch.
    """

    by_offset: Float[Array, "N offsets"]
    positions: Int[Array, "#B T"]


class T5Block(nnx.Module):
    """One layer: attention and MLP, each normed before and added to the stream."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs) -> None:
        layers, width, heads = config.num_layers, config.hidden_size, config.num_heads
        inner, head = config.intermediate_size, config.head_dim
        norm = (axes.LAYERS, axes.EMBED)
        self.attention_norm = constant_weight(1.0, (layers, width), norm)
        # Unscaled scores: the queries' weights carry the 1 / √H, by the three projections alike.
        self.qkv = random_weight(
            rngs,
            (layers, width, 3, heads, head),
            (axes.LAYERS, axes.EMBED, None, axes.HEADS, axes.HEAD_DIM),
            width**-0.5 * head**-0.25,
        )
        self.output = random_weight(
            rngs,
            (layers, heads, head, width),
            (axes.LAYERS, axes.HEADS, axes.HEAD_DIM, axes.EMBED),
            (heads * head) ** -0.5,
        )
        self.mlp_norm = constant_weight(1.0, (layers, width), norm)
        self.up = random_weight(
            rngs,
            (layers, width, config.projections, inner),
            (axes.LAYERS, axes.EMBED, None, axes.MLP),
            width**-0.5,
        )
        self.down = random_weight(
            rngs, (layers, inner, width), (axes.LAYERS, axes.MLP, axes.EMBED), inner**-0.5
        )
        self._config = config

    def __call__(
        self,
        x: Float[Array, "B T D"],
        bias: OffsetBias,
        segment_ids: Int[Array, "#B T"],
    ) -> Float[Array, "B T D"]:
        """The layer on one slice of the stack."""
        eps = self._config.norm_eps
        with jax.named_scope("attention"):
            normed = rms_norm(x, self.attention_norm[...], eps)
            qkv = jnp.einsum("btd,dcnh->btcnh", normed, self.qkv[...].astype(x.dtype))
            names = (axes.BATCH, None, None, axes.HEADS, axes.HEAD_DIM)
            qkv = constrain(qkv, names)
            mixed = attend_segments(qkv, bias, segment_ids)
            mixed = constrain(mixed, (axes.BATCH, axes.LENGTH, axes.HEADS, axes.HEAD_DIM))
            added = jnp.einsum("btnh,nhd->btd", mixed, self.output[...].astype(x.dtype))
            x = constrain(x + added, _STREAM)
        with jax.named_scope("mlp"):
            normed = rms_norm(x, self.mlp_norm[...], eps)
            up = jnp.einsum("btd,dcf->btcf", normed, self.up[...].astype(x.dtype))
            up = constrain(up, (axes.BATCH, axes.LENGTH, None, axes.MLP))
            if self._config.activation == "gated-gelu":
                inner = jax.nn.gelu(up[:, :, 0]) * up[:, :, 1]
            else:
                inner = jax.nn.relu(up[:, :, 0])
            added = jnp.einsum("btf,fd->btd", inner, self.down[...].astype(x.dtype))
            return constrain(x + added, _STREAM)


class T5Encoder(nnx.Module):
    """The encoder alone. Parameters are float32 and carry their logical axes."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs) -> None:
        self.config = config
        width, heads = config.hidden_size, config.num_heads
        table = (config.vocab_size, width)
        self.embedding = random_weight(rngs, table, (axes.VOCAB, axes.EMBED), 1.0)
        self.position_bias = random_weight(
            rngs, (heads, config.num_buckets), (axes.HEADS, None), width**-0.5
        )
        self.blocks = T5Block(config, rngs=rngs)
        self.final_norm = constant_weight(1.0, (width,), (axes.EMBED,))

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        *,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """The stream after the last norm, in the compute dtype.

        Args:
            positions: for the bias; 0, 1, … where absent. Only differences within a segment
                matter, so a packed row gives the same states with or without restarts.
            segment_ids: attention stays within equal ids; 0 is padding, whose output is
                meaningless. One segment where absent.
        """
        x, _ = self._read(tokens, positions, segment_ids, keep_states=False)
        return rms_norm(x, self.final_norm[...], self.config.norm_eps)

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
        x, befores = self._read(tokens, positions, segment_ids, keep_states=True)
        return jnp.concatenate([befores, x[None]])

    def _read(
        self,
        tokens: Array,
        positions: Array | None,
        segment_ids: Array | None,
        *,
        keep_states: bool,
    ) -> tuple[Array, Any]:
        """The stream after the last layer, and where asked for that before each, `[L, B, T, D]`."""
        counting = jnp.arange(tokens.shape[1])[None]
        buckets = offset_buckets(self.config.num_buckets, self.config.max_distance)
        bias = OffsetBias(
            self.position_bias[...][:, buckets], counting if positions is None else positions
        )
        segments = jnp.ones_like(counting) if segment_ids is None else segment_ids
        graph, stacked = nnx.split(self.blocks)

        def layer(x: Array, weights: nnx.State) -> tuple[Array, Any]:
            return nnx.merge(graph, weights)(x, bias, segments), x if keep_states else None

        with jax.named_scope("embed"):
            # jnp.take answers NaN for an id outside the table, where indexing would clamp it.
            x = jnp.take(self.embedding[...], tokens, axis=0)
            x = constrain(x.astype(self.config.compute_dtype), _STREAM)
        unroll = 1 if self.config.scan_layers else self.config.num_layers
        return jax.lax.scan(layer, x, stacked, unroll=unroll)


def attend_segments(
    qkv: Float[Array, "B T 3 N H"], bias: OffsetBias, segment_ids: Int[Array, "#B T"]
) -> Float[Array, "B T N H"]:
    """Attention of every position to all of its segment, before it and after it.

    Dense, by blocks of queries: the flash kernels take no bias.
    """
    queries, keys, values = (qkv[:, :, part] for part in range(3))
    reach = bias.by_offset.shape[1] // 2

    def attend(at: tuple[Array, Array, Array]) -> Array:
        query, position, segment = at
        scores = jnp.einsum("bnh,bsnh->bns", query, keys, preferred_element_type=jnp.float32)
        offsets = jnp.clip(bias.positions - position[:, None], -reach, reach) + reach
        scores = scores + jnp.moveaxis(bias.by_offset[:, offsets], 0, 1)
        seen = (segment_ids == segment[:, None])[:, None]
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
        return jnp.einsum("bns,bsnh->bnh", weights.astype(values.dtype), values)

    by_query = [jnp.moveaxis(x, 1, 0) for x in (queries, bias.positions, segment_ids)]
    size = min(_QUERIES_AT_ONCE, queries.shape[1])
    return jnp.moveaxis(jax.lax.map(attend, tuple(by_query), batch_size=size), 0, 1)


def offset_buckets(num_buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of every offset from -max_distance to max_distance, key minus query.

    The first half of a side's buckets hold one distance each, the others ranges that grow in
    proportion up to `max_distance`. Made on the host: an accelerator's logarithm is off by more
    than a range's edge allows.
    """
    side = num_buckets // 2
    exact = side // 2
    distance = np.arange(max_distance + 1)
    log_share = np.log(np.maximum(distance, exact).astype(np.float32) / np.float32(exact))
    log_share = log_share / np.float32(math.log(max_distance / exact))
    ranged = exact + (log_share * np.float32(side - exact)).astype(np.int32)
    bucket = np.where(distance < exact, distance, np.minimum(ranged, side - 1))
    return np.concatenate([bucket[:0:-1], [0], bucket[1:] + side])
