"""Figures of the README, measured anew, as a table.

python launch/benchmark.py attention
python launch/benchmark.py attention --device=gpu --out runs/attention-gpu.json
python launch/benchmark.py attention --device=gpu --lengths=4096 --head_dims=128
python launch/benchmark.py attention --device=tpu --chips=v6e --windows=1024
python launch/benchmark.py cross_tokenizer --out runs/cross-tokenizer.json

`attention` is speed beside what else there is, on this machine; for TPU no TPU is needed: the
bundles are counted that its compiler makes. `cross_tokenizer` is what students learn from a
teacher of another tokenizer.
"""

from collections.abc import Sequence

from absl import flags

from minillm.core.errors import UserError
from minillm.stages import cli
from minillm.stages.benchmark.attention import DEVICES, benchmark_attention
from minillm.stages.benchmark.cross_tokenizer import benchmark_cross_tokenizer

OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.")
DEVICE = flags.DEFINE_enum("device", None, DEVICES, "What to measure; what JAX runs on if not set.")
LENGTHS = flags.DEFINE_list("lengths", [], "Only rows of these lengths.")
WINDOWS = flags.DEFINE_list("windows", [], "Only these windows.")
HEAD_DIMS = flags.DEFINE_list("head_dims", [], "Only these head sizes.")
CHIPS = flags.DEFINE_list("chips", [], "Only these chips; of --device=tpu.")
SECONDS = flags.DEFINE_float("seconds", None, "About how long to time each shape and pass.")
_OF_ATTENTION = (DEVICE, LENGTHS, WINDOWS, HEAD_DIMS, CHIPS, SECONDS)


def main(argv: Sequence[str]) -> None:
    print(f"\n{_attention() if argv[1] == 'attention' else _cross_tokenizer()}")


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


def _cross_tokenizer() -> str:
    for flag in _OF_ATTENTION:
        if flag.present:
            raise UserError(
                field=f"--{flag.name}", got=flag.value, wanted="--out at most", fix="leave it out"
            )
    return benchmark_cross_tokenizer(out=OUT.value)


if __name__ == "__main__":
    cli.run(main, words=("attention", "cross_tokenizer"))
