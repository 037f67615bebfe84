"""The printers and the reader that takes their LaTeX back."""

import pytest
import sympy

from minillm.problems import latex
from minillm.problems.algebras import EXPRESSIONS, POLYNOMIALS, UnreadableError
from minillm.problems.reading import Reader, bind, matrix

x = sympy.Symbol("x")


@pytest.mark.parametrize(
    ("coefficients", "printed"),
    [
        ([-1, 4, -2, 1], "x^{3}-2x^{2}+4x-1"),
        ([0, 0, -1], "-x^{2}"),
        ([5], "5"),
        ([0, 0], "0"),
        ([0] * 12 + [1], "x^{12}"),
    ],
)
def test_a_polynomial_prints_as_in_a_textbook_and_reads_back(coefficients, printed):
    assert latex.polynomial(coefficients) == printed
    value = Reader(EXPRESSIONS, {}).value(printed)
    assert sympy.expand(value - sum(c * x**n for n, c in enumerate(coefficients))) == 0
    assert Reader(POLYNOMIALS, {}).value(printed).as_expr() == value


def test_printers_leave_out_ones_and_zeros():
    assert latex.complex_number(0, -1) == "-i"
    assert latex.complex_number(3, 0) == "3"
    assert latex.complex_number(0, 0) == "0"
    assert latex.factor(0) + latex.factor(-2) == "x(x+2)"
    assert latex.exponential(-1) == "e^{-x}"
    assert latex.product("-2", "-3") == r"-2\cdot(-3)"


def test_typed_formulas_have_raised_digits_and_spaces():
    assert latex.plain("f(x)=-x^{12}-(-3)") == "f(x) = -x¹² - (-3)"
    assert latex.plain("y'=-2y+1") == "y' = -2y + 1"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (r"\frac{-12}{4}", -3),
        (r"2\cdot(-3)-(-4)", -2),
        ("(1+2i)(3-i)", 5 + 5 * sympy.I),
        (r"\sqrt{4\cdot 3}", 2 * sympy.sqrt(3)),
        ("3e^{-2x}", 3 * sympy.exp(-2 * x)),
        ("(2e^{3x})'", 6 * sympy.exp(3 * x)),
        ("-x^{2}", -(x**2)),
        ("2(x+1)^{2}", 2 * (x + 1) ** 2),
    ],
)
def test_formulas_read_as_their_meaning(text, wanted):
    assert sympy.expand(Reader(EXPRESSIONS, {}).value(text) - wanted) == 0


def test_functions_are_applied_and_differentiated():
    for algebra in (POLYNOMIALS, EXPRESSIONS):
        reader = Reader(algebra, bind(algebra, ("f(x)=x^{2}+1", "y=3x^{2}+C")))
        assert reader.value("f(3)").as_expr() == 10
        assert reader.value("y'").as_expr() == 6 * x
        assert reader.value("y''").as_expr() == 6
        assert reader.value("y'(2)").as_expr() == 12
        assert reader.value("y(0)").as_expr() == sympy.Symbol("C")


@pytest.mark.parametrize(
    "text", ["", "1+", "(1", "x^{99}", "x^{y}", r"\int x", "1/0", r"\frac{1}{0}", "y", "a", "1;2"]
)
def test_what_the_printers_never_write_is_not_read(text):
    for algebra in (POLYNOMIALS, EXPRESSIONS):
        with pytest.raises(UnreadableError):
            Reader(algebra, {}).value(text)


def test_a_matrix_reads_back():
    assert matrix(latex.matrix([[1, -2], [3, 0]])) == sympy.Matrix([[1, -2], [3, 0]])
    for text in (r"\begin{pmatrix}1&2\\3\end{pmatrix}", r"\begin{pmatrix}1&\end{pmatrix}", "1"):
        with pytest.raises(UnreadableError):
            matrix(text)
