"""The worker process: lazy, bounded, replaced when it is late or dead."""

import os
import signal
import subprocess
import sys
import time

import pytest

from minillm.grading.parser import parse
from minillm.grading.worker import Worker

# Minutes of work for SymPy.
SLOW = parse(r"\int_0^1 \frac{\sin(x^x)e^{x^2}}{x^{17}+x^5+\ln(x+2)} dx"), parse("1")


def test_the_worker_starts_with_its_first_question_only():
    with Worker() as worker:
        assert worker.pid is None
        assert worker.ask("equal", parse("x+x"), parse("2x"), seconds=20) is True
        assert worker.pid is not None


def test_sympy_settles_limits_and_infinite_sums():
    with Worker() as worker:

        def equal(left: str, right: str) -> bool | None:
            return worker.ask("equal", parse(left), parse(right), seconds=20)

        assert equal(r"\lim_{x\to 0}\frac{\sin x}{x}", "1") is True
        assert equal(r"\lim_{x\to 0}\frac{\sin x}{x}", "2") is False
        assert equal(r"\lim_{x\to\infty} x", r"\infty") is True
        assert equal(r"\sum_{k=1}^{\infty}\frac{1}{k^2}", r"\frac{\pi^2}{6}") is True


def test_a_late_question_is_cut_off_and_the_next_one_answered():
    with Worker() as worker:
        worker.start()
        first = worker.pid
        began = time.monotonic()
        assert worker.ask("equal", *SLOW, seconds=0.5) is None
        assert time.monotonic() - began < 2
        assert worker.pid != first
        assert worker.ask("equal", parse("1+1"), parse("2"), seconds=20) is True


def test_a_killed_worker_is_replaced():
    with Worker() as worker:
        worker.start()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        answers = [worker.ask("equal", parse("1+1"), parse("2"), seconds=20) for _ in range(2)]
        assert answers[-1] is True


def test_memory_beyond_the_limit_is_no_verdict_and_the_worker_goes_on():
    with Worker(memory_bytes=400 << 20) as worker:
        worker.start()
        huge = parse("(9^{9^{9}})^{9^{9}}"), parse("1")
        assert worker.ask("equal", *huge, seconds=1) in (None, False)
        assert worker.ask("equal", parse("1+1"), parse("2"), seconds=20) is True


def test_an_unknown_question_has_no_answer():
    with Worker() as worker:
        assert worker.ask("system", "true", seconds=20) is None
        assert worker.ask("equal", parse(r"\text{words}"), parse("1"), seconds=20) is None


@pytest.mark.parametrize(
    ("module", "absent"),
    [("minillm.grading", ("jax", "flax", "sympy")), ("minillm.grading.symbolic", ("jax", "flax"))],
)
def test_no_side_imports_jax_and_the_parent_not_even_sympy(module, absent):
    code = f"import sys, {module}; print([m for m in {absent} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_interpreter_exits_while_a_worker_is_alive():
    code = (
        "from minillm.grading import Grader\n"
        "g = Grader()\n"
        "print(g.check('Solve x^2=4', 'x=2, x=-2'), g.worker.pid)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    verdict, pid = found.stdout.split()
    assert verdict == "True"
    assert not os.path.exists(f"/proc/{pid}")
