"""Is a predicted answer the reference answer? Compared by what kind of thing the reference is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minillm.grading.answers import is_unevaluated
from minillm.grading.compare import close, number_at, numeric, points, to_float
from minillm.grading.differentiate import rebuild
from minillm.grading.families import (
    constants_in,
    is_antiderivative,
    same_antiderivative,
    same_family,
)
from minillm.grading.regions import region, same_region
from minillm.grading.statements import form, same_statement
from minillm.grading.tree import (
    UNEVALUATED,
    Add,
    Apply,
    Bag,
    Call,
    Derivative,
    Integral,
    Limit,
    Listing,
    Matrix,
    Negate,
    PlusMinus,
    Power,
    Relation,
    Series,
    Symbol,
    Text,
    Tree,
    Tuple,
    children,
    contains,
    free_symbols,
)

Decide = Callable[[Tree, Tree], bool]
MAX_VALUES = 64


@dataclass(frozen=True, slots=True)
class Values:
    """What an answer gives: one or several values, perhaps under a name (x = 1 or x = 2)."""

    name: str | None
    items: tuple[Tree, ...]


class Matcher:
    """Compares answers; `decide` has the word on two single expressions."""

    def __init__(self, decide: Decide, answer_type: str | None) -> None:
        self.decide = decide
        self.answer_type = answer_type

    def matches(self, predicted: Tree, reference: Tree) -> bool:
        if self.answer_type == "proof":
            return same_statement(predicted, reference)
        if isinstance(reference, Text) or isinstance(predicted, Text):
            return predicted == reference
        verdict = self._as_region(predicted, reference)
        if verdict is not None:
            return verdict
        verdict = self._as_assignment(predicted, reference)
        if verdict is not None:
            return verdict
        wanted, given = self.values(reference), self.values(predicted)
        if wanted is None:
            return self._as_relation(predicted, reference)
        if given is None or not self._same_name(given, wanted):
            return wanted.name is not None and self._unsolved_line(predicted, reference, wanted)
        return self._same_values(given, wanted, predicted, reference)

    def _as_region(self, predicted: Tree, reference: Tree) -> bool | None:
        pairs = self.answer_type == "interval"
        wanted = region(reference, open_pairs=pairs)
        if wanted is None:
            return None
        given = region(predicted, open_pairs=True)
        return given is not None and same_region(given, wanted)

    def _as_assignment(self, predicted: Tree, reference: Tree) -> bool | None:
        """Systems and points: x = 1, y = 2, or (x, y) = (1, 2), or (1, 2) in alphabetical order."""
        wanted, given = assignment(reference), assignment(predicted)
        if wanted is None and given is None:
            return None
        if wanted is not None and given is not None:
            if wanted.keys() != given.keys():
                return False
            return all(self.single(given[name], wanted[name]) for name in wanted)
        ours = list(given.values()) if given else items_of(predicted)
        theirs = list(wanted.values()) if wanted else items_of(reference)
        if ours is None or theirs is None or len(ours) != len(theirs):
            return False
        return all(map(self.single, ours, theirs))

    def values(self, node: Tree) -> Values | None:
        """The values an answer gives, or None if it is a relation between expressions."""
        match node:
            case Relation(operators, sides) if set(operators) == {"="}:
                return self._labelled(sides)
            case Relation(("in",), (Symbol(name), Bag(items))):
                return Values(name, items)
            case Listing(items, _) | Bag(items):
                found = [self.values(item) for item in items]
                names = {base_name(v.name) for v in found if v and v.name}
                if None in found or len(names) > 1:
                    return None
                values = tuple(item for v in found if v for item in v.items)
                return Values(next(iter(names), None), values[:MAX_VALUES])
            case Relation():
                return None
        return Values(None, signs(node))

    def _labelled(self, sides: Sequence[Tree]) -> Values | None:
        """name = value, or name = step = value; an unlabelled chain counts if its parts agree."""
        name, rest = label(sides[0]), sides[1:]
        if name is None or (name and name in free_symbols(rest[-1])):
            name, rest = None, sides
            if len(free_symbols(sides[0])) and not isinstance(sides[0], Matrix):
                agreed = [self.decide(side, sides[-1]) for side in sides[:-1]]
                return Values(None, signs(sides[-1])) if all(agreed) else None
        last = rest[-1]
        if any(not is_unevaluated(s) and not self.decide(s, last) for s in rest[:-1]):
            return None
        inside = self.values(last) if isinstance(last, Bag | Listing) else None
        return Values(name or None, inside.items if inside else signs(last))

    def _same_name(self, given: Values, wanted: Values) -> bool:
        if given.name is None or wanted.name is None:
            return True
        several = len(wanted.items) > 1
        shorten = base_name if several else str
        return shorten(given.name) == shorten(wanted.name)

    def _same_values(self, given: Values, wanted: Values, predicted: Tree, reference: Tree) -> bool:
        if isinstance(predicted, Bag) and not isinstance(reference, Bag):
            solution = wanted.name is not None or self.answer_type in ("set", "equation")
            if not solution and len(wanted.items) == 1:
                return False
        if not wanted.items or not given.items:
            return not wanted.items and not given.items
        return all(any(self.single(g, w) for w in wanted.items) for g in given.items) and all(
            any(self.single(g, w) for g in given.items) for w in wanted.items
        )

    def single(self, given: Tree, wanted: Tree) -> bool:
        """Two single values: numbers, expressions, points, matrices, families."""
        allowed = contains(wanted, *UNEVALUATED)
        if is_unevaluated(given) and not allowed:
            return False
        if isinstance(wanted, Relation | Listing | Bag):
            return self.matches(given, wanted)
        ours, theirs = items_of(given), items_of(wanted)
        if isinstance(wanted, Tuple):
            if ours is None or theirs is None or len(ours) != len(theirs):
                return False
            return all(map(self.single, ours, theirs))
        if isinstance(given, Tuple):
            # (1, 2) is welcome where a column is wanted, and nowhere else.
            column = isinstance(wanted, Matrix) and len(wanted.rows[0]) == 1
            return column and theirs is not None and self._all_single(given.items, theirs)
        if constants_in(wanted, self.answer_type):
            return self._same_family(given, wanted)
        if contains(given, Call) and contains(wanted, Call):
            return form(given) == form(wanted)
        return self.decide(given, wanted)

    def _all_single(self, ours: Sequence[Tree], theirs: Sequence[Tree]) -> bool:
        return len(ours) == len(theirs) and all(map(self.single, ours, theirs))

    def _same_family(self, given: Tree, wanted: Tree) -> bool:
        if is_antiderivative(wanted, self.answer_type):
            return same_antiderivative(given, wanted, self.answer_type) is True
        return same_family(given, wanted, self.answer_type) is True

    def _as_relation(self, predicted: Tree, reference: Tree) -> bool:
        if form(predicted) == form(reference):
            return True
        return proportional(predicted, reference)

    def _unsolved_line(self, predicted: Tree, reference: Tree, wanted: Values) -> bool:
        """y = 3x + 2 may be written 3x - y + 2 = 0; x = 3 may not be written 3x = 9."""
        if not all(free_symbols(item) for item in wanted.items):
            return False
        return proportional(predicted, reference)


def label(node: Tree) -> str | None:
    """The name of a left side that only says what the right side is; "" for a nameless task."""
    match node:
        case Symbol(name) | Call(name, 0, _):
            return name
        case Call() | Derivative() | Integral() | Limit() | Series():
            return ""
        case Apply("det" | "transpose" | "trace", _) | Power(Symbol(), Negate()):
            return ""
    return None


def base_name(name: str | None) -> str:
    return (name or "").split("_")[0]


def items_of(node: Tree) -> list[Tree] | None:
    """The entries of a point or of a column."""
    if isinstance(node, Tuple):
        return list(node.items)
    if isinstance(node, Matrix) and len(node.rows[0]) == 1:
        return [row[0] for row in node.rows]
    return None


def assignment(node: Tree) -> dict[str, Tree] | None:
    """Values by name in alphabetical order, if the tree sets two or more different variables."""
    match node:
        case Relation(("=",), (Tuple(names), Tuple(values))) if len(names) == len(values):
            pairs = [(n, v) for n, v in zip(names, values, strict=True) if isinstance(n, Symbol)]
            if len(pairs) < len(names):
                return None
            return dict(sorted((n.name, v) for n, v in pairs))
        case Listing(items, _) | Bag(items) | Tuple(items):
            found: dict[str, Tree] = {}
            for item in items:
                match item:
                    case Relation(("=",), (Symbol(name), value)) if name not in found:
                        found[name] = value
                    case _:
                        return None
            distinct = {base_name(name) for name in found}
            return dict(sorted(found.items())) if len(distinct) > 1 else None
    return None


def signs(node: Tree) -> tuple[Tree, ...]:
    """Both readings of a tree with ±: all upper signs, then all lower ones."""
    if not contains(node, PlusMinus):
        return (node,)
    return (_with_sign(node, 1), _with_sign(node, -1))


def _with_sign(node: Tree, sign: int) -> Tree:
    if isinstance(node, PlusMinus):
        inner = _with_sign(node.operand, sign)
        return inner if node.sign * sign > 0 else Negate(inner)
    return rebuild(node, lambda child: _with_sign(child, sign)) if children(node) else node


def proportional(predicted: Tree, reference: Tree) -> bool:
    """Whether two equations A = B are the same up to a constant factor other than zero."""
    gaps = []
    for node in (predicted, reference):
        if not isinstance(node, Relation) or node.operators != ("=",):
            return False
        if contains(node, Call, *UNEVALUATED):
            return False
        gaps.append(Add((node.sides[0], Negate(node.sides[1]))))
    names = sorted(free_symbols(predicted) | free_symbols(reference))
    if not names:
        return False
    arithmetic = numeric(36, False)
    ratios = []
    for point in points(names, frozenset(), frozenset(), f"{predicted!r} {reference!r}"):
        values = {name: to_float(value, arithmetic) for name, value in point.items()}
        ours, theirs = (number_at(gap, values, arithmetic) for gap in gaps)
        if ours is None or theirs is None:
            continue
        if abs(theirs) < arithmetic.tiny or abs(ours) < arithmetic.tiny:
            return False
        ratios.append(ours / theirs)
    return len(ratios) >= 5 and all(close(r, ratios[0], arithmetic) for r in ratios)
