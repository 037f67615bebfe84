"""Calculus of polynomials: each term is one fact."""

from random import Random

from minillm.problems import latex
from minillm.problems.latex import nonzero
from minillm.problems.problem import Claim, Draft, Family, holds


def derivative_steps(coefficients: list[int], letter: str = "x") -> list[Claim]:
    """`(3x^{2})'=6x` for each term, highest power first; coefficients are constant first."""
    steps = []
    for n in reversed(range(len(coefficients))):
        if c := coefficients[n]:
            term = latex.times(c, latex.power(letter, n))
            derived = latex.times(n * c, latex.power(letter, max(n - 1, 0)))
            steps.append(holds(f"({term})'={derived}"))
    return steps


def antiderivative_steps(coefficients: list[int], letter: str = "x") -> list[Claim]:
    """`6x=(3x^{2})'` for each term of the derivative of the given polynomial."""
    return [
        holds(
            f"{latex.times(n * c, latex.power(letter, n - 1))}"
            f"=({latex.times(c, latex.power(letter, n))})'"
        )
        for n in reversed(range(1, len(coefficients)))
        if (c := coefficients[n])
    ]


def derived(coefficients: list[int]) -> list[int]:
    return [n * c for n, c in enumerate(coefficients)][1:]


def _sparse(rng: Random, exponents: range, count: int, bound: int) -> list[int]:
    """`count` nonzero coefficients within `bound` on random exponents, leading one positive."""
    chosen = sorted(rng.sample(exponents, count))
    coefficients = [0] * (chosen[-1] + 1)
    for n in chosen:
        coefficients[n] = nonzero(rng, bound)
    # Three in four lead with a plus, as textbooks do.
    if rng.random() < 0.5:
        coefficients[-1] = abs(coefficients[-1])
    return coefficients


def polynomial_derivative(rng: Random, level: int) -> Draft:
    """Level 0: two to four terms, degree at most 4, coefficients 1..9 in size.

    Level 1: up to five terms, degree 7, coefficients 1..12.
    Key: the polynomial up to a constant factor.
    """
    degree, most, bound = ((4, 4, 9), (7, 5, 12))[level]
    coefficients = _sparse(rng, range(degree + 1), rng.randint(2, most), bound)
    letter = "x" if level == 0 else rng.choice("xxxtu")
    f = latex.polynomial(coefficients, letter)
    name = rng.choice("fffgh")
    problem = rng.choice(
        (
            f"Find the derivative of {name}({letter})={f}",
            f"Find the derivative of {name}({letter}) = {latex.plain(f)}",
            f"Differentiate {name}({letter}) = {latex.plain(f)}",
            f"Differentiate {f}",
            f"Compute {name}'({letter}) for {name}({letter})={f}",
        )
    )
    return Draft(
        problem,
        ("Differentiate each term.", *derivative_steps(coefficients, letter)),
        latex.polynomial(derived(coefficients), letter),
        "expression",
        Claim("derivative", f),
        latex.primitive(coefficients, signed=True),
    )


def polynomial_integral(rng: Random, level: int) -> Draft:
    """Built back from an antiderivative with integer coefficients.

    Level 0: two or three terms, degree at most 4 there, coefficients 1..5 in size.
    Level 1: up to four terms, degree 6, coefficients 1..9.
    Key: the integrand up to a constant factor.
    """
    degree, most, bound = ((4, 3, 5), (6, 4, 9))[level]
    coefficients = _sparse(rng, range(1, degree + 1), rng.randint(2, most), bound)
    letter = "x" if level == 0 else rng.choice("xxxtu")
    f = latex.polynomial(derived(coefficients), letter)
    problem = rng.choice(
        (
            rf"Find \int({f})d{letter}",
            rf"Compute \int({f})d{letter}",
            f"Integrate {f}",
            f"Find all antiderivatives of f({letter})={f}",
            f"Integrate f({letter}) = {latex.plain(f)}",
        )
    )
    return Draft(
        problem,
        ("Integrate each term.", *antiderivative_steps(coefficients, letter)),
        latex.polynomial(coefficients, letter) + "+C",
        "antiderivative",
        Claim("antiderivative", f),
        latex.primitive(derived(coefficients), signed=True),
    )


FAMILIES = {
    "polynomial_derivative": Family(
        polynomial_derivative, "derivative, term by term", (None, None)
    ),
    "polynomial_integral": Family(
        polynomial_integral, "antiderivative, term by term", (2068, None)
    ),
}
