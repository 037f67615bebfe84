"""Text written to break the grader: a verdict soon, nothing run, the grader alive afterwards."""

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from minillm.grading import extract_boxed
from minillm.grading.lexer import FormulaError
from minillm.grading.parser import parse

PAYLOAD = "__import__('os').system('touch {path}')"
HOSTILE = {
    "power tower": "9**9**9",
    "power tower in LaTeX": "9^{9^{9^{9}}}",
    "tall tower": "^".join(["9"] * 50),
    "factorial": "1000000000!",
    "factorials": "100!!!!!!!!",
    "factorial tower": "((100!)!)!",
    "brackets": "(" * 10_000 + "1" + ")" * 10_000,
    "brackets within the length": "(" * 900 + "1" + ")" * 900,
    "braces": "{" * 10_000,
    "megabytes of digits": "7" * 3_000_000,
    "digits within the length": "7" * 1_900,
    "signs": "-" * 390 + "1",
    "primes": "x" + "'" * 390,
    "fractions": r"\frac1" * 150,
    "fractions open": r"\frac{" * 300,
    "divisions": "/".join(["3"] * 199),
    "roots": r"\sqrt{" * 58 + "2" + "}" * 58,
    "sines": r"\sin" * 200 + "x",
    "product of powers": "*".join(["(x+1)^{1999}"] * 30),
    "exponential tower": "e^{e^{e^{e^{e^{x}}}}}",
    "sine of a tower": r"\sin(e^{e^{e^{9}}})",
    "long sum": r"\sum_{k=1}^{10^{9}} k",
    "nested sums": r"\sum_{a=1}^{1999}\sum_{b=1}^{1999}\sum_{c=1}^{1999} abc",
    "product": r"\prod_{k=1}^{1999} (k^{1999})",
    "matrix power": r"\begin{pmatrix}1&1\\1&0\end{pmatrix}^{1000000000}",
    "binomial": r"\binom{1000000}{500000}",
    "hard integral": r"\int_0^1 \sin(e^{1/x}) dx",
    "hard limit": r"\lim_{x\to 0}\frac{\sin(\tan x)-\tan(\sin x)}{x^7\sin(e^{1/x})}",
    "spaces": "1" + " " * 1_900 + "2",
    "dollars": "$" * 1_900,
    "backslashes": "\\" * 1_900,
    "words": "a " * 900,
    "capitals": "A" * 1_900,
    "null": "\x00\x01",
    "surrogate": "\ud800",
    "right to left": "\u202e3",
    "other digits": "٣+٣",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_gets_a_verdict_within_two_seconds(grader, name):
    grader.worker.start()
    text = HOSTILE[name]
    for predicted, reference in ((text, "3"), ("3", text), (text, text + "+1")):
        began = time.monotonic()
        grader.equivalent(predicted, reference)
        assert time.monotonic() - began < 2.6, (predicted[:40], reference[:40])
    assert not grader.equivalent(text, "3")
    assert grader.equivalent("x=3", "3")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_solution_is_graded_and_checked_within_its_time(grader, name):
    grader.worker.start()
    text = HOSTILE[name]
    solution = "\n".join([f"{text}=3", f"3 = {text}", f"\\boxed{{{text}}}"])
    began = time.monotonic()

    class Problem:
        answer, answer_type, problem = "3", None, text

    assert not grader.grade(solution, Problem()).correct
    grader.check(f"Compute {text}", "3")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "wrap", ["{}", r"\text{{{}}}", "Compute {}", "x={}", "({})'", r"\boxed{{{}}}"]
)
def test_no_text_is_ever_run(grader, tmp_path: Path, wrap):
    witness = tmp_path / "ran"
    payload = wrap.format(PAYLOAD.format(path=witness))
    grader.equivalent(payload, "3")
    grader.equivalent("3", payload)
    grader.check(payload, payload)
    assert not witness.exists()


def test_unbalanced_boxes_are_searched_in_linear_time():
    began = time.monotonic()
    assert extract_boxed("\\boxed{" * 200_000) is None
    assert extract_boxed("\\boxed{" * 200_000 + "}") == ""
    assert time.monotonic() - began < 2


ALPHABET = st.sampled_from(
    [*"0123456789xyzCei+-*/^_=<>()[]{}|,;!'%&. ", "\\frac", "\\sqrt", "\\int", "\\sum_{k=1}^{",
     "\\lim_{x\\to ", "dx", "\\begin{pmatrix}", "\\end{pmatrix}", "\\\\", "\\{", "\\}", "\\pm",
     "\\cup", "\\infty", "sin", "\\ln", "\\det", "\\frac{d}{dx}", "x³", "√", "\\overline", "°"]
)  # fmt: skip
FORMULAS = st.lists(ALPHABET, max_size=25).map("".join)
RELAXED = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@RELAXED
@given(st.text(max_size=60) | FORMULAS)
@example("_" * 30)
@example("\\frac{d^{2}{dx^2}")
def test_parsing_gives_a_tree_or_a_formula_error(text):
    try:
        parse(text)
    except FormulaError:
        return


@RELAXED
@given(FORMULAS, FORMULAS)
def test_any_two_formulas_get_a_verdict(grader, predicted, reference):
    assert grader.equivalent(predicted, reference) in (True, False)
    grader.check(predicted, reference)


@RELAXED
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=6), st.randoms())
def test_a_polynomial_equals_itself_in_another_order_and_nothing_else(grader, numbers, source):
    terms = [f"({c})x^{{{n}}}" for n, c in enumerate(numbers)]
    shuffled = source.sample(terms, len(terms))
    assert grader.equivalent("+".join(shuffled), "+".join(terms))
    assert not grader.equivalent("+".join([*shuffled, "1"]), "+".join(terms))
