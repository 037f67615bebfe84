"""Arithmetic tables: true, and the same wherever they are made."""

import re
from fractions import Fraction

from minillm.problems import arithmetic_table
from minillm.problems.tables import FACTS

_FACT = re.compile(r"(-?\d+)(\+|-|\\cdot )(\d+)=(-?\d+)|\\frac\{(-?\d+)\}\{(\d+)\}=(-?\d+)")


def _is_true(line):
    a, sign, b, c, above, below, quotient = _FACT.fullmatch(line).groups()
    if above:
        return Fraction(int(above), int(below)) == int(quotient)
    value = {"+": int(a) + int(b), "-": int(a) - int(b), "\\cdot ": int(a) * int(b)}[sign]
    return value == int(c)


def test_every_fact_of_a_table_is_true():
    lines = [line for index in range(100) for line in arithmetic_table(0, index).splitlines()]
    assert len(lines) == 100 * FACTS
    assert all(map(_is_true, lines))


def test_one_digit_sums_and_differences_all_occur():
    lines = {line for index in range(2000) for line in arithmetic_table(0, index).splitlines()}
    wanted = {f"{a}+{b}={a + b}" for a in range(-9, 10) for b in range(10)}
    wanted |= {f"{a}-{b}={a - b}" for a in range(-9, 10) for b in range(10)}
    assert wanted <= lines


def test_table_depends_on_seed_and_index_alone():
    assert arithmetic_table(1, 2) == arithmetic_table(1, 2)
    assert len({arithmetic_table(seed, index) for seed in (0, 1) for index in range(50)}) == 100
