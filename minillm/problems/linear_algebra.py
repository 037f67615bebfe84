"""Linear algebra with small integer matrices: each entry is one line."""

from random import Random

from minillm.problems import latex
from minillm.problems.problem import Claim, Draft, Family, holds


def _entries(rng: Random, level: int, count: int, bound: int) -> list[int]:
    """0..bound at level 0, from level 1 on of either sign; at most half of them zero."""
    entries = [0] * count
    while 2 * entries.count(0) > count:
        entries = [rng.randint(-bound if level else 0, bound) for _ in range(count)]
    return entries


def matrix_sum(rng: Random, level: int) -> Draft:
    """The sum of two 2x2 matrices. Level 0: entries 0..9. Level 1: -20..20.

    Key: the two matrices in order of size.
    """
    first, second = (_entries(rng, level, 4, (9, 20)[level]) for _ in range(2))
    left, right = latex.matrix([first[:2], first[2:]]), latex.matrix([second[:2], second[2:]])
    sums = [a + b for a, b in zip(first, second, strict=True)]
    problem = rng.choice(
        (
            f"Compute {left}+{right}",
            f"Add the matrices {left} and {right}",
            f"Find A+B for A={left}, B={right}",
            f"Find the sum {left}+{right}",
        )
    )
    steps = tuple(
        holds(f"{a}+{latex.bracketed(str(b))}={a + b}") for a, b in zip(first, second, strict=True)
    )
    return Draft(
        problem,
        steps,
        latex.matrix([sums[:2], sums[2:]]),
        "matrix",
        Claim("matrix_sum", left, (right,)),
        "{}/{}".format(*sorted((str(first), str(second)))).replace(" ", ""),
    )


def matrix_vector_product(rng: Random, level: int) -> Draft:
    """A 2x2 matrix times a vector. Level 0: entries 0..4, vector 0..3. Level 1: -9..9.

    Key: matrix and vector.
    """
    a, b, c, d = _entries(rng, level, 4, (4, 9)[level])
    x, y = _entries(rng, level, 2, (3, 9)[level])
    left, right = latex.matrix([[a, b], [c, d]]), latex.matrix([[x], [y]])
    problem = rng.choice(
        (
            f"Compute {left}{right}",
            f"Multiply {left}{right}",
            f"Find Av for A={left}, v={right}",
            f"Find the product {left}{right}",
        )
    )
    steps = tuple(
        holds(
            f"{latex.product(str(p), str(x))}+{latex.product(latex.bracketed(str(q)), str(y))}"
            f"={p * x}{q * y:+}={p * x + q * y}"
        )
        for p, q in ((a, b), (c, d))
    )
    return Draft(
        problem,
        steps,
        latex.matrix([[a * x + b * y], [c * x + d * y]]),
        "matrix",
        Claim("matrix_product", left, (right,)),
        f"{a},{b},{c},{d}/{x},{y}",
    )


def determinant_2x2(rng: Random, level: int) -> Draft:
    """ad - bc. Level 0: entries 0..4. Level 1: -9..9. Key: the matrix."""
    a, b, c, d = _entries(rng, level, 4, (4, 9)[level])
    printed = latex.matrix([[a, b], [c, d]])
    problem = rng.choice(
        (
            f"Find the determinant of {printed}",
            f"Compute the determinant of {printed}",
            rf"Compute \det{printed}",
            rf"Find \det A for A={printed}",
        )
    )
    step = (
        f"{latex.product(str(a), str(d))}-{latex.product(latex.bracketed(str(b)), str(c))}"
        f"={a * d}-{latex.bracketed(str(b * c))}={a * d - b * c}"
    )
    return Draft(
        problem,
        (holds(step),),
        str(a * d - b * c),
        "expression",
        Claim("determinant", printed),
        f"{a},{b},{c},{d}",
    )


FAMILIES = {
    "matrix_sum": Family(matrix_sum, "sum of two 2x2 matrices", (None, None)),
    "matrix_vector_product": Family(
        matrix_vector_product, "2x2 matrix times a vector", (9120, None)
    ),
    "determinant_2x2": Family(determinant_2x2, "determinant of a 2x2 matrix", (608, None)),
}
