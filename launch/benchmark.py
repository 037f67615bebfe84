"""Speed beside what else there is, on this machine, as a table.

python launch/benchmark.py attention
python launch/benchmark.py attention --device=gpu --out runs/attention-gpu.json
python launch/benchmark.py attention --device=gpu --lengths=4096 --head_dims=128
python launch/benchmark.py attention --device=tpu --chips=v6e --windows=1024

python launch/benchmark.py teacher
python launch/benchmark.py teacher --teacher=FOLDER --lengths=512

For TPU no TPU is needed: the bundles are counted that its compiler makes. `teacher` is a teacher's
forward pass on CPU, beside transformers on the same weights.
"""

from collections.abc import Sequence

from absl import flags

from minillm.stages import cli
from minillm.stages.benchmark.attention import DEVICES, benchmark_attention
from minillm.stages.benchmark.teacher import SHAPES, benchmark_teacher

DEVICE = flags.DEFINE_enum("device", None, DEVICES, "What to measure; what JAX runs on if not set.")
OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.")
LENGTHS = flags.DEFINE_list("lengths", [], "Only rows of these lengths.")
WINDOWS = flags.DEFINE_list("windows", [], "Only these windows.")
HEAD_DIMS = flags.DEFINE_list("head_dims", [], "Only these head sizes.")
CHIPS = flags.DEFINE_list("chips", [], "Only these chips; of --device=tpu.")
SECONDS = flags.DEFINE_float("seconds", None, "About how long to time each shape and pass.")
TEACHER = flags.DEFINE_string("teacher", None, "A Hugging Face folder; else one of random weights.")


def main(argv: Sequence[str]) -> None:
    print(f"\n{_teacher() if argv[1] == 'teacher' else _attention()}")


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


if __name__ == "__main__":
    cli.run(main, words=("attention", "teacher"))
