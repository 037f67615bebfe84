"""The Mosaic GPU kernels: run by the interpreter on the CPU, and compiled where there is a GPU.

The interpreter runs the very kernels, with their warpgroups, rings and barriers, and raises on a
race. Only the products differ: it has no wgmma on registers, so there the left factor goes
through shared memory.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from pallas_kernels import mosaic_gpu
from pallas_kernels.decode import decode_attention
from pallas_kernels.flash import Call, flash_attention
from pallas_kernels.mosaic_gpu import KERNELS, OLDEST_JAX
from pallas_kernels.tuning import GPU, block_sizes
from pallas_kernels.window import NO_MARKS, key_range
from tests.pallas_kernels.mosaic_gpu_cases import (
    CASES,
    SMALL,
    Case,
    of_kernels,
    of_oracle,
    of_plain_bfloat16,
)
from tests.tolerances import TOLERANCES

supported = pytest.mark.skipif(
    jax.__version_info__ < OLDEST_JAX,
    reason=f"Mosaic GPU needs jax >= 0.11, this is {jax.__version__}",
)
on_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU, sm_90+")
LOW = TOLERANCES["bfloat16"]


def interpreter():
    from jax.experimental.pallas import mosaic_gpu as plgpu

    return plgpu.InterpretGPUParams(detect_races=True)


def cases(every=False):
    marks = [() if every or not case.slow else (pytest.mark.slow,) for case in CASES.values()]
    return [pytest.param(x, marks=m, id=x) for x, m in zip(CASES, marks, strict=True)]


def assert_matches_oracle(case, got, lse_tolerance):
    wanted, plain = of_oracle(case), of_plain_bfloat16(case)
    assert len(got) == len(wanted) == (6 if case.sinks else 5)
    (_, lse, *_), (_, wanted_lse, *_) = got, wanted
    np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(wanted_lse))
    some = np.isfinite(wanted_lse)
    np.testing.assert_allclose(lse[some], wanted_lse[some], rtol=0, atol=lse_tolerance)
    for i, bound in ((0, LOW.output), *((i, LOW.gradient) for i in range(2, len(got)))):
        size = max(1.0, np.abs(wanted[i]).max())  # a sum over a group is not of order one
        error = np.abs(got[i] - wanted[i]).max()
        assert error <= bound * size, f"result {i}"
        # Where plain attention happens to be exact, one rounding is the least to be allowed.
        assert error <= 2 * np.abs(plain[i] - wanted[i]).max() + 2**-9 * size, f"result {i}"


@supported
@pytest.mark.parametrize("name", cases())
def test_outputs_and_gradients_match_in_the_interpreter_without_a_race(name, monkeypatch):
    # Rows are short here: with more slots no ring would come round.
    monkeypatch.setattr(mosaic_gpu, "ring_stages", lambda *_: 2)
    case = CASES[name]
    got = of_kernels(case, interpreter())
    assert_matches_oracle(case, got, TOLERANCES["float32"].output)


@on_gpu
@pytest.mark.parametrize("name", cases(every=True))
def test_on_gpu(name):
    case = CASES[name]
    got = of_kernels(case, False, block_sizes("NVIDIA H100", case.head_dim, case.window))
    # ex2.approx and lg2.approx are right to 2^-22 of a logit.
    assert_matches_oracle(case, got, TOLERANCES["float32"].logits)


@on_gpu
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("window", [256, 1024, None])
def test_long_rows_on_gpu(head_dim, window):
    case = Case(window, queries=4000, keys=4100, heads=4, kv_heads=2, head_dim=head_dim)
    got = of_kernels(case, False, block_sizes("NVIDIA H100", head_dim, window))
    assert_matches_oracle(case, got, TOLERANCES["float32"].logits)


@on_gpu
def test_repeated_runs_on_gpu_agree_bitwise():
    case = Case(300, queries=3000, keys=3000, heads=8, kv_heads=2)
    first, *others = (of_kernels(case, False) for _ in range(5))
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a, b)


@supported
def test_perturbing_keys_outside_the_window_changes_nothing_bitwise():
    case = Case(40, queries=140, keys=150)
    (q, k, v, _), _ = case.arrays()
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    query = 100
    first, stop = key_range(query + 10, query + 11, case.window)
    outside = np.ones(case.keys, bool)
    outside[first:stop] = False
    outside = outside[None, :, None, None]
    call = Call(case.window, case.scale, None, SMALL, interpreter())

    @jax.jit
    def attend(k, v):
        out, lse = flash_attention(KERNELS, call, q, k, v, NO_MARKS, None)
        return out[:, query], lse[:, query]

    before = attend(k, v)
    after = attend(jnp.where(outside, 7 * k + 3, k), jnp.where(outside, -1e6, v))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


@supported
@pytest.mark.slow
def test_vmap_equals_a_loop():
    case = Case(40, batch=2)
    (q, k, v, _), _ = case.arrays()
    q, k, v = (jnp.asarray(x, jnp.bfloat16)[:, None] for x in (q, k, v))
    call = Call(case.window, case.scale, None, SMALL, interpreter())

    def loss(q, k, v):
        out, lse = flash_attention(KERNELS, call, q, k, v, NO_MARKS, None)
        return out.astype(jnp.float32).sum() + lse.sum()

    grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    together = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1, 2))))(q, k, v)
    for i in range(2):
        for a, b in zip(together, grad(q[i], k[i], v[i]), strict=True):
            np.testing.assert_array_equal(a[i], b)


@supported
@pytest.mark.slow
@pytest.mark.parametrize("check", [False, True])
def test_shard_map_changes_nothing_bitwise(check):
    # On one device: the interpreter frees the barriers of all devices as soon as one has finished.
    case = Case(40)
    (q, k, v, _), (d_out, _) = case.arrays()
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v, d_out)]
    call = Call(case.window, case.scale, None, SMALL, interpreter())

    def both(q, k, v, d_out):
        def attend(q, k, v):
            return flash_attention(KERNELS, call, q, k, v, NO_MARKS, None)[0]

        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(d_out)

    spec, mesh = PartitionSpec("rows"), jax.make_mesh((1,), ("rows",), axis_types=(AxisType.Auto,))
    sharded = jax.shard_map(both, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check)
    for a, b in zip(jax.jit(sharded)(*arrays), jax.jit(both)(*arrays), strict=True):
        np.testing.assert_array_equal(a, b)


DECODE = {
    "short": {"batch": 3, "slots": 100, "heads": 6, "kv_heads": 2, "head_dim": 64},
    "features": {
        "batch": 3, "slots": 130, "heads": 8, "kv_heads": 1, "head_dim": 128, "soft_cap": 2.0,
        "sinks": True,
    },
    "H 256": {"batch": 2, "slots": 70, "heads": 2, "kv_heads": 2, "head_dim": 256, "sinks": True},
    "more heads than rows": {"batch": 2, "slots": 64, "heads": 70, "kv_heads": 1, "head_dim": 64},
    "one part": {"batch": 70, "slots": 130, "heads": 2, "kv_heads": 2, "head_dim": 64},
}  # fmt: skip


def assert_decode_matches(batch, slots, heads, kv_heads, head_dim, interpret, **options):
    from pallas_kernels.mosaic_gpu_decode import decode

    rng = np.random.default_rng(0)
    shapes = (batch, heads, head_dim), *[(batch, slots, kv_heads, head_dim)] * 2
    q, k, v = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in shapes)
    sinks = rng.standard_normal(heads) if options.get("sinks") else None
    options["sinks"] = None if sinks is None else jnp.asarray(sinks, jnp.float32)
    options = {"soft_cap": None, **options}
    lengths = jnp.asarray([0, 1, slots - 3, slots, 3 * slots + 1] * batch)[-batch:]
    scale = head_dim**-0.5
    got = jax.jit(
        lambda q, k, v, n: decode(q, k, v, n, scale=scale, interpret=interpret, **options)
    )(q, k, v, lengths)
    with jax.enable_x64(True):
        exact = (x.astype(jnp.float64) for x in (q, k, v))
        wanted = decode_attention(*exact, lengths, scale=scale, **options)
    np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=0, atol=LOW.output)


slow_decode = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("features", "H 256", "more heads than rows")
]


@supported
@pytest.mark.parametrize("name", ["short", *slow_decode])
def test_decode_matches_in_the_interpreter(name):
    assert_decode_matches(**DECODE[name], interpret=interpreter())


@on_gpu
@pytest.mark.parametrize("name", DECODE)
def test_decode_on_gpu(name):
    assert_decode_matches(**DECODE[name], interpret=False)


def attend_with(*, dtype=jnp.bfloat16, head_dim=64):
    q = jnp.zeros((1, 8, 1, head_dim), dtype)
    call = Call(4, 1.0, None, SMALL)
    return flash_attention(KERNELS, call, q, q, q, NO_MARKS, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": jnp.float32}, "q: got dtype float32 for 'mosaic_gpu'; wanted bfloat16; fix: "),
        ({"head_dim": 80}, "q: got head size 80 for 'mosaic_gpu'; wanted 64, 128 or 256; fix: "),
    ],
)
@supported
def test_inputs_without_a_kernel_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        attend_with(**options)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_blocks_that_the_kernels_have_no_room_for_are_refused_by_name(head_dim):
    for window in (100, None):
        mosaic_gpu.check_blocks(block_sizes("NVIDIA H200", head_dim, window), head_dim)
    own = GPU[head_dim, "wide"]
    for changed in (
        {"forward": (64, 64)}, {"forward": (128, 96)}, {"forward": (128, 256)},
        {"dq": (192, 64)}, {"dkv": (128, 192)}, {"dkv": (100, own.dkv[1])},
    ):  # fmt: skip
        (name,) = changed
        with pytest.raises(ValueError, match=f"block_sizes.{name}: got .*; wanted .*; fix: "):
            mosaic_gpu.check_blocks(dataclasses.replace(own, **changed), head_dim)


def test_an_old_jax_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "__version__", "0.10.2")
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    wanted = "implementation: got 'mosaic_gpu' on jax 0.10.2; wanted jax >= 0.11; fix: "
    with pytest.raises(ValueError, match=re.escape(wanted) + '.*implementation="xla"'):
        attend_with()


@supported
def test_a_chip_before_hopper_is_refused(monkeypatch):
    class Ampere:
        compute_capability = "8.0"

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [Ampere()])
    wanted = "got 'mosaic_gpu' on compute capability 8.0; wanted 9.x (H100, H200); fix: "
    with pytest.raises(ValueError, match=re.escape(wanted) + '.*implementation="xla"'):
        attend_with()


@supported
def test_an_assembler_that_miscompiles_masks_is_refused(monkeypatch):
    class Hopper:
        compute_capability = "9.0"

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [Hopper()])
    monkeypatch.setattr(mosaic_gpu, "_cuda_version", lambda: 12081)
    wanted = "got 'mosaic_gpu' on CUDA 12081; wanted CUDA before 12080 or from 12091 on; fix: "
    with pytest.raises(ValueError, match=re.escape(wanted)):
        attend_with()
