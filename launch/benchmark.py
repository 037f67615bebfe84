"""Figures of the README, measured anew, as a table.

python launch/benchmark.py attention
python launch/benchmark.py attention --device=gpu --out runs/attention-gpu.json
python launch/benchmark.py attention --device=gpu --lengths=4096 --head_dims=128
python launch/benchmark.py attention --device=tpu --chips=v6e --windows=1024

python launch/benchmark.py teacher
python launch/benchmark.py teacher --teacher=FOLDER --lengths=512

python launch/benchmark.py cross_tokenizer --out runs/cross-tokenizer.json

`attention` is speed beside what else there is, on this machine; for TPU no TPU is needed: the
bundles are counted that its compiler makes. `teacher` is a teacher's forward pass on CPU, beside
transformers on the same weights. `cross_tokenizer` is what students learn from a teacher of another
tokenizer.
"""

from collections.abc import Callable, Sequence

from absl import flags

from minillm.core.errors import UserError
from minillm.stages import cli
from minillm.stages.benchmark.attention import DEVICES, benchmark_attention
from minillm.stages.benchmark.cross_tokenizer import benchmark_cross_tokenizer
from minillm.stages.benchmark.teacher import SHAPES, benchmark_teacher

OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.")
DEVICE = flags.DEFINE_enum("device", None, DEVICES, "What to measure; what JAX runs on if not set.")
LENGTHS = flags.DEFINE_list("lengths", [], "Only rows of these lengths.")
WINDOWS = flags.DEFINE_list("windows", [], "Only these windows.")
HEAD_DIMS = flags.DEFINE_list("head_dims", [], "Only these head sizes.")
CHIPS = flags.DEFINE_list("chips", [], "Only these chips; of --device=tpu.")
SECONDS = flags.DEFINE_float("seconds", None, "About how long to time each shape and pass.")
TEACHER = flags.DEFINE_string("teacher", None, "A Hugging Face folder; else one of random weights.")
_OF_OTHERS = (DEVICE, LENGTHS, WINDOWS, HEAD_DIMS, CHIPS, SECONDS, TEACHER)


def main(argv: Sequence[str]) -> None:
    print(f"\n{_BENCHMARKS[argv[1]]()}")


def _attention() -> str:
    return benchmark_attention(
        DEVICE.value,
        lengths=cli.integers(LENGTHS),
        windows=cli.integers(WINDOWS),
        head_dims=cli.integers(HEAD_DIMS),
        seconds=SECONDS.value,
        chips=CHIPS.value,
        out=OUT.value,
    )


def _teacher() -> str:
    lengths = cli.integers(LENGTHS)
    shapes = [shape for shape in SHAPES if not lengths or shape[1] in lengths]
    return benchmark_teacher(TEACHER.value, shapes=shapes, seconds=SECONDS.value, out=OUT.value)


def _cross_tokenizer() -> str:
    for flag in _OF_OTHERS:
        if flag.present:
            raise UserError(
                field=f"--{flag.name}", got=flag.value, wanted="--out at most", fix="leave it out"
            )
    return benchmark_cross_tokenizer(out=OUT.value)


_BENCHMARKS: dict[str, Callable[[], str]] = {
    "attention": _attention,
    "teacher": _teacher,
    "cross_tokenizer": _cross_tokenizer,
}


if __name__ == "__main__":
    cli.run(main, words=tuple(_BENCHMARKS))
