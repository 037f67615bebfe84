"""A trained model's targets, from its folder and a text file to the store, beside transformers."""

import json
import pathlib

import numpy as np
import pytest

from minillm.data.rows import RowsReader
from minillm.stages.precompute import PrecomputeConfig, precompute, rows_for
from minillm.stages.preparation import RowsConfig
from minillm.stages.scoring import Scorer
from minillm.store import StoreReader
from tests.tolerances import LOG_PROBS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

FOLDER = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "stories260k"
CANDIDATES = 8
NAMES = ("Lily", "Tom", "Ben", "Sue", "Max", "Mia", "Sam", "Amy", "Tim", "Zoe", "Jack", "Anna")
STORY = (
    "Once upon a time, there was a little child named {}. The child had a red ball. One day the "
    "ball rolled down the hill{} and into the water. {} was sad. A friend saw it and took a long "
    "stick and got the ball back. They were happy."
)

pytestmark = [
    pytest.mark.reference,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="needs ../shared/data/stories260k"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The rows, the store, and by row what the computation gave before it was stored."""
    work = tmp_path_factory.mktemp("stories")
    stories = [STORY.format(a, ", the long hill" * (i % 3), a) for i, a in enumerate(NAMES)]
    lines = [json.dumps({"text": story}) for story in stories]
    (work / "stories.jsonl").write_text("\n".join(lines))
    config = PrecomputeConfig(candidates=CANDIDATES, rows=RowsConfig(row_length=256))
    given, score = {}, Scorer.__call__

    def noted(self, params, rows):
        targets = score(self, params, rows)
        for at, row_id in enumerate(rows["row_id"]):
            given[int(row_id)] = [part[at] for part in targets]
        return targets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, "__call__", noted)
        rows, tokenizer = rows_for(
            str(work / "stories.jsonl"),
            config,
            teacher=str(FOLDER),
            tokenizer_path=None,
            packed=work / "rows",
        )
        precompute(work / "store", config, teacher=str(FOLDER), rows=rows, tokenizer=tokenizer)
    return RowsReader(rows), StoreReader(work / "store"), given


@pytest.fixture(scope="module")
def expected(made):
    """By row and segment: the places, and log-probabilities of the document read alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        FOLDER, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    found = []
    rows = made[0]
    for row_id in range(len(rows)):
        row = rows[row_id]
        for segment in range(1, row["segment_ids"].max() + 1):
            (places,) = np.nonzero(row["segment_ids"] == segment)
            with torch.inference_mode():
                logits = model(torch.tensor(row["tokens"][places])[None].long()).logits[0]
            dense = torch.log_softmax(logits.double(), dim=-1).numpy()
            # The last token of a document predicts nothing.
            found.append((row_id, places[:-1], dense[:-1]))
    assert max(sum(row_id == each for each, *_ in found) for row_id in range(len(rows))) > 1
    return found


def compared(targets, dense, tolerance):
    ids, log_probs, tail = targets
    order = np.argsort(-dense, axis=-1, kind="stable")
    best = np.take_along_axis(dense, order, axis=-1)
    np.testing.assert_array_less(
        np.abs(log_probs - best[:, :CANDIDATES]), tolerance(best[:, :CANDIDATES])
    )
    rest = np.log(np.exp(best[:, CANDIDATES:]).sum(-1))
    np.testing.assert_array_less(np.abs(tail - rest), tolerance(rest))
    # Each candidate has the probability that transformers gives to that very token.
    theirs = np.take_along_axis(dense, ids.astype(np.int64), axis=-1)
    np.testing.assert_array_less(np.abs(log_probs - theirs), tolerance(theirs))


def test_targets_are_those_of_transformers_logits(made, expected):
    for row_id, places, dense in expected:
        targets = [part[places] for part in made[2][row_id]]
        compared(targets, dense, lambda values: np.full_like(values, LOG_PROBS))


def test_the_store_holds_them_within_its_stated_error(made, expected):
    for row_id, places, dense in expected:
        targets = [part[places] for part in made[1][row_id].targets]
        compared(targets, dense, lambda values: np.abs(values) * 2**-11 + 2**-25 + LOG_PROBS)
