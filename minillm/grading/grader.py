"""The grader: is this answer the reference answer, and does the solution hold step by step?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol, Self

from minillm.grading.answers import extract_boxed, read_answer, tidy
from minillm.grading.check_problem import check
from minillm.grading.compare import beyond_bounds, same_value
from minillm.grading.lexer import MAX_CHARACTERS
from minillm.grading.matching import Matcher
from minillm.grading.statements import form, restates
from minillm.grading.steps import check_steps
from minillm.grading.tree import Tree
from minillm.grading.worker import Worker

SYMPY_SHARE = 0.75


class Gradeable(Protocol):
    """What `grade` needs of a problem; a text `.problem`, if there is one, is used as well."""

    @property
    def answer(self) -> str: ...

    @property
    def answer_type(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Grade:
    """The verdict on one solution.

    Attributes:
        correct: the boxed answer is right; for a proof, so is every step that can be checked.
        answer: what stands in the box, None without one.
        valid_steps: share of valid steps among those that can be checked, None if none can.
        first_wrong_step: the first line that states something false.
        reason: one line for people.
    """

    correct: bool
    answer: str | None
    valid_steps: float | None
    first_wrong_step: str | None
    reason: str


class Grader:
    """Grades answers without running them; SymPy is asked, in a worker, where evaluation cannot
    decide.

    Args:
        timeout_seconds: for one verdict. SymPy has SYMPY_SHARE of it, all questions together; the
            rest is for evaluation here and for the start of a worker after one was killed.
    """

    def __init__(self, timeout_seconds: float = 2.0) -> None:
        self.timeout_seconds = timeout_seconds
        self.worker = Worker()

    def equivalent(self, predicted: str, reference: str, answer_type: str | None = None) -> bool:
        """Whether the predicted answer is right. What cannot be decided is not right."""
        return _Verdict(self).equivalent(predicted, reference, answer_type)

    def grade(self, solution: str, problem: Gradeable) -> Grade:
        """The answer in the last box compared, and every stated equality checked."""
        verdict = _Verdict(self)
        answer = extract_boxed(solution)
        strict = problem.answer_type == "proof"
        steps = check_steps(solution, verdict.ask, strict=strict)
        checked = [step for step in steps if step.verdict != "unchecked"]
        wrong = next((step.text for step in checked if step.verdict == "invalid"), None)
        share = None
        if checked:
            share = sum(step.verdict == "valid" for step in checked) / len(checked)
        reason = verdict.fault(answer, problem)
        if not reason and strict:
            if wrong is not None:
                reason = "a step of the proof is wrong"
            elif not checked:
                reason = "no step of the proof can be checked"
        return Grade(not reason, answer, share, wrong, reason or "correct")

    def check(self, problem_text: str, answer: str) -> bool | None:
        """Whether an answer to a free problem text is right, None where that cannot be told."""
        verdict = _Verdict(self)
        return check(problem_text, answer, verdict.decide, verdict.roots)

    def close(self) -> None:
        """Ends the worker process, if one was started."""
        self.worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Verdict:
    """One verdict: what is left of its time."""

    def __init__(self, grader: Grader) -> None:
        self.worker = grader.worker
        self.deadline = time.monotonic() + SYMPY_SHARE * grader.timeout_seconds

    def ask(self, left: Tree, right: Tree) -> bool | None:
        """SymPy's word on left = right."""
        return self._asked("equal", left, right)

    def roots(self, left: Tree, right: Tree, variable: str) -> list[tuple[str, str]] | None:
        """The roots of a polynomial equation, see `symbolic.roots`."""
        return self._asked("roots", left, right, variable)

    def _asked(self, operation: str, *arguments: Any) -> Any:
        began = time.monotonic()
        if began >= self.deadline or any(
            isinstance(tree, Tree) and beyond_bounds(tree) for tree in arguments
        ):
            return None
        self.worker.start()
        self.deadline += time.monotonic() - began
        return self.worker.ask(operation, *arguments, seconds=self.deadline - time.monotonic())

    def decide(self, left: Tree, right: Tree) -> bool:
        same = same_value(left, right)
        return bool(self.ask(left, right) if same is None else same)

    def equivalent(self, predicted: str, reference: str, answer_type: str | None) -> bool:
        if max(len(predicted), len(reference)) > MAX_CHARACTERS:
            return False
        wanted, given = read_answer(reference), read_answer(predicted)
        if wanted is None:
            # A reference that is no formula, such as a name: the same text is the same answer.
            ours, theirs = ("".join(tidy(text).split()) for text in (predicted, reference))
            return bool(ours) and ours == theirs
        return given is not None and Matcher(self.decide, answer_type).matches(given, wanted)

    def fault(self, answer: str | None, problem: Gradeable) -> str:
        """What is wrong with the boxed answer; nothing if it is right."""
        if not answer:
            return "no boxed answer"
        if not self.equivalent(answer, problem.answer, problem.answer_type):
            readable = len(answer) <= MAX_CHARACTERS and read_answer(answer) is not None
            return "the answer is not the reference" if readable else "the answer is unreadable"
        text = getattr(problem, "problem", None)
        if problem.answer_type != "proof" and isinstance(text, str):
            ours, theirs = read_answer(answer), read_answer(problem.answer)
            same = ours is not None and theirs is not None and form(ours) == form(theirs)
            if not same and restates(answer, text):
                return "the answer restates the problem"
        return ""
