"""Every family: its records are verified, read well, and cannot be corrupted unnoticed."""

import dataclasses
import re
from random import Random

import pytest

from minillm.problems import DOMAINS, FAMILIES, LEVELS, families, make, verify
from minillm.problems.latex import plain
from minillm.problems.problem import Claim, Problem
from minillm.problems.verify import VerificationError

FAMILY_NAMES = [(d, f) for d in DOMAINS for f in families(d)]
EVERY = [(d, f, level) for d, f in FAMILY_NAMES for level in LEVELS]
ANSWER_TYPES = {
    "expression",
    "set",
    "matrix",
    "complex",
    "antiderivative",
    "proof",
    "point",
    "function",
}


@pytest.mark.parametrize(("domain", "family", "level"), EVERY)
def test_sympy_confirms_every_step_and_answer(domain, family, level):
    for i in range(60):
        verify(make(0, i, domain, family, level))


@pytest.mark.parametrize(("domain", "family", "level"), EVERY)
def test_a_record_is_tidy(domain, family, level):
    for i in range(60):
        p = make(1, i, domain, family, level)
        *steps, last = p.solution.split("\n")
        assert last == rf"\boxed{{{p.answer}}}"
        assert steps and all(step.strip() == step != "" for step in steps)
        assert len(set(steps)) == len(steps) or domain == "linear_algebra" or family == "modulus"
        assert p.answer_type in ANSWER_TYPES
        text = f"{p.problem}\n{p.solution}"
        assert not re.search(r"\+-|--|\+\+|(?<![\d.])1[a-z]|\b0[a-z]|  ", text), text
        assert text.count("{") == text.count("}") and text.count("(") == text.count(")")
        assert "$" not in text


@pytest.mark.parametrize(("domain", "family"), FAMILY_NAMES)
def test_level_0_is_short(domain, family):
    # About what a byte-pair tokenizer with whole LaTeX commands and split digits makes of it.
    token = re.compile(r"\\[a-zA-Z]+|[a-zA-Z]{2,}|\S|\n")
    lengths = [
        len(token.findall(f"{p.problem}\n{p.solution}"))
        for p in (make(2, i, domain, family, 0) for i in range(100))
    ]
    assert max(lengths) <= 130
    assert sum(lengths) / len(lengths) <= 110


class _Wording(Random):
    """Draws like Random, but takes the wording of a given number."""

    wording = 0

    def choice(self, seq):
        if any(isinstance(item, str) and " " in item for item in seq):
            return seq[self.wording % len(seq)]
        return super().choice(seq)


@pytest.mark.parametrize(("domain", "family", "level"), EVERY)
def test_key_and_solution_do_not_depend_on_the_wording(domain, family, level):
    drafts = []
    for wording in range(5):
        rng = _Wording("wording")
        rng.wording = wording
        drafts.append(FAMILIES[domain][family].make(rng, level))
    assert len({draft.problem for draft in drafts}) >= 4
    assert len({(draft.key, draft.steps, draft.answer) for draft in drafts}) == 1


def _with_answer(p: Problem, answer: str) -> Problem:
    boxed = rf"\boxed{{{answer}}}"
    solution = p.solution.replace(rf"\boxed{{{p.answer}}}", boxed)
    return dataclasses.replace(p, answer=answer, solution=solution)


def _other_digit(rng: Random, text: str, places: slice = slice(None)) -> str:
    """One digit replaced by another one."""
    at = rng.choice([m.start() for m in re.finditer(r"\d", text)][places])
    return text[:at] + str((int(text[at]) + rng.randint(1, 8)) % 10) + text[at + 1 :]


@pytest.mark.parametrize(("domain", "family", "level"), EVERY)
def test_a_wrong_answer_is_rejected(domain, family, level):
    rng = Random("answers")
    for i in range(20):
        p = make(4, i, domain, family, level)
        if not re.search(r"\d", p.answer):
            continue
        wrong = _with_answer(p, _other_digit(rng, p.answer))
        with pytest.raises(VerificationError):
            verify(wrong)


@pytest.mark.parametrize(("domain", "family", "level"), EVERY)
def test_a_wrong_step_is_rejected_even_where_its_claim_was_changed_with_it(domain, family, level):
    rng = Random("steps")
    for i in range(20):
        p = make(5, i, domain, family, level)
        claim = rng.choice([c for c in p.claims[:-1] if "=" in c.text])
        at = p.claims.index(claim)
        # The last digit, since 0 times another number is still 0.
        text = f"{claim.text}+1"
        if re.search(r"\d", claim.text):
            text = _other_digit(rng, claim.text, slice(-1, None))
        lines = p.solution.split("\n")
        lines[lines.index(claim.text)] = text
        solution = "\n".join(lines)
        changed = dataclasses.replace(claim, text=text)
        claims = (*p.claims[:at], changed, *p.claims[at + 1 :])
        with pytest.raises(VerificationError):
            verify(dataclasses.replace(p, solution=solution))
        with pytest.raises(VerificationError, match="hold|read"):
            verify(dataclasses.replace(p, solution=solution, claims=claims))


@pytest.mark.parametrize(("domain", "family"), FAMILY_NAMES)
def test_an_answer_to_another_problem_is_rejected(domain, family):
    p = make(6, 0, domain, family, 0)
    others = (make(6, i, domain, family, 0) for i in range(1, 99))
    other = next(o for o in others if o.answer != p.answer)
    with pytest.raises(VerificationError):
        verify(_with_answer(p, other.answer))
    with pytest.raises(VerificationError, match="not in the problem"):
        verify(dataclasses.replace(p, problem=other.problem))


def test_a_missing_step_or_a_step_nobody_claims_is_rejected():
    p = make(0, 0, "calculus", "polynomial_derivative", 0)
    lines = p.solution.split("\n")
    with pytest.raises(VerificationError, match="claimed steps"):
        verify(dataclasses.replace(p, solution="\n".join(lines[:1] + lines[2:])))
    with pytest.raises(VerificationError, match="claimed steps"):
        verify(dataclasses.replace(p, solution="1+1=3\n" + p.solution))


def test_the_problem_of_the_readme_is_of_the_form_that_is_generated():
    wanted = re.compile(r"Find the derivative of f\(x\) = \d?x³ - \d?x² \+ \d?x - \d")
    drawn = (make(0, i, "calculus", "polynomial_derivative", 0) for i in range(20_000))
    found = next(p for p in drawn if wanted.fullmatch(p.problem))
    verify(found)
    assert plain("x^{3}-2x^{2}+4x-1") == "x³ - 2x² + 4x - 1"


def _key_by_problem(domain: str, family: str, level: int, count: int) -> dict[str, str]:
    return {p.problem: p.key for p in (make(8, i, domain, family, level) for i in range(count))}


def test_keys_do_not_depend_on_scale():
    keys = _key_by_problem("algebra", "linear_equation", 0, 3000)
    assert keys["Solve 2x=6"] == keys["Solve 3x=9"] != keys["Solve 2x=8"]


def test_keys_do_not_depend_on_the_letter():
    keys = _key_by_problem("algebra", "linear_equation", 1, 30_000)
    by_equation: dict[str, set[str]] = {}
    for problem, key in keys.items():
        if problem.startswith("Solve the equation "):
            equation = re.sub("[tu]", "x", problem.removeprefix("Solve the equation "))
            by_equation.setdefault(equation, set()).add(key)
    assert sum(map(len, by_equation.values())) == len(by_equation)
    assert len(by_equation) < sum(p.startswith("Solve the equation ") for p in keys)


def test_keys_do_not_depend_on_the_order_of_summands():
    keys = _key_by_problem("complex_analysis", "complex_sum", 0, 30_000)
    pairs = [
        (key, keys[f"Compute ({match[2]})+({match[1]})"])
        for problem, key in keys.items()
        if (match := re.fullmatch(r"Compute \((.+)\)\+\((.+)\)", problem))
        and f"Compute ({match[2]})+({match[1]})" in keys
    ]
    assert len(pairs) > 10
    assert all(one == other for one, other in pairs)


def test_a_claim_of_an_unknown_kind_is_rejected():
    p = make(0, 0, "linear_algebra", "determinant_2x2", 0)
    claims = (*p.claims[:-1], Claim("permanent", p.claims[-1].text))
    with pytest.raises(VerificationError, match="unknown question"):
        verify(dataclasses.replace(p, claims=claims))
