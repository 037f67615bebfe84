"""`launch/benchmark.py attention`: one table a device, and the figures behind it as JSON."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax

from minillm.core.errors import UserError
from minillm.core.manifest import write_json
from minillm.stages.benchmark import attention_cpu, attention_gpu
from minillm.stages.benchmark.shapes import Shape

_SHAPES: dict[str, Callable[[], Sequence[Shape]]] = {
    "cpu": lambda: attention_cpu.SHAPES,
    "gpu": attention_gpu.shapes,
}
_BENCHMARKS: dict[str, Callable[..., dict[str, Any]]] = {
    "cpu": attention_cpu.benchmark,
    "gpu": attention_gpu.benchmark,
}
DEVICES = tuple(_BENCHMARKS)


def benchmark_attention(
    device: str | None,
    *,
    lengths: Sequence[int] = (),
    windows: Sequence[int] = (),
    head_dims: Sequence[int] = (),
    seconds: float | None = None,
    out: str | None = None,
) -> str:
    """Measure, write the figures to `out` if given, and return the table.

    Args:
        device: one of DEVICES; what JAX runs on if None.
        lengths, windows, head_dims: keep only the shapes with one of these; empty keeps all.
        seconds: how long to time each shape and pass, about; the device's default if None.

    Raises:
        UserError: where nothing is left to measure, or the device is not here.
    """
    # Before JAX starts: on a GPU PyTorch wants memory too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    device = device or jax.default_backend()
    shapes = [
        shape
        for shape in _SHAPES[device]()
        if (not lengths or shape.length in lengths)
        and (not windows or shape.window in windows)
        and (not head_dims or shape.head_dim in head_dims)
    ]
    if not shapes:
        raise UserError(
            field="--lengths, --windows, --head_dims", got="a choice that leaves no shape",
            wanted="some of " + "; ".join(map(str, _SHAPES[device]())), fix="leave one out",
        )  # fmt: skip
    options = {} if seconds is None else {"seconds": seconds}
    result = _BENCHMARKS[device](shapes, **options)
    if out:
        write_json(out, result)
    return result["markdown"]
