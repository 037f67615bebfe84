"""Solve a problem step by step, with the checker's word on the answer.

python launch/generate_math_solutions.py --problem "Find the derivative of f(x) = x³ - 2x² + 4x - 1"
python launch/generate_math_solutions.py --random --domain linear_algebra
"""

import random
from collections.abc import Sequence

from absl import flags

from minillm.core.errors import UserError
from minillm.stages import cli, solving
from minillm.stages.solving import SolvingConfig

MODEL = flags.DEFINE_string(
    "model_path", "runs/quickstart/models/finetuned", "The model folder to ask."
)
PROBLEM = flags.DEFINE_string("problem", None, "Text, with LaTeX or Unicode mathematics.")
RANDOM = flags.DEFINE_bool("random", False, "Ask a held-out problem of the generator.")
DOMAIN = flags.DEFINE_string("domain", None, "With --random: one domain only.")
SEED = flags.DEFINE_integer("seed", None, "Of problem and samples; another each time if not set.")
cli.define_config("generate_math_solutions")


def main(argv: Sequence[str]) -> None:
    if (PROBLEM.value is None) != RANDOM.value:
        raise UserError(
            field="problem", got="both or neither", wanted="--problem TEXT or --random", fix="one"
        )
    if DOMAIN.value is not None and not RANDOM.value:
        raise UserError(field="domain", got="no --random", wanted="both", fix="add --random")
    seed = random.SystemRandom().randrange(1 << 31) if SEED.value is None else SEED.value
    config = cli.read_config(SolvingConfig, seed=seed)
    known = solving.random_problem(seed, DOMAIN.value) if RANDOM.value else None
    problem = PROBLEM.value if known is None else known.problem
    for solution in solving.solve_problem(MODEL.value, problem, config, known=known):
        print(f"\nProblem: {problem}\n\n{solution.text.strip()}\n")
        print(f"Answer:  {solution.answer or 'none was given'}")
        print(f"Checker: {solving.VERDICTS[solution.right]}")
    print(f"Seed:    {seed}")


if __name__ == "__main__":
    cli.run(main)
