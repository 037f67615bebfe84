"""The syntax tree of a formula: plain frozen data, no behaviour.

Sums, products and relations are flat, so that a long formula is wide and not deep: the depth of
a tree is bounded by the depth of brackets that the parser allows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Tree:
    """Any node; its children are found by looking at its fields."""


@dataclass(frozen=True, slots=True)
class Number(Tree):
    """A literal: integer, decimal or repeating decimal, kept exact."""

    value: Fraction


@dataclass(frozen=True, slots=True)
class Constant(Tree):
    """One of pi, e, i, infinity."""

    name: str


@dataclass(frozen=True, slots=True)
class Symbol(Tree):
    """A variable, with its subscript: x, C_1, lambda."""

    name: str


@dataclass(frozen=True, slots=True)
class Add(Tree):
    terms: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Multiply(Tree):
    factors: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Divide(Tree):
    numerator: Tree
    denominator: Tree


@dataclass(frozen=True, slots=True)
class Power(Tree):
    base: Tree
    exponent: Tree


@dataclass(frozen=True, slots=True)
class Negate(Tree):
    operand: Tree


@dataclass(frozen=True, slots=True)
class PlusMinus(Tree):
    """Plus or minus the operand; sign is 1 for ± and -1 for ∓."""

    operand: Tree
    sign: int


@dataclass(frozen=True, slots=True)
class Apply(Tree):
    """A known function: sin, sqrt, root, log, abs, conjugate, det, factorial, ..."""

    function: str
    arguments: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Call(Tree):
    """A function known by name only: f(x), y'(0), dy/dx."""

    name: str
    primes: int
    arguments: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Matrix(Tree):
    rows: tuple[tuple[Tree, ...], ...]


@dataclass(frozen=True, slots=True)
class Tuple(Tree):
    """Ordered, in round brackets or (three or more items) square ones."""

    items: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Bag(Tree):
    """A set in braces."""

    items: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Interval(Tree):
    low: Tree
    high: Tree
    closed_low: bool
    closed_high: bool


@dataclass(frozen=True, slots=True)
class Union(Tree):
    parts: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Listing(Tree):
    """Items side by side without brackets; separator is "," or "or" or "and"."""

    items: tuple[Tree, ...]
    separator: str


@dataclass(frozen=True, slots=True)
class Relation(Tree):
    """A chain: sides[0] operators[0] sides[1] operators[1] sides[2] ..."""

    operators: tuple[str, ...]
    sides: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Derivative(Tree):
    """variable None: the only variable of the body, as in (x^3)'."""

    body: Tree
    variable: str | None
    order: int


@dataclass(frozen=True, slots=True)
class Integral(Tree):
    """Indefinite where low and high are None."""

    body: Tree
    variable: str
    low: Tree | None
    high: Tree | None


@dataclass(frozen=True, slots=True)
class Limit(Tree):
    """side is "+", "-" or "" for both."""

    body: Tree
    variable: str
    point: Tree
    side: str


@dataclass(frozen=True, slots=True)
class Series(Tree):
    """A finite or infinite sum or product over an integer index; kind is "sum" or "product"."""

    kind: str
    body: Tree
    variable: str
    low: Tree
    high: Tree


@dataclass(frozen=True, slots=True)
class Text(Tree):
    """Words, in lower case with single spaces."""

    words: str


ZERO = Number(Fraction(0))
ONE = Number(Fraction(1))
IMAGINARY = Constant("i")
UNEVALUATED = (Derivative, Integral, Limit, Series)


def children(node: Tree) -> tuple[Tree, ...]:
    """The direct children, in reading order."""
    match node:
        case Add(items) | Multiply(items) | Tuple(items) | Bag(items) | Union(items):
            return items
        case Listing(items, _) | Apply(_, items) | Call(_, _, items) | Relation(_, items):
            return items
        case Divide(left, right) | Power(left, right) | Interval(left, right, _, _):
            return (left, right)
        case Negate(operand) | PlusMinus(operand, _) | Derivative(operand, _, _):
            return (operand,)
        case Matrix(rows):
            return tuple(entry for row in rows for entry in row)
        case Integral(body, _, low, high):
            return tuple(part for part in (body, low, high) if part is not None)
        case Limit(body, _, point, _):
            return (body, point)
        case Series(_, body, _, low, high):
            return (body, low, high)
    return ()


def walk(node: Tree) -> Iterator[Tree]:
    """The node and everything below it."""
    waiting = [node]
    while waiting:
        current = waiting.pop()
        yield current
        waiting.extend(children(current))


def free_symbols(node: Tree) -> frozenset[str]:
    """Names of the variables that are not bound by a sum, a limit or a definite integral."""
    if isinstance(node, Symbol):
        return frozenset((node.name,))
    names = frozenset[str]().union(*(free_symbols(child) for child in children(node)))
    match node:
        case Series(_, body, variable, low, high):
            outside = free_symbols(low) | free_symbols(high)
            return (free_symbols(body) - {variable}) | outside
        case Integral(body, variable, low, high) if low is not None and high is not None:
            outside = free_symbols(low) | free_symbols(high)
            return (free_symbols(body) - {variable}) | outside
        case Limit(body, variable, point, _):
            return (free_symbols(body) - {variable}) | free_symbols(point)
    return names


def contains(node: Tree, *kinds: type) -> bool:
    return any(isinstance(part, kinds) for part in walk(node))


def applies(node: Tree, *functions: str) -> bool:
    """Whether one of these known functions occurs in the tree."""
    return any(isinstance(part, Apply) and part.function in functions for part in walk(node))


def negate(node: Tree) -> Tree:
    return node.operand if isinstance(node, Negate) else Negate(node)


def number(value: int | Fraction) -> Tree:
    return Number(Fraction(value)) if value >= 0 else Negate(Number(Fraction(-value)))
