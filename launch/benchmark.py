"""Figures of the README, measured anew, as a table.

python launch/benchmark.py attention
python launch/benchmark.py attention --device=gpu --out runs/attention-gpu.json
python launch/benchmark.py attention --device=gpu --lengths=4096 --head_dims=128
python launch/benchmark.py attention --device=tpu --chips=v6e --windows=1024
python launch/benchmark.py cross_tokenizer --out runs/cross-tokenizer.json
python launch/benchmark.py loading
python launch/benchmark.py teacher
python launch/benchmark.py teacher --teacher=FOLDER --lengths=512

`attention` is speed beside what else there is, on this machine; for TPU no TPU is needed: the
bundles are counted that its compiler makes. `cross_tokenizer` is what students learn from a
teacher of another tokenizer. `loading` makes a model of a gigabyte, loads it beside transformers
and deletes it. `teacher` is a teacher's forward pass on CPU, beside transformers on
the same weights; where others use the machine, on one core: `taskset -c 0 python …`.
"""

from collections.abc import Callable, Sequence

from absl import flags

from minillm.core.errors import UserError
from minillm.stages import cli
from minillm.stages.benchmark.attention import DEVICES, benchmark_attention
from minillm.stages.benchmark.cross_tokenizer import benchmark_cross_tokenizer
from minillm.stages.benchmark.loading import benchmark_loading
from minillm.stages.benchmark.teacher import SHAPES, benchmark_teacher

OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.")
DEVICE = flags.DEFINE_enum("device", None, DEVICES, "What to measure; what JAX runs on if not set.")
LENGTHS = flags.DEFINE_list("lengths", [], "Only rows of these lengths.")
WINDOWS = flags.DEFINE_list("windows", [], "Only these windows.")
HEAD_DIMS = flags.DEFINE_list("head_dims", [], "Only these head sizes.")
CHIPS = flags.DEFINE_list("chips", [], "Only these chips; of --device=tpu.")
SECONDS = flags.DEFINE_float("seconds", None, "About how long to time each shape and pass.")
TEACHER = flags.DEFINE_string("teacher", None, "A Hugging Face folder; else one of random weights.")
_FLAGS = (DEVICE, LENGTHS, WINDOWS, HEAD_DIMS, CHIPS, SECONDS, TEACHER)


def main(argv: Sequence[str]) -> None:
    print(f"\n{_BENCHMARKS[argv[1]]()}")


def _attention() -> str:
    _refuse_all_but(DEVICE, LENGTHS, WINDOWS, HEAD_DIMS, CHIPS, SECONDS)
    return benchmark_attention(
        DEVICE.value,
        lengths=cli.integers(LENGTHS),
        windows=cli.integers(WINDOWS),
        head_dims=cli.integers(HEAD_DIMS),
        seconds=SECONDS.value,
        chips=CHIPS.value,
        out=OUT.value,
    )


def _cross_tokenizer() -> str:
    _refuse_all_but()
    return benchmark_cross_tokenizer(out=OUT.value)


def _loading() -> str:
    _refuse_all_but()
    return benchmark_loading(out=OUT.value)


def _teacher() -> str:
    _refuse_all_but(LENGTHS, SECONDS, TEACHER)
    lengths = cli.integers(LENGTHS)
    shapes = [shape for shape in SHAPES if not lengths or shape[1] in lengths]
    return benchmark_teacher(TEACHER.value, shapes=shapes, seconds=SECONDS.value, out=OUT.value)


def _refuse_all_but(*allowed: flags.FlagHolder) -> None:
    names = [flag.name for flag in (OUT, *allowed)]
    for flag in _FLAGS:
        if flag.present and flag.name not in names:
            raise UserError(
                field=f"--{flag.name}",
                got=flag.value,
                wanted=f"{', '.join(f'--{name}' for name in names)} at most",
                fix="leave it out",
            )


_BENCHMARKS: dict[str, Callable[[], str]] = {
    "attention": _attention,
    "cross_tokenizer": _cross_tokenizer,
    "loading": _loading,
    "teacher": _teacher,
}

if __name__ == "__main__":
    cli.run(main, words=tuple(_BENCHMARKS))
