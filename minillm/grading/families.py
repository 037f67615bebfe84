"""Answers with arbitrary constants: antiderivatives, and families of solutions.

Two families are the same if every member of one is a member of the other, whatever the constants
are called: C_1 cosh x + C_2 sinh x is A e^x + B e^{-x}, but C_1 e^x + C_2 e^x is a smaller family.
"""

from __future__ import annotations

import random
import re
from fractions import Fraction
from typing import Any

from minillm.grading.arithmetic import NotEvaluable, Numeric
from minillm.grading.compare import is_real, number_at, numeric, same_value
from minillm.grading.differentiate import differentiate
from minillm.grading.tree import ZERO, Add, Symbol, Tree, free_symbols

CERTAIN = re.compile(r"C|[CcKk]_\w+")
LIKELY = re.compile(r"[ABCDK](_\w+)?|[ck]_\w+")
VARIABLES = frozenset("xyztuvw")
MAX_CONSTANTS = 4
DIGITS = 36
TRIALS = 3


def constants_in(reference: Tree, answer_type: str | None) -> frozenset[str]:
    """The arbitrary constants of a reference answer, told by their names.

    A and B are constants beside a variable (A e^x), not in a formula of their own (A + B).
    """
    names = free_symbols(reference)
    pattern = LIKELY if answer_type == "antiderivative" or names & VARIABLES else CERTAIN
    return frozenset(name for name in names if pattern.fullmatch(name))


def constants_beside(predicted: Tree, variables: frozenset[str]) -> frozenset[str]:
    """The constants of an answer whose variables are known: every other letter that can be one."""
    return frozenset(
        name for name in free_symbols(predicted) - variables if name[0] not in VARIABLES
    )


def is_antiderivative(reference: Tree, answer_type: str | None) -> bool:
    """Whether the reference is something plus one constant, and nothing else is arbitrary in it."""
    constants = constants_in(reference, answer_type)
    if len(constants) != 1 or not isinstance(reference, Add):
        return False
    (name,) = constants
    others = [term for term in reference.terms if term != Symbol(name)]
    return len(others) < len(reference.terms) and all(name not in free_symbols(o) for o in others)


def same_antiderivative(predicted: Tree, reference: Tree, answer_type: str | None) -> bool | None:
    """Same derivative, and one added constant that is free; an answer without one is not right."""
    variables = free_symbols(reference) - constants_in(reference, answer_type)
    constants = constants_beside(predicted, variables)
    if len(constants) != 1 or free_symbols(predicted) - constants - variables:
        return False
    (constant,) = constants
    try:
        for variable in sorted(variables):
            rate, wanted = differentiate(predicted, variable), differentiate(reference, variable)
            verdict = same_value(rate, wanted)
            if not verdict:
                return verdict
        return same_value(differentiate(predicted, constant), ZERO) is False
    except NotEvaluable:
        return None


def same_family(predicted: Tree, reference: Tree, answer_type: str | None) -> bool | None:
    """Whether two expressions with arbitrary constants describe the same set of functions."""
    theirs = sorted(constants_in(reference, answer_type))
    variables = free_symbols(reference) - frozenset(theirs)
    ours = sorted(constants_beside(predicted, variables))
    if len(ours) != len(theirs) or free_symbols(predicted) - frozenset(ours) - variables:
        return False
    if len(ours) > MAX_CONSTANTS:
        return None
    arithmetic = numeric(DIGITS, True)
    source = random.Random(f"{predicted!r} {reference!r}")
    places = _places(reference, sorted(variables), theirs, arithmetic, source)
    if len(places) < 2 * len(ours) + 2:
        return None
    left = _affine(predicted, ours, places, arithmetic, source)
    right = _affine(reference, theirs, places, arithmetic, source)
    if left and right:
        return _same_span(left, right, arithmetic)
    # A constant may enter affinely in one and not in the other: C against C^3 or e^C.
    return _reaches(predicted, ours, reference, theirs, places, arithmetic, source)


def _places(
    reference: Tree,
    variables: list[str],
    constants: list[str],
    arithmetic: Numeric,
    source: random.Random,
) -> list[dict[str, Any]]:
    """Random real points where the reference is real."""
    found: list[dict[str, Any]] = []
    for turn in range(40):
        low, high = ((0, 2), (-2, 2), (1, 5))[turn % 3]
        point = {v: _between(low, high, arithmetic, source) for v in variables}
        trial = point | {c: _between(0, 2, arithmetic, source) for c in constants}
        value = number_at(reference, trial, arithmetic)
        if value is not None and is_real(value, arithmetic):
            found.append(point)
        if len(found) >= 2 * len(constants) + 5:
            break
    return found


def _between(low: int, high: int, arithmetic: Numeric, source: random.Random) -> Any:
    return arithmetic.number(Fraction(source.randint(low * 997, high * 997), 997))


def _affine(
    tree: Tree,
    constants: list[str],
    places: list[dict[str, Any]],
    arithmetic: Numeric,
    source: random.Random,
) -> list[list[Any]] | None:
    """Columns [f0, f1, ..., fk] over the places if tree = f0 + c1 f1 + ... + ck fk, else None."""
    zero, one = (arithmetic.number(Fraction(n)) for n in (0, 1))
    settings = [dict.fromkeys(constants, zero)]
    settings += [settings[0] | {name: one} for name in constants]
    rows = []
    for place in places:
        first, *others = (number_at(tree, place | setting, arithmetic) for setting in settings)
        if first is None or None in others:
            return None
        row = [first] + [other - first for other in others if other is not None]
        for _ in range(2):
            trial = {name: _between(-4, 4, arithmetic, source) for name in constants}
            value = number_at(tree, place | trial, arithmetic)
            if value is None:
                return None
            expected = row[0]
            for name, part in zip(constants, row[1:], strict=True):
                expected = expected + trial[name] * part
            if abs(value - expected) > arithmetic.tiny * (1 + abs(value)):
                return None
        rows.append(row)
    return [list(column) for column in zip(*rows, strict=True)]


def _same_span(left: list[list[Any]], right: list[list[Any]], arithmetic: Numeric) -> bool:
    size = len(left) - 1
    shift = [a - b for a, b in zip(left[0], right[0], strict=True)]
    return (
        _rank(left[1:], arithmetic) == size
        and _rank(right[1:], arithmetic) == size
        and _rank([*left[1:], *right[1:], shift], arithmetic) == size
    )


def _rank(vectors: list[list[Any]], arithmetic: Numeric) -> int:
    """Rank by elimination, each vector scaled to a largest entry of one."""
    rows = []
    for vector in vectors:
        size = max(abs(value) for value in vector)
        if size > arithmetic.tiny:
            rows.append([value / size for value in vector])
    rank = 0
    for column in range(len(vectors[0])):
        if rank == len(rows):
            break
        pivot = max(range(rank, len(rows)), key=lambda r: abs(rows[r][column]))
        if abs(rows[pivot][column]) < arithmetic.tiny:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        for place in range(rank + 1, len(rows)):
            factor = rows[place][column] / rows[rank][column]
            rows[place] = [a - factor * b for a, b in zip(rows[place], rows[rank], strict=True)]
        rank += 1
    return rank


def _reaches(
    predicted: Tree,
    ours: list[str],
    reference: Tree,
    theirs: list[str],
    places: list[dict[str, Any]],
    arithmetic: Numeric,
    source: random.Random,
) -> bool | None:
    """Whether random members of the reference are members of the prediction, by Newton's method."""
    for _ in range(TRIALS):
        member = {name: _between(0, 3, arithmetic, source) for name in theirs}
        targets = [number_at(reference, place | member, arithmetic) for place in places]
        usable = [(p, t) for p, t in zip(places, targets, strict=True) if t is not None]
        if len(usable) < len(ours) + 3:
            return None
        if not any(_solves(predicted, ours, usable, arithmetic, source) for _ in range(8)):
            return False
    return True


def _solves(
    tree: Tree,
    constants: list[str],
    usable: list[tuple[dict[str, Any], Any]],
    arithmetic: Numeric,
    source: random.Random,
) -> bool:
    """One start of Newton's method on as many points as constants, checked on the others."""
    context = arithmetic.context
    chosen, others = usable[: len(constants)], usable[len(constants) :]

    # A constant below a fraction bar is found more easily by the ratio the other way up.
    upside_down = bool(source.getrandbits(1))

    def misses(*values: Any) -> list[Any]:
        setting = dict(zip(constants, map(context.mpc, values), strict=True))
        found = [number_at(tree, place | setting, arithmetic) for place, _ in chosen]
        if any(value is None for value in found):
            raise ZeroDivisionError
        pairs = [(value, wanted) for value, (_, wanted) in zip(found, chosen, strict=True)]
        return [1 - w / v if upside_down else v - w for v, w in pairs]

    start = [_between(-3, 3, arithmetic, source) for _ in constants]
    try:
        if len(constants) == 1:
            roots = [context.findroot(lambda c: misses(c)[0], start[0], maxsteps=40)]
        else:
            roots = list(context.findroot(misses, start, maxsteps=40))
    except (ValueError, ArithmeticError):
        return False
    setting = dict(zip(constants, map(context.mpc, roots), strict=True))
    for place, wanted in others:
        value = number_at(tree, place | setting, arithmetic)
        if value is None or abs(value - wanted) > 1e-9 * (1 + abs(wanted)):
            return False
    return True
