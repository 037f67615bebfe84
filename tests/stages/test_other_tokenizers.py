"""A student, and a teacher, with a tokenizer that came with another model."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from flax import nnx

from minillm.core.errors import UserError
from minillm.core.manifest import read_manifest
from minillm.data.corpus import Example
from minillm.data.load_tokenizer import load_tokenizer
from minillm.data.packing import tokenize
from minillm.data.rows import RowsReader, write_rows
from minillm.model.functional import ModelFunction
from minillm.stages import training
from minillm.stages.precompute import precompute, rows_for
from minillm.stages.preparation import RowsConfig
from minillm.stages.pretrain import PretrainConfig, pretrain
from minillm.stages.solving import SolvingConfig, solve_problem
from minillm.store import StoreReader
from minillm.teachers import Teacher, load_teacher
from minillm.train.loop import LoopConfig
from tests.data import foreign
from tests.stages import tiny
from tests.stages.test_scripts import SMALL, launch

TEXTS = [f"{n} and {n + 1} make {2 * n + 1}, café 🎉.\n" * 3 for n in range(24)]


@pytest.fixture(scope="module", params=["qwen2", "llama3", "metaspace"])
def folder(request, tmp_path_factory):
    return foreign.JSON[request.param](tmp_path_factory.mktemp(request.param))


def test_documents_begin_as_the_model_expects_and_end_with_its_end(folder):
    tokenizer = load_tokenizer(folder)
    text = Example("", "It is 2.")
    problem = Example("1 + 1?", "It is 2.")
    begin = [tokenizer.bos_id] if tokenizer.adds_bos else []
    for example, first in ((text, 1), (problem, len(begin) + len(tokenizer.encode("1 + 1?")))):
        document = tokenize(example, tokenizer)
        ids = [*begin, *tokenizer.encode(example.prompt), *tokenizer.encode(example.completion)]
        assert document.tokens.tolist() == [*ids, tokenizer.eos_id]
        # Nothing stands before the first token of all, so that it is never predicted.
        assert document.loss_mask.tolist() == [0] * first + [1] * (len(ids) + 1 - first)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What a training makes of files and a Qwen-style tokenizer.json."""
    root = tmp_path_factory.mktemp("qwen")
    tokenizer = foreign.qwen2(root / "tokenizer")
    (root / "data.txt").write_text("\n\n".join(TEXTS))
    config = PretrainConfig(
        model=tiny.MODEL, run=replace(tiny.RUN, loop=LoopConfig(steps=1)), rows=RowsConfig(128)
    )
    pretrain(root / "run", config, data_path=str(root / "data.txt"), tokenizer_path=str(tokenizer))
    return root


def test_a_student_of_a_json_tokenizer_trains_and_generates(trained):
    model = trained / "run" / "model"
    assert not (trained / "run" / "tokenizer").exists()
    tokenizer = load_tokenizer(trained / "tokenizer")
    assert load_tokenizer(model).fingerprint == tokenizer.fingerprint
    assert json.loads((model / "model.json").read_text())["vocab_size"] == tokenizer.vocab_size
    assert read_manifest(trained / "run" / "rows").inputs["tokenizer"] == tokenizer.fingerprint
    (solution,) = solve_problem(model, "Compute 1 + 1", SolvingConfig(max_new_tokens=4))
    assert isinstance(solution.text, str)


@pytest.mark.slow
def test_scripts_take_a_json_tokenizer_from_training_to_evaluation(trained, tmp_path):
    data, model = trained / "data.txt", tmp_path / "run" / "model"
    launch(
        "train",
        f"--data_path={data}",
        f"--tokenizer_path={trained / 'tokenizer'}",
        f"--output_dir={tmp_path / 'run'}",
        *(flag for flag in SMALL if "vocab_size" not in flag),
    )
    solved = launch(
        "generate_math_solutions",
        f"--model_path={model}",
        "--problem=Compute 1 + 1",
        "--config.max_new_tokens=4",
    )
    assert "Compute 1 + 1" in solved.stdout
    problems = tmp_path / "mine.jsonl"
    record = {"problem": "Compute 1+1", "solution": "1+1=2", "answer": "2"}
    problems.write_text("\n".join(json.dumps(record) for _ in range(90)))
    launch(
        "evaluate_math",
        f"--model_path={model}",
        f"--problems_path={problems}",
        "--config.evaluation.max_new_tokens=4",
    )
    launch(
        "finetune_math",
        f"--model_path={model}",
        f"--problems_path={problems}",
        f"--output_dir={tmp_path / 'tuned'}",
        "--config.epochs=0.1",
        "--config.run.batch_size=2",
    )
    own = load_tokenizer(trained / "tokenizer").fingerprint
    assert load_tokenizer(tmp_path / "tuned" / "model").fingerprint == own


@pytest.mark.slow
def test_a_student_learns_from_that_teachers_store(trained, tmp_path):
    rows, tokenizer = trained / "run" / "rows", trained / "tokenizer"
    made = launch(
        "precompute_teacher",
        f"--teacher={trained / 'run' / 'model'}",
        f"--data={rows}",
        f"--output_dir={tmp_path / 'store'}",
    )
    assert f"--tokenizer_path {trained / 'run' / 'model'}" in made.stdout
    launch(
        "knowledge_transfer",
        f"--teacher_store={tmp_path / 'store'}",
        f"--train_data={rows}",
        f"--tokenizer_path={tokenizer}",
        f"--output_dir={tmp_path / 'student'}",
        "--config.epochs=0.1",
        "--config.run.batch_size=2",
        "--config.model.hidden_size=16",
        "--config.model.num_layers=1",
        "--config.model.head_dim=4",
    )
    kept = load_tokenizer(tmp_path / "student")
    assert kept.fingerprint == load_tokenizer(tokenizer).fingerprint


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows of a Llama-style SentencePiece model, in a folder with its tokenizer."""
    root = tmp_path_factory.mktemp("llama")
    (root / "tokenizer.model").write_bytes(foreign.llama2_model())
    examples = [Example("", text) for text in TEXTS]
    tokenizer = load_tokenizer(root)
    write_rows(root / "rows", examples, tokenizer=tokenizer, row_length=64, config={}, inputs={})
    return root


@pytest.fixture(scope="module")
def original(rows):
    """A teacher of those rows' tokenizer, as a training that took no step leaves it."""
    model = replace(tiny.MODEL, vocab_size=load_tokenizer(rows).vocab_size)
    run = replace(tiny.RUN, loop=LoopConfig(steps=0))
    training.run_training(rows / "model", model, run, rows=rows / "rows", tokenizer=rows)
    return rows / "model"


@pytest.fixture
def teacher(original, tmp_path):
    return shutil.copytree(original, tmp_path / "teacher")


PRECOMPUTE = tiny.CONFIG.precompute


def test_a_teacher_of_the_same_vocabulary_in_another_file_is_taken(rows, teacher, tmp_path):
    (teacher / "tokenizer.model").unlink()
    foreign.llama2_json(teacher)
    with pytest.raises(UserError, match="tokenizer_path: got .*teacher .*wanted the tokenizer of"):
        precompute(tmp_path / "store", PRECOMPUTE, teacher=str(teacher), rows=rows / "rows")
    assert not (tmp_path / "store").exists()
    made = precompute(
        tmp_path / "store", PRECOMPUTE, teacher=str(teacher), rows=rows / "rows", tokenizer=rows
    )
    # The store names the tokenizer of its rows, which is what a training compares.
    assert made.inputs["tokenizer"] == load_tokenizer(rows).fingerprint
    assert made.complete and StoreReader(tmp_path / "store")


def test_a_teacher_of_another_vocabulary_of_the_same_size_is_refused(rows, teacher, tmp_path):
    other = foreign.sentencepiece_model(
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        seed_sentencepiece_size=9,
    )
    assert other != (rows / "tokenizer.model").read_bytes()
    (teacher / "tokenizer.model").write_bytes(other)
    assert load_tokenizer(teacher).vocab_size == load_tokenizer(rows).vocab_size
    with pytest.raises(UserError, match=r"another vocabulary than the rows': id \d+ is"):
        precompute(
            tmp_path / "store",
            replace(PRECOMPUTE, targets="candidates"),
            teacher=str(teacher),
            rows=rows / "rows",
            tokenizer=rows,
        )
    with pytest.raises(UserError, match="tokenizer_path"):
        precompute(
            tmp_path / "store",
            PRECOMPUTE,
            teacher=str(teacher),
            rows=rows / "rows",
            tokenizer=teacher,
        )
    assert not (tmp_path / "store").exists()


def test_padded_logits_are_cut_before_they_are_normalised_and_it_is_said(
    rows, teacher, tmp_path, caplog, monkeypatch
):
    real = load_teacher(teacher)
    size = real.tokenizer.vocab_size

    config = replace(real.config, vocab_size=size + 8)
    params = nnx.to_pure_dict(nnx.state(real.model))
    # Eight more rows in the head, as Qwen's has more, and mass on them.
    params["embedding"] = np.pad(params["embedding"], ((0, 8), (0, 0)), constant_values=9.0)
    assert config.tie_embeddings
    padded_teacher = Teacher(ModelFunction(config).bind(params), tokenizer=real.tokenizer)

    plain = precompute(tmp_path / "plain", PRECOMPUTE, teacher=str(teacher), rows=rows / "rows")
    where = "minillm.stages.precompute"
    monkeypatch.setattr(f"{where}.load_teacher", lambda *_, **__: padded_teacher)
    monkeypatch.setattr(f"{where}.describe_teacher", lambda *_, **__: (config, real.tokenizer))
    padded = precompute(tmp_path / "padded", PRECOMPUTE, teacher=str(teacher), rows=rows / "rows")
    assert [shard.sha256 for shard in padded.shards] == [shard.sha256 for shard in plain.shards]
    assert caplog.text.count("the 8 beyond are cut off") == 1


def test_files_are_packed_with_the_teachers_own_tokenizer(trained, tmp_path):
    model = trained / "run" / "model"
    data = trained / "data.txt"
    packed, tokenizer = rows_for(
        str(data), PRECOMPUTE, teacher=str(model), tokenizer_path=None, packed=tmp_path / "rows"
    )
    assert load_tokenizer(tokenizer).fingerprint == load_tokenizer(model).fingerprint
    own = load_tokenizer(trained / "tokenizer")
    assert RowsReader(packed).manifest.inputs["tokenizer"] == own.fingerprint
    shutil.rmtree(tmp_path / "rows")
