r"""Reads the LaTeX that our printers write back into SymPy objects, without eval or sympify.

chain  = sum (("=" | "<") sum)*
sum    = ["-"] product (("+" | "-") product)*
product= power (["\cdot"] power)*
power  = atom ["^{" sum "}"] "'"*
atom   = digits | letter | function "(" sum ")" | "(" sum ")" | \frac{}{} | \sqrt{} | e^{}
"""

import re
from collections.abc import Mapping
from typing import Any

import sympy

from minillm.problems.algebras import Algebra, UnreadableError

_TOKEN = re.compile(r"\\[a-zA-Z]+|\d+|[a-zA-Z]|[-+=<^'(){}\[\],]|\s+|(?P<other>.)")
_STARTS_ATOM = re.compile(r"\\frac|\\sqrt|\d|[a-zA-Z(]")
_MATRIX = re.compile(r"\\begin\{pmatrix\}([-\d&\\]*)\\end\{pmatrix\}")
# A function letter names a value that depends on the variable: y, y', y(0), f(x).
_FUNCTION_LETTERS = "fghy"
_MAX_EXPONENT = 50


class Reader:
    """One formula at a time, in one number system and with given values of letters."""

    def __init__(self, algebra: Algebra, values: Mapping[str, Any]) -> None:
        self._algebra = algebra
        self._values = values
        self._tokens: list[str] = []
        self._next = 0

    def chain(self, text: str) -> tuple[list[Any], list[str]]:
        """The values of a chain of relations and the relations between them.

        Raises:
            UnreadableError: the text is not of the grammar above.
        """
        self._tokens = []
        for match in _TOKEN.finditer(text):
            if match["other"]:
                raise UnreadableError(f"{match['other']!r} in {text!r}")
            if not match[0].isspace():
                self._tokens.append(match[0])
        self._next = 0
        sides, relations = [self._sum()], []
        while self._peek() in ("=", "<"):
            relations.append(self._take())
            sides.append(self._sum())
        if self._peek():
            raise UnreadableError(f"{self._peek()!r} was not expected in {text!r}")
        return sides, relations

    def value(self, text: str) -> Any:
        """The value of one formula without relations."""
        sides, _ = self.chain(text)
        if len(sides) != 1:
            raise UnreadableError(f"one formula expected, got {text!r}")
        return sides[0]

    def _peek(self) -> str:
        return self._tokens[self._next] if self._next < len(self._tokens) else ""

    def _take(self, wanted: str | None = None) -> str:
        token = self._peek()
        if not token or (wanted is not None and token != wanted):
            raise UnreadableError(f"wanted {wanted or 'more'}, got {token or 'the end'!r}")
        self._next += 1
        return token

    def _between(self, left: str, right: str) -> Any:
        self._take(left)
        value = self._sum()
        self._take(right)
        return value

    def _sum(self) -> Any:
        negative = self._peek() == "-" and bool(self._take())
        value = -self._product() if negative else self._product()
        while self._peek() in ("+", "-"):
            value = value + self._product() if self._take() == "+" else value - self._product()
        return value

    def _product(self) -> Any:
        value = self._power()
        while True:
            if self._peek() == r"\cdot":
                self._take()
            elif not _STARTS_ATOM.match(self._peek()):
                return value
            value = value * self._power()

    def _power(self) -> Any:
        value = self._atom()
        if self._peek() == "^":
            self._take()
            self._take("{")
            exponent = int(self._take()) if self._peek().isdigit() else -1
            if not 0 <= exponent <= _MAX_EXPONENT:
                raise UnreadableError(f"an exponent must be a number in 0..{_MAX_EXPONENT}")
            self._take("}")
            value = value**exponent
        while self._peek() == "'":
            self._take()
            value = self._algebra.derivative(value)
        return value

    def _atom(self) -> Any:
        token = self._peek()
        if token == "(":
            return self._between("(", ")")
        self._take()
        if token.isdigit():
            return self._algebra.number(token)
        if token == r"\frac":
            numerator = self._between("{", "}")
            return self._algebra.quotient(numerator, self._between("{", "}"))
        if token == r"\sqrt":
            return self._algebra.root(self._between("{", "}"))
        if token == "e" and self._peek() == "^":
            self._take()
            return self._algebra.exponential(self._between("{", "}"))
        if len(token) == 1 and token.isalpha():
            return self._letter(token)
        raise UnreadableError(f"{token!r} was not expected")

    def _letter(self, name: str) -> Any:
        if name not in _FUNCTION_LETTERS:
            return self._values[name] if name in self._values else self._algebra.letter(name)
        if name not in self._values:
            raise UnreadableError(f"the function {name!r} is not known")
        value = self._values[name]
        while self._peek() == "'":
            self._take()
            value = self._algebra.derivative(value)
        if self._peek() == "(":
            value = self._algebra.at(value, self._between("(", ")"))
        return value


def bind(algebra: Algebra, definitions: tuple[str, ...]) -> dict[str, Any]:
    """The values of letters from definitions such as `x=4`, `f(x)=3x+2`, `y=2e^{3x}`."""
    values: dict[str, Any] = {}
    for definition in definitions:
        name, _, formula = definition.partition("=")
        values[name[0]] = Reader(algebra, {}).value(formula)
    return values


def matrix(text: str) -> sympy.Matrix:
    """An integer pmatrix."""
    match = _MATRIX.fullmatch(text)
    if match is None:
        raise UnreadableError(f"no matrix of integers: {text!r}")
    try:
        rows = [[int(entry) for entry in row.split("&")] for row in match[1].split(r"\\")]
    except ValueError:
        raise UnreadableError(f"no matrix of integers: {text!r}") from None
    if len({len(row) for row in rows}) != 1:
        raise UnreadableError(f"rows of different length: {text!r}")
    return sympy.Matrix(rows)


def members(text: str) -> list[str]:
    r"""The formulas in `\{1,2\}`, `(1,2)` or `[1,2]`."""
    for left, right in ((r"\{", r"\}"), ("(", ")"), ("[", "]")):
        if text.startswith(left) and text.endswith(right):
            return text[len(left) : -len(right)].split(",")
    raise UnreadableError(f"no set, point or interval: {text!r}")
