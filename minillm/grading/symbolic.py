"""Trees as SymPy objects, built node by node, and the questions that SymPy answers.

Imported in the worker process only: SymPy's running time and memory have no bound of their own.
"""

from collections.abc import Callable
from typing import Any

import sympy

from minillm.grading.tree import (
    Add,
    Apply,
    Constant,
    Derivative,
    Divide,
    Integral,
    Limit,
    Matrix,
    Multiply,
    Negate,
    Number,
    Power,
    Series,
    Symbol,
    Tree,
)

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "sec": sympy.sec, "csc": sympy.csc,
    "cot": sympy.cot, "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan,
    "sinh": sympy.sinh, "cosh": sympy.cosh, "tanh": sympy.tanh, "arsinh": sympy.asinh,
    "arcosh": sympy.acosh, "artanh": sympy.atanh, "exp": sympy.exp, "ln": sympy.log,
    "sqrt": sympy.sqrt, "root": sympy.real_root, "abs": sympy.Abs, "conjugate": sympy.conjugate,
    "re": sympy.re, "im": sympy.im, "arg": sympy.arg, "floor": sympy.floor,
    "ceil": sympy.ceiling, "factorial": sympy.factorial, "binomial": sympy.binomial,
    "max": sympy.Max, "min": sympy.Min,
}  # fmt: skip
CONSTANTS = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "infinity": sympy.oo}
MAX_DEGREE = 8
ROOT_DIGITS = 40


class NoSymbolicForm(ValueError):
    """The tree is no expression that SymPy is asked about."""


def to_sympy(node: Tree) -> Any:
    """The SymPy object of an expression; calculus is left undone until `.doit()`."""
    match node:
        case Number(value):
            return sympy.Rational(value.numerator, value.denominator)
        case Constant(name):
            return CONSTANTS[name]
        case Symbol(name):
            return sympy.Symbol(name, real=True)
        case Add(terms):
            return _fold(terms, lambda a, b: a + b)
        case Multiply(factors):
            return _fold(factors, lambda a, b: a * b)
        case Divide(above, below):
            return to_sympy(above) / to_sympy(below)
        case Power(base, exponent):
            return to_sympy(base) ** to_sympy(exponent)
        case Negate(operand):
            return -to_sympy(operand)
        case Matrix(rows):
            return sympy.ImmutableMatrix([[to_sympy(entry) for entry in row] for row in rows])
        case Apply(function, arguments):
            return _applied(function, [to_sympy(argument) for argument in arguments])
    return _calculus(node)


def _fold(items: tuple[Tree, ...], combine: Callable[[Any, Any], Any]) -> Any:
    total = to_sympy(items[0])
    for item in items[1:]:
        total = combine(total, to_sympy(item))
    return total


def _applied(function: str, arguments: list[Any]) -> Any:
    first = arguments[0]
    if isinstance(first, sympy.MatrixBase):
        if function in ("det", "abs"):
            return first.det()
        return {"transpose": lambda m: m.T, "trace": lambda m: m.trace()}[function](first)
    if function not in FUNCTIONS:
        raise NoSymbolicForm(function)
    return FUNCTIONS[function](*arguments)


def _calculus(node: Tree) -> Any:
    match node:
        case Derivative(body, str(variable), order):
            return sympy.Derivative(to_sympy(body), (sympy.Symbol(variable, real=True), order))
        case Integral(body, variable, low, high):
            x = sympy.Symbol(variable, real=True)
            if low is None or high is None:
                raise NoSymbolicForm("an indefinite integral")
            return sympy.Integral(to_sympy(body), (x, to_sympy(low), to_sympy(high)))
        case Limit(body, variable, point, side):
            x = sympy.Symbol(variable, real=True)
            return sympy.Limit(to_sympy(body), x, to_sympy(point), side or "+-")
        case Series(kind, body, variable, low, high):
            # The index is the same real symbol that the body was built with.
            k = sympy.Symbol(variable, real=True)
            many = sympy.Sum if kind == "sum" else sympy.Product
            return many(to_sympy(body), (k, to_sympy(low), to_sympy(high)))
    raise NoSymbolicForm(type(node).__name__)


def equal(left: Tree, right: Tree) -> bool | None:
    """Whether the two are equal once all calculus is carried out; None: SymPy cannot tell."""
    a, b = (to_sympy(node).doit() for node in (left, right))
    if isinstance(a, sympy.MatrixBase) != isinstance(b, sympy.MatrixBase):
        return False
    if isinstance(a, sympy.MatrixBase):
        if a.shape != b.shape:
            return False
        verdicts = [_is_zero(x - y) for x, y in zip(a, b, strict=True)]
        return all(verdicts) if None not in verdicts else None
    if a.is_infinite or b.is_infinite:
        return bool(a == b)
    return _is_zero(a - b)


def _is_zero(gap: Any) -> bool | None:
    if gap.has(sympy.nan, sympy.zoo, sympy.oo, sympy.AccumBounds):
        return None
    simple = sympy.simplify(gap)
    if simple == 0:
        return True
    verdict = simple.equals(0)
    return None if verdict is None else bool(verdict)


def roots(left: Tree, right: Tree, variable: str) -> list[tuple[str, str]] | None:
    """The distinct complex roots of a polynomial equation, as decimals (re, im).

    None: it is no polynomial of degree 1 to MAX_DEGREE in that variable alone.
    """
    x = sympy.Symbol(variable, real=True)
    try:
        polynomial = sympy.Poly(sympy.together(to_sympy(left) - to_sympy(right)), x)
    except sympy.PolynomialError:
        return None
    if polynomial.free_symbols_in_domain or not 1 <= polynomial.degree() <= MAX_DEGREE:
        return None
    square_free = polynomial.quo(sympy.gcd(polynomial, polynomial.diff(x)))
    found = square_free.nroots(n=ROOT_DIGITS, maxsteps=200)
    return [tuple(str(part) for part in root.as_real_imag()) for root in found]  # type: ignore[misc]


OPERATIONS: dict[str, Callable[..., Any]] = {"equal": equal, "roots": roots}
