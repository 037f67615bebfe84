"""A teacher's targets for every token of a data set, written to a store.

    python launch/precompute_teacher.py --teacher runs/train/model --data runs/train/rows \\
        --output_dir runs/store

A teacher of another tokenizer than the rows' needs theirs, and the store holds the likelihoods
of spans of text:

    python launch/precompute_teacher.py --teacher models/other --data runs/train/rows \\
        --tokenizer_path runs/train/tokenizer --output_dir runs/spans
"""

from collections.abc import Sequence

from absl import flags

from minillm.stages import cli
from minillm.stages.precompute import PrecomputeConfig, precompute, rows_for
from minillm.stages.precompute_spans import weights_for

TEACHER = flags.DEFINE_string("teacher", None, "A model folder, or mock.", required=True)
DATA = flags.DEFINE_string("data", None, "Packed rows, or files to pack for it.", required=True)
TOKENIZER = flags.DEFINE_string("tokenizer_path", None, "Of the rows; else the teacher's.")
OUTPUT = flags.DEFINE_string("output_dir", "runs/store", "Where the store goes.")
cli.define_config("precompute_teacher")


def main(argv: Sequence[str]) -> None:
    config = cli.read_config(PrecomputeConfig)
    rows, tokenizer = rows_for(
        DATA.value,
        config,
        teacher=TEACHER.value,
        tokenizer_path=TOKENIZER.value,
        packed=f"{OUTPUT.value.rstrip('/')}-rows",
        output=OUTPUT.value,
    )
    made = precompute(OUTPUT.value, config, teacher=TEACHER.value, rows=rows, tokenizer=tokenizer)
    counts = made.counts
    size = f"{counts['bytes'] / counts['tokens']:.1f} bytes a token"
    print(f"store: {OUTPUT.value} ({made.schema}, {counts['rows']} rows, {size})")
    print(
        "distil: python launch/knowledge_transfer.py "
        f"--teacher_store {OUTPUT.value} --train_data {rows} --tokenizer_path {tokenizer} "
        f"--output_dir {OUTPUT.value.rstrip('/')}-student{weights_for(made)}"
    )


if __name__ == "__main__":
    cli.run(main)
