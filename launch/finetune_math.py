"""Fine-tune a model on mathematics: your own problems, or generated ones.

    python launch/finetune_math.py --model_path runs/student --problems_path mine.json \\
        --output_dir runs/math
"""

import os
from collections.abc import Sequence

from absl import flags

from minillm.stages import cli
from minillm.stages.finetune import FinetuneConfig, finetune

MODEL = flags.DEFINE_string("model_path", None, "The model folder to start from.", required=True)
PROBLEMS = flags.DEFINE_string("problems_path", None, "Your .json or .jsonl; else generated.")
OUTPUT = flags.DEFINE_string("output_dir", "runs/math", "Where the fine-tuned model goes.")
cli.define_config("finetune_math")


def main(argv: Sequence[str]) -> None:
    config = cli.read_config(FinetuneConfig)
    finetune(OUTPUT.value, config, model_path=MODEL.value, problems_path=PROBLEMS.value)
    model = os.path.join(OUTPUT.value, "model")
    print(f"checkpoint: {os.path.join(model, 'checkpoints')}")
    print(f"evaluate: python launch/evaluate_math.py --model_path {model}")


if __name__ == "__main__":
    cli.run(main)
