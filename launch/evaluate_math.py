"""Accuracy of final answers by domain, on generated held-out problems or on your own.

python launch/evaluate_math.py --model_path runs/math/model
python launch/evaluate_math.py --model_path runs/math/model --problems_path mine.json
"""

import os
from collections.abc import Sequence

from absl import flags

from minillm.stages import cli, report
from minillm.stages.evaluation import (
    RESULT,
    ExamConfig,
    default_directory,
    evaluate,
    problems_for,
    read_result,
)

MODEL = flags.DEFINE_string("model_path", None, "The model folder.", required=True)
PROBLEMS = flags.DEFINE_string("problems_path", None, "Your .json or .jsonl; else generated.")
OUTPUT = flags.DEFINE_string("output_dir", None, "Where the result goes; beside the model.")
cli.define_config("evaluate_math")


def main(argv: Sequence[str]) -> None:
    config = cli.read_config(ExamConfig)
    records = problems_for(PROBLEMS.value, config)
    output = OUTPUT.value or default_directory(MODEL.value, config.evaluation, records)
    evaluate(output, config.evaluation, model=MODEL.value, records=records)
    print(report.accuracy_table(read_result(output)))
    print(f"\nresult: {os.path.join(output, RESULT)}")


if __name__ == "__main__":
    cli.run(main)
