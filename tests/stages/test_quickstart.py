"""The pipeline from end to end, at a size of seconds."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from etils import epath

from minillm import problems
from minillm.core.errors import UserError
from minillm.core.manifest import read_manifest
from minillm.core.sharding import MeshConfig
from minillm.stages import corpus
from minillm.stages.corpus import CorpusConfig
from minillm.stages.quickstart import MODELS, run_quickstart
from tests.stages.tiny import CONFIG


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    root = epath.Path(tmp_path_factory.mktemp("quickstart"))
    run_quickstart(root, CONFIG)
    return root


def written(root):
    """Every file of the finished stages, and when it was written."""
    kinds = ("corpus", "tokenizer", "rows", "store", "models", "evaluation")
    files = [path for kind in kinds for path in Path(root / kind).rglob("*") if path.is_file()]
    assert len(files) > 20
    return {str(path): path.stat().st_mtime_ns for path in files}


def test_report_has_the_figures_of_all_four_models(work):
    whole = json.loads((work / "report.json").read_text())
    for name in MODELS:
        entry = whole[name]
        assert entry["params"] > 0 and entry["train_tokens"] > 0 and entry["seconds"] > 0
        assert 0 < entry["heldout_nll"] < 20
        assert set(entry["accuracy"]) == {*problems.DOMAINS, "overall"}
        assert 0 <= entry["teacher_agreement"] <= 1
    assert whole["teacher"]["teacher_agreement"] == 1.0
    assert whole["baseline"]["train_tokens"] == whole["distilled"]["train_tokens"]
    for name in ("report.md", "loss.png", "accuracy.png"):
        assert (work / name).stat().length > 100


def test_baseline_and_student_start_alike_and_end_apart(work):
    folders = {name: read_manifest(work / "models" / name) for name in ("baseline", "distilled")}
    base, student = (folders[name].config for name in ("baseline", "distilled"))
    assert base["model"] == student["model"]
    assert base["run"]["seed"] == student["run"]["seed"]
    assert base["run"]["loss"] != student["run"]["loss"]
    assert folders["baseline"].counts["weights"] != folders["distilled"].counts["weights"]


def test_second_run_writes_nothing_but_the_report(work):
    before = written(work)
    run_quickstart(work, CONFIG)
    assert written(work) == before


def test_changed_setting_is_refused_and_named(work):
    changed = replace(CONFIG, corpus=replace(CONFIG.corpus, seed=1))
    with pytest.raises(UserError, match=r"config.seed was 0, now 1"):
        run_quickstart(work, changed)


def test_splits_of_the_corpus_share_no_problem(work):
    keys = {
        split: {
            record["key"] for record in corpus.read_split(work / "corpus", split) if "key" in record
        }
        for split in corpus.SPLITS
    }
    assert len(keys["test"]) == len(problems.DOMAINS) == len(keys["validation"])
    assert not keys["train"] & keys["test"] and not keys["train"] & keys["validation"]
    assert not keys["validation"] & keys["test"]


def test_teacher_folder_and_user_problems_replace_the_defaults(work, tmp_path):
    mine = [
        {"problem": f"Compute {n}+1", "solution": f"{n}+1={n + 1}", "answer": n + 1}
        for n in range(40)
    ]
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    config = replace(
        CONFIG,
        teacher=str(work / "models" / "teacher"),
        problems_path=str(tmp_path / "mine.json"),
    )
    whole = run_quickstart(tmp_path / "work", config)
    assert not (tmp_path / "work" / "models" / "teacher").exists()
    assert whole["teacher"]["params"] == read_manifest(work / "models" / "teacher").counts["params"]
    finetune = read_manifest(tmp_path / "work" / "rows" / "finetune")
    assert finetune.counts["documents"] == len(mine)


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "notes.md").write_text("words")
    (tmp_path / "empty").mkdir()
    texts = {
        "latin.txt": "0xE9",
        "notes.md": "suffix",
        "none.txt": "nothing there",
        "empty": "at least one file",
    }
    bad = [
        (replace(CONFIG, corpus=replace(CONFIG.corpus, texts=(str(tmp_path / name),))), words)
        for name, words in texts.items()
    ]
    bad += [
        (replace(CONFIG, rows=replace(CONFIG.rows, row_length=512)), "model.max_length"),
        (
            replace(CONFIG, finetune_run=replace(CONFIG.finetune_run, mesh=MeshConfig(data=7))),
            "mesh",
        ),
        (replace(CONFIG, precompute=replace(CONFIG.precompute, mesh=MeshConfig(data=7))), "mesh"),
    ]
    for config, words in bad:
        with pytest.raises(UserError, match=words):
            run_quickstart(tmp_path / "work", config)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"domains": ("algebr",)}, "corpus.domains.*linear_algebra"),
        ({"domains": ("algebra", "algebra")}, "each once"),
        ({"levels": (0, 7)}, "corpus.levels"),
    ],
)
def test_unknown_problems_are_refused_with_the_settings(settings, words):
    with pytest.raises(UserError, match=words):
        CorpusConfig(**settings)


def test_texts_may_be_folders_and_patterns(tmp_path):
    for name in ("a.txt", "b.txt", "c.md"):
        (tmp_path / name).write_text(f"{name}\n")
    for given in (tmp_path, tmp_path / "*.txt"):
        assert corpus.read_texts(CorpusConfig(texts=(str(given),))) == ["a.txt\n", "b.txt\n"]


@pytest.mark.slow
def test_mock_teacher_goes_through_every_stage_untrained(tmp_path):
    whole = run_quickstart(tmp_path, replace(CONFIG, teacher="mock"))
    assert whole["teacher"]["train_tokens"] == 0
    assert 0 <= whole["distilled"]["teacher_agreement"] <= 1


def test_text_with_unusual_line_ends_survives_the_corpus(tmp_path):
    text = "one\u2028two\u0085three\n\nfour\x0bfive\n"
    (tmp_path / "odd.txt").write_text(text)
    config = replace(CONFIG.corpus, texts=(str(tmp_path / "odd.txt"),))
    corpus.make_corpus(tmp_path / "corpus", config)
    records = [
        record
        for split in ("train", "test")
        for record in corpus.read_split(tmp_path / "corpus", split)
    ]
    assert "".join(record["text"] for record in records if "text" in record) == text


@pytest.mark.slow
@pytest.mark.parametrize("devices", [6, 8])
def test_defaults_fit_any_number_of_devices(tmp_path, devices):
    program = (
        "import sys; from minillm.stages.quickstart import run_quickstart; "
        "from tests.stages.tiny import CONFIG; run_quickstart(sys.argv[1], CONFIG)"
    )
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "report.json").read_text())["distilled"]["heldout_nll"] > 0
