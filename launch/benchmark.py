"""Speed beside what else there is, on this machine, as a table.

python launch/benchmark.py attention
python launch/benchmark.py attention --device=gpu --out runs/attention-gpu.json
python launch/benchmark.py attention --device=gpu --lengths=4096 --head_dims=128
python launch/benchmark.py attention --device=tpu --chips=v6e --windows=1024

For TPU no TPU is needed: the bundles are counted that its compiler makes.
"""

from collections.abc import Sequence

from absl import flags

from minillm.stages import cli
from minillm.stages.benchmark.attention import DEVICES, benchmark_attention

DEVICE = flags.DEFINE_enum("device", None, DEVICES, "What to measure; what JAX runs on if not set.")
OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.")
LENGTHS = flags.DEFINE_list("lengths", [], "Only rows of these lengths.")
WINDOWS = flags.DEFINE_list("windows", [], "Only these windows.")
HEAD_DIMS = flags.DEFINE_list("head_dims", [], "Only these head sizes.")
CHIPS = flags.DEFINE_list("chips", [], "Only these chips; of --device=tpu.")
SECONDS = flags.DEFINE_float("seconds", None, "About how long to time each shape and pass.")


def main(argv: Sequence[str]) -> None:
    del argv  # "attention", so far the only thing there is to measure
    markdown = benchmark_attention(
        DEVICE.value,
        lengths=cli.integers(LENGTHS),
        windows=cli.integers(WINDOWS),
        head_dims=cli.integers(HEAD_DIMS),
        seconds=SECONDS.value,
        chips=CHIPS.value,
        out=OUT.value,
    )
    print(f"\n{markdown}")


if __name__ == "__main__":
    cli.run(main, words=("attention",))
