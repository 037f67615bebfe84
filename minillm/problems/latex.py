r"""Printers: integers and coefficients in, the LaTeX of a textbook out.

A polynomial is the list of its integer coefficients, constant first: 3x^2 - 1 is [-1, 0, 3].
"""

import math
import re
from collections.abc import Iterable, Sequence
from random import Random

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def times(coefficient: int, symbol: str) -> str:
    """`coefficient` times a symbol: 3x, x, -x; the bare number where the symbol is empty."""
    if not symbol or coefficient == 0:
        return str(coefficient)
    return {1: symbol, -1: f"-{symbol}"}.get(coefficient, f"{coefficient}{symbol}")


def power(letter: str, exponent: int) -> str:
    """`letter` to the `exponent`: empty for 0, the bare letter for 1."""
    if exponent == 0:
        return ""
    return letter if exponent == 1 else f"{letter}^{{{exponent}}}"


def total(terms: Iterable[str]) -> str:
    """The sum of printed terms; a leading minus of a term becomes the sign that joins it."""
    text = ""
    for term in terms:
        text += term if term.startswith("-") or not text else f"+{term}"
    return text or "0"


def terms(coefficients: Sequence[int], letter: str = "x") -> list[str]:
    """The nonzero terms of a polynomial, highest power first."""
    return [
        times(coefficients[n], power(letter, n))
        for n in reversed(range(len(coefficients)))
        if coefficients[n]
    ]


def polynomial(coefficients: Sequence[int], letter: str = "x") -> str:
    """A polynomial, highest power first."""
    return total(terms(coefficients, letter))


def factor(root: int, letter: str = "x") -> str:
    """`(x-root)` as it stands in a product; the bare letter for root 0."""
    return letter if root == 0 else f"({polynomial([-root, 1], letter)})"


def bracketed(text: str) -> str:
    """In brackets where a minus sign would otherwise follow another sign."""
    return f"({text})" if text.startswith("-") else text


def product(left: str, right: str) -> str:
    r"""`left \cdot right`, the right factor in brackets where it is negative."""
    right = bracketed(right)
    return rf"{left}\cdot{right}" if right.startswith("(") else rf"{left}\cdot {right}"


def fraction(numerator: int | str, denominator: int | str) -> str:
    return rf"\frac{{{numerator}}}{{{denominator}}}"


def complex_number(real: int, imaginary: int) -> str:
    """`3-2i`; a zero part is left out."""
    parts = [str(real)] if real else []
    return total([*parts, times(imaginary, "i")] if imaginary else parts)


def exponential(rate: int, letter: str = "x") -> str:
    """`e^{3x}`."""
    return f"e^{{{times(rate, letter)}}}"


def matrix(rows: Sequence[Sequence[int]]) -> str:
    body = r"\\".join("&".join(map(str, row)) for row in rows)
    return rf"\begin{{pmatrix}}{body}\end{{pmatrix}}"


def finite_set(members: Iterable[int]) -> str:
    return r"\{" + ",".join(map(str, members)) + r"\}"


def plain(text: str) -> str:
    """The same formula as one types it: raised digits in Unicode, spaces around + - =."""
    text = re.sub(r"\^\{(-?\d+)\}", lambda m: m[1].translate(_SUPERSCRIPTS), text)
    # A sign after an operand joins two terms; elsewhere it belongs to its number.
    return re.sub(r"(?<=[^\s(=<,+-])([-+])", r" \1 ", text).replace("=", " = ")


def primitive(numbers: Sequence[int], *, signed: bool = False) -> str:
    """Names the numbers up to a common positive factor, for keys that do not depend on scale.

    With `signed`, up to a common negative factor too.
    """
    divisor = math.gcd(*numbers) or 1
    if signed and next((n for n in reversed(numbers) if n), 1) < 0:
        divisor = -divisor
    return ",".join(str(n // divisor) for n in numbers)


def nonzero(rng: Random, bound: int) -> int:
    """Uniform in -bound..bound without 0."""
    return rng.choice((-1, 1)) * rng.randint(1, bound)
