"""The TPU kernels in the interpreter, and the float64 oracle, with all gradients."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.flash import Call, flash_attention
from pallas_kernels.mosaic_tpu import KERNELS
from pallas_kernels.reference import reference_attention
from pallas_kernels.tuning import BlockSizes
from pallas_kernels.window import NO_MARKS, Marks
from tests.tolerances import TOLERANCES

BLOCK = 128  # the smallest the kernels take
SMALL = BlockSizes((BLOCK, BLOCK), (BLOCK, BLOCK), (BLOCK, BLOCK))
UNEVEN = BlockSizes((2 * BLOCK, BLOCK), (2 * BLOCK, BLOCK), (BLOCK, 2 * BLOCK), strip=2 * BLOCK)
EXACT = TOLERANCES["float32"]


@functools.partial(jax.jit, static_argnames="attend")
def _output_and_gradients(attend, inputs, marks, d_out, d_lse):
    (out, lse), pull = jax.vjp(lambda *inputs: attend(*inputs[:3], marks, inputs[3]), *inputs)
    seen = jnp.isfinite(lse)
    return out, lse, pull((d_out, jnp.where(seen, d_lse.astype(lse.dtype), 0)))


def _run(attend, case, dtype, marks):
    inputs, d_out = case.cast(dtype)
    d_lse = np.random.default_rng(1).standard_normal(case.q.shape[:3]).astype(np.float32)
    results = _output_and_gradients(attend, inputs, marks, d_out, d_lse)
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(results)]


@functools.lru_cache
def kernel_attention(window, scale, soft_cap, blocks, interpret):
    """The kernels as a function of q, k, v, marks and sinks."""
    call = Call(window, scale, soft_cap, blocks, interpret)
    return functools.partial(flash_attention, KERNELS, call)


@functools.lru_cache
def _oracle(window, scale, soft_cap):
    def attend(q, k, v, marks, sinks):
        return reference_attention(
            q, k, v, window=window, marks=marks, scale=scale, soft_cap=soft_cap, sinks=sinks
        )

    return attend


def run(
    case, dtype=jnp.float32, *, window, marks=NO_MARKS, scale=None, soft_cap=None,
    blocks=SMALL, interpret=True,
):  # fmt: skip
    """Output, log-sum-exp, then gradients in q, k, v and (if there are any) sinks."""
    scale = case.q.shape[-1] ** -0.5 if scale is None else scale
    return _run(kernel_attention(window, scale, soft_cap, blocks, interpret), case, dtype, marks)


def run_oracle(case, *, window, marks=NO_MARKS, scale=None, soft_cap=None):
    """The same from the dense reference in float64."""
    scale = case.q.shape[-1] ** -0.5 if scale is None else scale
    # Marks pass through jit as they are: integers.
    with jax.enable_x64(True), warnings.catch_warnings():
        return _run(_oracle(window, scale, soft_cap), case, jnp.float64, marks)


def assert_matches_oracle(case, *, blocks=SMALL, interpret=True, **options):
    got = run(case, blocks=blocks, interpret=interpret, **options)
    wanted = run_oracle(case, **options)
    assert len(got) == len(wanted) == (5 if case.sinks is None else 6)
    for name, ours, theirs in zip(("out", "lse"), got, wanted, strict=False):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=EXACT.output, err_msg=name)
    names = ("dq", "dk", "dv", "d_sinks")
    for name, ours, theirs in zip(names, got[2:], wanted[2:], strict=False):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=EXACT.gradient, err_msg=name)


def segment_rows(*rows: list[tuple[int, int]]) -> np.ndarray:
    """Rows from (id, length) runs."""
    return np.array([[i for i, length in row for _ in range(length)] for row in rows], np.int32)


def same_marks(segments=None, positions=None, queries=None) -> Marks:
    """Marks of rows whose queries are the last of the keys' tokens."""

    def last(x):
        return None if x is None else x[:, x.shape[1] - (queries or x.shape[1]) :]

    return Marks(last(segments), segments, last(positions), positions)


def gapped_positions(segments: np.ndarray, seed=0) -> np.ndarray:
    """Positions that start anew in every segment and leave out a place here and there."""
    steps = np.random.default_rng(seed).choice([1, 1, 1, 3], segments.shape)
    positions = np.zeros_like(segments)
    for row, ids in enumerate(segments):
        for t in range(1, len(ids)):
            same = ids[t] == ids[t - 1]
            positions[row, t] = positions[row, t - 1] + steps[row, t] if same else 0
    return positions
