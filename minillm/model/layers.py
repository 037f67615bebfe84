"""The parts a layer is made of: weights with named axes, RMSNorm, RoPE, the gated MLP.

Every module here holds the weights of all L layers, stacked along a leading axis, and is called
on the slice of one layer: `Transformer` splits the stack inside its scan.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from minillm.core import axes
from minillm.core.sharding import constrain
from minillm.model.config import ModelConfig

# Standard deviation of a unit normal cut at ±2: dividing by it gives the deviation asked for.
_TRUNCATED_STDDEV = 0.87962566103423978
_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
}


def random_weight(
    rngs: nnx.Rngs, shape: Sequence[int], names: Sequence[str | None], stddev: float
) -> nnx.Param:
    """A float32 weight from a normal cut at two deviations.

    Args:
        names: the logical axis of each dimension, kept as the metadata `logical_axes`. (Flax's
            own `sharding` key would make the initialiser demand a mesh.)
    """
    draw = jax.random.truncated_normal(rngs.params(), -2.0, 2.0, tuple(shape), jnp.float32)
    return nnx.Param(draw * (stddev / _TRUNCATED_STDDEV), logical_axes=tuple(names))


def constant_weight(value: float, shape: Sequence[int], names: Sequence[str | None]) -> nnx.Param:
    """A float32 weight that starts the same everywhere: a norm's scale, a bias."""
    return nnx.Param(jnp.full(tuple(shape), value, jnp.float32), logical_axes=tuple(names))


def rms_norm(
    x: Float[Array, "*B D"],
    scale: Float[Array, "*#B D"],
    eps: float,
    *,
    axis: int | tuple[int, ...] = -1,
) -> Float[Array, "*B D"]:
    """`x / rms(x) · scale` over `axis`, computed in float32, returned in x's dtype."""
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(wide * wide, axis=axis, keepdims=True)
    return (wide * jax.lax.rsqrt(mean_square + eps) * scale).astype(x.dtype)


class RMSNorm(nnx.Module):
    """RMSNorm over the model width (Zhang and Sennrich, 2019)."""

    def __init__(self, config: ModelConfig, *, stack: tuple[int, ...] = ()) -> None:
        names = [axes.LAYERS] * len(stack) + [axes.EMBED]
        self.scale = constant_weight(1.0, (*stack, config.hidden_size), names)
        self._eps = config.norm_eps

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return rms_norm(x, self.scale[...], self._eps)


class Rotation(NamedTuple):
    """Cosine and sine of every position's angles; a batch of 1 serves any batch."""

    cos: Float[Array, "#B T half"]
    sin: Float[Array, "#B T half"]


def rope_rotation(
    positions: Int[Array, "#B T"],
    size: int,
    theta: float,
    *,
    divisors: Float[Array, "*#B half"] | None = None,
    magnitude: float = 1.0,
) -> Rotation:
    """The rotation of each position: angle `position · theta^(-2i / size)` for pair i (float32).

    Computed once a forward pass and shared by all layers that turn alike.

    Args:
        size: how many features of a head are turned.
        divisors: of the angles, by pair.
        magnitude: factor on what is turned.
    """
    exponents = jnp.arange(0, size, 2, dtype=jnp.float32) / size
    frequencies = theta**-exponents
    if divisors is not None:
        frequencies = frequencies / divisors
    angles = positions[..., None].astype(jnp.float32) * frequencies
    if magnitude == 1.0:
        return Rotation(jnp.cos(angles), jnp.sin(angles))
    return Rotation(jnp.cos(angles) * magnitude, jnp.sin(angles) * magnitude)


def apply_rope(x: Float[Array, "B T *N H"], rotation: Rotation) -> Float[Array, "B T *N H"]:
    """Turn the pairs (i, i + R/2) of every head's first R features by the angle of its position.

    The half-split pairing is that of the Hugging Face models (Su et al., 2021, pair neighbours).
    """
    heads = tuple(range(2, x.ndim - 1))
    cos, sin = (jnp.expand_dims(part, heads) for part in rotation)
    size = 2 * cos.shape[-1]
    first, second = jnp.split(x[..., :size].astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    kept = [] if size == x.shape[-1] else [x[..., size:].astype(jnp.float32)]
    return jnp.concatenate(turned + kept, axis=-1).astype(x.dtype)


def segment_lengths(segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """For every token, how many tokens the run of equal ids has that it stands in."""

    def of_row(ids: Int[Array, " T"]) -> Int[Array, " T"]:
        starts = jnp.concatenate([jnp.zeros(1, bool), ids[1:] != ids[:-1]])
        run = jnp.cumsum(starts)
        return jnp.zeros_like(ids).at[run].add(1)[run]

    return jax.vmap(of_row)(segment_ids)


def soft_cap(x: Float[Array, "*S"], cap: float | None) -> Float[Array, "*S"]:
    """`cap · tanh(x / cap)`, or x itself where cap is None."""
    return x if cap is None else cap * jnp.tanh(x / cap)


class GatedMLP(nnx.Module):
    """`down(activation(gate(x)) · up(x))`: SwiGLU or GeGLU (Shazeer, 2020).

    Gate and up are one weight `[L, D, 2, F]`: one product instead of two is a third faster on
    CPU, and the split keeps F whole for sharding.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        layers, width, inner = config.num_layers, config.hidden_size, config.intermediate_size
        self.gate_up = random_weight(
            rngs,
            (layers, width, 2, inner),
            (axes.LAYERS, axes.EMBED, None, axes.MLP),
            width**-0.5,
        )
        # Each layer adds to the stream twice: the sum over depth starts with unit size.
        self.down = random_weight(
            rngs,
            (layers, inner, width),
            (axes.LAYERS, axes.MLP, axes.EMBED),
            (inner * 2 * layers) ** -0.5,
        )
        self._bias = config.mlp_bias
        if config.mlp_bias:
            names = (axes.LAYERS, None, axes.MLP)
            self.gate_up_bias = constant_weight(0.0, (layers, 2, inner), names)
            self.down_bias = constant_weight(0.0, (layers, width), (axes.LAYERS, axes.EMBED))
        self._activation = config.activation

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        both = jnp.einsum("btd,dcf->btcf", x, self.gate_up[...].astype(x.dtype))
        if self._bias:
            both = both + self.gate_up_bias[...].astype(x.dtype)
        both = constrain(both, (axes.BATCH, axes.LENGTH, None, axes.MLP))
        inner = _ACTIVATIONS[self._activation](both[:, :, 0]) * both[:, :, 1]
        out = jnp.einsum("btf,fd->btd", inner, self.down[...].astype(x.dtype))
        return out + self.down_bias[...].astype(x.dtype) if self._bias else out
