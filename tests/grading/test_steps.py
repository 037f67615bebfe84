"""Single claims, judged without their surroundings."""

import pytest

from minillm.grading.steps import check_line

VALID = [
    r"3 \cdot 4=12",
    "(x+2)(x+3)=x^{2}+3x+2x+6",
    "3x+2x=5x",
    "(x^{3})'=3x^{2}",
    "(-16x^{3})'=-48x^{2}",
    "(5)'=0",
    r"\frac{d}{dx}(x^{2}\sin x)=2x\sin x+x^{2}\cos x",
    "54x^{5}=(9x^{6})'",
    r"\int 3x^{2}\,dx=x^{3}+C",
    r"\int xe^{x}dx=xe^{x}-\int e^{x}dx",
    r"\int_0^1 3x^2 dx=1",
    r"\det\begin{pmatrix}1&2\\3&4\end{pmatrix}=1\cdot 4-2\cdot 3=-2",
    r"\begin{vmatrix}1&2\\3&4\end{vmatrix}=-2",
    r"\overline{3+4i}=3-4i",
    r"|3+4i|=\sqrt{9+16}=5",
    r"(1+2i)(3-i)=3-i+6i-2i^{2}=5+5i",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}\begin{pmatrix}1\\1\end{pmatrix}"
    r"=\begin{pmatrix}3\\7\end{pmatrix}",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}^{T}=\begin{pmatrix}1&3\\2&4\end{pmatrix}",
    r"\sum_{k=1}^{n}k=\frac{n(n+1)}{2}",
    r"\sin^2 x+\cos^2 x=1",
    r"\ln(x^2)=2\ln x",
    "7<17",
    r"(x-y)^2\ge 0",
    "So the slope is $2\\cdot 3=6$ here.",
    "Step 1: 3x+2x=5x",
    "D=121-120=1",
    r"x=\frac{18}{2}=9",
]
INVALID = [
    r"3 \cdot 4=13",
    "(x+2)(x+3)=x^{2}+5x+7",
    "(x+2)(x+3)=x^{2}+6x+6",
    "3x+2x=6x",
    "(x^{3})'=3x",
    "(x^{3})'=3x^{2}+1",
    r"\frac{d}{dx}(x^{2})=2",
    r"\int 3x^{2}\,dx=x^{2}+C",
    r"\int_0^1 3x^2 dx=2",
    r"\det\begin{pmatrix}1&2\\3&4\end{pmatrix}=2",
    r"\overline{3+4i}=3+4i",
    r"2i\cdot 2i=4",
    "17<7",
    "D=121-120=2",
    r"x=\frac{18}{2}=8",
    r"\begin{pmatrix}1\\2\end{pmatrix}+\begin{pmatrix}1\\1\end{pmatrix}"
    r"=\begin{pmatrix}2\\2\end{pmatrix}",
    "3=3=4",
]
UNCHECKED = [
    "3x=6",
    "2x+3=x+5",
    "x^{2}-5x+6=0",
    "f(x)=x^{2}",
    "y(0)=3",
    "y(0)=C+9=4",
    "y'=-7y",
    "x=2",
    "u=2x",
    r"x=2\pm\sqrt{3}",
    "Let the cat = dog",
    "x=",
    "= 3",
    "x^2+y^2=4",
]


def nobody(left, right):
    """Stands for SymPy: these claims are settled without it."""
    raise AssertionError((left, right))


@pytest.mark.parametrize("line", VALID)
def test_true_claims_are_valid(line):
    assert check_line(line, nobody) == "valid"


@pytest.mark.parametrize("line", INVALID)
def test_false_claims_are_invalid(line):
    assert check_line(line, nobody) == "invalid"


@pytest.mark.parametrize("line", UNCHECKED)
def test_equations_names_and_prose_are_left_unchecked(line):
    assert check_line(line, nobody) == "unchecked"


def test_in_the_proof_of_an_identity_every_relation_is_a_claim():
    assert check_line("2x+3=x+5", nobody, strict=True) == "invalid"
    assert check_line("x<3", nobody, strict=True) == "invalid"


def test_a_limit_is_asked_of_sympy(grader):
    def ask(left, right):
        return grader.worker.ask("equal", left, right, seconds=20)

    assert check_line(r"\lim_{x\to 0}\frac{\sin x}{x}=1", ask) == "valid"
    assert check_line(r"\lim_{x\to 0}\frac{\sin x}{x}=0", ask) == "invalid"
