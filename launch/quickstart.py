"""The whole pipeline on embedded defaults: corpus to report, in one folder.

python launch/quickstart.py --workdir runs/quickstart
python launch/quickstart.py --workdir runs/smoke --config.scale=smoke
"""

import os
from collections.abc import Sequence

from absl import flags

from minillm.stages import cli, report
from minillm.stages.quickstart import QuickstartConfig, run_quickstart

WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Where everything is written.")
TEACHER = flags.DEFINE_string("teacher", None, "A model folder, or mock; trained here if not set.")
PROBLEMS = flags.DEFINE_string("problems_path", None, "Your .json or .jsonl for the fine-tune.")
cli.define_config("quickstart")


def main(argv: Sequence[str]) -> None:
    config = cli.read_scaled_config(
        QuickstartConfig, teacher=TEACHER.value, problems_path=PROBLEMS.value
    )
    whole = run_quickstart(WORKDIR.value, config)
    results = {name: entry for name, entry in whole.items() if name != "run"}
    print(report.terminal_table(results))
    print(f"\nwall time of this run: {whole['run']['wall_seconds_this_run']:.0f} s")
    print(f"report: {os.path.join(WORKDIR.value, 'report.md')}")
    model = os.path.join(WORKDIR.value, "models", "finetuned")
    print(f"ask it: python launch/generate_math_solutions.py --model_path {model} --random")


if __name__ == "__main__":
    cli.run(main)
