"""Algebra: equations and proofs of identities.

Each solution reaches its answer by steps of one fact: one sum, one quotient, one product.
"""

from random import Random

from minillm.problems import latex
from minillm.problems.latex import nonzero
from minillm.problems.problem import Claim, Draft, Family, holds


def linear_equation(rng: Random, level: int) -> Draft:
    """x + b = c, ax = c and ax + b = c, with an integer solution.

    Level 0: sums within 0..20, products from the times table.
    Level 1: a and the solution to 12, b to 40, of either sign.
    Key: a, b, c up to a common factor.
    """
    shape = rng.choice(("shift", "shift", "scale", "both", "both", "both"))
    if level == 0:
        a, b, root = _small_linear(rng, shape)
    else:
        root = rng.randint(-12, 12)
        a = 1 if shape == "shift" else rng.choice((-1, 1)) * rng.randint(2, 12)
        b = 0 if shape == "scale" else nonzero(rng, 40)
    letter = "x" if level == 0 else rng.choice("xxxtu")
    c = a * root + b
    equation = f"{latex.polynomial([b, a], letter)}={c}"
    answer = f"{letter}={root}"
    lines = []
    if b:
        lines.append(f"{latex.times(a, letter)}={c}{-b:+}={c - b}")
    if a != 1:
        lines.append(f"{letter}={latex.fraction(c - b, a)}={root}")
    problem = rng.choice(
        (
            f"Solve {equation}",
            f"Solve the equation {equation}",
            f"Solve for {letter}: {equation}",
            f"Find {letter} if {latex.plain(equation)}",
        )
    )
    return Draft(
        problem,
        tuple(holds(line, answer) for line in lines),
        answer,
        "expression",
        Claim("solutions", equation),
        latex.primitive([c, b, a], signed=True),
    )


def _small_linear(rng: Random, shape: str) -> tuple[int, int, int]:
    """(a, b, root) of level 0: in sums, root, |b| and a * root + b within 0..20."""
    if shape == "scale":
        return rng.randint(2, 9), 0, rng.randint(1, 9)
    # Uniform over the pairs: a first would make most solutions 1.
    sizes = (1,) if shape == "shift" else range(2, 10)
    a, root = rng.choice([(a, root) for a in sizes for root in range(1, 20 // a + 1)])
    b = rng.choice([n for n in range(-a * root, 21 - a * root) if n])
    return a, b, root


def identity_proof(rng: Random, level: int) -> Draft:
    """Expansions: (ax + b)(cx + d), and m(x + b) + n(x + d), multiplied out and collected.

    Level 0: a = c = 1, b in 1..9, d 1..9 in size; in the sum m, n in 2..5 and b, d in 1..5.
    Level 1: a, c in 1..5, the others to 9 and of either sign.
    Key: the factors or the terms in order of size.
    """
    left, right, steps, key = (_product if rng.random() < 0.5 else _sum)(rng, level)
    problem = rng.choice(
        (
            f"Prove that {left}={right}",
            f"Show that {left}={right}",
            f"Prove the identity {left}={right}",
            f"Show: {latex.plain(f'{left}={right}')}",
        )
    )
    statement = f"{left}={right}"
    return Draft(problem, steps, statement, "proof", Claim("identity", statement), key)


def _product(rng: Random, level: int) -> tuple[str, str, tuple[Claim, ...], str]:
    if level == 0:
        a, b, c, d = 1, rng.randint(1, 9), 1, nonzero(rng, 9)
    else:
        a, b, c, d = rng.randint(1, 5), nonzero(rng, 9), rng.randint(1, 5), nonzero(rng, 9)
    first, second = f"({latex.polynomial([b, a])})", f"({latex.polynomial([d, c])})"
    left = f"{first}^{{2}}" if first == second else f"{first}{second}"
    leading, constant = latex.times(a, f"x{second}"), latex.times(b, second)
    middle = latex.total([latex.times(a * d, "x"), latex.times(b * c, "x")])
    lines = [
        f"{left}={latex.total([leading, constant])}",
        f"{leading}={latex.polynomial([0, a * d, a * c])}",
        # With b = 1 there is nothing to multiply out.
        *([f"{constant}={latex.polynomial([b * d, b * c])}"] if b != 1 else []),
        f"{middle}={latex.times(a * d + b * c, 'x')}",
    ]
    right = latex.polynomial([b * d, a * d + b * c, a * c])
    key = "product/{}/{}".format(*sorted((f"{a},{b}", f"{c},{d}")))
    return left, right, tuple(map(holds, lines)), key


def _sum(rng: Random, level: int) -> tuple[str, str, tuple[Claim, ...], str]:
    if level == 0:
        m, n = rng.randint(2, 5), rng.randint(2, 5)
        b, d = rng.randint(1, 5), rng.randint(1, 5)
    else:
        m, b, d = rng.randint(2, 9), nonzero(rng, 9), nonzero(rng, 9)
        n = rng.choice((-1, 1)) * rng.randint(2, 9)
    first = latex.times(m, f"({latex.polynomial([b, 1])})")
    second = latex.times(n, f"({latex.polynomial([d, 1])})")
    left, right = latex.total([first, second]), latex.polynomial([m * b + n * d, m + n])
    lines = [
        f"{first}={latex.polynomial([m * b, m])}",
        f"{second}={latex.polynomial([n * d, n])}",
        f"{latex.total([latex.times(m, 'x'), latex.times(n, 'x')])}={latex.times(m + n, 'x')}",
        f"{m * b}{n * d:+}={m * b + n * d}",
    ]
    key = "sum/{}/{}".format(*sorted((f"{m},{b}", f"{n},{d}")))
    return left, right, tuple(map(holds, lines)), key


def quadratic_equation(rng: Random, level: int) -> Draft:
    """Two integer roots.

    Level 0: a product of two linear factors is zero, roots to 15.
    Level 1: expanded and perhaps multiplied by 2 or 3, by the discriminant, roots to 12.
    Key: the two roots.
    """
    bound = (15, 12)[level]
    r, s = rng.sample(range(-bound, bound + 1), 2)
    while level and r * s * (r + s) == 0:
        # Without its middle or its last term an equation wants no discriminant.
        r, s = rng.sample(range(-bound, bound + 1), 2)
    if level == 0:
        equation = f"{_factors(r, s)}=0"
        steps: tuple[Claim | str, ...] = (*_root_steps(r), *_root_steps(s))
    else:
        a = rng.choice((1, 1, 1, 2, 3))
        r, s = max(r, s), min(r, s)
        equation = f"{latex.polynomial([a * r * s, -a * (r + s), a])}=0"
        steps = ("Use the discriminant.", *_discriminant_steps(a, -a * (r + s), a * r * s))
    problem = rng.choice(
        (
            f"Solve {equation}",
            f"Find all solutions of {equation}",
            f"Solve the equation {equation}",
            f"Solve {latex.plain(equation)}",
        )
    )
    key = "{},{}".format(*sorted((r, s)))
    return Draft(problem, steps, latex.finite_set((r, s)), "set", Claim("solutions", equation), key)


def _factors(r: int, s: int) -> str:
    # A bare x comes first: x(x-3), not (x-3)x.
    return latex.factor(r) + latex.factor(s) if s else latex.factor(s) + latex.factor(r)


def _root_steps(root: int) -> list[Claim]:
    lines = [f"x={root}"] if root == 0 else [f"{latex.polynomial([-root, 1])}=0", f"x={root}"]
    return [holds(line, f"x={root}") for line in lines]


def _discriminant_steps(a: int, b: int, c: int) -> list[Claim]:
    """From D = b^2 - 4ac to both roots, the larger first."""
    discriminant = b * b - 4 * a * c
    root = round(discriminant**0.5)
    square = f"{latex.bracketed(str(b))}^{{2}}"
    four_a_c = latex.product("4", str(c))
    if a != 1:
        four_a_c = rf"4\cdot {latex.product(str(a), str(c))}={latex.product(str(4 * a), str(c))}"
    lines = [
        f"{square}={b * b}",
        f"{four_a_c}={4 * a * c}",
        f"D={b * b}{-4 * a * c:+}={discriminant}",
        rf"\sqrt{{{discriminant}}}={root}",
    ]
    for sign in (root, -root):
        quotient = latex.fraction(-b + sign, 2 * a)
        numerator = latex.fraction(f"{-b}{sign:+}", 2 * a)
        lines.append(f"{numerator}={quotient}={(-b + sign) // (2 * a)}")
    return [holds(line, f"D={discriminant}") for line in lines]


FAMILIES = {
    "linear_equation": Family(linear_equation, "ax + b = c with an integer solution", (812, None)),
    "identity_proof": Family(identity_proof, "expand and collect, one fact a line", (336, None)),
    "quadratic_equation": Family(quadratic_equation, "two integer roots", (465, 264)),
}
