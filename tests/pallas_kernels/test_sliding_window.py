"""The public op: transformations, choice of implementation, and what its errors say."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import BlockSizes, sliding_window_attention
from pallas_kernels.flash import Call, Kernels, flash_attention
from pallas_kernels.reference import reference_attention
from pallas_kernels.window import Marks
from tests.pallas_kernels.attention_cases import make_case, run, run_oracle
from tests.tolerances import TOLERANCES

EXACT = TOLERANCES["float32"]


def test_none_chooses_the_banded_implementation():
    case = make_case()
    chosen, banded = (
        run(case, jnp.float32, window=5, implementation=name) for name in (None, "xla")
    )
    for a, b in zip(chosen, banded, strict=True):
        np.testing.assert_array_equal(a, b)


def test_return_lse_returns_a_pair_and_leaves_the_output_as_it_is():
    (q, k, v, _), _ = make_case(heads=4).cast(jnp.bfloat16)
    for name in ("xla", "reference"):
        alone = sliding_window_attention(q, k, v, window=5, implementation=name)
        out, lse = sliding_window_attention(q, k, v, window=5, implementation=name, return_lse=True)
        np.testing.assert_array_equal(alone, out)
        assert lse.shape == (2, 40, 4) and lse.dtype == jnp.float32


def test_reference_equals_a_softmax_over_the_visible_keys_alone():
    case = make_case(queries=12, heads=4, kv_heads=2, sinks=True)
    out = run_oracle(case, window=3, soft_cap=4.0)[0]
    for b, t, n in np.ndindex(2, 12, 4):
        seen = slice(max(0, t - 2), t + 1)
        logits = case.k[b, seen, n // 2] @ case.q[b, t, n] / 4  # sqrt(head size 16)
        logits = np.append(4 * np.tanh(logits / 4), case.sinks[n])
        weights = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(out[b, t, n], weights[:-1] @ case.v[b, seen, n // 2], atol=1e-12)


@pytest.mark.parametrize("window", [20, None])
def test_matches_the_dot_product_attention_of_jax_nn(window):
    (q, k, v, _), _ = make_case(queries=100, heads=4, kv_heads=2).cast(jnp.float32)
    # jax.nn leaves the query's own position out of the count.
    left = None if window is None else (window - 1, 0)
    theirs = jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=left)
    ours = sliding_window_attention(q, k, v, window=window)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=EXACT.output)


def test_reference_padding_has_zero_output_and_finite_gradients():
    ids = np.array([[1] * 10 + [0] * 30, [0] * 40], np.int32)
    results = run_oracle(make_case(), window=4, segment_ids=ids)
    assert all(np.isfinite(x).all() for x in results)
    assert not results[0][ids == 0].any()


def gradient_of(attend, *arrays):
    return jax.jit(jax.grad(lambda *x: (attend(*x) ** 2).sum(), argnums=(0, 1, 2)))(*arrays)


@pytest.fixture
def arrays():
    (q, k, v, _), _ = make_case(batch=3, queries=150, heads=2, kv_heads=1).cast(jnp.float32)
    return q, k, v


def attend(q, k, v):
    return sliding_window_attention(q, k, v, window=30)


def assert_same_gradients(got, wanted):
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=EXACT.gradient)


def test_gradients_agree_under_checkpoint_and_outside_of_jit(arrays):
    wanted = gradient_of(attend, *arrays)
    eager = jax.grad(lambda *x: (attend(*x) ** 2).sum(), argnums=(0, 1, 2))(*arrays)
    assert_same_gradients(eager, wanted)
    assert_same_gradients(gradient_of(jax.checkpoint(attend), *arrays), wanted)


def test_gradients_agree_under_vmap(arrays):
    def one_by_one(q, k, v):
        return jax.vmap(attend)(q[:, None], k[:, None], v[:, None])[:, 0]

    assert_same_gradients(gradient_of(one_by_one, *arrays), gradient_of(attend, *arrays))


def test_gradients_agree_under_scan(arrays):
    def one_by_one(q, k, v):
        rows = (q[:, None], k[:, None], v[:, None])
        return jax.lax.scan(lambda carry, row: (carry, attend(*row)), 0, rows)[1][:, 0]

    assert_same_gradients(gradient_of(one_by_one, *arrays), gradient_of(attend, *arrays))


def test_segment_ids_may_be_traced_and_mapped():
    (q, k, v, _), _ = make_case(batch=2, queries=70).cast(jnp.float32)
    ids = jnp.asarray([[1] * 30 + [2] * 40, [1] * 60 + [0] * 10])

    def with_segments(q, k, v, ids):
        return sliding_window_attention(q, k, v, window=20, segment_ids=ids)

    mapped = jax.vmap(lambda *x: with_segments(*(y[None] for y in x))[0])
    np.testing.assert_allclose(
        jax.jit(mapped)(q, k, v, ids), with_segments(q, k, v, ids), rtol=0, atol=EXACT.output
    )


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int16])
def test_narrow_positions_and_segments_count_as_wide_ones_do(dtype):
    case = make_case(queries=120, batch=1)
    places = np.arange(120)[None]
    ids = np.ones((1, 120))
    wide, narrow = (
        run(
            case,
            jnp.float32,
            window=300,
            segment_ids=jnp.asarray(ids, kind),
            positions=jnp.asarray(places, kind),
        )
        for kind in (jnp.int32, dtype)
    )
    for a, b in zip(wide, narrow, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("window", [40, 2**31, 2**40])
def test_a_window_as_long_as_the_row_or_longer_is_causal_attention(window, marked):
    case = make_case(queries=40, batch=1)
    positions = jnp.arange(40, dtype=jnp.int32)[None] if marked else None
    got, wanted = (
        run(case, jnp.float32, window=size, positions=positions) for size in (window, None)
    )
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=EXACT.output)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_a_sink_of_minus_infinity_takes_no_share(implementation):
    (q, k, v, _), _ = make_case(queries=12).cast(jnp.float32)
    ids = jnp.asarray([[1] * 9 + [0] * 3] * 2)

    def attend(sinks):
        return sliding_window_attention(
            q, k, v, window=4, segment_ids=ids, sinks=sinks, implementation=implementation,
            return_lse=True,
        )  # fmt: skip

    sinks = jnp.full(2, -jnp.inf)
    out, lse = attend(sinks)
    plain, plain_lse = attend(None)
    np.testing.assert_allclose(out, plain, rtol=0, atol=EXACT.output)
    np.testing.assert_allclose(lse, plain_lse, rtol=0, atol=EXACT.output)
    assert np.isneginf(lse[:, 9:]).all()
    assert not jax.grad(lambda sinks: attend(sinks)[0].sum())(sinks).any()


def test_the_rule_around_the_kernels_gives_a_sink_of_minus_infinity_no_gradient():
    def forward(call, q, k, v, marks, sinks):
        out, lse = reference_attention(
            q, k, v, window=4, marks=marks, scale=1.0, sinks=sinks
        )  # fmt: skip
        return out, lse.swapaxes(1, 2)

    # Only the sinks' gradient is the rule's own.
    kernels = Kernels(forward, lambda call, q, k, v, *rest: (q, k, v))
    call = Call(4, 1.0, None, BlockSizes((8, 8), (8, 8), (8, 8)))
    (q, k, v, _), _ = make_case(queries=12).cast(jnp.float32)
    ids = jnp.asarray([[1] * 9 + [0] * 3] * 2)

    def total(sinks):
        return flash_attention(kernels, call, q, k, v, Marks(ids, ids), sinks)[0].sum()

    def wanted(sinks):
        return reference_attention(
            q, k, v, window=4, marks=Marks(ids, ids), scale=1.0, sinks=sinks
        )[0].sum()  # fmt: skip

    assert not jax.grad(total)(jnp.full(2, -jnp.inf)).any()
    sinks = jnp.asarray([0.3, -1.0])
    np.testing.assert_allclose(
        jax.grad(total)(sinks), jax.grad(wanted)(sinks), rtol=0, atol=EXACT.gradient
    )


SPLIT_UNALIKE = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, PartitionSpec as P
from pallas_kernels import sliding_window_attention

mesh = jax.make_mesh((2, 2), ("batch", "heads"), axis_types=(AxisType.Auto,) * 2)
keys = jax.random.split(jax.random.key(0), 4)
q = jax.random.normal(keys[0], (4, 40, 4, 16))
k, v = (jax.random.normal(key, (4, 40, 1, 16)) for key in keys[1:3])
sinks = jax.random.normal(keys[3], (4,))

def attend(q, k, v, sinks):
    return sliding_window_attention(q, k, v, window=9, sinks=sinks)

# One key head for all queries, whole on every device; sinks split by heads, rows by batch.
split = jax.shard_map(
    attend, mesh=mesh,
    in_specs=(P("batch", None, "heads"), P("batch"), P("batch"), P("heads")),
    out_specs=P("batch", None, "heads"),
)
results = [
    jax.jit(jax.value_and_grad(lambda *x: (f(*x) ** 2).sum(), argnums=(0, 1, 2, 3)))(q, k, v, sinks)
    for f in (split, attend)
]
for a, b in zip(*map(jax.tree.leaves, results), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
"""


def test_gradients_are_right_where_shard_map_splits_queries_and_not_keys():
    run_on_devices(SPLIT_UNALIKE)


COUNT_COLLECTIVES = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from pallas_kernels import sliding_window_attention

mesh = jax.make_mesh((2, 2), ("batch", "heads"), axis_types=(AxisType.Auto,) * 2)
heads = NamedSharding(mesh, PartitionSpec("batch", None, "heads", None))
rows = NamedSharding(mesh, PartitionSpec("batch", None))

def output_and_gradients(q, k, v, ids, d_out):
    attend = lambda q, k, v: sliding_window_attention(q, k, v, window=100, segment_ids=ids)
    out, pull = jax.vjp(attend, q, k, v)
    return out, *pull(d_out)

for length in (130, 500):
    q = jax.ShapeDtypeStruct((4, length, 8, 16), jnp.float32, sharding=heads)
    k = jax.ShapeDtypeStruct((4, length, 4, 16), jnp.float32, sharding=heads)
    ids = jax.ShapeDtypeStruct((4, length), jnp.int32, sharding=rows)
    lowered = jax.jit(output_and_gradients, out_shardings=heads).lower(q, k, k, ids, q)
    text = lowered.compile().as_text()
    names = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    assert not any(name in text for name in names), length
"""


def run_on_devices(script):
    """In a process of its own: the number of devices is fixed when JAX starts."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    root = pathlib.Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", script], env=environment, cwd=root, check=True)


def test_a_mesh_splits_batch_and_heads_without_a_collective():
    run_on_devices(COUNT_COLLECTIVES)


def zeros(*shape, dtype=jnp.float32):
    return jnp.zeros(shape, dtype)


BLOCKS = BlockSizes(forward=(64, 64), dq=(64, 64), dkv=(64, 64))

BAD = {
    "window below one": ({"window": 0}, "window: got 0; wanted an int >= 1, or None; fix: "),
    "window no int": ({"window": 2.0}, "window: got 2.0; wanted an int >= 1"),
    "window a bool": ({"window": True}, "window: got True"),
    "scale an array": ({"scale": zeros()}, "scale: got Array"),
    "scale infinite": ({"scale": float("inf")}, "scale: got inf; wanted a finite"),
    "soft cap zero": ({"soft_cap": 0.0}, "soft_cap: got 0.0; wanted a positive"),
    "rank": ({"q": zeros(2, 8, 16)}, "q: got shape (2, 8, 16); wanted [B, T, N, H]"),
    "empty axis": ({"k": zeros(2, 0, 2, 16)}, "k: got shape (2, 0, 2, 16)"),
    "values unlike keys": ({"v": zeros(2, 8, 1, 16)}, "v: got shape (2, 8, 1, 16)"),
    "head size": (
        {"k": zeros(2, 8, 2, 8), "v": zeros(2, 8, 2, 8)},
        "k: got shape (2, 8, 2, 8); wanted batch 2 and head size 16",
    ),
    "head counts": (
        {"k": zeros(2, 8, 3, 16), "v": zeros(2, 8, 3, 16)},
        "k: got 3 key/value heads; wanted a divisor of the 4 query heads",
    ),
    "mixed dtypes": ({"v": zeros(2, 8, 2, 16, dtype=jnp.bfloat16)}, "v: got bfloat16 beside q"),
    "fewer keys": (
        {"k": zeros(2, 7, 2, 16), "v": zeros(2, 7, 2, 16)},
        "k: got 7 keys for 8 queries; wanted at least 8",
    ),
    "sinks": ({"sinks": zeros(2)}, "sinks: got shape (2,); wanted shape (4,)"),
    "segment shape": (
        {"segment_ids": zeros(2, 7, dtype=jnp.int32)},
        "segment_ids: got shape (2, 7) with T = 8, S = 8; wanted shape (2, 8) and T == S",
    ),
    "segments with more keys": (
        {
            "k": zeros(2, 9, 2, 16),
            "v": zeros(2, 9, 2, 16),
            "segment_ids": zeros(2, 8, dtype=jnp.int32),
        },
        "segment_ids: got shape (2, 8) with T = 8, S = 9",
    ),
    "segment dtype": ({"segment_ids": zeros(2, 8)}, "segment_ids: got dtype float32"),
    "positions shape": (
        {"positions": zeros(2, 7, dtype=jnp.int32)},
        "positions: got shape (2, 7) with T = 8, S = 8; wanted shape (2, 8) and T == S",
    ),
    "pair of the wrong way round": (
        {
            "k": zeros(2, 9, 2, 16),
            "v": zeros(2, 9, 2, 16),
            "segment_ids": (zeros(2, 9, dtype=jnp.int32), zeros(2, 8, dtype=jnp.int32)),
        },
        "segment_ids: got a tuple of shapes (2, 9), (2, 8); wanted shapes (2, 8) and (2, 9)",
    ),
    "pair of three": (
        {"positions": (zeros(2, 8, dtype=jnp.int32),) * 3},
        "positions: got a tuple of shapes (2, 8), (2, 8), (2, 8)",
    ),
    "pair's dtype": (
        {"positions": (zeros(2, 8, dtype=jnp.int32), zeros(2, 8))},
        "positions: got dtype float32; wanted an integer dtype",
    ),
    "blocks for the reference": (
        {"implementation": "reference", "block_sizes": BLOCKS},
        'wanted None with implementation "reference"',
    ),
    "blocks of another type": ({"block_sizes": 64}, "block_sizes: got 64; wanted a BlockSizes"),
    "empty block": (
        {"block_sizes": dataclasses.replace(BLOCKS, dq=(64, 0))},
        "block_sizes.dq: got (64, 0); wanted (queries, keys), two ints >= 1",
    ),
    "block no int": (
        {"block_sizes": dataclasses.replace(BLOCKS, forward=(64.0, 64))},
        "block_sizes.forward: got (64.0, 64)",
    ),
    "unknown implementation": (
        {"implementation": "cuda"},
        "implementation: got 'cuda'; wanted one of "
        '"mosaic_tpu", "mosaic_gpu", "xla", "reference", or None',
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_name_the_field_and_the_fix(name):
    changes, message = BAD[name]
    arguments = {
        "q": zeros(2, 8, 4, 16),
        "k": zeros(2, 8, 2, 16),
        "v": zeros(2, 8, 2, 16),
        "window": 4,
    }
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        sliding_window_attention(**(arguments | changes))
    assert "; fix: " in str(caught.value)
