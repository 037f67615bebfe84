"""A teacher of another tokenizer, from its folder to a student that learned from it."""

import itertools
import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from minillm.core.errors import UserError
from minillm.core.manifest import read_manifest
from minillm.core.sharding import MeshConfig, make_mesh
from minillm.data.corpus import Example
from minillm.data.rows import RowsReader
from minillm.data.tokenizer import BPETokenizer
from minillm.stages import evaluation, scoring, training
from minillm.stages.precompute import PrecomputeConfig, precompute, rows_for
from minillm.stages.precompute_spans import SpanReader, weights_for
from minillm.stages.preparation import RowsConfig, make_rows
from minillm.stages.training import RunConfig, run_training
from minillm.stages.transfer import TransferConfig, transfer
from minillm.store import StoreReader
from minillm.store.codec import error_bound
from minillm.teachers import load_teacher
from minillm.train.loop import LoopConfig
from minillm.train.optimizer import OptimizerConfig
from minillm.train.step import LossConfig
from tests.stages import tiny
from tests.stages.precompute_hosts import finish, start_pair
from tests.tolerances import TOLERANCES

CONFIG = PrecomputeConfig(batch_size=4, rows_per_shard=8)
LOSS = LossConfig(cross_entropy=1.0, span_likelihoods=3.0)
RUN = RunConfig(
    loop=LoopConfig(steps=40, log_every=1, checkpoint_every=20),
    batch_size=4,
    loss=LOSS,
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Two tokenizers, rows of each, and a teacher that has read those of the larger one."""
    root = tmp_path_factory.mktemp("work")
    sums = [Example(f"{a} plus {b}:\n", f"equals {a + b}, größer.") for a in range(9)
            for b in range(9)]  # fmt: skip
    # Longer than a row, and so cut, also within the letters that small tokenizers spell in bytes.
    examples = [*sums, *(Example("", f"Übungen über {n} Größen 中文. " * 12) for n in range(6))]
    texts = [example.text for example in examples]
    for name, pieces in (("student", 290), ("teacher", 350)):
        tokenizer = BPETokenizer(pieces, only_seen_commands=True).train(texts)
        (root / name).mkdir()
        tokenizer.save(root / name)
        make_rows(root / f"{name}-rows", RowsConfig(row_length=64), examples, tokenizer)
    run_training(
        root / "model",
        replace(tiny.MODEL, vocab_size=BPETokenizer.load(root / "teacher").vocab_size),
        replace(RUN, loss=LossConfig()),
        rows=root / "teacher-rows",
        tokenizer=root / "teacher" / "tokenizer.model",
    )
    return root


def compute(work, output, config=CONFIG, **changes):
    options = {"teacher": str(work / "model"), "rows": work / "student-rows",
               "tokenizer": work / "student"}  # fmt: skip
    return precompute(output, config, **{**options, **changes})


@pytest.fixture(scope="module")
def store(work):
    compute(work, work / "store")
    return work / "store"


def likelihoods_by_hand(teacher, student, tokens, mask):
    """(last position, tokens, log-likelihood) of every span, the teacher reading it alone."""
    begun, ended = tokens[0] == student.bos_id, tokens[-1] == student.eos_id
    parts = [student.token_bytes(int(token)) or b"" for token in tokens]
    data = b"".join(parts)
    start = next((i for i in range(4) if data[i : i + 1] and data[i] & 0xC0 != 0x80), len(data))
    text = data[start:].decode(errors="ignore")  # an unfinished last character is left out
    ids = teacher.tokenizer.encode(text)
    read = np.array([1, *ids, *([2] if ended else [])])
    logits = np.asarray(teacher.logits(read[None])[0], np.float64)
    top = logits.max(-1, keepdims=True)
    log_probs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))

    def ends(parts, shift):
        return np.cumsum([len(part) for part in parts]) - shift

    mine = {end: i for i, end in enumerate(ends(parts[: len(parts) - ended], start)) if i >= begun}
    their_parts = [teacher.tokenizer.token_bytes(i) for i in ids]
    theirs = dict(zip(ends(their_parts, 0).tolist(), range(1, len(ids) + 1), strict=True))
    common = [(begun - 1, 0), *((mine[end], theirs[end]) for end in sorted(mine.keys() & theirs))]
    if ended:
        common.append((len(parts) - 1, len(ids) + 1))
    found = []
    for (a, c), (b, d) in itertools.pairwise(common):
        first, last = (a, c) == common[0], (b, d) == common[-1]
        if (first and not begun) or (last and not ended) or not all(mask[a + 1 : b + 1]):
            continue
        value = sum(log_probs[i - 1, read[i]] for i in range(c + 1, d + 1))
        found.append((b - 1, b - a, value))
    return found


def test_stored_spans_are_those_of_the_teacher_reading_each_document_alone(work, store):
    teacher = load_teacher(work / "model")
    student = BPETokenizer.load(work / "student")
    rows, reader = RowsReader(work / "student-rows"), StoreReader(store)
    assert read_manifest(store).schema == "span_store/1"
    spans = longer = cut = 0
    for index in range(0, len(rows), 3):
        row = rows[index]
        lengths, values = reader[index].targets
        expected_lengths, expected = np.zeros((2, rows.row_length))
        for segment in range(1, row["segment_ids"].max() + 1):
            here = np.flatnonzero(row["segment_ids"] == segment)
            cut += row["tokens"][here[-1]] != student.eos_id
            for last, count, value in likelihoods_by_hand(
                teacher, student, row["tokens"][here], row["loss_mask"][here]
            ):
                expected_lengths[here[0] + last], expected[here[0] + last] = count, value
        np.testing.assert_array_equal(lengths, expected_lengths)
        bound = error_bound(expected) + lengths * TOLERANCES["float32"].logits
        assert np.all(np.abs(values - expected) <= bound)
        spans, longer = spans + np.count_nonzero(lengths), longer + np.count_nonzero(lengths > 1)
    assert spans > 300 and longer > 30 and cut > 2


def assert_same_spans(found, wanted):
    """Stores of the same spans, their likelihoods up to rounding, in float16 too."""
    found, wanted = StoreReader(found), StoreReader(wanted)
    assert len(found) == len(wanted)
    for index in range(len(wanted)):
        (lengths, values), (theirs, expected) = found[index].targets, wanted[index].targets
        np.testing.assert_array_equal(lengths, theirs)
        bound = 2 * error_bound(expected) + lengths * TOLERANCES["float32"].logits
        assert np.all(np.abs(values - expected) <= bound)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"data": 2}, {"tensor": 2}], ids=str)
def test_two_hosts_write_the_spans_of_one(work, store, tmp_path, sizes):
    inputs = {"teacher": "model", "rows": "student-rows", "tokenizer": "student"}
    pair = start_pair(work, tmp_path / "pair", sizes, inputs=inputs)
    assert len({finish(process)[0] for process in pair}) == 1
    assert_same_spans(tmp_path / "pair", store)


def needed(work, rows, length=64):
    """Bytes in which the teacher reads so many rows of its own tokens."""
    vocab_size = BPETokenizer.load(work / "teacher").vocab_size
    config = replace(tiny.MODEL, vocab_size=vocab_size)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return SpanReader(config, mesh, vocab_size, rows).scorer(length).needed


def test_rows_that_do_not_fit_at_once_are_read_in_parts(work, store, tmp_path, monkeypatch):
    sizes = []
    call = scoring.Scorer.__call__

    def told(self, params, rows):
        sizes.append((self.batch_size, len(rows["tokens"])))
        return call(self, params, rows)

    monkeypatch.setattr(scoring.Scorer, "__call__", told)
    memory = needed(work, 2)
    assert needed(work, 4) > memory
    monkeypatch.setattr(scoring, "device_memory", lambda mesh: memory)
    compute(work, tmp_path / "parts")
    # The teacher's rows are 64 tokens long, or longer: then fewer fit.
    assert (2, 2) in sizes and max(sizes) == (2, 2)
    assert_same_spans(tmp_path / "parts", store)


def test_a_teacher_of_which_no_row_fits_is_refused_before_it_is_loaded(work, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "device_memory", lambda mesh: 100_000)
    monkeypatch.setattr("minillm.stages.precompute.load_teacher", None)
    with pytest.raises(UserError, match="memory: got .* batches of 1 rows of 64 tokens"):
        compute(work, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_another_tokenizer_is_said_once(work, tmp_path, caplog):
    text = tmp_path / "text.txt"
    text.write_text("3 plus 4:\nequals 7, größer.\n")
    options = {"teacher": str(work / "model"), "tokenizer_path": str(work / "student")}
    rows, tokenizer = rows_for(
        str(text), CONFIG, packed=tmp_path / "rows", output=tmp_path / "store", **options
    )
    compute(work, tmp_path / "store", rows=rows, tokenizer=tokenizer)
    assert caplog.text.count("another tokenizer than the rows") == 1


def lines(directory):
    text = (directory / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def learn(work, output, stores, loss=LOSS, steps=40):
    run = replace(RUN, loss=loss, loop=replace(RUN.loop, steps=steps))
    return transfer(
        output,
        TransferConfig(model=tiny.MODEL, run=run),
        stores=stores,
        rows=work / "student-rows",
        tokenizer_path=work / "student" / "tokenizer.model",
    )


def test_a_student_learns_from_the_spans(work, store, tmp_path):
    made = learn(work, tmp_path, [str(store)])
    found = lines(tmp_path)
    # At step 1 nothing is learned yet: that is where a student without a teacher starts as well.
    assert found[-1]["cross_entropy"] < 0.6 * found[0]["cross_entropy"]
    assert found[-1]["span_likelihoods"] < 0.6 * found[0]["span_likelihoods"]
    assert made.inputs["store_0"] == StoreReader(store).fingerprint


@pytest.mark.slow
def test_a_run_on_spans_that_was_cut_ends_with_the_same_weights(work, store, tmp_path, monkeypatch):
    whole = learn(work, tmp_path / "whole", [str(store)])
    make = training.make_train_step

    def cut_off_in_step_30(*arguments):
        step, calls = make(*arguments), []

        def cut(state, batch):
            calls.append(1)
            if len(calls) == 30:
                raise KeyboardInterrupt
            return step(state, batch)

        return cut

    monkeypatch.setattr(training, "make_train_step", cut_off_in_step_30)
    with pytest.raises(KeyboardInterrupt):
        learn(work, tmp_path / "cut", [str(store)])
    monkeypatch.undo()
    assert learn(work, tmp_path / "cut", [str(store)]).counts == whole.counts


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (
            LossConfig(distillation=0.5),
            "loss.distillation: got 0.5 without a teacher_store of cand",
        ),
        (LossConfig(), "loss.span_likelihoods: got 0.0 with a teacher_store of spans"),
    ],
)
def test_a_store_of_another_kind_than_the_loss_asks_for_is_refused(
    work, store, tmp_path, loss, words
):
    with pytest.raises(UserError, match=words):
        learn(work, tmp_path, [str(store)], loss=loss)
    assert read_manifest(tmp_path) is None


@pytest.mark.slow
def test_both_kinds_of_stores_teach_together(work, store, tmp_path):
    compute(work, tmp_path / "mock", teacher="mock", tokenizer=None)
    loss = LossConfig(distillation=0.5, span_likelihoods=1.0)
    made = learn(work, tmp_path / "student", [str(store), str(tmp_path / "mock")], loss, steps=2)
    assert made.complete
    assert {"distillation", "span_likelihoods"} <= lines(tmp_path / "student")[0].keys()


def test_spans_are_written_only_where_the_tokenizers_differ_or_they_are_asked_for(work, tmp_path):
    same = {"rows": work / "teacher-rows", "tokenizer": work / "teacher"}
    assert compute(work, tmp_path / "same", **same).schema == "store/1"
    asked = replace(CONFIG, targets="spans")
    made = compute(work, tmp_path / "asked", asked, **same)
    assert made.schema == "span_store/1"
    rows, reader = RowsReader(work / "teacher-rows"), StoreReader(tmp_path / "asked")
    whole = rows[0]["segment_ids"] == 1
    predicted = np.flatnonzero(whole[1:] & (rows[0]["loss_mask"][1:] == 1) & whole[:-1])
    # One span for every token, up to where a row cuts a document.
    assert set(np.flatnonzero(reader[0].targets.span_lengths)) >= set(predicted[1:-1])
    assert weights_for(made).split() == [
        "--config.run.loss.cross_entropy=1", "--config.run.loss.distillation=0",
        "--config.run.loss.span_likelihoods=3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"config": replace(CONFIG, targets="candidates")},
            "got another vocabulary than the rows'",
        ),
        ({"tokenizer": None}, "tokenizer_path: .*wanted the tokenizer of"),
        ({"config": replace(CONFIG, targets="spans"), "tokenizer": None}, "tokenizer_path: got"),
    ],
)
def test_wrong_tokenizers_are_refused_before_anything_is_written(work, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        compute(work, tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_a_store_of_spans_has_no_first_choices_to_compare_with(work, store):
    with pytest.raises(UserError, match="teacher_store: got .*likelihoods of spans"):
        evaluation.heldout_source(work / "student-rows", store)
