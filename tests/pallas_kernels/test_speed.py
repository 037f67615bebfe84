"""What the window buys on this machine, through the benchmark's own functions.

pytest -m slow -s tests/pallas_kernels/test_speed.py
"""

import dataclasses
import functools
import timeit

import jax
import jax.numpy as jnp
import pytest

from minillm.stages.benchmark.attention_cpu import (
    CONTESTANTS,
    MASKED,
    OURS,
    SDPA,
    SHAPES,
    TOLERANCE,
    ratio,
)
from minillm.stages.benchmark.contestants import of_jax, ours
from minillm.stages.benchmark.shapes import BOTH, FORWARD
from minillm.stages.benchmark.timing import measure
from pallas_kernels import sliding_window_attention
from pallas_kernels.reference import reference_attention

BY_LENGTH = {shape.length: shape for shape in SHAPES}


def times_as_long(name, length, which, seconds):
    """How many times as long as ours the contestant takes."""
    contestants = {each: CONTESTANTS[each] for each in (OURS, name)}
    row = measure(contestants, BY_LENGTH[length], which, seconds=seconds, tolerance=TOLERANCE)
    if name == SDPA and row.cells[name].reason == "no PyTorch here":
        pytest.skip("no PyTorch here")
    times = ratio(row, name)
    print(f"\n{row.shape}, {which}: {name} takes {times:.1f} times as long")
    return times


# Lower than what the package's README shows, since a ratio moves by half from run to run. The aims
# are 5, 15 and 50: at 1k and 4k they are not reached on two idle cores.
@pytest.mark.slow
@pytest.mark.parametrize(("length", "least"), [(1024, 2.5), (4096, 8)])
def test_masked_attention_takes_many_times_as_long(length, least):
    assert times_as_long(MASKED, length, FORWARD, 10) > least


@pytest.mark.slow
@pytest.mark.parametrize(("length", "least"), [(1024, 2.0), (4096, 8.0)])
def test_both_passes_of_grouped_queries_beat_masked_attention(length, least):
    """Three query heads to a key head: the dense form gains nothing from that, ours does."""

    def masked(q, k, v):
        return reference_attention(q, k, v, window=256, scale=64**-0.5)[0]

    def banded(q, k, v):
        return sliding_window_attention(q, k, v, window=256)

    keys = jax.random.split(jax.random.key(0), 3)
    inputs = [
        jax.random.normal(key, (1, length, heads, 64))
        for key, heads in zip(keys, (6, 2, 2), strict=True)
    ]
    best = []
    for attend in (masked, banded):
        total = jax.jit(jax.grad(lambda *x, f=attend: f(*x).sum(), argnums=(0, 1, 2)))
        jax.block_until_ready(total(*inputs))
        run = functools.partial(lambda f: jax.block_until_ready(f(*inputs)), total)
        best.append(min(timeit.repeat(run, number=1)))
    print(f"\nT={length}: masked attention takes {best[0] / best[1]:.1f} times as long")
    assert best[0] / best[1] > least


@pytest.mark.slow
def test_masked_attention_over_a_row_of_16k_takes_dozens_of_times_as_long():
    assert times_as_long(MASKED, 16384, FORWARD, 10) > 30


@pytest.mark.slow
@pytest.mark.reference
def test_short_rows_take_no_longer_than_with_torch():
    assert times_as_long(SDPA, 256, BOTH, 20) > 1


@pytest.mark.slow
@pytest.mark.parametrize("which", [FORWARD, BOTH])
def test_temporary_memory_grows_with_the_row_and_not_with_its_square(which):
    contestant = of_jax(ours("xla"), jnp.float32)
    base = BY_LENGTH[1024]
    sizes = [
        contestant(dataclasses.replace(base, length=length), which).temp_bytes
        for length in (4096, 8192)
    ]
    print(f"\ntemporary memory: {[size >> 20 for size in sizes]} MiB")
    assert sizes[1] < 2.2 * sizes[0]
