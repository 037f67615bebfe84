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
teacher of another tokenizer. `loading` makes a model of a gigabyte, loads it, has transformers load
it, and deletes it. `teacher` is a teacher's forward pass on CPU, beside transformers on the same
weights; where others use the machine, on one core: `taskset -c 0 python …`.
"""

from collections.abc import Sequence

from absl import flags

from minillm.stages import cli
from minillm.stages.benchmark.attention import DEVICES
from minillm.stages.benchmark.command import BENCHMARKS, run_benchmark

OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.")
DEVICE = flags.DEFINE_enum("device", None, DEVICES, "What to measure; what JAX runs on if not set.")
LENGTHS = flags.DEFINE_list("lengths", [], "Only rows of these lengths.")
WINDOWS = flags.DEFINE_list("windows", [], "Only these windows.")
HEAD_DIMS = flags.DEFINE_list("head_dims", [], "Only these head sizes.")
CHIPS = flags.DEFINE_list("chips", [], "Only these chips; of --device=tpu.")
SECONDS = flags.DEFINE_float("seconds", None, "About how long to time each shape and pass.")
TEACHER = flags.DEFINE_string("teacher", None, "A Hugging Face folder; else one of random weights.")
_FLAGS = (OUT, DEVICE, LENGTHS, WINDOWS, HEAD_DIMS, CHIPS, SECONDS, TEACHER)


def main(argv: Sequence[str]) -> None:
    print(f"\n{run_benchmark(argv[1], {flag.name: flag for flag in _FLAGS})}")


if __name__ == "__main__":
    cli.run(main, words=tuple(BENCHMARKS))
