"""Evaluation: every problem the model can read is asked, and no result is mistaken for another."""

from dataclasses import replace

import pytest

from minillm.core import manifest
from minillm.core.errors import UserError
from minillm.core.manifest import Manifest
from minillm.stages import evaluation
from minillm.stages.evaluation import EvaluationConfig
from tests.model.models import build
from tests.stages import tiny

MODEL = replace(tiny.MODEL, vocab_size=128, max_length=64)


class Letters:
    """A token for each character, and an end that a model of 128 tokens never says."""

    bos_id, adds_bos, eos_ids, pad_id = 1, True, (128,), 0

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, tokens):
        return "".join(map(chr, tokens))


def solve(texts, new=1000):
    config = EvaluationConfig(batch_size=4, max_new_tokens=new)
    return evaluation.solve(build(MODEL), Letters(), texts, config, description="test")


def test_solution_takes_what_the_problem_leaves_of_the_models_length(caplog):
    # "Problem: 1+1", a line end, "Solution:", a line end, and the beginning: 24 tokens.
    assert [len(text) for text in solve(["1+1", "1+1+1", "1" * 100])] == [40, 38, 0]
    assert "1 problems are longer than 63 tokens" in caplog.text
    assert [len(text) for text in solve(["1+1"], new=8)] == [8]


def test_evaluation_in_which_no_problem_fits_is_refused():
    with pytest.raises(UserError, match=r"problems: got 2, the shortest of 71 tokens.*at most 63"):
        solve(["1" * 50, "1" * 60])


def test_every_evaluation_of_a_model_has_a_folder_of_its_own(tmp_path):
    def folder(new=256, problem="1+1", steps=10):
        made = Manifest("model/1", True, {}, {}, {"steps": steps})
        manifest.write_manifest(tmp_path / "model", made)
        records = [{"problem": problem, "solution": "2", "answer": "2"}]
        config = EvaluationConfig(max_new_tokens=new)
        return evaluation.default_directory(f"{tmp_path}/model/", config, records)

    one = folder()
    assert one == folder() and one.startswith(f"{tmp_path}/model-evaluation-")
    others = {folder(new=8), folder(problem="2+2"), folder(steps=20)}
    assert len(others | {one}) == 4
