"""One problem, one model: a step-by-step solution and the checker's word on it."""

import dataclasses

import jax
from etils import epath

from minillm import problems
from minillm.core import hosts
from minillm.core.configs import require_at_least
from minillm.core.errors import UserError
from minillm.data import corpus
from minillm.data.tokenizer_protocol import beginning
from minillm.grading import Grader, extract_boxed
from minillm.inference.generate import generate
from minillm.inference.sampling import Sampler
from minillm.problems import Problem
from minillm.stages.training import load_model

VERDICTS = {True: "right", False: "wrong", None: "cannot tell"}


@dataclasses.dataclass(frozen=True)
class SolvingConfig:
    """How to sample.

    Attributes:
        temperature: 0 takes the likeliest token every time.
        top_k, top_p: limits on what is sampled from; None is no limit.
        samples: solutions of the one problem.
    """

    max_new_tokens: int = 160
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least(1, samples=self.samples, max_new_tokens=self.max_new_tokens)


@dataclasses.dataclass(frozen=True)
class Solution:
    """A solution, its boxed answer, and the checker's word: right, wrong, or None for no word."""

    text: str
    answer: str | None
    right: bool | None


def random_problem(seed: int, domain: str | None = None) -> Problem:
    """A problem of the test split, which no training of minillm's own has seen."""
    if domain is not None and domain not in problems.DOMAINS:
        raise UserError(
            field="domain", got=domain, wanted=", ".join(problems.DOMAINS), fix="choose one of them"
        )
    domains = None if domain is None else (domain,)
    return next(iter(problems.stream(seed, "test", domains=domains)))[1]


def solve_problem(
    model: epath.PathLike, problem: str, config: SolvingConfig, *, known: Problem | None = None
) -> list[Solution]:
    """Solutions by a model folder.

    Args:
        problem: text, with LaTeX or Unicode mathematics.
        known: the generator's record, graded as an evaluation grades it; without one the
            checker reads the problem's text.
    """
    if not problem.strip():
        raise UserError(field="problem", got="no text", wanted="a problem", fix='try "Solve x+3=5"')
    hosts.require_one_host("solving problems")
    function, params, tokenizer = load_model(model)
    prompt = [
        *beginning(tokenizer),
        *tokenizer.encode(corpus.problem_prompt(problem.strip())),
    ]
    outputs = generate(
        function.bind(params),
        [prompt] * config.samples,
        max_new_tokens=config.max_new_tokens,
        eos_id=tokenizer.eos_ids,
        pad_id=tokenizer.pad_id,
        sampler=Sampler(config.temperature, config.top_k, config.top_p),
        key=jax.random.key(config.seed),
    )
    texts = [tokenizer.decode(tokens) for tokens in outputs]
    with Grader() as grader:
        return [_judged(text, problem, known, grader) for text in texts]


def _judged(text: str, problem: str, known: Problem | None, grader: Grader) -> Solution:
    found = extract_boxed(text)
    if found is None:
        return Solution(text, None, None)
    if known is not None:
        return Solution(text, found, grader.grade(text, known).correct)
    return Solution(text, found, grader.check(problem, found))
