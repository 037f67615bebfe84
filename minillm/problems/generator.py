"""Draws problems by (seed, index): random access, the same in every process and on every day."""

import hashlib
from collections.abc import Iterator, Sequence
from random import Random
from typing import Literal, TypeVar

from minillm.core.errors import UserError
from minillm.problems import (
    algebra,
    calculus,
    complex_analysis,
    differential_equations,
    linear_algebra,
    optimization,
)
from minillm.problems.problem import Family, Problem

Split = Literal["train", "validation", "test"]
T = TypeVar("T")

FAMILIES: dict[str, dict[str, Family]] = {
    "algebra": algebra.FAMILIES,
    "calculus": calculus.FAMILIES,
    "linear_algebra": linear_algebra.FAMILIES,
    "complex_analysis": complex_analysis.FAMILIES,
    "differential_equations": differential_equations.FAMILIES,
    "optimization": optimization.FAMILIES,
}
DOMAINS: tuple[str, ...] = tuple(FAMILIES)
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
LEVELS: tuple[int, ...] = (0, 1)

# A stream whose split is used up ends after so many draws in a row without a new problem.
_PATIENCE = 20_000


def families(domain: str) -> tuple[str, ...]:
    """The names of a domain's families."""
    return tuple(FAMILIES[_one_of("domain", domain, DOMAINS)])


def make(
    seed: int,
    index: int,
    domain: str | None = None,
    family: str | None = None,
    level: int | None = None,
) -> Problem:
    """The problem at `index` of the stream `seed`; what is not given is drawn.

    Naming what would have been drawn gives the same problem. A domain is drawn first and then
    one of its families, so that every domain has the same share however many families it has.

    Raises:
        UserError: unknown domain, family or level.
    """
    # Strings seed Random through SHA-512, not through the salted hash().
    choice = Random(f"{seed}/{index}/choice")
    drawn_domain = choice.choice(DOMAINS)
    if domain is not None:
        drawn_domain = domain
    elif family is not None:
        drawn_domain = _domain_of(family)
    names = families(drawn_domain)
    drawn_family = choice.choice(names)
    if family is not None:
        drawn_family = _one_of(f"family of {drawn_domain}", family, names)
    drawn_level = choice.choice(LEVELS)
    if level is not None:
        drawn_level = _one_of("level", level, LEVELS)
    rng = Random(f"{seed}/{index}/{drawn_domain}/{drawn_family}/{drawn_level}")
    draft = FAMILIES[drawn_domain][drawn_family].make(rng, drawn_level)
    return draft.finish(domain=drawn_domain, family=drawn_family, level=drawn_level)


def split_of(problem: Problem) -> Split:
    """80 % train, 8 % validation, 12 % test, by the SHA-256 of the canonical key."""
    share = int.from_bytes(hashlib.sha256(problem.key.encode()).digest()[:8], "big") % 100
    return "train" if share < 80 else "validation" if share < 88 else "test"


def stream(
    seed: int,
    split: Split,
    domains: Sequence[str] | None = None,
    levels: Sequence[int] = (0,),
    start: int = 0,
) -> Iterator[tuple[int, Problem]]:
    """The problems of one split with their index, from index `start` on, none twice.

    In the train split a problem may come back in other words; in validation and test each key
    comes once, so that the problems counted there are independent. What was yielded before
    `start` is not known here. A family whose keys are used up falls silent while the others go
    on; the stream ends when nothing new comes any more.

    Raises:
        UserError: unknown split, domain or level.
    """
    _one_of("split", split, SPLITS)
    allowed = tuple(
        _one_of("domain", d, DOMAINS) for d in (DOMAINS if domains is None else domains)
    )
    for level in levels:
        _one_of("level", level, LEVELS)
    seen: set[str] = set()
    index, missed = start, 0
    while missed < _PATIENCE:
        choice = Random(f"{seed}/{index}/stream")
        problem = make(seed, index, choice.choice(allowed), level=choice.choice(levels))
        name = problem.problem if split == "train" else problem.key
        missed += 1
        if name not in seen and split_of(problem) == split:
            seen.add(name)
            missed = 0
            yield index, problem
        index += 1


def _domain_of(family: str) -> str:
    every = {name: domain for domain, names in FAMILIES.items() for name in names}
    return every[_one_of("family", family, tuple(every))]


def _one_of(field: str, got: T, wanted: Sequence[T]) -> T:
    if got not in wanted:
        raise UserError(
            field=field,
            got=repr(got),
            wanted=f"one of {', '.join(map(repr, wanted))}",
            fix="use one of these names",
        )
    return got
