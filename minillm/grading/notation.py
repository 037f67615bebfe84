"""Notation that reaches over several tokens: fractions, d/dx, integrals, limits, sums, matrices."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING

from minillm.grading.lexer import FormulaError, Token, words
from minillm.grading.tree import (
    ONE,
    Apply,
    Bag,
    Call,
    Constant,
    Derivative,
    Divide,
    Integral,
    Interval,
    Limit,
    Matrix,
    Multiply,
    Negate,
    Number,
    Series,
    Tree,
    Tuple,
)

if TYPE_CHECKING:
    from minillm.grading.parser import Parser

MATRICES = words("matrix pmatrix bmatrix Bmatrix vmatrix Vmatrix array smallmatrix")
ABOVE = re.compile(r"(?:d|∂)(?:\^\{?(\d)\}?)?(.*)")
BELOW = re.compile(r"(?:d|∂)([a-zA-Z])(?:\^\{?(\d)\}?)?")
INFINITY = Constant("infinity")
LINE = Interval(Negate(INFINITY), INFINITY, False, False)
LEAVES: dict[str, Tree] = {
    "pi": Constant("pi"), "infty": INFINITY, "emptyset": Bag(()), "varnothing": Bag(()),
    "reals": LINE,
}  # fmt: skip


def command(parser: Parser) -> Tree:
    """The tree of a command that is neither a plain function nor an operator."""
    name = parser.next().text
    if name in LEAVES:
        return LEAVES[name]
    if name in ("frac", "dfrac", "tfrac", "cfrac"):
        return fraction(parser)
    if name == "sqrt":
        return root(parser)
    if name in ("binom", "dbinom", "tbinom"):
        return Apply("binomial", (braced(parser), braced(parser)))
    if name == "int":
        return integral(parser)
    if name == "lim":
        return limit(parser)
    if name in ("sum", "prod"):
        return series(parser, "sum" if name == "sum" else "product")
    if name in ("overline", "bar"):
        return Apply("conjugate", (braced(parser),))
    if name in ("vec", "hat", "tilde", "mathbf", "ensuremath"):
        return braced(parser)
    if name == "lfloor" or name == "lceil":
        return rounded(parser, name)
    raise FormulaError(f"unknown command \\{name}")


def rounded(parser: Parser, name: str) -> Tree:
    with parser.deeper(bracket=True):
        body = parser.sum()
    closing = "rfloor" if name == "lfloor" else "rceil"
    if parser.next() != Token("command", closing):
        raise FormulaError(f"\\{name} is not closed")
    return Apply("floor" if name == "lfloor" else "ceil", (body,))


def braced(parser: Parser) -> Tree:
    """One argument of a command: {...}, or one digit or atom as in \\frac12."""
    token = parser.peek()
    if token.kind == "number" and len(token.text) > 1 and token.text.isdigit():
        rest = token.text[1:]
        parser.tokens[parser.at] = Token("number", rest, Fraction(rest))
        return Number(Fraction(token.text[0]))
    if parser.sees("{"):
        return parser.group()
    with parser.deeper():
        return parser.primary()


def is_mixed(whole: Tree, part: Tree) -> bool:
    """2\\frac{1}{3} is two and a third: an integer before a proper fraction of digits."""
    match whole, part:
        case Number(n), Divide(Number(above), Number(below)):
            return all(v.denominator == 1 for v in (n, above, below)) and 0 < above < below
    return False


def degrees(angle: Tree) -> Tree:
    return Divide(Multiply((angle, Constant("pi"))), Number(Fraction(180)))


def subscript(parser: Parser) -> str:
    """The text of a subscript, braces dropped."""
    if not parser.accept("{"):
        return parser.next().text[:10]
    text = ""
    while not parser.sees("}"):
        if parser.peek().kind == "end of text" or len(text) > 20:
            raise FormulaError("a subscript that is not closed or too long")
        text += parser.next().text
    parser.expect("}")
    return text


def _group_text(parser: Parser, at: int) -> tuple[str, int]:
    """The joined text of the braced group that starts at a token, and the place behind it."""
    text, depth, place = "", 0, at
    while place < len(parser.tokens):
        token = parser.tokens[place]
        if token == Token("op", "{"):
            depth += 1
        elif token == Token("op", "}"):
            depth -= 1
            if depth == 0:
                return text[1:], place + 1
        text += "∂" if token == Token("command", "partial") else token.text
        place += 1
    return "", at


def fraction(parser: Parser) -> Tree:
    if parser.sees("{"):
        above, middle = _group_text(parser, parser.at)
        below, after = _group_text(parser, middle)
        top, bottom = ABOVE.fullmatch(above), BELOW.fullmatch(below)
        if top and bottom:
            return derivative(parser, top, bottom, after)
        if parser.integrals and (found := _trailing_differential(parser, middle)):
            return _fraction_with_differential(parser, found)
    numerator = braced(parser)
    return Divide(numerator, braced(parser))


def _trailing_differential(parser: Parser, behind: int) -> str | None:
    """The variable of a numerator that ends in dx, where `behind` is the place after its brace."""
    letter, d = parser.tokens[behind - 2], parser.tokens[behind - 3]
    return letter.text if letter.kind == "name" and d == Token("name", "d") else None


def _fraction_with_differential(parser: Parser, variable: str) -> Tree:
    parser.expect("{")
    with parser.deeper():
        numerator: Tree = ONE if parser.at_differential() else parser.sum()
        parser.at += 2
        parser.expect("}")
    parser.differential = variable
    return Divide(numerator, braced(parser))


def derivative(parser: Parser, top: re.Match[str], bottom: re.Match[str], after: int) -> Tree:
    """d/dx of what follows, or of what stands in the numerator; dy/dx of a bare name is a Call."""
    order = int(top[1] or 1)
    variable = bottom[1]
    if order != int(bottom[2] or 1) or not 1 <= order <= 6:
        raise FormulaError("the orders above and below in a derivative differ")
    if len(top[2]) == 1 and top[2].isalpha():
        parser.at = after
        return Call(top[2], order, ())
    if top[2]:
        parser.at += 2 + (top[1] is not None) * 2
        if top[1] is not None and parser.tokens[parser.at - 1] == Token("op", "{"):
            parser.at += 2
        body = parser.sum()
        parser.at = after
        return Derivative(body, variable, order)
    parser.at = after
    return Derivative(operand(parser), variable, order)


def operand(parser: Parser) -> Tree:
    """What d/dx or lim acts on: the bracket that follows, or the whole product."""
    parser.accept("*")
    return parser.factor() if parser.sees("(", "[") else parser.term()


def at_plain_derivative(parser: Parser) -> bool:
    return (
        parser.sees("/") and parser.peek(1) == Token("name", "d") and parser.peek(2).kind == "name"
    )


def plain_derivative(parser: Parser) -> Tree:
    """d/dx written without a fraction; the first d has been read."""
    variable = parser.peek(2).text
    parser.at += 3
    return Derivative(operand(parser), variable, 1)


def root(parser: Parser) -> Tree:
    if parser.accept("["):
        with parser.deeper(bracket=True):
            index = parser.sum()
        parser.expect("]")
        return Apply("root", (braced(parser), index))
    if parser.sees("("):
        return Apply("sqrt", (parser.bracket(),))
    token = parser.peek()
    if token.kind == "number":
        parser.next()
        return Apply("sqrt", (Number(token.value or Fraction(0)),))
    return Apply("sqrt", (braced(parser),))


def bounds(parser: Parser) -> tuple[Tree | None, Tree | None]:
    low = high = None
    for _ in range(2):
        if parser.accept("_"):
            low = parser.script(tower=False)
        elif parser.accept("^"):
            high = parser.script(tower=False)
    return low, high


def integral(parser: Parser) -> Tree:
    low, high = bounds(parser)
    if (low is None) != (high is None):
        raise FormulaError("an integral with one bound")
    with parser.deeper():
        parser.integrals += 1
        outer, parser.differential = parser.differential, None
        body: Tree = ONE if parser.at_differential() else parser.sum()
        variable = parser.differential
        if variable is None:
            if not parser.at_differential():
                raise FormulaError("an integral without its differential")
            variable = parser.peek(1).text
            parser.at += 2
        parser.differential = outer
    return Integral(body, variable, low, high)


def limit(parser: Parser) -> Tree:
    parser.expect("_")
    parser.expect("{")
    variable = parser.next()
    parser.expect("->")
    with parser.deeper():
        point = parser.sum()
    side = ""
    if parser.accept("^"):
        side = parser.accept("+", "-") or ""
    parser.expect("}")
    if variable.kind != "name":
        raise FormulaError("a limit without a variable")
    return Limit(operand(parser), variable.text, point, side)


def series(parser: Parser, kind: str) -> Tree:
    parser.expect("_")
    parser.expect("{")
    variable = parser.next().text
    parser.expect("=")
    with parser.deeper():
        low = parser.sum()
    parser.expect("}")
    parser.expect("^")
    high = parser.script(tower=False)
    outer = set(parser.bound)
    parser.bound.add(variable)
    body = parser.term()
    parser.bound = outer
    return Series(kind, body, variable, low, high)


def environment(parser: Parser) -> Tree:
    name = parser.next().text
    if name not in MATRICES:
        raise FormulaError(f"unknown environment {name}")
    rows: list[tuple[Tree, ...]] = []
    row: list[Tree] = []
    with parser.deeper(bracket=True):
        while parser.peek().kind != "end":
            row.append(parser.sum())
            if parser.accept("\\\\"):
                rows.append(tuple(row))
                row = []
            elif not parser.accept("&") and parser.peek().kind != "end":
                raise FormulaError("a matrix entry that does not end")
    closing = parser.next()
    if row:
        rows.append(tuple(row))
    if closing.text != name or not rows or len({len(r) for r in rows}) > 1:
        raise FormulaError("a matrix with uneven rows or another end")
    matrix = Matrix(tuple(rows))
    return Apply("det", (matrix,)) if name == "vmatrix" else matrix


def matrix_of_lists(items: tuple[Tree, ...]) -> Matrix | None:
    """[[1, 2], [3, 4]]: a list of lists of one length is a matrix."""
    rows: list[tuple[Tree, ...]] = []
    for item in items:
        if isinstance(item, Interval) and item.closed_low and item.closed_high:
            rows.append((item.low, item.high))
        elif isinstance(item, Tuple) and len(item.items) > 2:
            rows.append(item.items)
        else:
            return None
    return Matrix(tuple(rows)) if len({len(r) for r in rows}) == 1 else None
