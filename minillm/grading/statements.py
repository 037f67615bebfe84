"""Two formulas that say the same thing in the same way, up to order and signs of writing.

An identity to be proved cannot be compared by value: every identity is worth 0 = 0.
"""

from dataclasses import fields
from typing import Any

from minillm.grading.lexer import FormulaError, Token, tokenize
from minillm.grading.tree import Add, Divide, Multiply, Negate, Relation, Tree


def form(node: Tree) -> Any:
    """A hashable form that forgets the order of sums and products, and where a sign is written."""
    sign, body = _signed(node)
    return (sign, body)


def _signed(node: Tree) -> tuple[int, Any]:
    if isinstance(node, Negate):
        sign, body = _signed(node.operand)
        return -sign, body
    if isinstance(node, Divide):
        (top, above), (bottom, below) = _signed(node.numerator), _signed(node.denominator)
        return top * bottom, ("/", above, below)
    if isinstance(node, Multiply):
        total, parts = 1, []
        for factor in flat(node):
            sign, body = _signed(factor)
            total *= sign
            parts.append(body)
        return total, ("*", *sorted(parts, key=repr))
    if isinstance(node, Add):
        return 1, ("+", *sorted((form(term) for term in flat(node)), key=repr))
    return 1, (type(node).__name__, *(_field(getattr(node, f.name)) for f in fields(node)))


def flat(node: Add | Multiply) -> list[Tree]:
    """Terms of terms: brackets around a part of a sum, or of a product, say nothing."""
    items = node.terms if isinstance(node, Add) else node.factors
    parts: list[Tree] = []
    for item in items:
        if isinstance(item, type(node)):
            parts.extend(flat(item))
        else:
            parts.append(item)
    return parts


def _field(value: Any) -> Any:
    if isinstance(value, Tree):
        return form(value)
    if isinstance(value, tuple):
        return tuple(_field(item) for item in value)
    return value


def same_statement(predicted: Tree, reference: Tree) -> bool:
    """The same claim: the same sides, an equation also the other way round."""
    if isinstance(predicted, Relation) and isinstance(reference, Relation):
        if predicted.operators != reference.operators:
            return False
        left = [form(side) for side in predicted.sides]
        right = [form(side) for side in reference.sides]
        symmetric = set(predicted.operators) <= {"=", "!="}
        return left == right or (symmetric and left[::-1] == right)
    return form(predicted) == form(reference)


def restates(answer: str, problem: str) -> bool:
    """Whether the answer stands, token for token, in the problem, and is more than one number."""
    try:
        wanted = _plain(tokenize(answer))
    except FormulaError:
        return False
    if sum(kind in ("number", "name", "function", "command") for kind, _ in wanted) < 2:
        return False
    for line in problem.splitlines():
        tokens = _plain(_readable(line))
        width = len(wanted)
        if any(tokens[at : at + width] == wanted for at in range(len(tokens) - width + 1)):
            return True
    return False


def _readable(line: str) -> list[Token]:
    try:
        return tokenize(line.replace("?", " ").replace(".", " ").replace(":", " "))
    except FormulaError:
        return []


def _plain(tokens: list[Token]) -> list[tuple[str, str]]:
    """x^{2} and x^2 and x² are one; so are 2x and 2 \\cdot x."""
    return [
        (token.kind, token.text)
        for token in tokens
        if token not in (Token("op", "{"), Token("op", "}"), Token("op", "*"))
    ]
