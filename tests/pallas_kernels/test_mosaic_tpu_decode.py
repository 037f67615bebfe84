"""The TPU's decode kernel, run by the interpreter, against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.mosaic_tpu_decode import decode
from pallas_kernels.reference import reference_attention
from pallas_kernels.window import Marks
from tests.tolerances import TOLERANCES

EXACT = TOLERANCES["float32"]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def make_cache(*, batch=3, slots, heads, kv_heads, head_dim=64, seed=0):
    """q, k_cache, v_cache and sinks in float64, each a float32 number."""
    rng = np.random.default_rng(seed)
    cache = (batch, slots, kv_heads, head_dim)
    shapes = ((batch, heads, head_dim), cache, cache, (heads,))
    return [rng.standard_normal(x).astype(np.float32).astype(np.float64) for x in shapes]


def oracle(q, k, v, lengths, *, scale, soft_cap, sinks):
    """The dense reference, filled slots marked as one segment."""
    slots = np.arange(k.shape[1])
    segments = (slots < np.asarray(lengths)[:, None]).astype(np.int32)
    with jax.enable_x64(True):
        out, _ = reference_attention(
            jnp.asarray(q)[:, None], jnp.asarray(k), jnp.asarray(v), window=None,
            marks=Marks(np.ones((len(q), 1), np.int32), segments),
            scale=scale, soft_cap=soft_cap, sinks=None if sinks is None else jnp.asarray(sinks),
        )  # fmt: skip
        return np.asarray(out[:, 0])


def run(q, k, v, lengths, *, dtype=jnp.float32, sinks=None, interpret=True, **options):
    q, k, v = (jnp.asarray(x, dtype) for x in (q, k, v))
    sinks = None if sinks is None else jnp.asarray(sinks, dtype)
    step = functools.partial(decode, interpret=interpret, **options)
    out = jax.jit(step)(q, k, v, jnp.asarray(lengths), sinks=sinks)
    return np.asarray(out, np.float64)


@pytest.mark.parametrize(
    ("slots", "heads", "kv_heads", "block", "soft_cap", "with_sinks"),
    [
        (300, 6, 2, 64, None, False),
        (23, 3, 3, None, 2.0, True),
        slow(256, 8, 8, 16, None, True),
        slow(300, 8, 1, 128, 2.0, False),
        slow(64, 3, 1, None, None, False),
    ],
)
def test_lengths_below_at_and_above_the_cache_match(
    slots, heads, kv_heads, block, soft_cap, with_sinks
):
    q, k, v, sinks = make_cache(batch=5, slots=slots, heads=heads, kv_heads=kv_heads)
    sinks = sinks if with_sinks else None
    lengths = [0, 1, slots // 2, slots, 3 * slots]
    options = {"scale": 0.125, "soft_cap": soft_cap, "sinks": sinks}
    got = run(q, k, v, lengths, block=block, **options)
    np.testing.assert_allclose(got, oracle(q, k, v, lengths, **options), rtol=0, atol=EXACT.output)
    assert not got[0].any()


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [128, 256])
def test_head_sizes_match(head_dim):
    q, k, v, _ = make_cache(slots=140, heads=4, kv_heads=1, head_dim=head_dim)
    options = {"scale": head_dim**-0.5, "soft_cap": None, "sinks": None}
    got = run(q, k, v, [5, 140, 99], block=128, **options)
    wanted = oracle(q, k, v, [5, 140, 99], **options)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=EXACT.output)


def test_slots_not_yet_written_change_nothing_bitwise():
    q, k, v, _ = make_cache(slots=200, heads=4, kv_heads=2)
    lengths = np.array([3, 64, 150])
    unwritten = (np.arange(200) >= lengths[:, None])[:, :, None, None]
    options = {"scale": 0.125, "soft_cap": None, "block": 64}
    np.testing.assert_array_equal(
        run(q, k, v, lengths, **options),
        run(q, np.where(unwritten, -1e6, k), np.where(unwritten, 1e6, v), lengths, **options),
    )


def test_bfloat16_step_is_within_tolerance_of_float64():
    q, k, v, _ = (
        np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)
        for x in make_cache(slots=64, heads=4, kv_heads=2)
    )
    options = {"scale": 0.125, "soft_cap": None, "sinks": None}
    got = run(q, k, v, [1, 40, 64], dtype=jnp.bfloat16, **options)
    wanted = oracle(q, k, v, [1, 40, 64], **options)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCES["bfloat16"].output)


def test_two_cores_race_nowhere():
    q, k, v, _ = make_cache(slots=256, heads=4, kv_heads=2)
    params = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
    options = {"scale": 0.125, "soft_cap": None, "sinks": None}
    got = run(q, k, v, [100, 256, 7], block=64, interpret=params, **options)
    wanted = oracle(q, k, v, [100, 256, 7], **options)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=EXACT.output)
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    assert not interpret_pallas_call.races.races_found


def test_a_block_that_is_no_multiple_of_the_lanes_is_an_error():
    q, k, v, _ = make_cache(slots=256, heads=4, kv_heads=2)
    with pytest.raises(ValueError, match="block: got 30 slots of 2 heads; .*; fix: try 64"):
        run(q, k, v, [1, 2, 3], block=30, scale=1.0, soft_cap=None)
