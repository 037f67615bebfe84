"""Windowed attention on the CPU beside masked attention in JAX and what PyTorch has."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from minillm.stages.benchmark import contestants as of
from minillm.stages.benchmark import table
from minillm.stages.benchmark.shapes import BOTH, FORWARD, Shape
from minillm.stages.benchmark.timing import Cell, Contestant, Row, measure

OURS, MASKED, SDPA, CAUSAL, FLEX = (
    "ours", "masked jax", "torch SDPA, mask", "torch SDPA, causal", "torch flex_attention",
)  # fmt: skip
CONTESTANTS: Mapping[str, Contestant] = {
    OURS: of.of_jax(of.ours("xla"), jnp.float32),
    MASKED: of.of_jax(of.masked_attention, jnp.float32),
    SDPA: of.of_torch(of.torch_masked, "cpu", "float32"),
    CAUSAL: of.of_torch(of.torch_causal, "cpu", "float32"),
    FLEX: of.of_torch(of.torch_flex, "cpu", "float32"),
}
# Long rows with a short window, and the short causal rows that small models are trained on.
SHAPES = (
    Shape(batch=1, length=1024, heads=6, head_dim=64, window=256),
    Shape(batch=2, length=4096, heads=6, head_dim=64, window=256),
    Shape(batch=1, length=16384, heads=2, head_dim=64, window=256),
    Shape(batch=16, length=256, heads=6, head_dim=32, window=256),
)
# float32 sums of up to 256 products in different orders.
TOLERANCE = 1e-4


def benchmark(shapes: Sequence[Shape] = SHAPES, *, seconds: float = 10.0) -> dict[str, Any]:
    """Every shape forward, and forward with backward; `seconds` bounds each of them."""
    rows = []
    for shape in shapes:
        for which in (FORWARD, BOTH):
            row = measure(CONTESTANTS, shape, which, seconds=seconds, tolerance=TOLERANCE)
            rows.append(row)
            print(_line(row), flush=True)
    return {
        "device": "cpu",
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "rows": [row.as_json() for row in rows],
        "markdown": table_of(rows),
    }


def ratio(row: Row, name: str) -> float | None:
    """How many times as long as ours `name` takes."""
    theirs, mine = row.cells[name].seconds, row.cells[OURS].seconds
    return None if theirs is None or mine is None else theirs / mine


def table_of(rows: Sequence[Row]) -> str:
    marks = table.marks_of_reasons(rows)
    others = list(CONTESTANTS)[1:]
    lines = []
    for row in rows:
        line = [str(row.shape), row.which, table.cell(row.cells[OURS], marks, _milliseconds)]
        for name in others:
            times = ratio(row, name)
            line.append(
                marks.get(row.cells[name].reason, "-") if times is None else f"{times:.1f}×"
            )
        line.append(" / ".join(_mebibytes(row.cells[name]) for name in (OURS, MASKED)))
        lines.append(line)
    head = ["shape", "pass", "ours", *(f"{name} / ours" for name in others)]
    head.append("temp MiB, ours / masked")
    return table.markdown(head, lines, marks)


def _line(row: Row) -> str:
    cells = row.cells.items()
    times = [f"{name} {table.cell(cell, {}, _milliseconds)}" for name, cell in cells]
    return f"{row.shape}, {row.which}: " + "; ".join(times)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"


def _mebibytes(cell: Cell) -> str:
    return "-" if cell.temp_bytes is None else f"{cell.temp_bytes / 2**20:,.0f}"
