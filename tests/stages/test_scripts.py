"""The launch scripts as a user starts them: what they print, and how they fail."""

import json
import os
import subprocess
import sys

import pytest
from absl import flags
from ml_collections.config_flags import config_flags

from minillm.stages import cli
from minillm.stages.quickstart import QuickstartConfig
from tests.stages import tiny

SMALL = [
    "--hidden-size=16",
    "--num_layers=1",
    "--num-heads=2",
    "--intermediate_size=16",
    "--vocab_size=420",
    "--max_seq_length=128",
    "--batch_size=4",
    "--num_epochs=0.2",
]


def launch(script, *arguments, check=True):
    done = subprocess.run(
        [sys.executable, f"launch/{script}.py", *map(str, arguments)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model folder that launch/train.py made from the mock data."""
    root = tmp_path_factory.mktemp("train")
    done = launch("train", "--use_mock", "--output-dir", root, *SMALL)
    assert f"generate:   python launch/generate_math_solutions.py --model_path {root}/model" in (
        done.stdout
    )
    return root


def test_every_stage_runs_on_what_the_one_before_it_wrote(trained, tmp_path):
    store, student, tuned = (tmp_path / name for name in ("store", "student", "math"))
    rows, tokenizer = trained / "rows", trained / "tokenizer" / "tokenizer.model"
    launch(
        "precompute_teacher",
        f"--teacher={trained}/model",
        f"--data={rows}",
        f"--output_dir={store}",
    )
    launch(
        "knowledge_transfer",
        f"--teacher_store={store},{store}",
        f"--train_data={rows}",
        f"--tokenizer_path={tokenizer}",
        f"--output_dir={student}",
        "--config.epochs=0.2",
        "--config.model.hidden_size=16",
        "--config.model.num_layers=1",
        "--config.model.head_dim=4",
    )
    problems = tmp_path / "mine.jsonl"
    record = {"problem": "Compute 1+1", "solution": "1+1=2", "answer": "2"}
    problems.write_text("\n".join(json.dumps(record) for _ in range(90)))
    launch(
        "finetune_math",
        f"--model_path={student}",
        f"--problems_path={problems}",
        f"--output_dir={tuned}",
        "--config.epochs=1",
        "--config.run.batch_size=2",
    )
    done = launch(
        "evaluate_math",
        f"--model_path={tuned}/model",
        f"--problems_path={problems}",
        "--config.evaluation.max_new_tokens=4",
    )
    assert "all problems" in done.stdout and "90" in done.stdout and "None" not in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [["--problem", "Find the derivative of f(x) = x³ - 2x² + 4x - 1"], ["--random"]],
    ids=["problem", "random"],
)
def test_solution_is_printed_with_the_word_of_the_checker(trained, arguments):
    done = launch(
        "generate_math_solutions",
        f"--model_path={trained}/model",
        "--config.max_new_tokens=8",
        *arguments,
    )
    assert "Problem: " in done.stdout and "Checker: " in done.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("train", [], ["data_path", "--use_mock"]),
        ("train", ["--data_path=nowhere.txt"], ["nowhere.txt"]),
        ("train", ["--use_mock", "--hidden_size=30", "--num_heads=4"], ["num_heads", "try"]),
        ("train", ["--use_mock", "--hiden_size=30"], ["hiden_size"]),
        ("train", ["--use_mock", "stray"], ["stray"]),
        ("train", ["--use_mock", "--batch_size=0"], ["batch_size", "at least 1"]),
        ("train", ["--use_mock", "--config.run.loss.distillation=0.5"], ["teacher_store"]),
        ("quickstart", ["--config.scale=huge"], ["scale", "huge", "quick, smoke, hour"]),
        ("quickstart", ["--config.corpus.sed=1"], ["no such setting: 'sed' Did you mean \"seed\""]),
        (
            "train",
            ["--use_mock", "--config.run.steps=3"],
            ["'steps'; there is --config.run.loop.steps"],
        ),
        ("quickstart", ["--config=nowhere.py"], ["config: got", "nowhere.py", "get_config()"]),
        (
            "evaluate_math",
            ["--config=nowhere.py", "--config.seed=1"],
            ["config: got", "nowhere.py"],
        ),
        ("evaluate_math", ["--model_path=x", "--config.seed='a"], ["--config.seed='a: "]),
        ("evaluate_math", ["--model_path=x", "--nosuch"], ["line flag 'nosuch'; see "]),
        ("precompute_teacher", ["--teacher=nowhere", "--data=nowhere"], ["nowhere"]),
        ("generate_math_solutions", ["--problem=x", "--random"], ["--problem TEXT or --random"]),
        (
            "generate_math_solutions",
            ["--random", "--model_path=nowhere"],
            ["nowhere", "model.json"],
        ),
        ("evaluate_math", [], ["model_path"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(script, arguments, words, tmp_path, monkeypatch):
    done = launch(script, *arguments, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_bad_records_of_a_user_are_named_before_anything_is_written(trained, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps([{"problem": "1+1", "solution": "2", "answer": "2"}, {"problem": 3}])
    )
    output = tmp_path / "out"
    done = launch(
        "finetune_math",
        f"--model_path={trained}/model",
        f"--problems_path={path}",
        f"--output_dir={output}",
        check=False,
    )
    assert done.returncode == 2 and not output.exists()
    assert all(word in done.stderr for word in ("mine.json", "2", "problem"))


@pytest.mark.parametrize("version", ["3.99", "3.98"])
def test_ci_goes_on_to_say_which_python_is_not_there(tmp_path, version):
    pyenv = tmp_path / "pyenv"
    pyenv.write_text(f"#!/bin/sh\necho {tmp_path}\n")
    pyenv.chmod(0o755)
    python = tmp_path / "versions" / "3.98.1" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    script = f"""
        set -euo pipefail
        eval "$(sed -n '/^find_python/,/^}}/p' .ci/run)"
        found=$(find_python {version})
        echo "found <$found>"
    """
    done = subprocess.run(
        ["bash", "-c", script],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"found <{python if version == '3.98' else ''}>\n", done.stderr


@pytest.mark.parametrize(
    ("script", "names"),
    [
        ("evaluate_math", ["--config:", "--workdir:", "--[no]multihost:", "--output_dir:"]),
        ("train_tokenizer", ["--workdir:", "--output_dir:"]),
    ],
)
def test_help_names_the_flags_that_all_scripts_share(script, names):
    words = launch(script, "--help", check=False).stdout
    assert all(name in words for name in names), words


def test_file_of_settings_with_one_preset_is_read_as_it_stands(monkeypatch, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from minillm.stages.cli import as_config_dict\n"
        "from tests.stages.tiny import CONFIG\n\n\n"
        "def get_config():\n    return as_config_dict(CONFIG)\n"
    )
    known = flags.FlagValues()
    config_flags.DEFINE_config_file("config", str(file), flag_values=known)
    known(["script"])
    monkeypatch.setattr(cli.flags, "FLAGS", known)
    assert cli.read_scaled_config(QuickstartConfig) == tiny.CONFIG
    assert cli.read_scaled_config(QuickstartConfig, teacher="mock").teacher == "mock"
