"""The projections around attention, and its place on a mesh; itself it is `pallas_kernels`."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from minillm.core import axes
from minillm.core.sharding import constrain, on_each_shard
from minillm.model.config import ModelConfig
from minillm.model.layers import (
    Rotation,
    apply_rope,
    constant_weight,
    random_weight,
    rms_norm,
)
from pallas_kernels import chosen_implementation, decode_attention, sliding_window_attention

Queries = Float[Array, "B T N H"]
Keys = Float[Array, "B T K H"]
Values = Float[Array, "B T K H"]
Names = tuple[str | None, ...]


class Attention(nnx.Module):
    """Queries, keys and values from the stream, and the way back into it.

    The three projections are one weight `[L, D, K, G + 2, H]`: for each key/value head its G
    query heads, its key head, its value head. One product and one RoPE over it all take 5.3 ms
    (forward and backward, 2,048 tokens, D = 128) where three take 9.0, and the cut between
    devices along K never separates what belongs together.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        layers, width, heads = config.num_layers, config.hidden_size, config.num_heads
        fused = (config.num_kv_heads, config.groups + 2, config.head_dim)
        fused_names = (axes.KV_HEADS, None, axes.HEAD_DIM)
        self.qkv = random_weight(
            rngs, (layers, width, *fused), (axes.LAYERS, axes.EMBED, *fused_names), width**-0.5
        )
        # Each layer adds to the stream twice: the sum over depth starts with unit size.
        self.output = random_weight(
            rngs,
            (layers, heads, config.head_dim, width),
            (axes.LAYERS, axes.HEADS, axes.HEAD_DIM, axes.EMBED),
            (heads * config.head_dim * 2 * layers) ** -0.5,
        )
        if config.attention_bias:
            self.qkv_bias = constant_weight(0.0, (layers, *fused), (axes.LAYERS, *fused_names))
        if config.qk_norm:
            names = (axes.LAYERS, axes.HEAD_DIM)
            self.query_scale = constant_weight(1.0, (layers, config.head_dim), names)
            self.key_scale = constant_weight(1.0, (layers, config.head_dim), names)
        if config.joint_qk_norm:
            of_queries = (layers, config.num_kv_heads, config.groups, config.head_dim)
            of_keys = (layers, config.num_kv_heads, config.head_dim)
            self.query_scale = constant_weight(1.0, of_queries, (axes.LAYERS, *fused_names))
            key_names = (axes.LAYERS, axes.KV_HEADS, axes.HEAD_DIM)
            self.key_scale = constant_weight(1.0, of_keys, key_names)
        if config.output_bias:
            self.output_bias = constant_weight(0.0, (layers, width), (axes.LAYERS, axes.EMBED))
        self._config = config

    def project(
        self, x: Float[Array, "B T D"], rotation: Rotation | None
    ) -> tuple[Queries, Keys, Values]:
        """Queries, keys and values of every position, normed and turned as configured.

        Args:
            rotation: None in a layer without positions.
        """
        config = self._config
        fused = jnp.einsum("btd,dkch->btkch", x, self.qkv[...].astype(x.dtype))
        if config.attention_bias:
            fused = fused + self.qkv_bias[...].astype(x.dtype)
        names = (axes.BATCH, axes.LENGTH, axes.KV_HEADS, None, axes.HEAD_DIM)
        fused = constrain(fused, names)
        turned, values = fused[..., :-1, :], fused[..., -1, :]
        if config.qk_norm:
            of_queries = jnp.broadcast_to(self.query_scale[...], (config.groups, config.head_dim))
            scales = jnp.concatenate([of_queries, self.key_scale[...][None]])
            turned = rms_norm(turned, scales, config.norm_eps)
        if config.joint_qk_norm:
            turned = self._norm_jointly(turned)
        if rotation is not None:
            turned = apply_rope(turned, rotation)
        queries = turned[..., :-1, :].reshape(*x.shape[:2], config.num_heads, config.head_dim)
        return queries, turned[..., -1, :], values

    def merge(self, mixed: Queries) -> Float[Array, "B T D"]:
        """What the heads found, mapped back to the model width."""
        mixed = constrain(mixed, (axes.BATCH, axes.LENGTH, axes.HEADS, axes.HEAD_DIM))
        out = jnp.einsum("btnh,nhd->btd", mixed, self.output[...].astype(mixed.dtype))
        return out + self.output_bias[...].astype(out.dtype) if self._config.output_bias else out

    def _norm_jointly(self, fused: Float[Array, "B T K G1 H"]) -> Float[Array, "B T K G1 H"]:
        """All query heads of a token as one vector, and all key heads as another."""
        eps = self._config.norm_eps
        queries = rms_norm(fused[..., :-1, :], self.query_scale[...], eps, axis=(-3, -2, -1))
        keys = rms_norm(fused[..., -1, :], self.key_scale[...], eps, axis=(-2, -1))
        return jnp.concatenate([queries, keys[..., None, :]], axis=-2)


def attend_rows(
    config: ModelConfig,
    queries: Queries,
    keys: Keys,
    values: Values,
    *,
    window: int | None,
    segment_ids: Int[Array, "B T"] | None,
) -> Queries:
    """Causal attention of whole rows, as the model's configuration has it."""

    def attend(q: Array, k: Array, v: Array, *segments: Array) -> Array:
        return sliding_window_attention(
            q,
            k,
            v,
            window=window,
            segment_ids=segments[0] if segments else None,
            scale=config.attention_scale,
            soft_cap=config.attention_soft_cap,
            implementation=config.attention_implementation,
        )

    # Rows come whole: on a mesh with a context axis they are gathered first.
    rows: Names = (axes.BATCH, None, axes.KV_HEADS, axes.HEAD_DIM)
    names = [rows, rows, rows]
    arrays = [queries, keys, values]
    if segment_ids is not None:
        names.append((axes.BATCH, None))
        arrays.append(segment_ids)
    return _placed(config, attend, names, rows, queries)(*arrays)


def attend_cache(
    config: ModelConfig,
    queries: Float[Array, "B N H"],
    keys: Float[Array, "B W K H"],
    values: Float[Array, "B W K H"],
    lengths: Int[Array, " B"],
) -> Float[Array, "B N H"]:
    """Attention of one query a sequence over its ring-buffer cache."""
    # "reference" is a form of whole rows; one query a sequence has "xla" for it.
    name = config.attention_implementation
    attend = functools.partial(
        decode_attention,
        scale=config.attention_scale,
        soft_cap=config.attention_soft_cap,
        implementation="xla" if name == "reference" else name,
    )
    one: Names = (axes.BATCH, axes.KV_HEADS, axes.HEAD_DIM)
    ring: Names = (axes.BATCH, None, axes.KV_HEADS, axes.HEAD_DIM)
    names = [one, ring, ring, (axes.BATCH,)]
    return _placed(config, attend, names, one, queries)(queries, keys, values, lengths)


def _placed(
    config: ModelConfig,
    attend: Callable[..., Array],
    inputs: list[Names],
    output: Names,
    like: jax.Array,
) -> Callable[..., Array]:
    """A kernel is one operation that the partitioner cannot cut: each device calls its own.

    What is plain XLA the partitioner cuts by itself, without a collective.
    """
    name = chosen_implementation(config.attention_implementation, like.dtype, like.shape[-1])
    if name in ("xla", "reference"):
        return attend
    return on_each_shard(attend, inputs, output)
