"""`launch/benchmark.py attention`: one table a device, and the figures behind it as JSON."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax

from minillm.core.errors import UserError
from minillm.core.manifest import write_json
from minillm.stages.benchmark import attention_cpu, attention_gpu, attention_tpu
from minillm.stages.benchmark.shapes import Shape

_SHAPES: dict[str, Callable[[], Sequence[Shape]]] = {
    "cpu": lambda: attention_cpu.SHAPES,
    "gpu": attention_gpu.shapes,
    "tpu": attention_tpu.shapes,
}
_BENCHMARKS: dict[str, Callable[..., dict[str, Any]]] = {
    "cpu": attention_cpu.benchmark,
    "gpu": attention_gpu.benchmark,
    "tpu": attention_tpu.benchmark,
}
# On TPU bundles are counted, of any chip; elsewhere this machine is timed.
_OPTIONS = {"cpu": "seconds", "gpu": "seconds", "tpu": "chips"}
DEVICES = tuple(_BENCHMARKS)


def benchmark_attention(
    device: str | None,
    *,
    lengths: Sequence[int] = (),
    windows: Sequence[int] = (),
    head_dims: Sequence[int] = (),
    seconds: float | None = None,
    chips: Sequence[str] = (),
    out: str | None = None,
) -> str:
    """Measure, write the figures to `out` if given, and return the table.

    Args:
        device: one of DEVICES; what JAX runs on if None.
        lengths, windows, head_dims: keep only the shapes with one of these; empty keeps all.
        seconds: how long to time each shape and pass, about; the device's default if None.
        chips: of TPU, which of `attention_tpu.CHIPS`; empty for all.

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
    given = {"seconds": seconds, "chips": chips or None}
    options = {name: value for name, value in given.items() if value is not None}
    for name in options.keys() - {_OPTIONS[device]}:
        raise UserError(
            field=f"--{name}", got=options[name], wanted=f"--{_OPTIONS[device]} at most",
            fix=f"leave it out with --device={device}",
        )  # fmt: skip
    result = _BENCHMARKS[device](shapes, **options)
    if out:
        write_json(out, result)
    return result["markdown"]
