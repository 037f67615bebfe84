"""Which benchmark takes which flags of `launch/benchmark.py`, and what it makes of them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from absl import flags

from minillm.core.errors import UserError
from minillm.stages import cli
from minillm.stages.benchmark.attention import benchmark_attention
from minillm.stages.benchmark.cross_tokenizer import benchmark_cross_tokenizer
from minillm.stages.benchmark.loading import benchmark_loading
from minillm.stages.benchmark.teacher import SHAPES, benchmark_teacher

Flags = Mapping[str, flags.FlagHolder[Any]]


class Benchmark(NamedTuple):
    """What measures, and the flags that it takes beside --out."""

    run: Callable[[Flags], str]
    takes: tuple[str, ...] = ()


def run_benchmark(name: str, given: Flags) -> str:
    """The table of one of `BENCHMARKS`.

    Args:
        given: all flags, by name.

    Raises:
        UserError: a flag is set that the benchmark does not take, or to what it cannot measure.
    """
    benchmark = BENCHMARKS[name]
    allowed = ("out", *benchmark.takes)
    for flag in given.values():
        if flag.present and flag.name not in allowed:
            raise UserError(
                field=f"--{flag.name}",
                got=flag.value,
                wanted=f"{', '.join(f'--{name}' for name in allowed)} at most",
                fix="leave it out",
            )
    return benchmark.run(given)


def _attention(given: Flags) -> str:
    return benchmark_attention(
        given["device"].value,
        lengths=cli.integers(given["lengths"]),
        windows=cli.integers(given["windows"]),
        head_dims=cli.integers(given["head_dims"]),
        seconds=given["seconds"].value,
        chips=given["chips"].value,
        out=given["out"].value,
    )


def _cross_tokenizer(given: Flags) -> str:
    return benchmark_cross_tokenizer(out=given["out"].value)


def _loading(given: Flags) -> str:
    return benchmark_loading(out=given["out"].value)


def _teacher(given: Flags) -> str:
    lengths = cli.integers(given["lengths"])
    shapes = [shape for shape in SHAPES if not lengths or shape[1] in lengths]
    return benchmark_teacher(
        given["teacher"].value,
        shapes=shapes,
        seconds=given["seconds"].value,
        out=given["out"].value,
    )


BENCHMARKS = {
    "attention": Benchmark(
        _attention, ("device", "lengths", "windows", "head_dims", "chips", "seconds")
    ),
    "cross_tokenizer": Benchmark(_cross_tokenizer),
    "loading": Benchmark(_loading),
    "teacher": Benchmark(_teacher, ("lengths", "seconds", "teacher")),
}
