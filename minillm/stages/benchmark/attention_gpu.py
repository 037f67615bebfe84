"""Windowed attention on an NVIDIA GPU beside cuDNN, PyTorch and JAX's own Pallas kernels."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from minillm.core.errors import UserError
from minillm.stages.benchmark import contestants as of
from minillm.stages.benchmark import table
from minillm.stages.benchmark.shapes import BACKWARD, FORWARD, Shape
from minillm.stages.benchmark.timing import Contestant, Row, measure

LENGTHS, WINDOWS, HEAD_DIMS = (4096, 8192, 32768), (256, 1024, 4096), (64, 128)
# One call is long beside its launch: tokens times heads times head size are the same for all.
_TOKENS, _WIDTH = 32768, 1024
# bfloat16 outputs of order one, rounded at other places.
TOLERANCE = 6e-2


def _cudnn(shape: Shape, q: Array, k: Array, v: Array) -> Array:
    # Both arguments: a left window alone would let queries attend to the future. The window of
    # jax.nn leaves the query's own position out of its count.
    window = (shape.window - 1, 0)
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=True, local_window_size=window, implementation="cudnn"
    )


def _pallas_triton(shape: Shape, q: Array, k: Array, v: Array) -> Array:
    module = importlib.import_module("jax.experimental.pallas.ops.gpu.attention")
    return module.mha(q, k, v, None, sm_scale=shape.head_dim**-0.5, causal=True)


def _pallas_mosaic(shape: Shape, q: Array, k: Array, v: Array) -> Array:
    module = importlib.import_module("jax.experimental.pallas.ops.gpu.attention_mgpu")
    config = module.TuningConfig(block_q=64, block_kv=64, max_concurrent_steps=2, causal=True)
    return module.attention(q * shape.head_dim**-0.5, k, v, config)


CONTESTANTS: Mapping[str, Contestant] = {
    "ours": of.of_jax(of.ours("mosaic_gpu"), jnp.bfloat16),
    "cuDNN": of.of_jax(_cudnn, jnp.bfloat16),
    "ours, xla": of.of_jax(of.ours("xla"), jnp.bfloat16),
    "torch flex_attention": of.of_torch(of.torch_flex, "cuda", "bfloat16"),
    "torch SDPA, mask": of.of_torch(of.torch_masked, "cuda", "bfloat16"),
    # These two have no window: all keys before the query are visited, the useful ones counted.
    "jax Pallas Triton, no window": of.of_jax(_pallas_triton, jnp.bfloat16, same_output=False),
    "jax Pallas Mosaic, no window": of.of_jax(_pallas_mosaic, jnp.bfloat16, same_output=False),
}


def shapes(
    lengths: Sequence[int] = LENGTHS,
    windows: Sequence[int] = WINDOWS,
    head_dims: Sequence[int] = HEAD_DIMS,
) -> list[Shape]:
    """All combinations, each with about the same number of elements."""
    return [
        Shape(max(1, _TOKENS // length), length, max(1, _WIDTH // head_dim), head_dim, window)
        for length in lengths
        for window in windows
        for head_dim in head_dims
    ]


def benchmark(which_shapes: Sequence[Shape], *, seconds: float = 1.0) -> dict[str, Any]:
    """Forward and backward of every shape, in TFLOP/s of the products that the window needs.

    Raises:
        UserError: where JAX sees no GPU.
    """
    if jax.default_backend() != "gpu":
        raise UserError(
            field="--device", got="gpu", wanted="a machine whose GPU JAX sees",
            fix=f"install jax[cuda13], or pass --device={jax.default_backend()}",
        )  # fmt: skip
    rows = []
    for shape in which_shapes:
        for which in (FORWARD, BACKWARD):
            row = measure(CONTESTANTS, shape, which, seconds=seconds, tolerance=TOLERANCE, calls=20)
            rows.append(row)
            print(", ".join(_line(row, {})), flush=True)
    return {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "rows": [row.as_json() for row in rows],
        "markdown": table_of(rows),
    }


def table_of(rows: Sequence[Row]) -> str:
    marks = table.marks_of_reasons(rows)
    head = ["TFLOP/s", "pass", *CONTESTANTS]
    return table.markdown(head, [_line(row, marks) for row in rows], marks)


def _line(row: Row, marks: Mapping[str | None, str]) -> list[str]:
    flops = row.shape.flops(row.which)
    cells = [
        table.cell(cell, marks, lambda seconds: f"{flops / seconds / 1e12:.0f}")
        for cell in row.cells.values()
    ]
    return [str(row.shape), row.which, *cells]
