"""Two arithmetics for evaluating a tree: exact complex rationals, and many-digit complex floats.

Every operation is bounded in size, so that no formula of bounded length takes long: a power
beyond the bound has no value here rather than a value that fills the memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import mpmath

# Adding fractions takes a greatest common divisor: 4,096 bits cost some 50 microseconds.
MAX_BITS = 4_096
MAX_POWER = 2_000
MAX_FACTORIAL = 200
MAX_ARGUMENT = 20_000
# An exponential beyond 2 ** (2 ** 14) says nothing about an identity, and the sine of such a
# number costs as many digits as it has.
MAX_MAGNITUDE = 1 << 14


class NotEvaluable(ArithmeticError):
    """The tree has no value in this arithmetic, at any point."""


class Undefined(ArithmeticError):
    """No value at this point: a pole, the logarithm of zero."""


class TooLarge(ArithmeticError):
    """A value beyond the bounds: this point decides nothing."""


class Budget:
    """Operations left, shared by all evaluations of one comparison; a function counts as five.

    Raises (from `spend`):
        NotEvaluable: none are left.
    """

    __slots__ = ("left",)

    def __init__(self, operations: int = 30_000) -> None:
        self.left = operations

    def spend(self, operations: int) -> None:
        self.left -= operations
        if self.left < 0:
            raise NotEvaluable("too many operations")


class Arithmetic(Protocol):
    """What the evaluator needs; values support +, -, * and ==."""

    def number(self, value: Fraction) -> Any: ...
    def constant(self, name: str) -> Any: ...
    def checked(self, value: Any) -> Any: ...
    def divide(self, above: Any, below: Any) -> Any: ...
    def power(self, base: Any, exponent: Any, rational: Fraction | None) -> Any: ...
    def apply(self, function: str, arguments: list[Any]) -> Any: ...
    def real(self, value: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Gaussian:
    """re + im i with rational parts."""

    re: Fraction
    im: Fraction = Fraction(0)

    def __add__(self, other: Gaussian) -> Gaussian:
        return Gaussian(self.re + other.re, self.im + other.im)

    def __neg__(self) -> Gaussian:
        return Gaussian(-self.re, -self.im)

    def __sub__(self, other: Gaussian) -> Gaussian:
        return Gaussian(self.re - other.re, self.im - other.im)

    def __mul__(self, other: Gaussian) -> Gaussian:
        if self.im == 0 and other.im == 0:
            return Gaussian(self.re * other.re)
        return Gaussian(
            self.re * other.re - self.im * other.im, self.re * other.im + self.im * other.re
        )

    def inverse(self) -> Gaussian:
        norm = self.re * self.re + self.im * self.im
        if norm == 0:
            raise Undefined("division by zero")
        return Gaussian(self.re / norm, -self.im / norm)

    def bits(self) -> int:
        parts = (self.re, self.im)
        return max(max(p.numerator.bit_length(), p.denominator.bit_length()) for p in parts)


def exact_root(value: Fraction, index: int) -> Fraction | None:
    """The rational index-th root of a non-negative value, if there is one."""
    parts = []
    for part in (value.numerator, value.denominator):
        root = math.isqrt(part) if index == 2 else round(part ** (1 / index)) if part < 1e15 else -1
        if root < 0 or root**index != part:
            return None
        parts.append(root)
    return Fraction(parts[0], parts[1])


class Exact:
    """Complex rationals; whatever is irrational is NotEvaluable."""

    def number(self, value: Fraction) -> Gaussian:
        return Gaussian(value)

    def constant(self, name: str) -> Gaussian:
        if name == "i":
            return Gaussian(Fraction(0), Fraction(1))
        raise NotEvaluable(name)

    def checked(self, value: Gaussian) -> Gaussian:
        if value.bits() > MAX_BITS:
            raise TooLarge("too many digits")
        return value

    def divide(self, above: Gaussian, below: Gaussian) -> Gaussian:
        return above * below.inverse()

    def real(self, value: Gaussian) -> Fraction:
        if value.im != 0:
            raise NotEvaluable("a real number is needed")
        return value.re

    def power(self, base: Gaussian, exponent: Gaussian, rational: Fraction | None) -> Gaussian:
        power = self.real(exponent)
        if power.denominator == 1:
            return self._integer_power(base, int(power))
        if power.denominator > 12 or base.im != 0 or base.re < 0:
            raise NotEvaluable("an irrational power")
        root = exact_root(base.re, power.denominator)
        if root is None:
            raise NotEvaluable("an irrational root")
        return self._integer_power(Gaussian(root), power.numerator)

    def _integer_power(self, base: Gaussian, power: int) -> Gaussian:
        if abs(power) > MAX_POWER or base.bits() * abs(power) > MAX_BITS:
            raise TooLarge("too large a power")
        if power <= 0:
            base, power = base.inverse(), -power
        if base.im == 0:
            return Gaussian(base.re**power)
        result = Gaussian(Fraction(1))
        while power:
            if power & 1:
                result = result * base
            base, power = base * base, power >> 1
        return result

    def apply(self, function: str, arguments: list[Gaussian]) -> Gaussian:
        first = arguments[0]
        if function == "conjugate":
            return Gaussian(first.re, -first.im)
        if function in ("re", "im"):
            return Gaussian(first.re if function == "re" else first.im)
        if function == "abs":
            return self._abs(first)
        if function in ("sqrt", "root"):
            index = self.real(arguments[1]) if len(arguments) > 1 else Fraction(2)
            if index.denominator == 1 and 2 <= index <= 12:
                return self._root(first, int(index))
        if function in TRIVIAL and first == Gaussian(TRIVIAL[function][0]):
            return Gaussian(Fraction(TRIVIAL[function][1]))
        if function in INTEGER_FUNCTIONS:
            return Gaussian(Fraction(integer_function(function, [self.real(a) for a in arguments])))
        raise NotEvaluable(function)

    def _abs(self, value: Gaussian) -> Gaussian:
        if value.im == 0:
            return Gaussian(abs(value.re))
        root = exact_root(value.re**2 + value.im**2, 2)
        if root is None:
            raise NotEvaluable("an irrational absolute value")
        return Gaussian(root)

    def _root(self, value: Gaussian, index: int) -> Gaussian:
        if value.im != 0 or (value.re < 0 and index % 2 == 0):
            raise NotEvaluable("a root that is not real")
        root = exact_root(abs(value.re), index)
        if root is None:
            raise NotEvaluable("an irrational root")
        return Gaussian(root if value.re >= 0 else -root)


# function: (argument, value), the one rational value each of them is known for.
TRIVIAL = {
    "sin": (Fraction(0), 0), "cos": (Fraction(0), 1), "tan": (Fraction(0), 0),
    "exp": (Fraction(0), 1), "ln": (Fraction(1), 0), "sinh": (Fraction(0), 0),
    "cosh": (Fraction(0), 1), "arctan": (Fraction(0), 0),
}  # fmt: skip
INTEGER_FUNCTIONS = frozenset(
    ("factorial", "binomial", "max", "min", "gcd", "lcm", "floor", "ceil")
)


def integer_function(function: str, values: list[Any]) -> Any:
    """Functions of rationals whose value is rational, bounded in size."""
    if function in ("max", "min"):
        return max(values) if function == "max" else min(values)
    if function in ("floor", "ceil"):
        return math.floor(values[0]) if function == "floor" else math.ceil(values[0])
    if any(v != int(v) for v in values):
        raise NotEvaluable(f"{function} of a fraction")
    whole = [int(v) for v in values]
    if any(abs(n) > MAX_FACTORIAL for n in whole) and function in ("factorial", "binomial"):
        raise TooLarge(f"{function} of a large number")
    if function in ("gcd", "lcm"):
        return math.gcd(*whole) if function == "gcd" else math.lcm(*whole)
    if min(whole) < 0:
        raise Undefined(f"{function} of a negative number")
    return math.factorial(whole[0]) if function == "factorial" else math.comb(*whole[:2])


class Numeric:
    """Complex floats of a given number of digits.

    real_roots: odd roots of negative numbers are real, as in real analysis; otherwise powers take
    their principal value.
    """

    def __init__(self, digits: int, *, real_roots: bool) -> None:
        # A context of our own: mpmath's global precision is shared between threads.
        self.context = mpmath.MPContext()
        self.context.dps = digits
        self.real_roots = real_roots
        self.tiny = self.context.mpf(10) ** (-digits * 2 // 3)

    def number(self, value: Fraction) -> Any:
        return self.context.mpc(value.numerator) / value.denominator

    def constant(self, name: str) -> Any:
        if name == "infinity":
            raise NotEvaluable("infinity")
        return self.context.mpc({"pi": self.context.pi, "e": self.context.e, "i": 1j}[name])

    def checked(self, value: Any) -> Any:
        if not self.context.isfinite(value):
            raise Undefined("not finite")
        if value != 0 and self.context.mag(value) > MAX_MAGNITUDE:
            raise TooLarge("a large value")
        return value

    def divide(self, above: Any, below: Any) -> Any:
        # What cancels to rounding error is a pole that the digits hide.
        if abs(below) < self.tiny * self.tiny:
            raise Undefined("division by zero")
        return above / below

    def real(self, value: Any) -> Any:
        if abs(value.imag) > self.tiny * (1 + abs(value)):
            raise Undefined("a real number is needed")
        return value.real

    def power(self, base: Any, exponent: Any, rational: Fraction | None) -> Any:
        if base == 0:
            if exponent.imag == 0 and exponent.real > 0:
                return base
            raise Undefined("a power of zero")
        if rational is not None and rational.denominator == 1 and abs(rational) <= MAX_ARGUMENT:
            if abs(rational) * abs(self.context.mag(base)) > MAX_MAGNITUDE:
                raise TooLarge("a large power")
            return base ** int(rational)
        odd = rational is not None and rational.denominator % 2 == 1
        if odd and self.real_roots and base.imag == 0 and base.real < 0:
            size = self._exp(exponent * self.context.log(-base))
            return -size if rational is not None and rational.numerator % 2 else size
        return self._exp(exponent * self.context.log(base))

    def _exp(self, value: Any) -> Any:
        if abs(value) > MAX_MAGNITUDE:
            raise TooLarge("a large exponential")
        return self.context.exp(value)

    def apply(self, function: str, arguments: list[Any]) -> Any:
        context, first = self.context, arguments[0]
        if abs(first) > MAX_ARGUMENT:
            raise TooLarge(f"{function} of a large number")
        if function == "exp":
            return self._exp(first)
        if function == "root":
            index = self.real(arguments[1])
            if index == 0 or index != int(index):
                raise NotEvaluable("a root whose index is no integer")
            return self.power(first, 1 / arguments[1], Fraction(1, int(index)))
        if function in INTEGER_FUNCTIONS:
            value = integer_function(function, [self.real(a) for a in arguments])
            return context.mpc(value)
        if function == "ln" and first == 0:
            raise Undefined("the logarithm of zero")
        name = MPMATH_NAMES.get(function)
        if name is None:
            raise NotEvaluable(function)
        try:
            return context.mpc(getattr(context, name)(first))
        except (ZeroDivisionError, ValueError) as error:
            raise Undefined(function) from error


MPMATH_NAMES = {
    "sin": "sin", "cos": "cos", "tan": "tan", "sec": "sec", "csc": "csc", "cot": "cot",
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "sinh": "sinh", "cosh": "cosh",
    "tanh": "tanh", "arsinh": "asinh", "arcosh": "acosh", "artanh": "atanh", "ln": "log",
    "sqrt": "sqrt", "abs": "fabs", "conjugate": "conj", "re": "re", "im": "im", "arg": "arg",
}  # fmt: skip
