"""Sets of real numbers: intervals, their unions, and the inequalities that describe them."""

from __future__ import annotations

from typing import Any

from minillm.grading.compare import CONSTANT_DIGITS, is_infinite, is_real, number_at, numeric
from minillm.grading.tree import Bag, Interval, Listing, Relation, Symbol, Tree, Tuple, Union

# (low, high, closed below, closed above), ends in many-digit floats, sorted and disjoint.
Piece = tuple[Any, Any, bool, bool]
MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}


def region(node: Tree, *, open_pairs: bool = False) -> list[Piece] | None:
    """The pieces of a set of reals, or None if the tree does not describe one.

    Args:
        open_pairs: whether (a, b) is the open interval, and not the point.
    """
    pieces = _pieces(node, open_pairs)
    return None if pieces is None else _merged(pieces)


def same_region(left: list[Piece], right: list[Piece]) -> bool:
    if len(left) != len(right):
        return False
    return all(
        _equal(a[0], b[0]) and _equal(a[1], b[1]) and a[2:] == b[2:]
        for a, b in zip(left, right, strict=True)
    )


def _equal(a: Any, b: Any) -> bool:
    return a == b or abs(a - b) <= numeric(CONSTANT_DIGITS, True).tiny * (1 + abs(a))


def _end(node: Tree) -> Any | None:
    arithmetic = numeric(CONSTANT_DIGITS, True)
    side = is_infinite(node)
    if side:
        return arithmetic.context.inf * side
    value = number_at(node, {}, arithmetic)
    if value is None or not is_real(value, arithmetic):
        return None
    return value.real


def _piece(low: Tree, high: Tree, closed_low: bool, closed_high: bool) -> list[Piece] | None:
    a, b = _end(low), _end(high)
    if a is None or b is None or a > b:
        return None
    context = numeric(CONSTANT_DIGITS, True).context
    # An end at infinity is open however it is written.
    return [(a, b, closed_low and a != -context.inf, closed_high and b != context.inf)]


def _pieces(node: Tree, open_pairs: bool) -> list[Piece] | None:
    match node:
        case Interval(low, high, closed_low, closed_high):
            return _piece(low, high, closed_low, closed_high)
        case Tuple((low, high)) if open_pairs or is_infinite(low) or is_infinite(high):
            return _piece(low, high, False, False)
        case Union(parts):
            return _joined(parts, True)
        case Bag(items) if open_pairs:
            ends = [_piece(item, item, True, True) for item in items]
            return None if None in ends else [piece for end in ends for piece in end or []]
        case Relation(("in",), (Symbol(), inside)) if not isinstance(inside, Bag):
            return _pieces(inside, True)
        case Relation(operators, sides) if set(operators) <= MIRRORED.keys():
            return _inequality(operators, sides)
        case Listing(items, "or" | ","):
            if all(isinstance(item, Relation | Interval | Union) for item in items):
                return _joined(items, open_pairs)
        case Listing(items, "and"):
            found = [_pieces(item, open_pairs) for item in items]
            return None if any(part is None for part in found) else _intersection(found)
    return None


def _joined(parts: tuple[Tree, ...], open_pairs: bool) -> list[Piece] | None:
    found = [_pieces(part, open_pairs) for part in parts]
    return None if any(f is None for f in found) else [piece for f in found for piece in f or []]


def _inequality(operators: tuple[str, ...], sides: tuple[Tree, ...]) -> list[Piece] | None:
    """a < x <= b, x < b, b > x, x != b."""
    context = numeric(CONSTANT_DIGITS, True).context
    low, high = -context.inf, context.inf
    if len(operators) == 2 and isinstance(sides[1], Symbol):
        if operators[0][0] == ">" and operators[1][0] == ">":
            sides, operators = sides[::-1], tuple(MIRRORED[o] for o in operators[::-1])
        if operators[0][0] != "<" or operators[1][0] != "<":
            return None
        return _piece(sides[0], sides[2], operators[0] == "<=", operators[1] == "<=")
    if len(operators) != 1:
        return None
    (operator,) = operators
    if not isinstance(sides[0], Symbol):
        sides, operator = sides[::-1], MIRRORED[operator]
    end = _end(sides[1]) if isinstance(sides[0], Symbol) else None
    if end is None:
        return None
    if operator == "!=":
        return [(low, end, False, False), (end, high, False, False)]
    if operator[0] == "<":
        return [(low, end, False, operator == "<=")]
    return [(end, high, operator == ">=", False)]


def _intersection(parts: list[list[Piece] | None]) -> list[Piece]:
    kept = parts[0] or []
    for part in parts[1:]:
        crossed = []
        for a in kept:
            for b in part or []:
                low = max((a[0], not a[2]), (b[0], not b[2]))
                high = min((a[1], a[3]), (b[1], b[3]))
                if low[0] < high[0] or (low[0] == high[0] and not low[1] and high[1]):
                    crossed.append((low[0], high[0], not low[1], high[1]))
        kept = crossed
    return kept


def _merged(pieces: list[Piece]) -> list[Piece]:
    """Sorted; pieces that overlap or share a closed end become one."""
    merged: list[Piece] = []
    for piece in sorted(pieces, key=lambda p: (p[0], not p[2])):
        if merged:
            low, high, closed_low, closed_high = merged[-1]
            touches = _equal(piece[0], high) and (piece[2] or closed_high)
            if touches or piece[0] < high:
                top = max((high, closed_high), (piece[1], piece[3]))
                merged[-1] = (low, top[0], closed_low, top[1])
                continue
        merged.append(piece)
    return merged
