"""The banded implementation against the float64 oracle, in outputs and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import sliding_window_attention
from pallas_kernels.tiling import BLOCK
from pallas_kernels.tuning import BlockSizes
from pallas_kernels.window import key_range
from tests.pallas_kernels.attention_cases import make_case, run, run_oracle
from tests.tolerances import TOLERANCES

EXACT = TOLERANCES["float32"]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def assert_matches_oracle(case, **options):
    blocks = options.pop("block_sizes", None)
    results = run(case, jnp.float32, implementation="xla", block_sizes=blocks, **options)
    wanted = run_oracle(case, **options)
    outputs = 2 if options.get("return_lse") else 1
    assert len(results) == len(wanted) == outputs + (3 if case.sinks is None else 4)
    for got, exact in zip(results[:outputs], wanted[:outputs], strict=True):
        np.testing.assert_allclose(got, exact, rtol=0, atol=EXACT.output)
    gradients, wanted_gradients = results[outputs:], wanted[outputs:]
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


def test_large_batches_of_short_rows_computed_in_halves_match():
    case = make_case(batch=43, queries=100, heads=4, kv_heads=2, head_dim=8, sinks=True)
    ids = np.ones((43, 100), np.int32)
    ids[:5, 40:], ids[-5:, 70:] = 2, 0
    assert_matches_oracle(case, window=30, segment_ids=ids)


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


@pytest.mark.parametrize(
    ("soft_cap", "sinks", "segments"),
    [(None, False, False), (None, True, True), (2.0, False, True), slow(2.0, True, True)],
)
def test_log_sum_exp_and_gradients_through_it_match(soft_cap, sinks, segments):
    ids = segment_rows([(1, 90), (0, 10), (2, 50)], [(3, 150)]) if segments else None
    assert_matches_oracle(
        make_case(queries=150, heads=4, kv_heads=2, sinks=sinks),
        window=40,
        soft_cap=soft_cap,
        segment_ids=ids,
        return_lse=True,
    )


def test_a_query_without_keys_has_no_log_sum_exp_but_that_of_its_sink():
    ids = segment_rows([(1, 3), (0, 2)])
    for sinks in (False, True):
        case = make_case(batch=1, queries=5, sinks=sinks)
        lse = run(case, jnp.float32, window=2, segment_ids=ids, return_lse=True)[1]
        nothing = np.broadcast_to(case.sinks if sinks else -np.inf, (2, 2))
        np.testing.assert_array_equal(lse[0, 3:], nothing)
        assert np.isfinite(lse[0, :3]).all()


def rising_positions(rows: int, length: int) -> np.ndarray:
    """Positions of rows from which tokens were dropped: steps of 1, 2 and 3."""
    steps = np.random.default_rng(1).integers(1, 4, (rows, length))
    return np.cumsum(steps, axis=1, dtype=np.int32)


@pytest.mark.parametrize(("window", "segments"), [(30, False), slow(30, True), slow(None, True)])
def test_the_window_counts_positions_where_they_are_given(window, segments):
    ids = segment_rows([(1, 90), (2, 60)], [(1, 10), (0, 140)]) if segments else None
    positions = rising_positions(2, 150)
    case = make_case(queries=150, heads=2, kv_heads=1)
    assert_matches_oracle(case, window=window, segment_ids=ids, positions=positions)


@pytest.mark.parametrize("sinks", [False, True])
def test_marks_of_queries_and_keys_may_differ_and_leave_a_query_without_keys(sinks):
    keys = segment_rows([(1, 60), (2, 130)], [(1, 100), (3, 90)])
    positions = rising_positions(2, 190)
    # The queries are the last 150 tokens; some belong to a segment that has no keys here.
    queries = keys[:, 40:].copy()
    queries[:, 5::31] = 7
    assert_matches_oracle(
        make_case(queries=150, keys=190, heads=2, kv_heads=1, sinks=sinks),
        window=50,
        segment_ids=(queries, keys),
        positions=(positions[:, 40:], positions),
        return_lse=True,
    )


def test_a_row_cut_in_two_with_a_halo_of_keys_gives_the_whole_row():
    case = make_case(queries=160, heads=2, kv_heads=1)
    (q, k, v, _), _ = case.cast(jnp.float32)
    ids = jnp.asarray(segment_rows([(1, 70), (2, 90)], [(1, 100), (0, 60)]))
    whole = sliding_window_attention(q, k, v, window=30, segment_ids=ids)
    halo = slice(80 - 29, None)
    second = sliding_window_attention(
        q[:, 80:], k[:, halo], v[:, halo], window=30, segment_ids=(ids[:, 80:], ids[:, halo])
    )
    np.testing.assert_allclose(second, whole[:, 80:], rtol=0, atol=EXACT.output)


def test_attention_over_parts_of_the_keys_merges_by_log_sum_exp_gradients_included():
    case = make_case(queries=90, heads=2, kv_heads=1)
    (q, k, v, _), d_out = case.cast(jnp.float32)
    part = jnp.asarray(np.stack([np.arange(90) % 2 + 1] * 2))

    def merged(q, k, v):
        outs, lses = [], []
        for wanted in (1, 2):
            ids = (jnp.full((2, 90), wanted), part)
            out, lse = sliding_window_attention(
                q, k, v, window=20, segment_ids=ids, return_lse=True
            )
            outs.append(out)
            lses.append(lse)
        shares = jax.nn.softmax(jnp.stack(lses), axis=0)
        return (shares[..., None] * jnp.stack(outs)).sum(axis=0)

    out, pull = jax.vjp(merged, q, k, v)
    for got, wanted in zip((out, *pull(d_out)), run_oracle(case, window=20), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=EXACT.gradient)


@pytest.mark.parametrize("block", [8, 130])
def test_the_query_block_may_be_chosen(block):
    blocks = BlockSizes(forward=(block, 1), dq=(1, 1), dkv=(1, 1))
    assert_matches_oracle(make_case(queries=100), window=20, block_sizes=blocks)


def test_float64_stays_float64_and_exact():
    case = make_case(queries=100, sinks=True)
    with jax.enable_x64(True):
        options = {"window": 20, "soft_cap": 3.0, "return_lse": True}
        results = run(case, jnp.float64, implementation="xla", **options)
    for got, wanted in zip(results, run_oracle(case, **options), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-13)


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
