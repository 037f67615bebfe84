"""The claims on each line of a solution: valid, invalid, or nothing that can be checked.

`(x^{3})'=3x^{2}` and `3 \\cdot 4=12` claim something for every value of their letters. `3x=6` is
an equation to be solved, `D=4` and `f(x)=x^{2}` give names: they hold or not depending on what
stands around them, and are left unchecked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from minillm.grading.arithmetic import Exact, Gaussian, NotEvaluable
from minillm.grading.compare import is_real, number_at, numeric, points, same_value, to_float
from minillm.grading.differentiate import differentiate, resolve
from minillm.grading.lexer import MAX_CHARACTERS, FormulaError
from minillm.grading.parser import parse
from minillm.grading.tree import (
    UNEVALUATED,
    Add,
    Apply,
    Bag,
    Call,
    Constant,
    Integral,
    Interval,
    Listing,
    Negate,
    PlusMinus,
    Relation,
    Symbol,
    Text,
    Tree,
    Tuple,
    Union,
    applies,
    contains,
    free_symbols,
    walk,
)

Verdict = Literal["valid", "invalid", "unchecked"]
# SymPy's word on A = B where evaluation has none.
Ask = Callable[[Tree, Tree], bool | None]
MAX_LINES = 400
MATH = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]")
PARTS = re.compile(r"\\Rightarrow|\\Longrightarrow|\\implies|\\iff|⇒|;|:|, so | so that |\.\s")
PROSE = re.compile(r"(?:[A-Za-z][a-z'-]+,?\s+)+")
CLAIM = re.compile(r"[=<>≤≥]|\\(?:le|ge|lt|gt|ne)")


@dataclass(frozen=True, slots=True)
class Step:
    text: str
    verdict: Verdict


def check_steps(solution: str, ask: Ask, *, strict: bool) -> list[Step]:
    """One Step for each line that states a relation, the boxed line left out.

    Args:
        strict: every relation is claimed for all values, as in the proof of an identity.
    """
    steps = []
    for line in solution.splitlines()[:MAX_LINES]:
        if "\\boxed" not in line and CLAIM.search(line):
            steps.append(Step(line.strip(), check_line(line, ask, strict=strict)))
    return steps


def check_line(line: str, ask: Ask, *, strict: bool = False) -> Verdict:
    """Invalid if any claim on the line is, valid if some are and none is not."""
    if len(line) > MAX_CHARACTERS:
        return "unchecked"
    verdicts = [
        verdict
        for formula in formulas(line)
        for pair in pairs(formula)
        for verdict in [check_pair(*pair, ask, strict=strict)]
    ]
    if "invalid" in verdicts:
        return "invalid"
    return "valid" if "valid" in verdicts else "unchecked"


def formulas(line: str) -> list[Tree]:
    """The formulas on a line of prose and mathematics; what cannot be read is left out."""
    marked = ["".join(groups) for groups in MATH.findall(line)]
    found = []
    for piece in marked or PARTS.split(line):
        text = piece.strip().rstrip(".,")
        if not CLAIM.search(text):
            continue
        for candidate in (text, PROSE.sub("", text, count=1)):
            try:
                found.append(parse(candidate))
                break
            except FormulaError:
                continue
    return found


def pairs(formula: Tree) -> list[tuple[Tree, str, Tree]]:
    """A op B for every link of every chain."""
    if isinstance(formula, Listing):
        return [pair for item in formula.items for pair in pairs(item)]
    if not isinstance(formula, Relation):
        return []
    sides = formula.sides
    return list(zip(sides, formula.operators, sides[1:], strict=False))


def check_pair(left: Tree, operator: str, right: Tree, ask: Ask, *, strict: bool) -> Verdict:
    for side in (left, right):
        if contains(side, Call, Text, PlusMinus, Interval, Union, Bag, Listing, Relation, Tuple):
            return "unchecked"
    if operator == "in" or (isinstance(left, Symbol) and operator == "=" and left != right):
        return "unchecked"
    if operator != "=":
        return _inequality(left, operator, right, strict)
    same = _equal(left, right, ask)
    if same is None:
        return "unchecked"
    if same:
        return "valid"
    closed = not free_symbols(left) | free_symbols(right)
    return "invalid" if closed or strict or claims_identity(left, right) else "unchecked"


def _equal(left: Tree, right: Tree, ask: Ask) -> bool | None:
    variables = {
        part.variable
        for side in (left, right)
        for part in walk(side)
        if isinstance(part, Integral) and part.low is None
    }
    if variables:
        # Indefinite integrals are equal up to a constant: compare what they are integrals of.
        if len(variables) > 1:
            return None
        (variable,) = variables
        try:
            left, right = differentiate(left, variable), differentiate(right, variable)
        except NotEvaluable:
            return None
    # Either side may be the one with the smaller domain: ln x^2 = 2 ln x, and back.
    forward = same_value(left, right)
    if forward is False:
        backward = same_value(right, left)
        return backward if backward is not None else False
    return ask(left, right) if forward is None else True


def _inequality(left: Tree, operator: str, right: Tree, strict: bool) -> Verdict:
    names = sorted(free_symbols(left) | free_symbols(right))
    arithmetic = numeric(36, True)
    outcomes = []
    for point in points(names, frozenset(), frozenset(), f"{left!r} {right!r}"):
        values = {name: to_float(value, arithmetic) for name, value in point.items()}
        a, b = (number_at(side, values, arithmetic) for side in (left, right))
        if a is None or b is None or not (is_real(a, arithmetic) and is_real(b, arithmetic)):
            continue
        outcomes.append(_compares(a.real, operator, b.real, arithmetic.tiny))
    if not outcomes:
        return "unchecked"
    if all(outcomes):
        return "valid"
    return "invalid" if strict or not names else "unchecked"


def _compares(a: Any, operator: str, b: Any, tiny: Any) -> bool:
    near = abs(a - b) <= tiny * (1 + abs(a))
    if operator == "!=":
        return not near
    if near:
        return operator in ("<=", ">=")
    return bool(a < b) == operator.startswith("<")


def claims_identity(left: Tree, right: Tree) -> bool:
    """Whether A = B, false as an identity, was meant as one and not as an equation to be solved.

    It was where a side names an operation carried out on the other; where no value of the letters
    could make it true; where both sides lead with the same term from the square on, as
    (x+2)(x+3) = x^2+6x+6; and where both are one power of one letter, as 3x+2x = 6x.
    """
    operations = ("det", "conjugate", "transpose", "trace")
    for side in (left, right):
        if contains(side, *UNEVALUATED) or applies(side, *operations):
            return True
    names = free_symbols(left) | free_symbols(right)
    try:
        gap = resolve(Add((left, Negate(right))))
    except NotEvaluable:
        return False
    gaps = [_at(gap, names, Fraction(n)) for n in (3, 17, -101)]
    if None not in gaps and gaps[0] and gaps.count(gaps[0]) == len(gaps):
        return True
    if free_symbols(left) != free_symbols(right) or contains(left, Constant, Apply):
        return False
    degrees = [_growth(side, names) for side in (left, right)]
    degree = degrees[0]
    if degree is None or degree != degrees[1]:
        return False
    if len(names) == 1 and all(_homogeneous(side, names) for side in (left, right)):
        return True
    return degree >= 2 and (_growth(gap, names) or 0) < degree


def _at(tree: Tree, names: frozenset[str], value: Fraction) -> Fraction | None:
    found = number_at(tree, dict.fromkeys(names, Gaussian(value)), Exact())
    return None if found is None else found.re


def _growth(tree: Tree, names: frozenset[str]) -> int | None:
    """The degree of a polynomial in all its letters together, by its growth at large values."""
    far = Fraction(10**9)
    one, two = _at(tree, names, far), _at(tree, names, 2 * far)
    if not one or not two:
        return None
    ratio = abs(two / one)
    degree = round(float(ratio)).bit_length() - 1 if ratio < 2**40 else None
    if degree is None or abs(float(ratio) - 2.0**degree) > 1e-3 * 2.0**degree:
        return None
    return degree


def _homogeneous(tree: Tree, names: frozenset[str]) -> bool:
    """Whether doubling the letters multiplies the value by one power of two, near as far away."""
    near, double = _at(tree, names, Fraction(3)), _at(tree, names, Fraction(6))
    degree = _growth(tree, names)
    return bool(near and degree and double == near * 2**degree)
