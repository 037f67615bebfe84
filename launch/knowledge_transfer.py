"""Distil a student from one or more teachers' stores.

    python launch/knowledge_transfer.py --teacher_store runs/store --train_data runs/train/rows \\
        --tokenizer_path runs/train/tokenizer/tokenizer.model --output_dir runs/student
"""

import os
from collections.abc import Sequence

from absl import flags

from minillm.stages import cli
from minillm.stages.transfer import TransferConfig, transfer

STORES = flags.DEFINE_list("teacher_store", None, "Stores, comma separated.", required=True)
ROWS = flags.DEFINE_string("train_data", None, "The rows those stores are for.", required=True)
TOKENIZER = flags.DEFINE_string("tokenizer_path", None, "Of those rows.", required=True)
OUTPUT = flags.DEFINE_string("output_dir", "runs/student", "Where the student goes.")
cli.define_config("knowledge_transfer")


def main(argv: Sequence[str]) -> None:
    made = transfer(
        OUTPUT.value,
        cli.read_config(TransferConfig),
        stores=STORES.value,
        rows=ROWS.value,
        tokenizer_path=TOKENIZER.value,
    )
    print(f"student: {made.counts['params']:,} parameters, {made.counts['steps']} steps")
    print(f"checkpoint: {os.path.join(OUTPUT.value, 'checkpoints')}")
    print(
        f"fine-tune: python launch/finetune_math.py --model_path {OUTPUT.value} "
        f"--output_dir {OUTPUT.value.rstrip('/')}-math"
    )


if __name__ == "__main__":
    cli.run(main)
