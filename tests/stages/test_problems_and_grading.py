"""The generator and the grader, written apart, agree on what is right."""

from collections.abc import Iterator
from itertools import pairwise

import pytest

from minillm.grading import Grader
from minillm.problems.generator import FAMILIES, make

SAMPLES = 25
KINDS = [(domain, family) for domain, families in FAMILIES.items() for family in families]


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader() as shared:
        yield shared


@pytest.mark.parametrize(("domain", "family"), KINDS)
def test_solutions_are_graded_right_and_no_step_is_found_wrong(grader, domain, family):
    for level in range(len(FAMILIES[domain][family].keys)):
        for index in range(SAMPLES):
            problem = make(11, index, domain=domain, family=family, level=level)
            grade = grader.grade(problem.solution, problem)
            assert grade.correct, (problem, grade)
            assert grade.first_wrong_step is None, (problem, grade)


@pytest.mark.parametrize(("domain", "family"), KINDS)
def test_the_answer_to_another_problem_is_rejected(grader, domain, family):
    for level in range(len(FAMILIES[domain][family].keys)):
        problems = [
            make(12, index, domain=domain, family=family, level=level) for index in range(SAMPLES)
        ]
        for problem, other in pairwise(problems):
            if problem.key != other.key and problem.answer != other.answer:
                verdict = grader.equivalent(other.answer, problem.answer, problem.answer_type)
                assert not verdict, (problem, other)


@pytest.mark.parametrize(("domain", "family"), KINDS)
def test_the_checker_never_contradicts_the_generator(grader, domain, family):
    for index in range(10):
        problem = make(13, index, domain=domain, family=family)
        assert grader.check(problem.problem, problem.answer) is not False, problem
