"""The training stage: cut off, gone on, and refused before it begins."""

import math
import shutil
from dataclasses import replace

import pytest

from minillm.core.errors import UserError
from minillm.core.manifest import read_manifest
from minillm.data.corpus import Example
from minillm.data.rows import RowsReader, write_rows
from minillm.data.tokenizer import BPETokenizer
from minillm.stages import training
from minillm.stages.finetune import FinetuneConfig
from minillm.stages.preparation import RowsConfig, make_rows
from minillm.stages.pretrain import PretrainConfig
from minillm.stages.training import RunConfig
from minillm.stages.transfer import TransferConfig
from minillm.train.loop import LoopConfig
from minillm.train.step import LossConfig
from tests.stages import tiny

RUN = replace(tiny.RUN, loop=LoopConfig(steps=6, log_every=1, checkpoint_every=2))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows, and the model whose vocabulary fits them."""
    root = tmp_path_factory.mktemp("data")
    texts = [f"{n} and {n + 1} make {2 * n + 1}.\n" * 5 for n in range(40)]
    tokenizer = BPETokenizer(tiny.MODEL.vocab_size, only_seen_commands=True).train(texts)
    tokenizer.save(root)
    examples = [Example("", text) for text in texts]
    write_rows(root / "rows", examples, tokenizer=tokenizer, row_length=64, config={}, inputs={})
    return root, replace(tiny.MODEL, vocab_size=tokenizer.vocab_size)


def run(data, output, config=RUN, model=None):
    root, fitting = data
    return training.run_training(
        output, model or fitting, config, rows=root / "rows", tokenizer=root / "tokenizer.model"
    )


def test_run_cut_off_between_checkpoints_ends_with_the_same_weights(data, tmp_path, monkeypatch):
    whole = run(data, tmp_path / "whole")
    make = training.make_train_step

    def cut_off_in_the_fourth_step(*arguments):
        step = make(*arguments)
        calls = []

        def cut(state, batch):
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return step(state, batch)

        return cut

    monkeypatch.setattr(training, "make_train_step", cut_off_in_the_fourth_step)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "cut")
    monkeypatch.undo()
    assert not read_manifest(tmp_path / "cut").complete
    assert run(data, tmp_path / "cut").counts == whole.counts


def test_run_of_no_steps_can_be_cut_off_before_its_manifest(data, tmp_path, monkeypatch):
    none = replace(RUN, loop=LoopConfig(steps=0))

    def cut(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_close_folder", cut)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path, none)
    monkeypatch.undo()
    assert run(data, tmp_path, none).counts["train_tokens"] == 0


def test_finished_folder_without_its_checkpoints_is_refused(data, tmp_path):
    none = replace(RUN, loop=LoopConfig(steps=0))
    run(data, tmp_path, none)
    assert run(data, tmp_path, none).complete
    shutil.rmtree(tmp_path / "checkpoints" / "0")
    with pytest.raises(UserError, match=r"checkpoints: got no checkpoint"):
        run(data, tmp_path, none)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 1000}, "batch_size"),
        ({"loss": LossConfig(distillation=0.5)}, "without a teacher_store"),
    ],
)
def test_refused_run_leaves_the_folder_free_for_the_corrected_one(data, tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        run(data, tmp_path, replace(RUN, **change))
    assert read_manifest(tmp_path) is None


def test_model_that_does_not_fit_the_rows_is_refused(data, tmp_path):
    with pytest.raises(UserError, match=r"model.vocab_size.*pieces"):
        run(data, tmp_path, model=replace(data[1], vocab_size=7))
    with pytest.raises(UserError, match=r"model.max_length.*at least 64"):
        run(data, tmp_path, model=replace(data[1], max_length=32))


def test_steps_are_those_that_are_set_or_passes_over_the_rows(data):
    rows = data[0] / "rows"
    a_pass = len(RowsReader(rows)) // 2
    steps = {
        (20, None): 20,
        (0, None): 0,
        (None, 2.0): 2 * a_pass,
        (None, None): 3 * a_pass,
    }
    for (given, epochs), wanted in steps.items():
        asked = RunConfig(loop=LoopConfig(steps=given), batch_size=2)
        for settings in (PretrainConfig, TransferConfig, FinetuneConfig):
            config = settings(run=asked, epochs=epochs)
            found = training.with_epochs(config.run, config.epochs, rows)
            assert found.loop.total == wanted, (given, epochs)


@pytest.mark.parametrize("settings", [PretrainConfig, TransferConfig, FinetuneConfig])
def test_steps_beside_epochs_and_endless_epochs_are_refused(settings):
    with pytest.raises(
        UserError, match=r"epochs: got 2.0 beside run.loop.steps=20.*one of the two"
    ):
        settings(run=RunConfig(loop=LoopConfig(steps=20)), epochs=2.0)
    with pytest.raises(UserError, match=r"epochs: got inf; wanted .*finite"):
        settings(epochs=math.inf)


def test_run_whose_steps_nobody_decided_is_refused(data, tmp_path):
    with pytest.raises(UserError, match=r"loop.steps: got None"):
        run(data, tmp_path, replace(RUN, loop=LoopConfig()))
    with pytest.raises(UserError, match=r"loop.steps: got None"):
        replace(tiny.CONFIG, finetune_run=replace(RUN, loop=LoopConfig()))


def test_rows_too_short_for_most_problems_are_refused_with_the_length_that_keeps_them(
    data, tmp_path, caplog
):
    tokenizer = BPETokenizer.load(data[0])
    # With beginning, end and prompt: about n tokens more than a few.
    problems = [Example("p", "7" * n) for n in range(1, 101)]
    kept = [Example("", "text " * 500)]
    with pytest.raises(
        UserError, match=r"rows.row_length: got 32, and \d\d of 100 problems.*112 keeps 95%"
    ):
        make_rows(tmp_path, RowsConfig(row_length=32), [*problems, *kept], tokenizer)
    assert not any(tmp_path.iterdir())
    made = make_rows(tmp_path, RowsConfig(row_length=64), [*problems, *kept], tokenizer)
    assert 0 < made.counts["dropped_documents"] < 50
    assert "problems are longer than a row of 64 tokens" in caplog.text
