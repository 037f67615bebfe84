"""A problem in free text taken apart: its words, and the formulas between them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from minillm.grading.lexer import FUNCTIONS, FormulaError, words
from minillm.grading.parser import parse
from minillm.grading.tree import Listing, Symbol, Tree

MAX_WORDS = 120
MAX_FORMULAS = 8
MARKED = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]")
ALPHABETIC = re.compile(r"[A-Za-z][A-Za-z'’-]+")
TWO_LETTERS = re.compile(r"d[a-z]|[A-Za-z]['’]{1,2}|pi")
COEFFICIENT_FORM = frozenset(("a+bi", "a + bi", "x+yi", "x + iy"))
EDGES = ".,:;?! "


@dataclass(frozen=True, slots=True)
class Request:
    """words in lower case; formulas in order, listings taken apart, single letters left out."""

    words: tuple[str, ...]
    formulas: tuple[Tree, ...]
    unread: int

    def says(self, *words: str) -> bool:
        return any(word in self.words for word in words)

    def only(self, *more: str) -> bool:
        """Whether every word is a plain one: any other may change what is asked for."""
        return set(self.words) <= PLAIN | set(more)


PLAIN = words(
    "find compute calculate evaluate determine give what is the of for a an and if with to in its "
    "let given that please work out function expression value f result respect by all show"
)


def read_problem(problem: str) -> Request:
    """Words and formulas; `unread` counts the pieces that look like a formula and are none."""
    marked = ["".join(groups) for groups in MARKED.findall(problem)]
    if marked:
        prose = [word.strip(EDGES).lower() for word in MARKED.sub(" ", problem).split()]
        pieces = marked
    else:
        prose, pieces = _split(problem.split()[:MAX_WORDS])
    trees: list[Tree] = []
    unread = 0
    for piece in pieces[: 4 * MAX_FORMULAS]:
        text = piece.strip(EDGES)
        if not text or text in COEFFICIENT_FORM:
            continue
        try:
            tree = parse(text)
        except FormulaError:
            unread += 1
            continue
        trees.extend(tree.items if isinstance(tree, Listing) else (tree,))
    formulas = tuple(tree for tree in trees if not isinstance(tree, Symbol))
    return Request(tuple(word for word in prose if word), formulas[:MAX_FORMULAS], unread)


def _split(text: list[str]) -> tuple[list[str], list[str]]:
    """Prose words, and the runs of anything else between them."""
    prose: list[str] = []
    runs: list[list[str]] = [[]]
    for word in text:
        bare = word.strip(EDGES)
        if ALPHABETIC.fullmatch(bare) and bare not in FUNCTIONS and not TWO_LETTERS.fullmatch(bare):
            prose.append(bare.lower())
            runs.append([])
            continue
        runs[-1].append(word)
        if word[-1] in ":;":
            runs.append([])
    return prose, [" ".join(run) for run in runs]
