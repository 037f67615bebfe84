"""A decode step over a ring buffer against whole-row attention."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import decode_attention, sliding_window_attention
from tests.pallas_kernels.attention_cases import make_case, run_oracle
from tests.tolerances import TOLERANCES

EXACT = TOLERANCES["float32"]


@pytest.mark.parametrize(
    ("kv_heads", "soft_cap", "sinks"), [(3, None, False), (1, 2.0, False), (1, None, True)]
)
def test_every_step_of_a_row_equals_its_column_of_windowed_attention(kv_heads, soft_cap, sinks):
    tokens, window = 23, 8
    case = make_case(queries=tokens, heads=3, kv_heads=kv_heads, sinks=sinks)
    wanted = run_oracle(case, window=window, soft_cap=soft_cap)[0]
    (q, k, v, sink), _ = case.cast(jnp.float32)
    step = jax.jit(lambda *x: decode_attention(*x, soft_cap=soft_cap, sinks=sink))
    k_cache = v_cache = jnp.zeros((2, window, kv_heads, 16))
    for t in range(tokens):
        k_cache = k_cache.at[:, t % window].set(k[:, t])
        v_cache = v_cache.at[:, t % window].set(v[:, t])
        out = step(q[:, t], k_cache, v_cache, jnp.array([t + 1, t + 1]))
        np.testing.assert_allclose(out, wanted[:, t], rtol=0, atol=EXACT.output)


def test_lengths_differ_between_sequences_and_an_empty_cache_gives_zero():
    (q, k, v, _), _ = make_case(batch=3, queries=6).cast(jnp.float32)
    # What stands in slots not yet written must not matter.
    garbage = jnp.full((3, 4, 2, 16), 1e6)
    k_cache, v_cache = (garbage.at[:, :6].set(x) for x in (k[:, :4], v[:, :4]))
    out = jax.jit(decode_attention)(q[:, 0], k_cache, v_cache, jnp.array([0, 2, 4]))
    assert not np.asarray(out[0]).any()
    for row, length in ((1, 2), (2, 4)):
        wanted = sliding_window_attention(
            q[row : row + 1, :1], k[row : row + 1, :length], v[row : row + 1, :length], window=None
        )
        np.testing.assert_allclose(out[row], wanted[0, 0], rtol=0, atol=EXACT.output)


def test_slots_not_yet_written_change_nothing_bitwise():
    (q, k, v, _), _ = make_case(queries=8).cast(jnp.float32)
    lengths = jnp.array([3, 5])
    unwritten = (jnp.arange(8) >= lengths[:, None])[:, :, None, None]
    np.testing.assert_array_equal(
        decode_attention(q[:, 0], k, v, lengths),
        decode_attention(
            q[:, 0], jnp.where(unwritten, -1e6, k), jnp.where(unwritten, 1e6, v), lengths
        ),
    )


def test_bfloat16_step_is_within_tolerance_of_float64():
    case = make_case(queries=16, heads=4, kv_heads=2)
    (q, k, v, _), _ = case.cast(jnp.bfloat16)
    out = decode_attention(q[:, -1], k, v, jnp.array([16, 16]))
    assert out.dtype == jnp.bfloat16
    wanted = run_oracle(case, window=None)[0][:, -1]
    bound = 2 * TOLERANCES["bfloat16"].output
    np.testing.assert_allclose(np.asarray(out, np.float64), wanted, rtol=0, atol=bound)


BAD = {
    "rank": ({"q": jnp.zeros((2, 1, 4, 8))}, "q: got shape (2, 1, 4, 8); wanted [B, N, H]"),
    "cache rank": ({"k_cache": jnp.zeros((2, 2, 8))}, "k_cache: got shape (2, 2, 8)"),
    "head counts": (
        {"k_cache": jnp.zeros((2, 5, 3, 8)), "v_cache": jnp.zeros((2, 5, 3, 8))},
        "k_cache: got 3 key/value heads",
    ),
    "lengths": ({"lengths": jnp.zeros((2,))}, "lengths: got shape (2,), dtype float32"),
    "soft cap": ({"soft_cap": -1}, "soft_cap: got -1"),
    "implementation": ({"implementation": "cuda"}, "implementation: got 'cuda'"),
    "dense": ({"implementation": "reference"}, 'implementation: got "reference"'),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_name_the_field_and_the_fix(name):
    changes, message = BAD[name]
    arguments = {
        "q": jnp.zeros((2, 4, 8)),
        "k_cache": jnp.zeros((2, 5, 2, 8)),
        "v_cache": jnp.zeros((2, 5, 2, 8)),
        "lengths": jnp.array([1, 2]),
    }
    with pytest.raises(ValueError, match=re.escape(message)):
        decode_attention(**(arguments | changes))
