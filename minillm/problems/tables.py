r"""Arithmetic tables: the facts that every solution leans on, in the form in which it states them.

A small model learns the shape of a solution long before it learns that 9 + 6 is 15, because a
solution holds many tokens of shape and few of arithmetic. A table is nothing but facts.
"""

from random import Random

FACTS = 16

# Share of the tables, and how large the first and the second number can be: most steps of the
# easiest level add one-digit numbers, few of them larger ones.
_SUMS = ((0.55, 9, 9), (0.30, 20, 20), (0.15, 81, 60))
_LARGEST_FACTOR = 12


def arithmetic_table(seed: int, index: int) -> str:
    r"""Sixteen facts, a line each: `-7+12=5`, `3\cdot 8=24`, `\frac{-24}{3}=-8`.

    Deterministic by (seed, index), in every process.
    """
    rng = Random(f"table/{seed}/{index}")
    return "\n".join(_fact(rng) for _ in range(FACTS))


def _fact(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.75:
        _, first, second = rng.choices(_SUMS, weights=[share for share, _, _ in _SUMS])[0]
        a, b = rng.randint(-first, first), rng.randint(0, second)
        return f"{a}+{b}={a + b}" if rng.random() < 0.5 else f"{a}-{b}={a - b}"
    a, b = rng.randint(-_LARGEST_FACTOR, _LARGEST_FACTOR), rng.randint(1, _LARGEST_FACTOR)
    if kind < 0.9:
        return rf"{a}\cdot {b}={a * b}"
    return rf"\frac{{{a * b}}}{{{b}}}={a}"
