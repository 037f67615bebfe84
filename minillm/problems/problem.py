"""The record of a problem, and the facts in it that a machine can check."""

import dataclasses
from collections.abc import Callable
from random import Random
from typing import Literal

AnswerType = Literal[
    "expression",
    "set",
    "matrix",
    "complex",
    "antiderivative",
    "proof",
    "point",
    "function",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    r"""One checkable fact, as the very LaTeX that stands in the record.

    Attributes:
        kind: "holds" for a step: a chain of `=` or `<` that is true under `where`, for all values
            of its other letters. Otherwise the question that the answer settles, a key of
            `minillm.problems.verify.QUESTIONS`, such as "derivative".
        text: the line of the solution, or for a question its object, e.g. the function to be
            differentiated, as it stands in the problem.
        where: for a step, what its letters stand for (`x=4`, `f(x)=3x+2`); for a question its
            further data (`y(0)=3`, `[1,4]`), each of which stands in the problem.
    """

    kind: str
    text: str
    where: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    r"""A problem with its worked solution.

    Attributes:
        problem: the statement, LaTeX or Unicode mathematics, without dollar signs.
        solution: one step a line; the last line is `\boxed{answer}`.
        answer: LaTeX.
        domain, family, level: where it was drawn from.
        key: names the mathematical problem whatever its wording, its letters and, where that
            leaves the problem the same, its scale. Equal keys never lie in different splits.
        answer_type: how the answer is to be compared.
        claims: one for each step in order, then the question that `answer` settles.
    """

    problem: str
    solution: str
    answer: str
    domain: str
    family: str
    level: int
    key: str
    answer_type: AnswerType
    claims: tuple[Claim, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Draft:
    """What a family makes: a problem that does not know yet where it was drawn from.

    A step is a Claim, or a sentence for the reader that claims nothing.
    """

    problem: str
    steps: tuple[Claim | str, ...]
    answer: str
    answer_type: AnswerType
    question: Claim
    key: str

    def finish(self, *, domain: str, family: str, level: int) -> Problem:
        """The record, its solution written out."""
        lines = [step if isinstance(step, str) else step.text for step in self.steps]
        claims = tuple(step for step in self.steps if isinstance(step, Claim))
        return Problem(
            problem=self.problem,
            solution="\n".join([*lines, rf"\boxed{{{self.answer}}}"]),
            answer=self.answer,
            domain=domain,
            family=family,
            level=level,
            key=f"{domain}/{family}/{self.key}",
            answer_type=self.answer_type,
            claims=(*claims, self.question),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
    """One kind of problem.

    Attributes:
        make: (random source, level) -> Draft; draws nothing from anywhere else.
        about: one line for people.
        keys: for each level the number of distinct problems, None where it is above 10,000.
            Its length is the number of levels.
    """

    make: Callable[[Random, int], Draft]
    about: str
    keys: tuple[int | None, ...]


def holds(text: str, *where: str) -> Claim:
    """A step: `text` is true under `where`."""
    return Claim("holds", text, where)
