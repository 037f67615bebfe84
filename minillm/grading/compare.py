"""Do two expressions have the same value everywhere? Exact first, then at random points.

At real points of every sign, because sqrt(x^2) is x on one side only; at complex points for z and w
once i, a conjugate or an argument is in play. A reference is compared where it is real; there the
other one must be real and equal. Two different analytic expressions agree at a random point with
probability zero, so a handful of points decide; where too few points can be evaluated the answer is
None, and SymPy has the word.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from minillm.grading.arithmetic import (
    Arithmetic,
    Budget,
    Exact,
    Gaussian,
    NotEvaluable,
    Numeric,
    TooLarge,
    Undefined,
)
from minillm.grading.differentiate import resolve
from minillm.grading.evaluate import Evaluator
from minillm.grading.tree import (
    Apply,
    Constant,
    Integral,
    Limit,
    Negate,
    Number,
    PlusMinus,
    Power,
    Series,
    Tree,
    applies,
    contains,
    free_symbols,
    walk,
)

POINTS = 24
ENOUGH = 5
AT_LEAST = 3
# Constants are compared once, and neither a long decimal nor sqrt(10^100 + 1) may pass for what it
# is near to: two thirds of these digits must agree. Quadrature does not reach so many.
CONSTANT_DIGITS = 240
POINT_DIGITS = 36
# (low, high) of the ranges that the points are drawn from in turn: logarithms of logarithms need
# large ones, arc sines small ones, and both signs must come up early.
RANGES = ((-3, 3), (-1, 1), (0, 2), (-6, 0), (1, 40), (0, 1))
COMPLEX_FUNCTIONS = ("conjugate", "re", "im", "arg")


class _OfThisThread(threading.local):
    """Quadrature and root finding change the digits of their context while they run."""

    def __init__(self) -> None:
        self.made: dict[tuple[int, bool], Numeric] = {}


_of_this_thread = _OfThisThread()


def numeric(digits: int, real_roots: bool) -> Numeric:
    """The arithmetic of so many digits, one for each thread."""
    made = _of_this_thread.made
    key = (digits, real_roots)
    if key not in made:
        made[key] = Numeric(digits, real_roots=real_roots)
    return made[key]


def same_value(predicted: Tree, reference: Tree, *, complex_values: bool = False) -> bool | None:
    """Whether two scalar or matrix expressions are equal wherever the reference is defined.

    Derivatives are carried out first. None: it could not be decided here.
    """
    if predicted == reference and not contains(predicted, PlusMinus):
        return True
    if is_infinite(predicted) or is_infinite(reference):
        return is_infinite(predicted) == is_infinite(reference)
    try:
        predicted, reference = resolve(predicted), resolve(reference)
    except NotEvaluable:
        return None
    for node in (predicted, reference):
        if contains(node, Limit) or any(
            isinstance(part, Integral) and part.low is None for part in walk(node)
        ):
            return None
    names = sorted(free_symbols(predicted) | free_symbols(reference))
    both = (predicted, reference)
    imaginary = complex_values or any(
        Constant("i") in walk(node) or applies(node, *COMPLEX_FUNCTIONS) for node in both
    )
    if not names:
        return _same_constant(predicted, reference, imaginary)
    return _same_at_points(predicted, reference, names, imaginary)


def is_infinite(node: Tree) -> int:
    """1 or -1 for plus or minus infinity, 0 for anything else."""
    if node == Constant("infinity"):
        return 1
    return -1 if node == Negate(Constant("infinity")) else 0


def _same_constant(predicted: Tree, reference: Tree, imaginary: bool) -> bool | None:
    values = []
    for node in (predicted, reference):
        try:
            values.append(Evaluator(Exact(), {}).value(node))
        except (NotEvaluable, TooLarge):
            break
        except Undefined:
            return False
    if len(values) == 2:
        return values[0] == values[1]
    rough = contains(predicted, Integral) or contains(reference, Integral)
    arithmetic = numeric(POINT_DIGITS if rough else CONSTANT_DIGITS, not imaginary)
    try:
        left, right = (Evaluator(arithmetic, {}).value(node) for node in (predicted, reference))
    except Undefined:
        return False
    except (NotEvaluable, TooLarge):
        return None
    return close(left, right, arithmetic)


def close(left: Any, right: Any, arithmetic: Numeric) -> bool:
    """Equal up to rounding, entry by entry for matrices."""
    if isinstance(left, tuple) or isinstance(right, tuple):
        if not (isinstance(left, tuple) and isinstance(right, tuple)):
            return False
        if (len(left), len(left[0])) != (len(right), len(right[0])):
            return False
        pairs = zip(flat(left), flat(right), strict=True)
        return all(close(a, b, arithmetic) for a, b in pairs)
    return abs(left - right) <= arithmetic.tiny * (1 + abs(left) + abs(right))


def flat(grid: tuple[tuple[Any, ...], ...]) -> list[Any]:
    return [entry for row in grid for entry in row]


def integer_symbols(node: Tree) -> frozenset[str]:
    """Variables that only make sense as natural numbers: ends of sums, n in (-1)^n and in n!."""
    names: frozenset[str] = frozenset()
    for part in walk(node):
        match part:
            case Series(_, _, _, low, high):
                names |= free_symbols(low) | free_symbols(high)
            case Apply("factorial" | "binomial", arguments):
                names |= frozenset().union(*map(free_symbols, arguments))
            case Power(Negate(Number()), exponent):
                names |= free_symbols(exponent)
    return names


def points(
    names: list[str], integers: frozenset[str], complex_names: frozenset[str], seed: str
) -> Iterator[dict[str, Gaussian]]:
    """Random rational points, the same ones for the same seed."""
    source = random.Random(seed)
    for turn in range(POINTS):
        point = {}
        for name in names:
            if name in integers:
                point[name] = Gaussian(Fraction(source.randint(1, 12)))
                continue
            # Each variable walks through the ranges in its own order, so that signs mix.
            low, high = RANGES[(turn + source.randrange(2) * (len(names) > 1)) % len(RANGES)]
            real = Fraction(source.randint(low * 997, high * 997), 997)
            part = Fraction(source.randint(-1994, 1994), 997) if name in complex_names else 0
            point[name] = Gaussian(real, Fraction(part))
        yield point


def _same_at_points(
    predicted: Tree, reference: Tree, names: list[str], imaginary: bool
) -> bool | None:
    integers = integer_symbols(predicted) | integer_symbols(reference)
    planar = frozenset(name for name in names if imaginary and name[0] in "zw")
    seed = f"{predicted!r} {reference!r}"
    agreed, exact = 0, True
    budget = Budget()
    for point in points(names, integers, planar, seed):
        verdict: bool | None = None
        if exact:
            try:
                verdict = _same_exactly(predicted, reference, point, budget)
            except NotEvaluable:
                exact = False
            except TooLarge:
                # Too many digits at every rational point; rounded ones may still do.
                exact = False
            except Undefined:
                continue
        if not exact:
            try:
                verdict = _same_numerically(predicted, reference, point, imaginary, budget)
            except NotEvaluable:
                return None
        if verdict is False:
            return False
        agreed += verdict is True
        if agreed >= ENOUGH:
            return True
    return True if agreed >= AT_LEAST else None


def _same_exactly(
    predicted: Tree, reference: Tree, point: dict[str, Gaussian], budget: Budget
) -> bool:
    right = Evaluator(Exact(), dict(point), budget).value(reference)
    try:
        return Evaluator(Exact(), dict(point), budget).value(predicted) == right
    except Undefined:
        return False


def _same_numerically(
    predicted: Tree,
    reference: Tree,
    point: dict[str, Gaussian],
    imaginary: bool,
    budget: Budget,
) -> bool | None:
    """None where the reference has no (real) value, or the point decides nothing."""
    arithmetic = numeric(POINT_DIGITS, not imaginary)
    try:
        right = _value_at(point, reference, arithmetic, budget)
        if not imaginary and not is_real(right, arithmetic):
            return None
    except (Undefined, TooLarge):
        return None
    try:
        left = _value_at(point, predicted, arithmetic, budget)
        if close(left, right, arithmetic):
            return True
        finer = numeric(3 * POINT_DIGITS, not imaginary)
        gaps = (
            _largest_gap(left, right),
            _largest_gap(
                _value_at(point, predicted, finer, budget),
                _value_at(point, reference, finer, budget),
            ),
        )
    except Undefined:
        return False
    except TooLarge:
        return None
    # A gap that shrinks with more digits is what large terms leave when they cancel.
    coarse, fine = gaps
    return None if coarse is not None and fine is not None and fine < coarse * 1e-20 else False


def _value_at(point: dict[str, Gaussian], tree: Tree, arithmetic: Numeric, budget: Budget) -> Any:
    values = {name: to_float(value, arithmetic) for name, value in point.items()}
    return Evaluator(arithmetic, values, budget).value(tree)


def _largest_gap(left: Any, right: Any) -> Any | None:
    """The largest difference of entries, None for values of different shapes."""
    if isinstance(left, tuple) and isinstance(right, tuple):
        if (len(left), len(left[0])) != (len(right), len(right[0])):
            return None
        return max(abs(a - b) for a, b in zip(flat(left), flat(right), strict=True))
    return None if isinstance(left, tuple) or isinstance(right, tuple) else abs(left - right)


def to_float(value: Gaussian, arithmetic: Numeric) -> Any:
    return arithmetic.number(value.re) + arithmetic.number(value.im) * arithmetic.constant("i")


def is_real(value: Any, arithmetic: Numeric) -> bool:
    if isinstance(value, tuple):
        return all(is_real(entry, arithmetic) for entry in flat(value))
    return abs(value.imag) <= arithmetic.tiny * (1 + abs(value))


def beyond_bounds(node: Tree) -> bool:
    """Whether a number in the tree is too large to be evaluated, as 9^(9^9): SymPy would only
    run out of time or memory over it."""
    budget = Budget()
    for part in walk(node):
        if not isinstance(part, Power | Apply | Series) or free_symbols(part):
            continue
        try:
            Evaluator(numeric(POINT_DIGITS, False), {}, budget).value(part)
        except TooLarge:
            return True
        except (NotEvaluable, Undefined):
            continue
    return budget.left < 0


def number_at(node: Tree, point: dict[str, Any], arithmetic: Arithmetic) -> Any | None:
    """The number that the tree is worth at a point, or None: no value there, or a matrix."""
    try:
        value = Evaluator(arithmetic, dict(point)).value(node)
    except (NotEvaluable, Undefined, TooLarge):
        return None
    return None if isinstance(value, tuple) else value
