"""The value of a tree at one point: a number, or a grid of numbers for a matrix."""

from __future__ import annotations

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
from minillm.grading.tree import (
    Add,
    Apply,
    Constant,
    Divide,
    Integral,
    Matrix,
    Multiply,
    Negate,
    Number,
    Power,
    Series,
    Symbol,
    Tree,
    Tuple,
    free_symbols,
)

MAX_TERMS = 2_000
MAX_MATRIX_POWER = 64
Grid = tuple[tuple[Any, ...], ...]


class Evaluator:
    """Evaluates trees at one point.

    Args:
        arithmetic: exact or numeric.
        values: the value of each variable, in that arithmetic.
        budget: operations left, by default one of its own.

    Raises (from `value`):
        NotEvaluable: the tree has no value in this arithmetic, whatever the point.
        Undefined: it has none at this point. TooLarge: this point decides nothing.
    """

    def __init__(
        self, arithmetic: Arithmetic, values: dict[str, Any], budget: Budget | None = None
    ) -> None:
        self.arithmetic = arithmetic
        self.values = values
        self.budget = budget or Budget()

    def value(self, node: Tree) -> Any:
        self.budget.spend(5 if isinstance(node, Apply | Power) else 1)
        result = self._value(node)
        return result if isinstance(result, tuple) else self.arithmetic.checked(result)

    def scalar(self, node: Tree) -> Any:
        result = self.value(node)
        if isinstance(result, tuple):
            if len(result) == len(result[0]) == 1:
                return result[0][0]
            raise NotEvaluable("a matrix where a number is needed")
        return result

    def _value(self, node: Tree) -> Any:
        match node:
            case Number(value):
                return self.arithmetic.number(value)
            case Symbol(name):
                if name not in self.values:
                    raise NotEvaluable(f"unknown {name}")
                return self.values[name]
            case Constant(name):
                return self.arithmetic.constant(name)
            case Add(terms):
                total = self.value(terms[0])
                for term in terms[1:]:
                    total = add(total, self.value(term))
                return total
            case Negate(operand):
                return scale(self.arithmetic.number(Fraction(-1)), self.value(operand))
            case Multiply(factors):
                product = self.value(factors[0])
                for factor in factors[1:]:
                    product = multiply(product, self.value(factor))
                return product
            case Divide(numerator, denominator):
                above, below = self.value(numerator), self.scalar(denominator)
                one = self.arithmetic.number(Fraction(1))
                if isinstance(above, tuple):
                    return scale(self.arithmetic.divide(one, below), above)
                return self.arithmetic.divide(above, below)
            case Power(base, exponent):
                return self._power(base, exponent)
            case Apply(function, arguments):
                return self._apply(function, arguments)
            case Matrix(rows):
                return tuple(tuple(self.scalar(entry) for entry in row) for row in rows)
            case Tuple(items):
                return tuple((self.scalar(item),) for item in items)
            case Series():
                return self._series(node)
            case Integral(_, _, low, high) if low is not None and high is not None:
                return self._quadrature(node)
        raise NotEvaluable(type(node).__name__)

    def _power(self, base: Tree, exponent: Tree) -> Any:
        if base == Constant("e"):
            return self._apply("exp", (exponent,))
        below = self.value(base)
        # Exact exponents are evaluated once: twice at each level of a tower is 2^depth times.
        if isinstance(self.arithmetic, Exact) and not isinstance(below, tuple):
            above = self.scalar(exponent)
            return self.arithmetic.power(below, above, above.re)
        rational = rational_value(exponent, self.values, self.budget)
        if isinstance(below, tuple):
            if rational is None or rational.denominator != 1 or abs(rational) > MAX_MATRIX_POWER:
                raise NotEvaluable("a matrix to that power")
            return self._matrix_power(below, int(rational))
        return self.arithmetic.power(below, self.scalar(exponent), rational)

    def _apply(self, function: str, arguments: tuple[Tree, ...]) -> Any:
        values = [self.value(argument) for argument in arguments]
        first = values[0]
        if isinstance(first, tuple):
            self.budget.spend(len(first) ** 3)
            if function == "transpose":
                return tuple(zip(*first, strict=True))
            if function in ("det", "abs") and len(first[0]) == len(first):
                return determinant(first, self.arithmetic)
            if function == "trace" and len(first[0]) == len(first):
                trace = first[0][0]
                for place in range(1, len(first)):
                    trace = trace + first[place][place]
                return trace
            raise NotEvaluable(f"{function} of a matrix")
        if function in ("det", "trace", "transpose"):
            return first
        return self.arithmetic.apply(function, values)

    def _matrix_power(self, grid: Grid, power: int) -> Grid:
        size = len(grid)
        if len(grid[0]) != size:
            raise NotEvaluable("a power of a matrix that is not square")
        one, zero = (self.arithmetic.number(Fraction(n)) for n in (1, 0))
        result: Any = tuple(
            tuple(one if r == c else zero for c in range(size)) for r in range(size)
        )
        if power < 0:
            grid, power = inverse(grid, self.arithmetic), -power
        for _ in range(power):
            self.budget.spend(size**3)
            result = multiply(result, grid)
            for row in result:
                for entry in row:
                    self.arithmetic.checked(entry)
        return result

    def _series(self, node: Series) -> Any:
        ends = [rational_value(end, self.values, self.budget) for end in (node.low, node.high)]
        low, high = ends
        if low is None or high is None or low.denominator != 1 or high.denominator != 1:
            raise NotEvaluable("a sum without integer ends")
        if high - low > MAX_TERMS:
            raise TooLarge("a long sum")
        total = self.arithmetic.number(Fraction(0 if node.kind == "sum" else 1))
        outer = dict(self.values)
        for index in range(int(low), int(high) + 1):
            self.values[node.variable] = self.arithmetic.number(Fraction(index))
            term = self.value(node.body)
            total = add(total, term) if node.kind == "sum" else multiply(total, term)
            if not isinstance(total, tuple):
                self.arithmetic.checked(total)
        self.values = outer
        return total

    def _quadrature(self, node: Integral) -> Any:
        if not isinstance(self.arithmetic, Numeric) or node.low is None or node.high is None:
            raise NotEvaluable("an integral has no exact value here")
        context = self.arithmetic.context
        ends = [self._end(end) for end in (node.low, node.high)]
        outer = dict(self.values)

        def integrand(at: Any) -> Any:
            self.values[node.variable] = context.mpc(at)
            return self.scalar(node.body)

        try:
            total, error = context.quad(integrand, ends, error=True, maxdegree=5)
        finally:
            self.values = outer
        if error > self.arithmetic.tiny * (1 + abs(total)):
            raise NotEvaluable("the quadrature did not settle")
        return context.mpc(total)

    def _end(self, node: Tree) -> Any:
        assert isinstance(self.arithmetic, Numeric)
        context = self.arithmetic.context
        if node == Constant("infinity"):
            return context.inf
        if node == Negate(Constant("infinity")):
            return -context.inf
        return self.arithmetic.real(self.scalar(node))


def rational_value(
    node: Tree, values: dict[str, Any] | None = None, budget: Budget | None = None
) -> Fraction | None:
    """The exact real value of a tree, if it is rational and small.

    Variables count where their value is rational (integer indices of sums).
    """
    if isinstance(node, Number):
        return node.value
    known = {}
    for name in free_symbols(node):
        part = _rational_part((values or {}).get(name))
        if part is None:
            return None
        known[name] = Exact().number(part)
    try:
        result = Evaluator(Exact(), known, budget).scalar(node)
    except (NotEvaluable, Undefined, TooLarge):
        return None
    return result.re if result.im == 0 else None


def _rational_part(value: Any) -> Fraction | None:
    if isinstance(value, Gaussian):
        return value.re if value.im == 0 else None
    if value is None or value.imag != 0 or value.real != int(value.real):
        return None
    return Fraction(int(value.real))


def add(left: Any, right: Any) -> Any:
    if isinstance(left, tuple) != isinstance(right, tuple):
        raise NotEvaluable("a matrix plus a number")
    if not isinstance(left, tuple):
        return left + right
    if (len(left), len(left[0])) != (len(right), len(right[0])):
        raise NotEvaluable("a sum of matrices of different shapes")
    return tuple(
        tuple(a + b for a, b in zip(*rows, strict=True)) for rows in zip(left, right, strict=True)
    )


def scale(factor: Any, value: Any) -> Any:
    if not isinstance(value, tuple):
        return factor * value
    return tuple(tuple(factor * entry for entry in row) for row in value)


def multiply(left: Any, right: Any) -> Any:
    if not isinstance(left, tuple):
        return scale(left, right)
    if not isinstance(right, tuple):
        return scale(right, left)
    if len(left[0]) != len(right):
        raise NotEvaluable("a product of matrices that do not fit")
    columns = list(zip(*right, strict=True))
    return tuple(tuple(_dot(row, column) for column in columns) for row in left)


def _dot(left: tuple[Any, ...], right: tuple[Any, ...]) -> Any:
    total = left[0] * right[0]
    for a, b in zip(left[1:], right[1:], strict=True):
        total = total + a * b
    return total


def determinant(grid: Grid, arithmetic: Arithmetic) -> Any:
    """Gaussian elimination with the largest pivot."""
    rows = [list(row) for row in grid]
    result = arithmetic.number(Fraction(1))
    for step in range(len(rows)):
        pivot = max(range(step, len(rows)), key=lambda r: _size(rows[r][step]))
        if _size(rows[pivot][step]) == 0:
            return arithmetic.number(Fraction(0))
        if pivot != step:
            rows[step], rows[pivot] = rows[pivot], rows[step]
            result = arithmetic.number(Fraction(-1)) * result
        result = result * rows[step][step]
        for row in rows[step + 1 :]:
            factor = arithmetic.divide(row[step], rows[step][step])
            for column in range(step, len(rows)):
                row[column] = row[column] - factor * rows[step][column]
    return result


def inverse(grid: Grid, arithmetic: Arithmetic) -> Grid:
    """Gauss-Jordan.

    Raises:
        Undefined: the matrix is singular.
    """
    size = len(grid)
    one, zero = arithmetic.number(Fraction(1)), arithmetic.number(Fraction(0))
    rows = [
        list(row) + [one if r == c else zero for c in range(size)] for r, row in enumerate(grid)
    ]
    for step in range(size):
        pivot = max(range(step, size), key=lambda r: _size(rows[r][step]))
        if _size(rows[pivot][step]) == 0:
            raise Undefined("a singular matrix")
        rows[step], rows[pivot] = rows[pivot], rows[step]
        head = rows[step][step]
        rows[step] = [arithmetic.divide(entry, head) for entry in rows[step]]
        for place, row in enumerate(rows):
            if place != step:
                factor = row[step]
                rows[place] = [a - factor * b for a, b in zip(row, rows[step], strict=True)]
    return tuple(tuple(row[size:]) for row in rows)


def _size(value: Any) -> Any:
    """The absolute value, or a stand-in that orders like it and is zero with it."""
    return abs(value.re) + abs(value.im) if isinstance(value, Gaussian) else abs(value)
