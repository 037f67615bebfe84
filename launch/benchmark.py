"""Speed beside what else there is, on this machine, as a table.

python launch/benchmark.py attention
python launch/benchmark.py attention --device=gpu --out runs/attention-gpu.json
python launch/benchmark.py attention --device=gpu --lengths=4096 --head_dims=128
python launch/benchmark.py attention --device=tpu --chips=v6e --windows=1024
python launch/benchmark.py loading

For TPU no TPU is needed: the bundles are counted that its compiler makes. `loading` makes a model
of a gigabyte, loads it and deletes it.
"""

from collections.abc import Sequence

from absl import flags

from minillm.core.errors import UserError
from minillm.stages import cli
from minillm.stages.benchmark.attention import DEVICES, benchmark_attention
from minillm.stages.benchmark.loading import benchmark_loading

DEVICE = flags.DEFINE_enum("device", None, DEVICES, "Of attention; what JAX runs on if not set.")
OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.")
LENGTHS = flags.DEFINE_list("lengths", [], "Only rows of these lengths.")
WINDOWS = flags.DEFINE_list("windows", [], "Only these windows.")
HEAD_DIMS = flags.DEFINE_list("head_dims", [], "Only these head sizes.")
CHIPS = flags.DEFINE_list("chips", [], "Only these chips; of --device=tpu.")
SECONDS = flags.DEFINE_float("seconds", None, "About how long to time each shape and pass.")


def main(argv: Sequence[str]) -> None:
    print(f"\n{attention() if argv[1] == 'attention' else loading()}")


def attention() -> str:
    return benchmark_attention(
        DEVICE.value,
        lengths=cli.integers(LENGTHS),
        windows=cli.integers(WINDOWS),
        head_dims=cli.integers(HEAD_DIMS),
        seconds=SECONDS.value,
        chips=CHIPS.value,
        out=OUT.value,
    )


def loading() -> str:
    for flag in (DEVICE, LENGTHS, WINDOWS, HEAD_DIMS, CHIPS, SECONDS):
        if flag.present:
            raise UserError(
                field=f"--{flag.name}",
                got="a choice for loading",
                wanted="--out alone",
                fix="leave it out; it is for attention",
            )
    return benchmark_loading(out=OUT.value)


if __name__ == "__main__":
    cli.run(main, words=("attention", "loading"))
