"""The tokenizer's two scripts, as a user runs them."""

import os
import pathlib
import subprocess
import sys

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"


def _run(script, *flags, **variables):
    return subprocess.run(
        [sys.executable, LAUNCH / script, *flags],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_trained_tokenizer_is_shown_at_work_by_the_demo(tmp_path):
    trained = _run("train_tokenizer.py", "--vocab-size=400", f"--workdir={tmp_path}")
    assert trained.returncode == 0, trained.stderr
    assert "400 pieces" in trained.stdout
    shown = _run("demo_bpe.py", "--tokenizer_path", tmp_path, "--text", r"the sum of \frac{1}{2}")
    assert shown.returncode == 0, shown.stderr
    assert "1. " in shown.stdout and r"\frac" in shown.stdout
    assert "NOT" not in shown.stdout and "the same text" in shown.stdout


def test_the_demo_trains_on_the_built_in_text_by_itself():
    shown = _run("demo_bpe.py", "--text=Ünï ▁ 12")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("512 pieces")
    assert "'Ünï ▁ 12', the same text" in shown.stdout


def test_what_a_locale_cannot_write_is_a_question_mark():
    shown = _run("demo_bpe.py", "--text=x³ 12", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert shown.returncode == 0, shown.stderr
    assert "back: 'x? 12', the same text" in shown.stdout


def test_bad_flags_end_with_one_line_and_exit_code_two(tmp_path):
    for script, *flags in (
        ("demo_bpe.py", "--vocab_size=20"),
        ("demo_bpe.py", f"--tokenizer_path={tmp_path}/none"),
        ("demo_bpe.py", "--tokenizer_path=tok", "--vocab_size=512"),
        ("train_tokenizer.py", f"--output_dir={tmp_path}", "--data_path=none.txt"),
        ("train_tokenizer.py", f"--output_dir={__file__}"),
    ):
        ended = _run(script, *flags)
        assert ended.returncode == 2
        assert ended.stderr.startswith("error: ") and len(ended.stderr.splitlines()) == 1
