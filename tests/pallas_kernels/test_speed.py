"""What the window buys on this machine, through the benchmark's own functions.

pytest -m slow -s tests/pallas_kernels/test_speed.py
"""

import pytest

from minillm.stages.benchmark.attention_cpu import (
    CONTESTANTS,
    MASKED,
    OURS,
    SDPA,
    SHAPES,
    TOLERANCE,
    ratio,
    table_of,
)
from minillm.stages.benchmark.shapes import BOTH, FORWARD
from minillm.stages.benchmark.timing import measure

SHORT, LONG, LONGER, ROW = (
    next(shape for shape in SHAPES if shape.length == length) for length in (1024, 4096, 16384, 256)
)


def measured(shape, which, seconds, *names):
    chosen = {name: CONTESTANTS[name] for name in (OURS, *names)}
    return measure(chosen, shape, which, seconds=seconds, tolerance=TOLERANCE)
