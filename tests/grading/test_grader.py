"""The labelled table, grading of whole solutions, and speed."""

import threading
import time
from dataclasses import dataclass

import pytest

from minillm.grading import Grader, extract_boxed
from tests.grading.pairs import PAIRS


@dataclass(frozen=True)
class Sample:
    answer: str
    answer_type: str | None = None
    problem: str | None = None


def test_every_labelled_pair_gets_its_verdict(grader):
    accepts, rejects = [], []
    for pair in PAIRS:
        verdict = grader.equivalent(pair.predicted, pair.reference, pair.answer_type)
        if verdict and not pair.right:
            accepts.append(pair)
        if pair.right and not verdict:
            rejects.append(pair)
    print(f"\n{len(PAIRS)} pairs, {len(accepts)} false accepts, {len(rejects)} false rejects")
    for title, wrong in (("false accept", accepts), ("false reject", rejects)):
        for pair in wrong:
            print(f"{title}: {pair}")
    assert len(PAIRS) >= 200
    assert not accepts
    assert not rejects


def test_every_readable_reference_is_equivalent_to_itself(grader):
    for pair in PAIRS:
        if pair.right:
            assert grader.equivalent(pair.reference, pair.reference, pair.answer_type), pair


def test_a_thousand_typical_answers_take_less_than_five_seconds(grader):
    pairs = (PAIRS * 5)[:1000]
    began = time.process_time()
    for pair in pairs:
        grader.equivalent(pair.predicted, pair.reference, pair.answer_type)
    seconds = time.process_time() - began
    print(f"\n{len(pairs) / seconds:.0f} answers a second")
    assert seconds < 5


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{3}", "3"),
        (r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{a} and \boxed{b", "a"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed {5}", "5"),
        ("no box", None),
        (r"\boxed{", None),
        (r"\boxed{}", ""),
    ],
)
def test_the_last_balanced_box_is_the_answer(text, answer):
    assert extract_boxed(text) == answer


def test_a_right_solution_is_correct_and_its_steps_are_valid(grader):
    solution = "(x^{3})'=3x^{2}\n(-2x^{2})'=-4x\n\\boxed{3x^{2}-4x}"
    grade = grader.grade(solution, Sample("3x^{2}-4x"))
    assert grade.correct
    assert grade.valid_steps == 1
    assert grade.first_wrong_step is None


def test_a_wrong_step_is_named_and_a_right_answer_still_counts(grader):
    solution = "(x^{3})'=3x^{2}\n3 \\cdot 4=13\n\\boxed{12}"
    grade = grader.grade(solution, Sample("12"))
    assert grade.correct
    assert grade.valid_steps == 0.5
    assert grade.first_wrong_step == "3 \\cdot 4=13"


@pytest.mark.parametrize(
    ("solution", "reason"),
    [
        ("x=3", "no boxed answer"),
        (r"\boxed{}", "no boxed answer"),
        (r"\boxed{4}", "the answer is not the reference"),
        (r"\boxed{3+}", "the answer is unreadable"),
    ],
)
def test_a_wrong_solution_says_what_is_wrong(grader, solution, reason):
    grade = grader.grade(solution, Sample("3"))
    assert not grade.correct
    assert grade.reason == reason


def test_the_problem_restated_is_no_answer(grader):
    product = Sample("5+5i", "complex", "Compute (1+2i)(3-i)")
    assert not grader.grade(r"\boxed{(1+2i)(3-i)}", product).correct
    assert grader.grade(r"\boxed{5+5i}", product).correct
    factored = Sample("(x-1)(x+1)", "expression", "Factor x^{2}-1")
    assert not grader.grade(r"\boxed{x²-1}", factored).correct
    assert grader.grade(r"\boxed{(x+1)(x-1)}", factored).correct


PROOF = Sample("(x+2)(x+3)=x^{2}+5x+6", "proof")


def test_a_proof_needs_its_statement_and_steps_that_hold(grader):
    boxed = "\n\\boxed{(x+2)(x+3)=x^{2}+5x+6}"
    good = "(x+2)(x+3)=x^{2}+3x+2x+6\n3x+2x=5x" + boxed
    assert grader.grade(good, PROOF).correct
    wrong = grader.grade("(x+2)(x+3)=x^{2}+3x+2x+5\n3x+2x=5x" + boxed, PROOF)
    assert not wrong.correct
    assert wrong.first_wrong_step == "(x+2)(x+3)=x^{2}+3x+2x+5"
    assert not grader.grade(boxed, PROOF).correct
    assert not grader.grade("3x+2x=5x\n\\boxed{0=0}", PROOF).correct


def test_verdicts_are_the_same_off_the_main_thread(grader):
    wanted = [grader.equivalent(p.predicted, p.reference, p.answer_type) for p in PAIRS[:60]]
    found: dict[int, list[bool]] = {}

    def work(name: int) -> None:
        found[name] = [
            grader.equivalent(p.predicted, p.reference, p.answer_type) for p in PAIRS[:60]
        ] + [grader.check(r"Solve x^{2}-5x+6=0", r"\{2,3\}") is True]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[n] == [*wanted, True] for n in range(3))


def test_a_grader_can_be_closed_and_used_again():
    with Grader() as grader:
        assert grader.check("Solve x^{2}=4", r"\{2,-2\}")
        pid = grader.worker.pid
    assert pid is not None
    assert grader.worker.pid is None
    assert grader.check("Solve x^{2}=4", r"\{2,-2\}")
    grader.close()
