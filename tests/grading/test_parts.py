"""Parser, evaluation and derivatives, against trees written out and against SymPy."""

from fractions import Fraction

import pytest
import sympy

from minillm.grading.compare import same_value
from minillm.grading.differentiate import differentiate
from minillm.grading.evaluate import rational_value
from minillm.grading.lexer import MAX_CHARACTERS, MAX_DIGITS, FormulaError
from minillm.grading.parser import MAX_DEPTH, parse
from minillm.grading.symbolic import to_sympy
from minillm.grading.tree import Add, Multiply, Negate, Number, Power, Symbol

X = Symbol("x")


def n(value: int) -> Number:
    return Number(Fraction(value))


def test_a_polynomial_is_a_flat_sum():
    tree = Add((Power(X, n(3)), Negate(Multiply((n(2), X))), n(1)))
    for text in ("x^3-2x+1", "x^{3} - 2x + 1", "x³ − 2·x + 1", r"x^{3}-2\cdot x+1", "x**3-2*x+1"):
        assert parse(text) == (
            tree if "·" not in text and "cdot" not in text and "*" not in text else parse(text)
        )
        assert same_value(parse(text), tree)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x³", "x^{3}"),
        ("x¹²", "x^{12}"),
        ("x⁻¹", r"\frac{1}{x}"),
        (r"\frac12x", "x/2"),
        (r"\sin 2x\cos x", r"\sin(2x)\cdot\cos(x)"),
        (r"\sin^2x", r"(\sin x)^2"),
        (r"\ln x^2", r"\ln(x^2)"),
        ("xsinx", r"x\sin(x)"),
        (r"\left(x+1\right)^{2}", "(x+1)^2"),
        (r"\left|x-\left|y\right|\right|", "|x-|y||"),
        ("2^3^2", "512"),
        ("-3^2", "-9"),
        ("1/2x", r"\frac{x}{2}"),
        ("√2", r"\sqrt{2}"),
        (r"30^\circ", r"\frac{\pi}{6}"),
        (r"\binom{5}{2}", "10"),
        (r"\mathrm{e}^{x}", r"\exp(x)"),
        (r"\frac{\mathrm{d}}{\mathrm{d}x}x^2", "2x"),
        (r"\frac{d^2}{dx^2}x^4", "12x^2"),
        ("d/dx (x^2)", "2x"),
        ("α+β", r"\alpha+\beta"),
        ("C₁", "C_{1}"),
        ("1{,}000", "1000"),
        (r"|\begin{pmatrix}1&2\\3&4\end{pmatrix}|", "-2"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}^{-1}", "[[-2,1],[1.5,-0.5]]"),
    ],
)
def test_two_ways_of_writing_are_one_value(one, other):
    assert same_value(parse(one), parse(other)) is True


@pytest.mark.parametrize(
    "text",
    [
        "x" * (MAX_CHARACTERS + 1),
        "+".join(["x"] * 300),
        "7" * (MAX_DIGITS + 1),
        "(" * (MAX_DEPTH + 1) + "x" + ")" * (MAX_DEPTH + 1),
        "x+",
        "(x",
        r"\frac{1}",
        r"\unknown{x}",
        r"\begin{pmatrix}1&2\\3\end{pmatrix}",
        r"\int x",
        "",
        "x @ y",
    ],
)
def test_what_is_no_formula_or_too_large_is_refused(text):
    with pytest.raises(FormulaError):
        parse(text)


FUNCTIONS = [
    "x^{5}-3x^{2}+7", r"\frac{x+1}{x^{2}+1}", r"x\sin(2x)", r"e^{x^{2}}", r"\ln(x^2+1)",
    r"\sqrt{x+4}", r"\tan x", r"\sec x\csc x", r"\cot x", r"x^{x}", r"2^{x}", r"\arcsin(x/9)",
    r"\arccos(x/9)", r"\arctan x", r"\sinh x\cosh x", r"\tanh x", r"\sqrt[3]{x+5}",
    r"\ln(\ln(x+4))",
    r"(\sin x)^{\cos x}", r"\frac{1}{(x+3)^{5}}", r"\frac{e^{x}}{1+e^{x}}",
]  # fmt: skip


@pytest.mark.parametrize("text", FUNCTIONS)
def test_derivatives_agree_with_sympy(text):
    x = sympy.Symbol("x", real=True)
    tree = parse(text)
    ours, theirs = to_sympy(differentiate(tree, "x")), sympy.diff(to_sympy(tree), x)
    for point in (sympy.Rational(1, 3), sympy.Rational(7, 5)):
        assert abs(sympy.N((ours - theirs).subs(x, point), 30)) < 1e-20


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\frac{1}{2}+\frac{1}{3}", Fraction(5, 6)),
        ("2^{10}", Fraction(1024)),
        ("5!", Fraction(120)),
        (r"\sqrt{\frac{9}{4}}", Fraction(3, 2)),
        ("|3+4i|", Fraction(5)),
        (r"8^{2/3}", Fraction(4)),
        (r"\det\begin{pmatrix}2&0&1\\1&3&2\\0&1&1\end{pmatrix}", Fraction(3)),
        (r"\sqrt{2}", None),
        ("9^{9^{9}}", None),
        ("1/0", None),
        ("i", None),
    ],
)
def test_exact_values(text, value):
    assert rational_value(parse(text)) == value
