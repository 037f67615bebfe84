"""Optimization in one variable: where a function is flat, largest or smallest."""

from random import Random

from minillm.problems import latex
from minillm.problems.calculus import derivative_steps
from minillm.problems.latex import nonzero
from minillm.problems.problem import Claim, Draft, Family, holds


def critical_point_quadratic(rng: Random, level: int) -> Draft:
    """Where the derivative of ax^2 + bx + c is zero.

    Level 0: a in 1..4, the point 1..9 and c 1..9 in size.
    Level 1: a 1..9 of either sign, the point to 12, c to 40.
    Key: a, b, c up to a common factor.
    """
    a = rng.randint(1, 4) if level == 0 else nonzero(rng, 9)
    x, c = nonzero(rng, (9, 12)[level]), nonzero(rng, (9, 40)[level])
    b = -2 * a * x
    f, answer = latex.polynomial([c, b, a]), f"x={x}"
    problem = rng.choice(
        (
            f"Find the critical point of f(x)={f}",
            f"Find x with f'(x)=0 for f(x)={f}",
            f"Where is the derivative of f(x) = {latex.plain(f)} zero?",
            f"Find the critical point of {f}",
        )
    )
    steps = (
        *derivative_steps([c, b, a]),
        holds(f"{latex.polynomial([b, 2 * a])}=0", answer),
        holds(f"x={latex.fraction(-b, 2 * a)}={x}", answer),
    )
    return Draft(
        problem,
        steps,
        answer,
        "expression",
        Claim("stationary", f),
        latex.primitive([c, b, a], signed=True),
    )


def linear_on_interval(rng: Random, level: int) -> Draft:
    """The largest or smallest value of ax + b on an interval: both ends, then the comparison.

    Level 0: a 1..5 in size, b 1..9 in size, ends within 0..5.
    Level 1: a to 9, b to 30, ends within -9..9.
    Key: a, b, the interval and which of the two values.
    """
    a, b = nonzero(rng, (5, 9)[level]), nonzero(rng, (9, 30)[level])
    ends = sorted(rng.sample(range((0, -9)[level], (6, 10)[level]), 2))
    kind = rng.choice(("maximum", "minimum"))
    f, interval = latex.polynomial([b, a]), "[{},{}]".format(*ends)
    problem = rng.choice(
        (
            f"Find the {kind} of f(x)={f} on {interval}",
            f"Find the {kind} value of {f} on {interval}",
            f"What is the {kind} of f(x)={f} for x in {interval}?",
            f"Find the {kind} of f(x) = {latex.plain(f)} on {interval}",
        )
    )
    values = [a * x + b for x in ends]
    where = f"f(x)={f}"
    steps = tuple(holds(f"f({x}){_value_chain(a, x, b)}", where) for x in ends)
    answer = str(max(values) if kind == "maximum" else min(values))
    comparison = holds("{}<{}".format(*sorted(values)))
    return Draft(
        problem,
        ("Compare the ends.", *steps, comparison),
        answer,
        "expression",
        Claim(kind, f, (interval,)),
        f"{kind}/{a},{b}/{interval}",
    )


def _value_chain(a: int, x: int, b: int) -> str:
    r"""`=3\cdot 2+1=6+1=7`; without the product where a is 1 or -1 and it says nothing."""
    value = f"={a * x}{b:+}={a * x + b}"
    return value if abs(a) == 1 else f"={latex.product(str(a), str(x))}{b:+}{value}"


def quadratic_vertex(rng: Random, level: int) -> Draft:
    """The lowest point of a parabola by completing the square.

    Level 0: x^2 + bx + c with the point at 1..6 in size and height -12..12.
    Level 1: ax^2 + bx + c with a in 1..5 and the point at 1..9 in size, height -30..30.
    Key: a, b and c.
    """
    a = 1 if level == 0 else rng.randint(1, 5)
    x, height = nonzero(rng, (6, 9)[level]), rng.randint(*((-12, 12), (-30, 30))[level])
    b, c = -2 * a * x, a * x * x + height
    f = latex.polynomial([c, b, a])
    problem = rng.choice(
        (
            f"Find the lowest point of y={f}",
            f"Find the vertex of y={f}",
            f"Find the minimum point of the parabola y={f}",
            f"Find the vertex of y = {latex.plain(f)}",
        )
    )
    square = f"({latex.polynomial([-x, 1])})^{{2}}"
    lines = []
    if a != 1:
        inner = f"({latex.polynomial([0, -2 * x, 1])})"
        lines.append(f"{latex.polynomial([0, b, a])}={latex.times(a, inner)}")
    lines.append(f"{latex.polynomial([0, -2 * x, 1])}={square}{-x * x}")
    if a != 1:
        lines.append(f"{latex.product(str(a), str(-x * x))}={-a * x * x}")
    if c:
        lines.append(f"{-a * x * x}{c:+}={height}")
    vertex_form = latex.total([latex.times(a, square), *([str(height)] if height else [])])
    steps = (*map(holds, lines), holds(f"y={vertex_form}", f"y={f}"))
    return Draft(
        problem,
        ("Complete the square.", *steps),
        f"({x},{height})",
        "point",
        Claim("vertex", f),
        f"{a},{b},{c}",
    )


FAMILIES = {
    "critical_point_quadratic": Family(
        critical_point_quadratic, "where f' = 0 for f = ax^2 + bx + c", (900, None)
    ),
    "linear_on_interval": Family(
        linear_on_interval, "largest or smallest value of ax + b on an interval", (5400, None)
    ),
    "quadratic_vertex": Family(
        quadratic_vertex, "lowest point of a parabola, completing the square", (300, 5490)
    ),
}
