"""The banded implementation against the float64 oracle, in outputs and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import sliding_window_attention
from pallas_kernels.tiling import BLOCK
from pallas_kernels.window import key_range
from tests.pallas_kernels.attention_cases import make_case, run, run_oracle
from tests.tolerances import TOLERANCES

EXACT = TOLERANCES["float32"]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def assert_matches_oracle(case, **options):
    out, *gradients = run(case, jnp.float32, implementation="xla", **options)
    wanted_out, *wanted_gradients = run_oracle(case, **options)
    np.testing.assert_allclose(out, wanted_out, rtol=0, atol=EXACT.output)
    assert len(gradients) == len(wanted_gradients) == (3 if case.sinks is None else 4)
    for got, wanted in zip(gradients, wanted_gradients, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=EXACT.gradient)


@pytest.mark.parametrize(
    ("window", "kv_heads"),
    [(window, 1) for window in (1, 7, BLOCK - 1, BLOCK, BLOCK + 1, None)]
    + [slow(500, 1), slow(BLOCK, 3), (None, 3)],
)
def test_outputs_and_gradients_match_where_no_block_divides_the_row(window, kv_heads):
    assert_matches_oracle(
        make_case(queries=2 * BLOCK + 9, heads=3, kv_heads=kv_heads, batch=1), window=window
    )


@pytest.mark.parametrize("queries", [1, BLOCK, slow(BLOCK + 1), slow(4 * BLOCK)])
def test_outputs_and_gradients_match_at_block_edges_of_the_row(queries):
    assert_matches_oracle(make_case(queries=queries, heads=2, kv_heads=1), window=None)


@pytest.mark.parametrize("window", [130, slow(None)])
def test_long_rows_scanned_in_padded_spans_match(window):
    assert_matches_oracle(make_case(queries=10 * BLOCK + 5, batch=1, head_dim=8), window=window)


@pytest.mark.parametrize(
    ("queries", "keys", "window"),
    [(1, 50, None), slow(10, 33, 5), (200, 260, 5), slow(200, 201, None)],
)
def test_fewer_queries_than_keys_match(queries, keys, window):
    assert_matches_oracle(make_case(queries=queries, keys=keys), window=window)


def segment_rows(*rows: list[tuple[int, int]]) -> np.ndarray:
    """Rows from (id, length) runs."""
    return np.array([[i for i, length in row for _ in range(length)] for row in rows], np.int32)


SEGMENTS = {
    "aligned": segment_rows([(1, 64), (2, 64), (3, 64)], [(1, 128), (2, 64)]),
    "misaligned": segment_rows([(1, 50), (2, 33), (3, 109)], [(1, 1), (2, 190), (3, 1)]),
    "length one": segment_rows([(i + 1, 1) for i in range(192)], [(1, 191), (2, 1)]),
    "padding": segment_rows([(1, 70), (2, 30), (0, 92)], [(0, 192)]),
    "padding in front": segment_rows([(0, 65), (1, 127)], [(0, 1), (1, 190), (0, 1)]),
    "id used twice": segment_rows([(1, 20), (2, 100), (1, 72)], [(2, 96), (1, 96)]),
}


@pytest.mark.parametrize("window", [40, None])
@pytest.mark.parametrize("name", SEGMENTS)
def test_outputs_and_gradients_match_across_segments(name, window):
    case = make_case(queries=192, heads=3, kv_heads=1)
    assert_matches_oracle(case, window=window, segment_ids=SEGMENTS[name])


@pytest.mark.parametrize(("soft_cap", "sinks"), [(2.0, False), (None, True), (2.0, True)])
@pytest.mark.parametrize("window", [20, slow(None)])
def test_soft_cap_sinks_and_scale_match(soft_cap, sinks, window):
    assert_matches_oracle(
        make_case(queries=100, heads=4, kv_heads=2, sinks=sinks),
        window=window,
        scale=0.7,
        soft_cap=soft_cap,
        segment_ids=segment_rows([(1, 60), (2, 30), (0, 10)], [(1, 100)]),
    )


@pytest.mark.parametrize("sinks", [False, True])
def test_padding_has_zero_output_and_passes_no_gradient(sinks):
    case = make_case(queries=130, sinks=sinks)
    padding = np.zeros((2, 130), bool)
    padding[0, 100:], padding[1] = True, True
    ids = np.where(padding, 0, 1).astype(np.int32)
    out, dq, dk, dv, *d_sinks = run(case, jnp.float32, window=9, segment_ids=ids)
    for array in (out, dq, dk, dv):
        assert not array[padding].any()
        assert np.isfinite(array).all()
    assert np.isfinite(d_sinks).all()


@pytest.mark.parametrize(("queries", "window"), [(200, 30), (900, 70)])
def test_perturbing_keys_outside_the_window_changes_nothing_bitwise(queries, window):
    case = make_case(queries=queries, batch=1, head_dim=8)
    (q, k, v, _), _ = case.cast(jnp.float32)
    query = queries // 2
    first, stop = key_range(query, query + 1, window)
    outside = np.ones(queries, bool)
    outside[first:stop] = False
    outside = outside[None, :, None, None]
    attend = jax.jit(lambda k, v: sliding_window_attention(q, k, v, window=window)[:, query])
    before = attend(k, v)
    after = attend(jnp.where(outside, 7 * k + 3, k), jnp.where(outside, -1e6, v))
    np.testing.assert_array_equal(before, after)


def test_perturbing_another_segment_changes_nothing_bitwise():
    case = make_case(queries=200)
    (q, k, v, _), _ = case.cast(jnp.float32)
    ids = jnp.where(jnp.arange(200) < 77, 1, 2)[None].repeat(2, axis=0)
    first = (ids == 1)[:, :, None, None]

    @jax.jit
    def second_segment(k, v):
        return sliding_window_attention(q, k, v, window=None, segment_ids=ids)[:, 77:]

    np.testing.assert_array_equal(
        second_segment(k, v), second_segment(jnp.where(first, -k, k), jnp.where(first, 1e6, v))
    )


def test_large_logits_stay_exact():
    case = make_case(queries=100)
    out, *gradients = run(case, jnp.float32, window=20, scale=1e4)
    assert all(np.isfinite(x).all() for x in (out, *gradients))
    np.testing.assert_allclose(out, run_oracle(case, window=20, scale=1e4)[0], atol=1e-2)


@pytest.mark.parametrize("window", [50, slow(None)])
def test_bfloat16_error_is_at_most_twice_that_of_plain_bfloat16_attention(window):
    case = make_case(queries=130, batch=2, heads=3, kv_heads=1, head_dim=32)
    exact = run_oracle(case, window=window)
    ours = run(case, jnp.bfloat16, window=window, implementation="xla")

    def plain(q, k, v):
        q = q.reshape(2, 130, 1, 3, 32)
        logits = jnp.einsum("btkgh,bskh->bkgts", q, k) * jnp.asarray(32**-0.5, q.dtype)
        distance = jnp.arange(130)[:, None] - jnp.arange(130)[None, :]
        mask = (distance >= 0) & (distance < (window or 130))
        probabilities = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf), axis=-1)
        return jnp.einsum("bkgts,bskh->btkgh", probabilities, v).reshape(2, 130, 3, 32)

    (q, k, v, _), d_out = case.cast(jnp.bfloat16)

    @jax.jit
    def plain_and_gradients(q, k, v, d_out):
        out, pull = jax.vjp(plain, q, k, v)
        return out, *pull(d_out)

    theirs = plain_and_gradients(q, k, v, d_out)
    for mine, other, wanted in zip(ours, theirs, exact, strict=True):
        other = np.asarray(other, np.float64)
        assert np.abs(mine - wanted).max() <= 2 * np.abs(other - wanted).max()


def test_bfloat16_inputs_give_bfloat16_outputs_and_gradients():
    (q, k, v, sinks), d_out = make_case(sinks=True).cast(jnp.bfloat16)

    def attend(q, k, v, sinks):
        return sliding_window_attention(q, k, v, sinks=sinks, window=8)

    out, pull = jax.vjp(attend, q, k, v, sinks)
    assert {x.dtype for x in (out, *pull(d_out))} == {jnp.dtype(jnp.bfloat16)}


def temp_bytes(queries: int) -> int:
    shape = jax.ShapeDtypeStruct((1, queries, 2, 64), jnp.float32)

    def loss(q, k, v):
        return sliding_window_attention(q, k, v, window=256).sum()

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(shape, shape, shape).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_backward_memory_grows_with_the_row_and_not_with_its_square():
    assert temp_bytes(8130) < 2.2 * temp_bytes(4096)
