import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from minillm.model.layers import (
    GatedMLP,
    apply_rope,
    rms_norm,
    rope_rotation,
    segment_lengths,
    soft_cap,
)
from tests.model.models import SMALL
from tests.tolerances import TOLERANCES

F32 = TOLERANCES["float32"].output


def test_rms_norm_matches_float64():
    x = np.random.default_rng(0).normal(size=(2, 3, 16)) * 5
    scale = np.linspace(0.5, 2, 16)
    expected = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-5) * scale
    got = rms_norm(jnp.asarray(x, jnp.float32), jnp.asarray(scale, jnp.float32), 1e-5)
    np.testing.assert_allclose(got, expected, atol=4 * F32)


def test_rms_norm_computes_in_float32_and_keeps_the_dtype():
    # 300² overflows nothing in bf16, but a bf16 mean over 256 equal squares would drift.
    x = jnp.full((1, 256), 300.0, jnp.bfloat16)
    got = rms_norm(x, jnp.ones(256), 1e-5)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(got, np.float32), 1.0)


def test_rope_turns_complex_pairs_half_a_head_apart():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 5, 3, 8))
    positions = rng.integers(0, 40, size=(2, 5))
    angles = positions[..., None] * 100.0 ** (-np.arange(4) / 4)
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles)[:, :, None]
    rotation = rope_rotation(jnp.asarray(positions), 8, 100.0)
    got = apply_rope(jnp.asarray(x, jnp.float32), rotation)
    # Angles up to 40 in float32 carry an error of 40 · 2^-24.
    expected = np.concatenate([turned.real, turned.imag], -1)
    np.testing.assert_allclose(got, expected, atol=10 * F32)


def test_rope_turns_the_first_features_by_divided_angles_and_leaves_the_rest():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(1, 5, 2, 10))
    positions, divisors = np.arange(5)[None], np.array([1.0, 2.0, 5.0])
    angles = positions[..., None] * 100.0 ** (-np.arange(3) / 3) / divisors
    turned = (x[..., :3] + 1j * x[..., 3:6]) * np.exp(1j * angles)[:, :, None] * 1.5
    rotation = rope_rotation(
        jnp.asarray(positions), 6, 100.0, divisors=jnp.asarray(divisors), magnitude=1.5
    )
    got = apply_rope(jnp.asarray(x, jnp.float32), rotation)
    expected = np.concatenate([turned.real, turned.imag, x[..., 6:]], -1)
    np.testing.assert_allclose(got, expected, atol=10 * F32)


def test_segment_lengths_count_the_run_that_each_token_stands_in():
    ids = jnp.array([[1, 1, 2, 2, 2, 0], [7, 3, 3, 7, 7, 7]])
    expected = [[2, 2, 3, 3, 3, 1], [1, 2, 2, 3, 3, 3]]
    np.testing.assert_array_equal(segment_lengths(ids), expected)


def test_gated_mlp_is_down_of_gate_times_up():
    mlp = GatedMLP(SMALL, rngs=nnx.Rngs(0))
    graph, stacked = nnx.split(mlp)
    x = np.random.default_rng(2).normal(size=(1, 4, 16))
    got = nnx.merge(graph, jax.tree.map(lambda w: w[3], stacked))(jnp.asarray(x, jnp.float32))
    both = np.asarray(mlp.gate_up[...], np.float64)[3]
    gate, up = x @ both[:, 0], x @ both[:, 1]
    expected = (gate / (1 + np.exp(-gate)) * up) @ np.asarray(mlp.down[...], np.float64)[3]
    np.testing.assert_allclose(got, expected, atol=F32)


def test_soft_cap_bounds_and_none_leaves_alone():
    x = jnp.array([-1e4, -0.01, 0.0, 0.01, 1e4])
    np.testing.assert_allclose(soft_cap(x, 5.0), [-5, -0.01, 0, 0.01, 5], atol=1e-6)
    assert soft_cap(x, None) is x
