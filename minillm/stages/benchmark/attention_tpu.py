"""Windowed attention on TPU beside jax's splash attention, from the TPU compiler: without a TPU.

What is compared are bundles over the whole grid, which are cycles save for waits (see
`compile_report_tpu`). All have the blocks that `tuning` gives ours. Splash's fused backward kernel
writes a whole dq for every block of keys, and XLA's sum over those is not counted.
"""

import dataclasses
import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from minillm.core.errors import UserError
from minillm.stages.benchmark import table
from minillm.stages.benchmark.shapes import BACKWARD, FORWARD, Shape
from pallas_kernels.compile_report_tpu import Case, Report, bundles
from pallas_kernels.tuning import block_sizes

LENGTHS, WINDOWS, HEAD_DIMS = (8192,), (256, 1024, 4096), (64, 128)
_BATCH, _HEADS = 16, 8
OURS, SPLASH, FUSED = "ours", "splash", "splash, fused"


@dataclasses.dataclass(frozen=True)
class Chip:
    """As jax names its devices, and the smallest slice that libtpu compiles for on every host."""

    kind: str
    topology: str


CHIPS: Mapping[str, Chip] = {
    "v5e": Chip("TPU v5 lite", "v5e:2x4"),
    "v5p": Chip("TPU v5", "v5p:2x2x2"),
    "v6e": Chip("TPU v6 lite", "v6e:2x4"),
}


@dataclasses.dataclass(frozen=True)
class Count:
    """One shape and pass on one chip.

    Attributes:
        blocks: queries and keys of a tile, of all contestants.
        kernels: by contestant, the figures of its kernels by name.
    """

    chip: str
    shape: Shape
    which: str
    blocks: tuple[int, int]
    kernels: Mapping[str, Mapping[str, Report]]

    def bundles(self, contestant: str) -> int:
        return sum(report.bundles for report in self.kernels[contestant].values())

    def per_megaflop(self, contestant: str) -> float:
        """Bundles per million of the floating-point operations that the window asks for."""
        return self.bundles(contestant) / (self.shape.flops(self.which) / 1e6)

    def as_json(self) -> dict[str, Any]:
        return {
            "chip": self.chip,
            "shape": dataclasses.asdict(self.shape),
            "pass": self.which,
            "blocks": self.blocks,
            "kernels": {
                contestant: {name: dataclasses.asdict(report) for name, report in found.items()}
                for contestant, found in self.kernels.items()
            },
        }


def shapes(
    lengths: Sequence[int] = LENGTHS,
    windows: Sequence[int] = WINDOWS,
    head_dims: Sequence[int] = HEAD_DIMS,
) -> list[Shape]:
    return [
        Shape(_BATCH, length, _HEADS, head_dim, window)
        for length in lengths
        for head_dim in head_dims
        for window in windows
    ]


def benchmark(
    which_shapes: Sequence[Shape], *, chips: Sequence[str] = tuple(CHIPS)
) -> dict[str, Any]:
    """Bundles of every shape, forward and backward, on every chip of `chips`.

    Raises:
        UserError: an unknown chip, or no TPU compiler here.
    """
    unknown = [chip for chip in chips if chip not in CHIPS]
    if unknown:
        raise UserError(
            field="--chips", got=", ".join(unknown), wanted="some of " + ", ".join(CHIPS),
            fix="leave it out for all of them",
        )  # fmt: skip
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            field="--device", got="tpu", wanted="the TPU compiler, libtpu; it needs no TPU",
            fix="pip install libtpu",
        )  # fmt: skip
    counts = []
    for chip in chips:
        for shape in which_shapes:
            for count in count_bundles(chip, shape):
                counts.append(count)
                print(", ".join(_line(count)), flush=True)
    return {
        "device": "tpu, compiled for",
        "jax": jax.__version__,
        "libtpu": importlib.metadata.version("libtpu"),
        "rows": [count.as_json() for count in counts],
        "markdown": table_of(counts),
    }


def cases_of(chip: str, shape: Shape, which: str) -> dict[str, Case]:
    """What to compile, by contestant."""
    sizes = block_sizes(CHIPS[chip].kind, shape.head_dim, shape.window)
    options = {
        "batch": shape.batch,
        "length": shape.length,
        "heads": shape.heads,
        "kv_heads": shape.heads,
        "head_dim": shape.head_dim,
        "window": shape.window,
        "blocks": sizes.forward if which == FORWARD else sizes.dq,
        "backward": which == BACKWARD,
    }
    module = "pallas_kernels.compile_cases_tpu:"
    cases = {
        OURS: Case(module + "ours", options | {"strip": sizes.strip}),
        SPLASH: Case(module + "splash", options),
    }
    if which == BACKWARD:
        cases[FUSED] = Case(module + "splash", options | {"fused": True})
    return cases


def count_bundles(chip: str, shape: Shape) -> list[Count]:
    """Forward and backward of one shape on one chip."""
    cases = {which: cases_of(chip, shape, which) for which in (FORWARD, BACKWARD)}
    reports = iter(
        bundles([case for of in cases.values() for case in of.values()], CHIPS[chip].topology)
    )
    return [
        Count(
            chip, shape, which, of[OURS].options["blocks"],
            {contestant: next(reports) for contestant in of},
        )
        for which, of in cases.items()
    ]  # fmt: skip


def table_of(counts: Sequence[Count]) -> str:
    head = [
        "chip", "shape", "pass", "blocks", "ours, M", "splash, M", "ours / splash",
        "splash fused, M", "ours / fused", "per useful MFLOP, ours", "splash",
    ]  # fmt: skip
    return table.markdown(head, [_line(count) for count in counts], {})


def _line(count: Count) -> list[str]:
    ours, splash = count.bundles(OURS), count.bundles(SPLASH)
    fused = ["–", "–"]
    if FUSED in count.kernels:
        fused = [f"{count.bundles(FUSED) / 1e6:.2f}", f"{ours / count.bundles(FUSED):.2f}"]
    return [
        count.chip,
        str(count.shape),
        count.which,
        "×".join(map(str, count.blocks)),
        f"{ours / 1e6:.2f}",
        f"{splash / 1e6:.2f}",
        f"{ours / splash:.2f}",
        *fused,
        f"{count.per_megaflop(OURS):.1f}",
        f"{count.per_megaflop(SPLASH):.1f}",
    ]
