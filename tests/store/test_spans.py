"""Stores of likelihoods of spans: records, joined rows, and what may not be mixed up."""

import itertools
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.core.errors import UserError
from minillm.core.manifest import read_manifest
from minillm.data.alignment import Spans
from minillm.store import JoinedRows, SpanTargets, StoreReader, write_span_store
from minillm.store.codec import error_bound
from minillm.store.schema import SpanStoreConfig
from minillm.store.spans import StoredSpans, decode_spans, encode_spans, span_ids, span_targets
from tests.store import toy

CONFIG = SpanStoreConfig(row_length=12, rows_per_shard=4)


@st.composite
def cut_rows(draw):
    """[start, stop) of spans among the targets 1 to 11, and their log-likelihoods."""
    cuts = sorted(draw(st.sets(st.integers(1, 12), min_size=2)))
    spans = [(a, b) for a, b in itertools.pairwise(cuts) if draw(st.booleans())]
    return spans, draw(st.lists(st.floats(-90, 0, width=32), min_size=len(spans)))


@given(cut_rows())
def test_a_record_gives_back_spans_and_likelihoods_within_the_codecs_bound(drawn):
    spans, values = drawn
    starts, stops = (np.array([s[i] for s in spans], int) for i in (0, 1))
    counted = np.arange(len(spans))
    # One token of the teacher's a span.
    targets = span_targets(
        Spans(starts, stops, counted, counted + 1), np.array(values[: len(spans)]), 12
    )
    record = encode_spans(StoredSpans(7, b"d" * 16, targets), CONFIG)
    row_id, digest, (lengths, found) = decode_spans(record, CONFIG)
    assert (row_id, digest, lengths.dtype) == (7, b"d" * 16, np.int32)
    expected_ids = np.zeros(12, int)
    for number, (a, b) in enumerate(spans, start=1):
        expected_ids[a - 1 : b - 1] = number
        assert lengths[b - 2] == b - a
        value = np.float32(values[number - 1])
        assert abs(found[b - 2] - value) <= error_bound(value) * 1.001
    assert np.count_nonzero(lengths) == len(spans)
    np.testing.assert_array_equal(span_ids(lengths), expected_ids)


def test_a_spans_log_likelihood_is_the_sum_over_the_teachers_tokens():
    spans = Spans(*(np.array(part) for part in ([1, 2], [2, 5], [1, 4], [4, 5])))
    values = np.array([-99.0, -1.0, -2.0, -4.0, -8.0, -99.0], np.float32)
    lengths, found = span_targets(spans, values, 6)
    assert lengths.tolist() == [1, 0, 0, 3, 0, 0]
    assert found.tolist() == [-7.0, 0.0, 0.0, -8.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("lengths", "values", "error"),
    [
        ([0, 3, 0], [0, -1, 0], ValueError),
        ([1, 0, 3], [-1, 0, -1], ValueError),
        ([1, 0, 0], [np.nan, 0, 0], UserError),
        ([1, 0, 0], [0.5, 0, 0], UserError),
        ([1, 0, 0], [-np.inf, 0, 0], UserError),
        ([1, 0], [-1, 0], ValueError),
    ],
)
def test_spans_that_overlap_and_values_that_are_no_likelihoods_are_refused(lengths, values, error):
    targets = SpanTargets(np.array(lengths), np.array(values, np.float32))
    with pytest.raises(error):
        encode_spans(StoredSpans(0, b"d" * 16, targets), SpanStoreConfig(3, 1))


def score(batch):
    """A span over each two targets of a document, with the sum of their ids as likelihood."""
    lengths = np.zeros(batch["tokens"].shape, np.int32)
    last = (batch["positions"] % 2 == 1) & (batch["segment_ids"] > 0)
    lengths[:, :-1][last[:, 1:] & (batch["positions"][:, 1:] > 2)] = 2
    following = np.roll(batch["tokens"], -1, axis=1)
    return SpanTargets(lengths, np.where(lengths, -(following / 8 + batch["tokens"] / 8), 0))


def write(directory, rows, **changes):
    options = {
        "teacher_fingerprint": "toy",
        "teacher_tokenizer_fingerprint": "another",
        "batch_size": 2,
        "rows_per_shard": toy.ROWS_PER_SHARD,
    }
    return write_span_store(directory, rows, score, **{**options, **changes})


@pytest.fixture(scope="module")
def span_store(tmp_path_factory, rows):
    directory = tmp_path_factory.mktemp("spans")
    write(directory, rows)
    return directory


def test_joined_rows_hold_every_span_where_its_last_token_is_predicted(span_store, rows):
    joined = JoinedRows(rows, [StoreReader(span_store)])
    spans = 0
    for index in range(len(rows)):
        row = joined[index]
        lengths, values = score({name: part[None] for name, part in rows[index].items()
                                 if name in ("tokens", "segment_ids", "positions")})  # fmt: skip
        np.testing.assert_array_equal(row["span_ids"], span_ids(lengths[0]))
        bound = error_bound(values[0].astype(np.float32)) * 1.001
        assert np.all(np.abs(row["span_log_likelihoods"] - values[0]) <= bound)
        spans += np.count_nonzero(lengths)
    assert spans > 100


def test_a_store_names_its_kind_and_both_tokenizers(span_store, rows):
    manifest = read_manifest(span_store)
    assert manifest.schema == "span_store/1"
    assert manifest.config["mode"] == "span_likelihoods"
    assert manifest.inputs["tokenizer"] == rows.manifest.inputs["tokenizer"]
    assert manifest.inputs["teacher_tokenizer"] == "another"


def test_several_teachers_of_both_kinds_join_each_kind_along_an_axis(span_store, rows, unbroken):
    spans, candidates = StoreReader(span_store), StoreReader(unbroken)
    one = JoinedRows(rows, [spans])[3]
    row = JoinedRows(rows, [spans, candidates, spans])[3]
    length = rows.row_length
    assert row["span_ids"].shape == row["span_log_likelihoods"].shape == (length, 2)
    assert row["candidate_ids"].shape == (length, toy.CANDIDATES)
    np.testing.assert_array_equal(row["span_ids"][:, 1], one["span_ids"])


def test_a_run_that_was_cut_goes_on_and_gives_the_same_bytes(tmp_path, span_store, rows):
    begun = tmp_path / "begun"
    shutil.copytree(span_store, begun)
    names = sorted(path.name for path in begun.glob("*.array_record"))
    (begun / names[1]).write_bytes(b"damaged")
    write(begun, rows)
    assert toy.files(begun) == toy.files(span_store)


def test_a_directory_of_the_other_kind_and_another_teachers_tokenizer_are_refused(
    tmp_path, span_store, rows, vocab_size
):
    there = tmp_path / "there"
    shutil.copytree(span_store, there)
    with pytest.raises(UserError, match="schema was 'span_store/1', now 'store/1'"):
        toy.write(there, rows, vocab_size)
    with pytest.raises(UserError, match="inputs.teacher_tokenizer was 'another', now 'third'"):
        write(there, rows, teacher_tokenizer_fingerprint="third")
    assert toy.files(there) == toy.files(span_store)
