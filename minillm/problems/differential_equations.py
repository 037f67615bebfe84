"""Initial-value problems of first order."""

from random import Random

from minillm.problems import latex
from minillm.problems.calculus import antiderivative_steps, derived
from minillm.problems.latex import nonzero
from minillm.problems.problem import Claim, Draft, Family, holds


def _phrased(rng: Random, equation: str, start: str) -> str:
    return rng.choice(
        (
            f"Solve {equation}, {start}",
            f"Solve the initial value problem {equation}, {start}",
            f"Find y(x) if {equation} and {start}",
            f"Solve {latex.plain(equation)} with {latex.plain(start)}",
        )
    )


def initial_value_polynomial(rng: Random, level: int) -> Draft:
    """y' = polynomial, y(0) = c, built back from y with integer coefficients.

    Level 0: one or two terms, y of degree at most 3 with coefficients 1..4, c in -9..9.
    Level 1: two or three terms, degree 5, coefficients 1..9, c in -30..30.
    Key: the right side and c, up to a common factor.
    """
    degree, least, most, bound, start_bound = ((3, 1, 2, 4, 9), (5, 2, 3, 9, 30))[level]
    y = [0] * (degree + 1)
    for n in rng.sample(range(1, degree + 1), rng.randint(least, most)):
        y[n] = nonzero(rng, bound)
    c = rng.randint(-start_bound, start_bound)
    equation, start = f"y'={latex.polynomial(derived(y))}", f"y(0)={c}"
    solution = f"y={latex.polynomial([c, *y[1:]])}"
    where = (solution, f"C={c}")
    steps: tuple[Claim | str, ...] = (
        "Integrate each term.",
        *antiderivative_steps(y),
        holds(f"y={latex.polynomial(y)}+C", *where),
        holds(f"y(0)=C={c}", *where),
    )
    return Draft(
        _phrased(rng, equation, start),
        steps,
        solution,
        "function",
        Claim("initial_value", equation, (start,)),
        latex.primitive([c, *derived(y)], signed=True),
    )


def exponential_growth(rng: Random, level: int) -> Draft:
    """y' = ky, y(0) = c. Level 0: k 1..9 and c 1..20 in size. Level 1: y' + ky = 0 too, to 40.

    Key: k and c.
    """
    k, c = nonzero(rng, (9, 40)[level]), nonzero(rng, (20, 40)[level])
    equation = f"y'={latex.times(k, 'y')}"
    isolate: list[Claim] = []
    solution = f"y={latex.times(c, latex.exponential(k))}"
    where = (solution, f"C={c}")
    if level and rng.random() < 0.5:
        isolate = [holds(equation, *where)]
        equation = latex.total(["y'", latex.times(-k, "y")]) + "=0"
    growth = latex.exponential(k)
    steps: tuple[Claim | str, ...] = (
        *isolate,
        holds(f"y=C{growth}", *where),
        holds(f"y'={latex.times(k, f'C{growth}')}={latex.times(k, 'y')}", *where),
        holds(f"y(0)=C={c}", *where),
    )
    return Draft(
        _phrased(rng, equation, f"y(0)={c}"),
        steps,
        solution,
        "function",
        Claim("initial_value", equation, (f"y(0)={c}",)),
        f"{k},{c}",
    )


def constant_forcing(rng: Random, level: int) -> Draft:
    """y' = ky + m, y(0) = c: the constant solution p, and a multiple of e^{kx} added to it.

    Level 0: k in 1..5, p and c in 1..9. Level 1: k 1..9, p and c 1..20 in size.
    Key: k, p and c.
    """
    if level == 0:
        k, p = rng.randint(1, 5), rng.randint(1, 9)
        c = rng.choice([n for n in range(1, 10) if n != p])
    else:
        k, p = nonzero(rng, 9), nonzero(rng, 20)
        c = rng.choice([n for n in range(-20, 21) if n != p])
    equation, start = f"y'={latex.times(k, 'y')}{-k * p:+}", f"y(0)={c}"
    growth = latex.exponential(k)
    solution = f"y={latex.total([latex.times(c - p, growth), str(p)])}"
    where = (solution, f"C={c - p}", f"p={p}")
    lines = [f"{latex.times(k, 'p')}{-k * p:+}=0"]
    lines += [f"p={latex.fraction(k * p, k)}={p}" if k != 1 else f"p={p}"]
    lines += [f"y=C{growth}{p:+}", f"y(0)=C{p:+}={c}", f"C={c}{-p:+}={c - p}"]
    return Draft(
        _phrased(rng, equation, start),
        ("Find the constant solution p.", *(holds(line, *where) for line in lines)),
        solution,
        "function",
        Claim("initial_value", equation, (start,)),
        f"{k},{p},{c}",
    )


FAMILIES = {
    "initial_value_polynomial": Family(
        initial_value_polynomial, "y' = polynomial with y(0) given", (1719, None)
    ),
    "exponential_growth": Family(exponential_growth, "y' = ky with y(0) given", (720, 6400)),
    "constant_forcing": Family(constant_forcing, "y' = ky + m with y(0) given", (360, None)),
}
