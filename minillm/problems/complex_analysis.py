"""Complex numbers with integer parts."""

import math
from random import Random

from minillm.problems import latex
from minillm.problems.latex import complex_number, nonzero
from minillm.problems.problem import Claim, Draft, Family, holds


def complex_sum(rng: Random, level: int) -> Draft:
    """The sum of two numbers a + bi. Level 0: parts 1..9 in size, real parts positive.

    Level 1: parts 1..30 of either sign.
    Key: the two numbers in order of size.
    """
    bound = (9, 30)[level]
    a, c = (abs(n) if level == 0 else n for n in (nonzero(rng, bound), nonzero(rng, bound)))
    b, d = nonzero(rng, bound), nonzero(rng, bound)
    expression = f"({complex_number(a, b)})+({complex_number(c, d)})"
    z, w = complex_number(a, b), complex_number(c, d)
    problem = rng.choice(
        (
            f"Compute {expression}",
            f"Write {expression} as a+bi",
            f"Find the sum {expression}",
            f"Add {z} and {w}",
        )
    )
    imaginary = latex.total([latex.times(b, "i"), latex.times(d, "i")])
    return Draft(
        problem,
        (holds(f"{a}{c:+}={a + c}"), holds(f"{imaginary}={latex.times(b + d, 'i')}")),
        complex_number(a + c, b + d),
        "complex",
        Claim("complex_sum", z, (w,)),
        "{}/{}".format(*sorted((z, w))),
    )


def complex_product(rng: Random, level: int) -> Draft:
    """A product of two numbers, each pair of parts multiplied on its own line.

    Level 0: an integer 2..9 or ki (k in 1..4) times a + bi with parts 1..9 in size, or
    (a + bi)(c + di) with parts 1..3. Level 1: (a + bi)(c + di) with parts 1..9 of either sign.
    Key: the two factors in order of size.
    """
    shape = rng.choice(("integer", "imaginary", "both")) if level == 0 else "both"
    if shape == "both":
        a, b, c, d = (rng.randint(1, 3) if level == 0 else nonzero(rng, 9) for _ in range(4))
    else:
        c, d = nonzero(rng, 9), nonzero(rng, 9)
        a, b = (rng.randint(2, 9), 0) if shape == "integer" else (0, rng.randint(1, 4))
    z, w = complex_number(a, b), complex_number(c, d)
    expression = f"({z})({w})" if a and b else f"{z}({w})"
    problem = rng.choice(
        (
            f"Compute {expression}",
            f"Write {expression} as a+bi",
            f"Find the product {expression}",
            f"Multiply out {expression}",
        )
    )
    return Draft(
        problem,
        tuple(map(holds, _product_lines(a, b, c, d))),
        complex_number(a * c - b * d, a * d + b * c),
        "complex",
        Claim("value", expression),
        "{}/{}".format(*sorted((z, w))),
    )


def _product_lines(a: int, b: int, c: int, d: int) -> list[str]:
    """One product a line, then the real and the imaginary parts collected."""
    lines = []
    if a:
        lines.append(f"{latex.product(str(a), str(c))}={a * c}")
        lines.append(f"{latex.product(str(a), latex.times(d, 'i'))}={latex.times(a * d, 'i')}")
    if b:
        bi, di = latex.times(b, "i"), latex.times(d, "i")
        lines.append(f"{latex.product(bi, str(c))}={latex.times(b * c, 'i')}")
        lines.append(f"{latex.product(bi, di)}={latex.times(b * d, 'i^{2}')}={-b * d}")
    if a and b:
        lines.append(f"{a * c}{-b * d:+}={a * c - b * d}")
        imaginary = latex.total([latex.times(a * d, "i"), latex.times(b * c, "i")])
        lines.append(f"{imaginary}={latex.times(a * d + b * c, 'i')}")
    return lines


def modulus(rng: Random, level: int) -> Draft:
    """|a + bi|. Level 0: parts 1..12 in size, the sum of squares a square or squarefree.

    Level 1: parts 1..30 in size, a square factor taken out of the root.
    Key: a and b.
    """
    bound = (12, 30)[level]
    a, b = nonzero(rng, bound), nonzero(rng, bound)
    while level == 0 and _square_part(a * a + b * b) ** 2 not in (1, a * a + b * b):
        a, b = nonzero(rng, bound), nonzero(rng, bound)
    z = complex_number(a, b)
    problem = rng.choice(
        (
            f"Find |{z}|",
            f"Find the modulus of {z}",
            f"Compute |{z}|",
            f"Find the absolute value of z={z}",
        )
    )
    norm = a * a + b * b
    outside = _square_part(norm)
    inside = norm // outside**2
    answer = str(outside) if inside == 1 else rf"\sqrt{{{inside}}}"
    lines = [
        f"{latex.bracketed(str(a))}^{{2}}={a * a}",
        f"{latex.bracketed(str(b))}^{{2}}={b * b}",
        f"{a * a}+{b * b}={norm}",
    ]
    if inside == 1:
        lines.append(rf"\sqrt{{{norm}}}={answer}")
    elif outside > 1:
        answer = f"{outside}{answer}"
        lines.append(rf"\sqrt{{{norm}}}=\sqrt{{{outside**2}\cdot {inside}}}={answer}")
    return Draft(
        problem,
        ("Add the squares of both parts.", *map(holds, lines)),
        answer,
        "expression",
        Claim("modulus", z),
        f"{a},{b}",
    )


def _square_part(n: int) -> int:
    """The largest k whose square divides n."""
    return next(k for k in range(math.isqrt(n), 0, -1) if n % (k * k) == 0)


FAMILIES = {
    "complex_sum": Family(complex_sum, "(a + bi) + (c + di)", (None, None)),
    "complex_product": Family(complex_product, "products, up to (a + bi)(c + di)", (3933, None)),
    "modulus": Family(modulus, "|a + bi|", (364, 3600)),
}
