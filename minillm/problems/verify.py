"""Checks a record by another way than it was made: reads its LaTeX back and asks SymPy.

Every step is checked as a relation, and the answer by substitution, differentiation or SymPy's
own matrix and complex arithmetic.
"""

import itertools
import re
from collections.abc import Callable
from typing import Any

import sympy

from minillm.problems import reading
from minillm.problems.algebras import EXPRESSIONS, POLYNOMIALS, UnreadableError, algebra_for
from minillm.problems.problem import Claim, Problem

_DIGITS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_RAISED = re.compile("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+")


class VerificationError(ValueError):
    """The record says something that is not so, or that cannot be read back."""


def verify(problem: Problem) -> None:
    """Checks every step and the answer of a record.

    Raises:
        VerificationError: names the first claim that fails.
    """
    *steps, question = problem.claims
    _check_text(problem, steps, question)
    for step in steps:
        _guarded(problem, step, _step_holds, step)
    check = QUESTIONS.get(question.kind)
    if check is None:
        raise VerificationError(f"{problem.key}: unknown question {question.kind!r}")
    _guarded(problem, question, check, question, problem.answer)


def _guarded(problem: Problem, claim: Claim, check: Callable[..., bool], *arguments: Any) -> None:
    where = f"{problem.key}: {claim.kind} {claim.text!r}"
    try:
        true = check(*arguments)
    except UnreadableError as error:
        raise VerificationError(f"{where} cannot be read: {error}") from error
    if not true:
        raise VerificationError(f"{where} does not hold (answer {problem.answer!r})")


def _check_text(problem: Problem, steps: list[Claim], question: Claim) -> None:
    """The claims are what stands in the text: none missing, none beside it."""
    *lines, last = problem.solution.split("\n")
    if last != rf"\boxed{{{problem.answer}}}" or r"\boxed" in "".join(lines):
        raise VerificationError(f"{problem.key}: the last line must box {problem.answer!r} alone")
    formulas = [line for line in lines if not _is_sentence(line)]
    if formulas != [step.text for step in steps]:
        raise VerificationError(f"{problem.key}: the lines are not the claimed steps")
    stated = _typed_as_latex(problem.problem)
    for part in (question.text, *question.where):
        if part.replace(" ", "") not in stated:
            raise VerificationError(f"{problem.key}: {part!r} is not in the problem")


def _is_sentence(line: str) -> bool:
    return line.endswith(".") and not any(c in "=<" or c.isdigit() for c in line)


def _typed_as_latex(text: str) -> str:
    """Without spaces, and raised Unicode digits as exponents."""
    latex = _RAISED.sub(lambda match: f"^{{{match[0].translate(_DIGITS)}}}", text)
    return latex.replace(" ", "")


def _step_holds(step: Claim) -> bool:
    algebra = algebra_for(step.text, *step.where)
    reader = reading.Reader(algebra, reading.bind(algebra, step.where))
    sides, relations = reader.chain(step.text)
    differences = [algebra.difference(a, b) for a, b in itertools.pairwise(sides)]
    return bool(relations) and all(
        d == 0 if relation == "=" else _is_negative(d)
        for d, relation in zip(differences, relations, strict=True)
    )


def _is_negative(value: Any) -> bool:
    number = value.as_expr()
    return bool(number.is_number and number.is_negative)


def _polynomial(text: str) -> Any:
    return reading.Reader(POLYNOMIALS, {}).value(text)


def _expression(text: str) -> Any:
    return reading.Reader(EXPRESSIONS, {}).value(text)


def _solutions(question: Claim, answer: str) -> bool:
    """Each solution satisfies the equation, and there are as many as its degree."""
    sides, relations = reading.Reader(POLYNOMIALS, {}).chain(question.text)
    if relations != ["="]:
        return False
    rest = sides[0] - sides[1]
    if answer.startswith(r"\{"):
        roots = [_polynomial(member) for member in reading.members(answer)]
    else:
        letter, _, value = answer.partition("=")
        if letter not in question.text:
            return False
        roots = [_polynomial(value)]
    degree = max(rest.degrees())
    different = len({root.as_expr() for root in roots}) == len(roots)
    return different and degree == len(roots) and not any(POLYNOMIALS.at(rest, r) for r in roots)


def _identity(question: Claim, answer: str) -> bool:
    sides, relations = reading.Reader(POLYNOMIALS, {}).chain(answer)
    return answer == question.text and relations == ["="] and sides[0] == sides[1]


def _derivative(question: Claim, answer: str) -> bool:
    return POLYNOMIALS.derivative(_polynomial(question.text)) == _polynomial(answer)


def _antiderivative(question: Claim, answer: str) -> bool:
    found = _polynomial(answer)
    constant = POLYNOMIALS.letter("C")
    free = found.diff(constant) == found.ring.one
    return free and POLYNOMIALS.derivative(found) == _polynomial(question.text)


def _initial_value(question: Claim, answer: str) -> bool:
    """The function satisfies the equation and every initial condition."""
    if not answer.startswith("y="):
        return False
    return all(
        _step_holds(Claim("holds", condition, (answer,)))
        for condition in (question.text, *question.where)
    )


def _value(question: Claim, answer: str) -> bool:
    return sympy.expand(_expression(question.text)) == _expression(answer)


def _complex_sum(question: Claim, answer: str) -> bool:
    return _expression(question.text) + _expression(*question.where) == _expression(answer)


def _modulus(question: Claim, answer: str) -> bool:
    return abs(_expression(question.text)) == _expression(answer)


def _matrix_sum(question: Claim, answer: str) -> bool:
    left, right = map(reading.matrix, (question.text, *question.where))
    return left + right == reading.matrix(answer)


def _matrix_product(question: Claim, answer: str) -> bool:
    left, right = map(reading.matrix, (question.text, *question.where))
    return left * right == reading.matrix(answer)


def _determinant(question: Claim, answer: str) -> bool:
    return reading.matrix(question.text).det() == _expression(answer)


def _stationary(question: Claim, answer: str) -> bool:
    """f' vanishes at the point and, being linear, nowhere else."""
    slope = POLYNOMIALS.derivative(_polynomial(question.text))
    letter, _, value = answer.partition("=")
    alone = max(slope.degrees()) == 1
    return letter == "x" and alone and not POLYNOMIALS.at(slope, _polynomial(value))


def _extreme(question: Claim, answer: str) -> bool:
    """By the sign of the slope, which is constant, not by comparing the ends."""
    f, x = _expression(question.text), sympy.Symbol("x")
    low, high = (_expression(end) for end in reading.members(question.where[0]))
    slope = f.diff(x)
    if slope.free_symbols or slope == 0 or not low < high:
        return False
    rising = bool(slope > 0)
    end = high if rising == (question.kind == "maximum") else low
    return f.subs(x, end) == _expression(answer)


def _vertex(question: Claim, answer: str) -> bool:
    """The parabola minus its least value is a positive multiple of a square at the point."""
    x, height = (_polynomial(part) for part in reading.members(answer))
    f = _polynomial(question.text)
    shifted = POLYNOMIALS.at(f, POLYNOMIALS.letter("x") + x) - height
    monomials = list(shifted.itermonoms())
    square = len(monomials) == 1 and sum(monomials[0]) == 2
    return square and _is_negative(shifted.ring.ground_new(-shifted.LC))


# By kind of question: whether `answer` settles it.
QUESTIONS: dict[str, Callable[[Claim, str], bool]] = {
    "solutions": _solutions,
    "identity": _identity,
    "derivative": _derivative,
    "antiderivative": _antiderivative,
    "initial_value": _initial_value,
    "value": _value,
    "complex_sum": _complex_sum,
    "modulus": _modulus,
    "matrix_sum": _matrix_sum,
    "matrix_product": _matrix_product,
    "determinant": _determinant,
    "stationary": _stationary,
    "maximum": _extreme,
    "minimum": _extreme,
    "vertex": _vertex,
}
