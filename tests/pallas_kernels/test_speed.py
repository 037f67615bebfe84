"""What the window buys on this machine, beside the dense reference, in one run.

pytest -m slow -s tests/pallas_kernels/test_speed.py
"""

import time

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import sliding_window_attention
from pallas_kernels.reference import reference_attention

WINDOW, HEADS, KV_HEADS, SIZE = 256, 6, 2, 64


def arguments(length):
    keys = jax.random.split(jax.random.key(0), 3)
    heads = (HEADS, KV_HEADS, KV_HEADS)
    return [
        jax.random.normal(key, (1, length, count, SIZE))
        for key, count in zip(keys, heads, strict=True)
    ]


def gradient(attend):
    return jax.jit(jax.grad(lambda *qkv: attend(*qkv).sum(), argnums=(0, 1, 2)))


def banded(q, k, v):
    return sliding_window_attention(q, k, v, window=WINDOW)


def masked(q, k, v):
    return reference_attention(
        q, k, v, window=WINDOW, segment_ids=None, scale=SIZE**-0.5, soft_cap=None, sinks=None
    )


def seconds(compiled, inputs, repeats):
    best = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(compiled(*inputs))
        best.append(time.perf_counter() - started)
    return min(best)


@pytest.mark.slow
@pytest.mark.parametrize(("length", "least"), [(1024, 2.0), (4096, 8.0)])
def test_forward_and_backward_beat_masked_attention(length, least):
    inputs = arguments(length)
    compiled = [gradient(attend).lower(*inputs).compile() for attend in (masked, banded)]
    for each in compiled:
        jax.block_until_ready(each(*inputs))
    slow, fast = (seconds(each, inputs, 3) for each in compiled)
    print(
        f"\nT={length}: masked {1e3 * slow:.0f} ms, banded {1e3 * fast:.0f} ms: {slow / fast:.1f}x"
    )
    assert slow / fast > least


@pytest.mark.slow
def test_temporary_memory_grows_with_the_row_and_not_with_its_square():
    sizes = {}
    for length in (4096, 8192):
        inputs = [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in arguments(length)]
        found = gradient(banded).lower(*inputs).compile().memory_analysis()
        sizes[length] = found.temp_size_in_bytes
    print(f"\ntemporary memory: { ({k: v >> 20 for k, v in sizes.items()}) } MiB")
    assert sizes[8192] < 2.2 * sizes[4096]
