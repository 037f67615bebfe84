"""Two SymPy number systems in which the printed LaTeX is read back.

`Polynomials` serves nearly every line and is ten times as fast; `Expressions` knows roots and
exponentials. Both offer the same operations; their values add, multiply and raise to integers.
"""

from typing import Any, Protocol

import sympy
from sympy.polys.domains import QQ_I
from sympy.polys.rings import PolyElement, ring

# The letters that functions depend on; all others are constants to a derivative.
VARIABLES = ("x", "t", "u")
_CONSTANTS = ("C", "D", "p")

_RING, *_GENERATORS = ring(" ".join((*VARIABLES, *_CONSTANTS)), QQ_I)
_RING_LETTERS = dict(zip((*VARIABLES, *_CONSTANTS), _GENERATORS, strict=True))
_RING_LETTERS["i"] = _RING.ground_new(QQ_I(0, 1))
_LETTERS = {name: sympy.Symbol(name) for name in (*VARIABLES, *_CONSTANTS)} | {"i": sympy.I}


class UnreadableError(ValueError):
    """The text is no formula of the language that the printers write."""


class Algebra(Protocol):
    """What the reader needs of a number system."""

    def number(self, digits: str) -> Any: ...
    def letter(self, name: str) -> Any: ...
    def quotient(self, numerator: Any, denominator: Any) -> Any: ...
    def root(self, value: Any) -> Any: ...
    def exponential(self, value: Any) -> Any: ...
    def derivative(self, value: Any) -> Any: ...
    def at(self, value: Any, point: Any) -> Any: ...
    def difference(self, left: Any, right: Any) -> Any: ...


class Polynomials:
    """Polynomials over the Gaussian rationals."""

    def number(self, digits: str) -> PolyElement:
        return _RING.ground_new(QQ_I(int(digits)))

    def letter(self, name: str) -> PolyElement:
        if name not in _RING_LETTERS:
            raise UnreadableError(f"letter {name!r} has no meaning here")
        return _RING_LETTERS[name]

    def quotient(self, numerator: PolyElement, denominator: PolyElement) -> PolyElement:
        if not denominator or not denominator.is_ground:
            raise UnreadableError("division by zero or by a letter")
        return numerator.mul_ground(1 / denominator.LC)

    def root(self, value: PolyElement) -> PolyElement:
        raise UnreadableError("a root among polynomials")

    def exponential(self, value: PolyElement) -> PolyElement:
        raise UnreadableError("an exponential among polynomials")

    def derivative(self, value: PolyElement) -> PolyElement:
        return sum((value.diff(v) for v in self._variables(value)), _RING.zero)

    def at(self, value: PolyElement, point: PolyElement) -> PolyElement:
        for variable in self._variables(value):
            value = value.compose(variable, point)
        return value

    def difference(self, left: PolyElement, right: PolyElement) -> PolyElement:
        return left - right

    def _variables(self, value: PolyElement) -> list[PolyElement]:
        # The generators begin with the variables; the constants after them are left alone.
        degrees = value.degrees()[: len(VARIABLES)]
        return [v for v, degree in zip(_GENERATORS, degrees, strict=False) if degree > 0]


class Expressions:
    """SymPy expressions."""

    def number(self, digits: str) -> sympy.Expr:
        return sympy.Integer(int(digits))

    def letter(self, name: str) -> sympy.Expr:
        if name not in _LETTERS:
            raise UnreadableError(f"letter {name!r} has no meaning here")
        return _LETTERS[name]

    def quotient(self, numerator: sympy.Expr, denominator: sympy.Expr) -> sympy.Expr:
        if denominator == 0:
            raise UnreadableError("division by zero")
        return numerator / denominator

    def root(self, value: sympy.Expr) -> sympy.Expr:
        return sympy.sqrt(value)

    def exponential(self, value: sympy.Expr) -> sympy.Expr:
        return sympy.exp(value)

    def derivative(self, value: sympy.Expr) -> sympy.Expr:
        return value.diff(_LETTERS["x"])

    def at(self, value: sympy.Expr, point: sympy.Expr) -> sympy.Expr:
        return value.subs(_LETTERS["x"], point)

    def difference(self, left: sympy.Expr, right: sympy.Expr) -> sympy.Expr:
        return sympy.expand(left - right)


POLYNOMIALS = Polynomials()
EXPRESSIONS = Expressions()


def algebra_for(*texts: str) -> Algebra:
    """The cheaper number system that can hold all of these formulas."""
    needs_more = any(r"\sqrt" in text or "e^" in text for text in texts)
    return EXPRESSIONS if needs_more else POLYNOMIALS
