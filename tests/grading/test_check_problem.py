"""The checker's word on free problem texts."""

import pytest

CASES = [
    ("Find the derivative of f(x) = x³ - 2x² + 4x - 1", "3x^{2}-4x+4", True),
    ("Find the derivative of f(x) = x³ - 2x² + 4x - 1", "3x^{2}-4x+5", False),
    ("Find the derivative of f(x) = x³ - 2x² + 4x - 1", r"\frac{d}{dx}(x^3-2x^2+4x-1)", False),
    ("Differentiate x^2 \\sin x with respect to x.", r"2x\sin x+x^2\cos x", True),
    ("Compute g'(x) for g(x)=6x^{4}+4x^{3}+5x", "24x^{3}+12x^{2}+5", True),
    ("Find the second derivative of x^3", "6x", None),
    ("Find the derivative of x^3 at x=2", "12", None),
    ("Find x with f'(x)=0 for f(x)=2x^{2}+4x-7", "x=-1", True),
    ("Where is the derivative of f(x) = 4x² + 56x + 4 zero?", "x=-7", True),
    ("Evaluate \\int 3x^2 dx", "x^3+C", True),
    ("Evaluate \\int 3x^2 dx", "x^3", False),
    ("Evaluate ∫ 3x² dx", "x³ + C", True),
    ("Find an antiderivative of 2x", "x^2", True),
    ("Find all antiderivatives of 2x", "x^2", False),
    ("What is $\\int_0^1 x^2 dx$?", r"\frac13", True),
    ("What is $\\int_0^1 x^2 dx$?", r"\int_0^1 x^2 dx", False),
    (r"Find the determinant of \begin{pmatrix}1&2\\3&4\end{pmatrix}", "-2", True),
    (r"Find the determinant of \begin{pmatrix}1&2\\3&4\end{pmatrix}", "2", False),
    (r"Find \det A for A=\begin{pmatrix}1&2\\3&4\end{pmatrix}", "-2", True),
    ("Solve 3x+5=11", "x=2", True),
    ("Solve 3x+5=11", "2", True),
    ("Solve 3x+5=11", "x=3", False),
    ("Solve 3x+5=11", "3x=6", False),
    ("Solve 3x+5=11", "y=2", False),
    ("Solve x^2-5x+6=0", r"\{2,3\}", True),
    ("Solve x^2-5x+6=0", "x=2", False),
    ("Solve x²-2=0.", r"x=\pm\sqrt{2}", True),
    ("Solve x^2+1=0", r"\pm i", True),
    ("Solve x^2+1=0", "no solution", None),
    ("Compute (1+2i)(3-i)", "5+5i", True),
    ("Compute (1+2i)(3-i)", "(1+2i)(3-i)", False),
    ("Find the modulus of 3+4i", "5", True),
    ("Add 6-6i and 7-4i", "13-10i", True),
    ("What is 2+2?", "4", True),
    ("What is 2+2?", "5", False),
    ("Solve y' = -12x² + 4 with y(0) = 2", "y=-4x^{3}+4x+2", True),
    ("Solve y' = -12x² + 4 with y(0) = 2", "y=-4x^{3}+4x+3", False),
    ("Solve y'-26y=0, y(0)=-39", "y=-39e^{26x}", True),
    ("Solve y'=2y", "y=Ce^{2x}", True),
    ("Solve y'=2y", "y=e^{2x}", False),
    ("Solve y'=2y", "y=e^{2x}+C", False),
    ("Tell me a joke", "3", None),
    ("How many primes are below 10?", "4", None),
    ("Find the largest x with x^2=4", "x=2", None),
    ("", "", None),
]


@pytest.mark.parametrize(("problem", "answer", "verdict"), CASES)
def test_the_checker_says_right_wrong_or_nothing(grader, problem, answer, verdict):
    assert grader.check(problem, answer) is verdict
