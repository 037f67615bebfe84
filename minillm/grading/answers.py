"""From a solution to its answer: the last box, and the tree of what stands in it."""

import re

from minillm.grading.lexer import FormulaError
from minillm.grading.parser import parse
from minillm.grading.tree import (
    UNEVALUATED,
    Apply,
    Bag,
    Call,
    Constant,
    Matrix,
    Power,
    Tree,
    applies,
    contains,
    free_symbols,
    walk,
)

BRACE = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
BOX = re.compile(r"\\boxed\s*\{(.*)\}", re.DOTALL)
DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
NO_SOLUTION = re.compile(r"(there (is|are) )?no( real)? solutions?|empty set|none")
WORDING = re.compile(r"(?:\\text\{)?([A-Za-z ]+)\}?")
OPERATIONS = ("det", "transpose", "trace", "conjugate", "re", "im")


def extract_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...} whose braces balance, innermost where they nest.

    One pass over the text, whatever stands in it. None if there is no such box.
    """
    opened: list[tuple[int, bool]] = []
    best: tuple[int, int] | None = None
    for found in BRACE.finditer(text):
        piece = found.group()
        if piece == "}":
            if opened:
                start, boxed = opened.pop()
                if boxed and (best is None or start > best[0]):
                    best = start, found.start()
        elif piece.endswith("{") and piece != "\\{":
            opened.append((found.end(), piece != "{"))
    return None if best is None else text[best[0] : best[1]].strip()


def tidy(text: str) -> str:
    """The answer without dollar signs, a box around it, or a full stop behind it."""
    text = text.strip()
    for opening, closing in DELIMITERS:
        inside = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and opening not in inside:
            text = inside.strip()
    boxed = BOX.fullmatch(text)
    if boxed:
        text = boxed[1].strip()
    return text[:-1].rstrip() if text.endswith((".", ",")) else text


def read_answer(text: str) -> Tree | None:
    """The tree of an answer, or None where it cannot be read as a formula.

    An answer in words is a Text; "no solution" is the empty set.
    """
    text = tidy(text)
    words = WORDING.fullmatch(text)
    if words and NO_SOLUTION.fullmatch(" ".join(words[1].lower().split())):
        return Bag(())
    try:
        return parse(text)
    except FormulaError:
        return None


def is_unevaluated(value: Tree) -> bool:
    """Whether the value still asks for the work: an integral, a derivative, a limit, a sum, a
    determinant, a conjugate, the size of a complex number, an operation between matrices."""
    if contains(value, *UNEVALUATED) or applies(value, *OPERATIONS):
        return True
    matrices = 0
    for part in walk(value):
        match part:
            case Matrix():
                matrices += 1
            case Power(Matrix(), _):
                return True
            case Call(_, primes, _) if primes:
                return True
            case Apply("abs", (body,)):
                if isinstance(body, Matrix) or (
                    not free_symbols(body) and Constant("i") in walk(body)
                ):
                    return True
    return matrices > 1 and not isinstance(value, Bag)
