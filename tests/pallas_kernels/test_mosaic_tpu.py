"""The TPU kernels, run by the interpreter, against the float64 oracle."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import mosaic_tpu_backward
from pallas_kernels.reference import reference_attention
from pallas_kernels.tuning import BlockSizes
from pallas_kernels.window import NO_MARKS, Marks, attention_mask, key_range
from tests.pallas_kernels.attention_cases import make_case
from tests.pallas_kernels.mosaic_tpu_cases import (
    BLOCK,
    EXACT,
    SMALL,
    UNEVEN,
    assert_matches_oracle,
    gapped_positions,
    kernel_attention,
    run,
    run_oracle,
    same_marks,
    segment_rows,
)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


ROW = 2 * BLOCK + 9  # no multiple of a block


@pytest.mark.parametrize(
    ("window", "blocks"),
    [(7, SMALL), (BLOCK + 1, UNEVEN), (None, SMALL)]
    + [slow(window, SMALL) for window in (1, BLOCK - 1, BLOCK, BLOCK + 1, 500)]
    + [slow(window, UNEVEN) for window in (1, 7, BLOCK, 2 * BLOCK + 1, None)],
)
def test_outputs_and_gradients_match_where_no_block_divides_the_row(window, blocks):
    case = make_case(queries=ROW, heads=3, kv_heads=1, batch=1, head_dim=64)
    assert_matches_oracle(case, window=window, blocks=blocks)


@pytest.mark.slow
@pytest.mark.parametrize("queries", [1, BLOCK, BLOCK + 1, 4 * BLOCK])
def test_outputs_and_gradients_match_at_block_edges_of_the_row(queries):
    case = make_case(queries=queries, heads=2, kv_heads=1, batch=1, head_dim=64)
    assert_matches_oracle(case, window=100, blocks=UNEVEN)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [
        (8, 1, 128),
        slow(2, 2, 256),
        slow(6, 2, 128),
        slow(8, 1, 64),
        slow(2, 1, 72),
        slow(2, 2, 8),
        slow(2, 1, 20),
    ],
)
def test_head_sizes_and_groups_match(heads, kv_heads, head_dim):
    case = make_case(queries=BLOCK + 5, heads=heads, kv_heads=kv_heads, batch=1, head_dim=head_dim)
    assert_matches_oracle(case, window=50)


@pytest.mark.parametrize(
    ("queries", "keys", "window", "marked"),
    [
        (20, 300, 130, True),
        slow(140, 300, 130, False),
        slow(20, 300, None, True),
        slow(1, 50, None, False),
        slow(200, 460, 150, True),
        slow(200, 201, None, False),
    ],
)
def test_fewer_queries_than_keys_match(queries, keys, window, marked):
    case = make_case(queries=queries, keys=keys, batch=1, heads=2, kv_heads=1, head_dim=64)
    marks = NO_MARKS
    if marked:
        ids = segment_rows([(1, keys // 2), (2, keys - keys // 2)])
        marks = same_marks(ids, gapped_positions(ids), queries)
    assert_matches_oracle(case, window=window, marks=marks, blocks=UNEVEN)


SEGMENTS = {
    "aligned": segment_rows([(1, 128), (2, 128), (3, 128)], [(1, 256), (2, 128)]),
    "misaligned": segment_rows([(1, 50), (2, 133), (3, 201)], [(1, 1), (2, 382), (3, 1)]),
    "length one": segment_rows([(i + 1, 1) for i in range(384)], [(1, 383), (2, 1)]),
    "padding": segment_rows([(1, 170), (2, 30), (0, 184)], [(0, 384)]),
    "padding in front": segment_rows([(0, 129), (1, 255)], [(0, 1), (1, 382), (0, 1)]),
    "id used twice": segment_rows([(1, 140), (2, 100), (1, 144)], [(2, 192), (1, 192)]),
    "negative ids": segment_rows([(-1, 140), (-2, 100), (7, 144)], [(-2, 192), (-1, 192)]),
}


@pytest.mark.parametrize(
    ("name", "window", "positions"),
    [("misaligned", 40, True), ("padding", None, False)]
    + [slow(name, window, False) for name in SEGMENTS for window in (40, None)]
    + [slow(name, 200, True) for name in SEGMENTS],
)
def test_outputs_and_gradients_match_across_segments(name, window, positions):
    case = make_case(queries=384, heads=2, kv_heads=1, head_dim=64)
    ids = SEGMENTS[name]
    marks = same_marks(ids, gapped_positions(ids) if positions else None)
    assert_matches_oracle(case, window=window, marks=marks)


@pytest.mark.slow
@pytest.mark.parametrize("window", [30, 150])
def test_positions_without_segments_match(window):
    case = make_case(queries=300, heads=2, kv_heads=1, head_dim=64)
    positions = gapped_positions(np.ones((2, 300), np.int32))
    assert_matches_oracle(case, window=window, marks=Marks(None, None, positions, positions))


@pytest.mark.parametrize(
    ("soft_cap", "sinks", "window"),
    [(2.0, True, 40)]
    + [slow(c, s, w) for c, s in ((2.0, False), (None, True)) for w in (40, None)],
)
def test_soft_cap_sinks_and_scale_match(soft_cap, sinks, window):
    assert_matches_oracle(
        make_case(queries=200, heads=4, kv_heads=2, head_dim=64, sinks=sinks),
        window=window,
        scale=0.1,
        soft_cap=soft_cap,
        marks=same_marks(segment_rows([(1, 160), (2, 30), (0, 10)], [(1, 200)])),
    )


@pytest.mark.parametrize("sinks", [False, slow(True)])
def test_padding_has_zero_output_and_passes_no_gradient(sinks):
    case = make_case(queries=200, heads=2, kv_heads=1, head_dim=64, sinks=sinks)
    ids = segment_rows([(1, 100), (0, 100)], [(0, 200)])
    out, lse, dq, dk, dv, *d_sinks = run(case, window=9, marks=same_marks(ids))
    for array in (out, dq, dk, dv):
        assert not array[ids == 0].any()
        assert array[ids == 1].any() and np.isfinite(array).all()
    assert np.isfinite(d_sinks).all()
    if sinks:
        np.testing.assert_allclose(lse[ids == 0], np.broadcast_to(case.sinks, (300, 2)), rtol=1e-6)
    else:
        assert (lse[ids == 0] == -np.inf).all()


def interpreted(window, blocks=SMALL, head_dim=64, interpret=True):
    return kernel_attention(window, head_dim**-0.5, None, blocks, interpret)


@pytest.mark.parametrize("window", [30, slow(BLOCK), slow(170)])
def test_perturbing_what_the_window_hides_changes_nothing_bitwise(window):
    case = make_case(queries=400, batch=1, heads=2, kv_heads=1, head_dim=64)
    (q, k, v, _), d_out = case.cast(jnp.float32)
    query = 200
    first, stop = key_range(query, query + 1, window)
    outside = np.ones(400, bool)
    outside[first:stop] = False
    outside = outside[None, :, None, None]
    # A cotangent of the one query alone: other rows see the perturbed keys.
    d_out = jnp.where((jnp.arange(400) == query)[None, :, None, None], d_out, 0)

    @jax.jit
    def results(k, v):
        (out, lse), pull = jax.vjp(
            lambda q, k, v: interpreted(window)(q, k, v, NO_MARKS, None), q, k, v
        )
        dq, dk, dv = pull((d_out, jnp.zeros_like(lse)))
        inside = slice(first, stop)
        return out[:, query], lse[:, query], dq[:, query], dk[:, inside], dv[:, inside]

    before = results(k, v)
    after = results(jnp.where(outside, 7 * k + 3, k), jnp.where(outside, -1e6, v))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_perturbing_another_segment_changes_nothing_bitwise():
    (q, k, v, _), _ = make_case(queries=300, head_dim=64).cast(jnp.float32)
    ids = segment_rows(*[[(1, 77), (2, 223)]] * 2)
    first = (ids == 1)[:, :, None, None]

    @jax.jit
    def second_segment(k, v):
        return interpreted(None)(q, k, v, same_marks(ids), None)[0][:, 77:]

    np.testing.assert_array_equal(
        second_segment(k, v), second_segment(jnp.where(first, -k, k), jnp.where(first, 1e6, v))
    )


def test_large_logits_stay_finite_and_exact():
    case = make_case(queries=140, batch=1, head_dim=64)
    got = run(case, window=20, scale=1e3)
    assert all(np.isfinite(x).all() for x in got)
    np.testing.assert_allclose(got[0], run_oracle(case, window=20, scale=1e3)[0], atol=5e-3)


@pytest.mark.parametrize(("window", "head_dim"), [(50, 64), slow(None, 64), slow(None, 128)])
def test_bfloat16_error_is_at_most_twice_that_of_plain_bfloat16_attention(window, head_dim):
    case = make_case(queries=200, batch=2, heads=3, kv_heads=1, head_dim=head_dim)
    exact = run_oracle(case, window=window)
    ours = run(case, jnp.bfloat16, window=window)
    mask = attention_mask(200, 200, window)[0]

    def plain(q, k, v):
        q = q.reshape(2, 200, 1, 3, head_dim)
        logits = jnp.einsum("btkgh,bskh->bkgts", q, k) * jnp.asarray(head_dim**-0.5, q.dtype)
        logits = jnp.where(mask, logits, -jnp.inf)
        lse = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
        probabilities = jax.nn.softmax(logits, axis=-1)
        out = jnp.einsum("bkgts,bskh->btkgh", probabilities, v).reshape(2, 200, 3, head_dim)
        return out, lse.reshape(2, 3, 200).swapaxes(1, 2)

    (q, k, v, _), d_out = case.cast(jnp.bfloat16)
    d_lse = np.random.default_rng(1).standard_normal(case.q.shape[:3]).astype(np.float32)

    @jax.jit
    def plain_and_gradients(q, k, v, d_out, d_lse):
        (out, lse), pull = jax.vjp(plain, q, k, v)
        return out, lse, *pull((d_out, d_lse))

    theirs = plain_and_gradients(q, k, v, d_out, d_lse)
    for mine, other, wanted in zip(ours, theirs, exact, strict=True):
        other = np.asarray(other, np.float64)
        assert np.abs(mine - wanted).max() <= 2 * np.abs(other - wanted).max()


@pytest.fixture
def separate_kernels(monkeypatch):
    """dq in a kernel of its own, as where the ring would be too large."""
    monkeypatch.setattr(mosaic_tpu_backward, "RING_BYTES", 0)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize(
    ("queries", "keys", "window", "marked"),
    [(ROW, ROW, 130, False), slow(200, 460, 150, True), slow(ROW, ROW, None, True)],
)
def test_gradients_match_where_dq_has_a_kernel_of_its_own(
    separate_kernels, queries, keys, window, marked
):
    case = make_case(queries=queries, keys=keys, batch=1, heads=4, kv_heads=2, head_dim=64)
    marks = NO_MARKS
    if marked:
        ids = segment_rows([(1, keys // 2), (2, keys // 3), (0, keys - keys // 2 - keys // 3)])
        marks = same_marks(ids, gapped_positions(ids), queries)
    assert_matches_oracle(case, window=window, marks=marks, blocks=UNEVEN, soft_cap=3.0)


@pytest.mark.slow
def test_two_cores_race_nowhere_where_dq_has_a_kernel_of_its_own(separate_kernels):
    test_two_cores_race_nowhere_forward_or_backward(False)


@pytest.mark.parametrize("marked", [False, slow(True)])
def test_two_cores_race_nowhere_forward_or_backward(marked):
    """The detector knows a parallel axis that accumulates, and a copy nobody waited for."""
    case = make_case(queries=300, batch=1, heads=2, kv_heads=1, head_dim=64)
    marks = same_marks(segment_rows([(1, 140), (2, 160)])) if marked else NO_MARKS
    params = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
    assert_matches_oracle(case, window=140, marks=marks, interpret=params)
    # The interpreter keeps its finding here, and offers no other way to it.
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    assert not interpret_pallas_call.races.races_found


def gradients(attend, q, k, v, d_out):
    return jax.vjp(lambda *x: attend(*x, NO_MARKS, None)[0], q, k, v)[1](d_out)


def exact_gradients(q, k, v, d_out, *, window):
    """The same of the dense reference in float64."""
    scale = q.shape[-1] ** -0.5

    def attend(q, k, v, marks, sinks):
        return reference_attention(q, k, v, window=window, marks=marks, scale=scale, sinks=sinks)

    with jax.enable_x64(True):
        wide = [jnp.asarray(x, jnp.float64) for x in (q, k, v, d_out)]
        return [np.asarray(x) for x in gradients(attend, *wide)]


@pytest.mark.parametrize("transform", ["vmap", slow("scan"), slow("checkpoint")])
def test_gradients_match_under_transformations(transform):
    attend = interpreted(40)
    rows = []
    for seed in (0, 1):
        (*inputs, _), d_out = make_case(queries=140, batch=1, head_dim=64, seed=seed).cast(
            jnp.float32
        )
        rows.append((*inputs, d_out))
    stacked = [jnp.stack(x) for x in zip(*rows, strict=True)]
    if transform == "vmap":
        got = jax.jit(jax.vmap(functools.partial(gradients, attend)))(*stacked)
    elif transform == "scan":
        got = jax.lax.scan(lambda _, x: (None, gradients(attend, *x)), None, tuple(stacked))[1]
    else:
        saved = jax.checkpoint(attend, static_argnums=(3, 4))
        got = [jnp.stack(x) for x in zip(*(gradients(saved, *row) for row in rows), strict=True)]
    for n, row in enumerate(rows):
        for ours, wanted in zip(got, exact_gradients(*row, window=40), strict=True):
            np.testing.assert_allclose(ours[n], wanted, rtol=0, atol=EXACT.gradient)


@pytest.mark.slow
def test_marks_of_a_batch_pass_through_vmap():
    attend = interpreted(None)
    case = make_case(queries=200, batch=2, head_dim=64)
    (q, k, v, _), _ = case.cast(jnp.float32)
    marks = same_marks(segment_rows([(1, 77), (2, 123)], [(1, 200)]))
    wanted = jax.jit(lambda: attend(q, k, v, marks, None)[0])()
    each = [x[:, None] for x in (q, k, v)]
    lifted = jax.tree.map(lambda x: x[:, None], marks)
    got = jax.jit(jax.vmap(lambda q, k, v, m: attend(q, k, v, m, None)[0]))(*each, lifted)
    np.testing.assert_allclose(got[:, 0], wanted, rtol=0, atol=1e-6)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
from tests.pallas_kernels.attention_cases import make_case
from tests.pallas_kernels.mosaic_tpu_cases import EXACT
from tests.pallas_kernels.test_mosaic_tpu import exact_gradients, gradients, interpreted
case = make_case(queries=140, heads=4, kv_heads=2, head_dim=64)
(*inputs, _), d_out = case.cast(jnp.float32)
wanted = exact_gradients(*inputs, d_out, window=40)
mesh = jax.make_mesh((2, 2), ("rows", "heads"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
spec = P("rows", None, "heads")
attend = interpreted(40)
for check in (False, True):
    sharded = jax.jit(jax.shard_map(
        lambda *x: gradients(attend, *x),
        mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check,
    ))(*inputs, d_out)
    for ours, theirs in zip(sharded, wanted):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=EXACT.gradient)
print("sharded over", len(jax.devices()))
"""


@pytest.mark.slow
def test_rows_and_heads_shard_over_devices():
    root = pathlib.Path(__file__).parents[2]
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], cwd=root, env=os.environ | flags | {"PYTHONPATH": "."},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "sharded over 4" in done.stdout


def test_block_sizes_that_do_not_align_are_an_error():
    case = make_case(queries=300, batch=1, head_dim=64)
    for bad in ((128, 256), (384, 256), (64, 64)):
        with pytest.raises(ValueError, match="block_sizes: got .*; wanted .*; fix: "):
            run(case, window=None, blocks=BlockSizes(bad, SMALL.dq, SMALL.dkv))
