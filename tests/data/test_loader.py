import itertools
import json

import grain
import numpy as np
import pytest

from minillm.core.errors import UserError
from minillm.data.corpus import Example, builtin_text_path
from minillm.data.loader import batches, check_restorable, loader_fingerprint
from minillm.data.rows import RowsReader, write_rows
from minillm.data.tokenizer import BPETokenizer

SOURCE = [{"x": np.asarray(i), "digest": np.zeros(16, np.uint8)} for i in range(23)]


def _take(iterator, count):
    return [batch["x"].tolist() for batch in itertools.islice(iterator, count)]


def _run(count, **changes):
    settings = {"batch_size": 4, "seed": 0, **changes}
    return _take(iter(batches(SOURCE, **settings)), count)


def _flat(lists):
    return list(itertools.chain.from_iterable(lists))


def test_the_same_seed_gives_the_same_batches_and_another_seed_others():
    assert _run(20) == _run(20)
    assert _run(5) != _run(5, seed=1)
    # A seed is no shifted copy of its neighbour.
    assert _run(5, seed=1) != _run(10)[5:]


def test_reading_in_threads_or_not_makes_no_difference():
    assert _run(20, read_threads=0) == _run(20) == _run(20, read_threads=7)


def test_an_epoch_holds_no_row_twice_and_leaves_out_only_the_remainder():
    rows = _run(20)
    epochs = [_flat(rows[i : i + 5]) for i in range(0, 20, 5)]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == 20
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert set(_flat(epochs)) == set(range(23))


def test_epochs_end_after_their_number_and_none_goes_on():
    assert len(_run(1000, epochs=3)) == 15
    assert len(_run(200)) == 200


@pytest.mark.parametrize("cut", [0, 1, 4, 5, 6, 13])
def test_going_on_from_a_saved_state_equals_never_having_stopped(cut):
    whole = iter(batches(SOURCE, batch_size=4, seed=3))
    wanted = _take(whole, 20)
    first = iter(batches(SOURCE, batch_size=4, seed=3))
    assert _take(first, cut) == wanted[:cut]
    state = json.loads(json.dumps(first.get_state()))
    second = iter(batches(SOURCE, batch_size=4, seed=3))
    second.set_state(state)
    assert _take(second, 20 - cut) == wanted[cut:]


@pytest.mark.parametrize("num_shards", [2, 4])
def test_shards_together_hold_the_global_batches(num_shards):
    parts = [_run(15, num_shards=num_shards, shard_index=index) for index in range(num_shards)]
    for whole, *pieces in zip(_run(15), *parts, strict=True):
        assert sorted(_flat(pieces)) == sorted(whole)
        assert all(len(piece) == 4 // num_shards for piece in pieces)


def test_packed_rows_come_in_batches_with_their_keys(tmp_path):
    text = builtin_text_path().read_text()
    tokenizer = BPETokenizer(400, only_seen_commands=True).train([text])
    write_rows(
        tmp_path,
        [Example("", text)],
        tokenizer=tokenizer,
        row_length=32,
        config={},
        inputs={},
        rows_per_shard=20,
    )
    reader = RowsReader(tmp_path)
    dataset = batches(reader, batch_size=8, seed=0, epochs=1)
    assert isinstance(dataset, grain.IterDataset)
    seen = 0
    for batch in dataset:
        assert batch["tokens"].shape == (8, 32) and batch["digest"].shape == (8, 16)
        for i, index in enumerate(batch["row_id"]):
            np.testing.assert_array_equal(batch["tokens"][i], reader[index]["tokens"])
            np.testing.assert_array_equal(batch["digest"][i], reader[index]["digest"])
        seen += 1
    assert seen == len(reader) // 8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 24}, "at most 23"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_shards": 3}, "multiple of the 3 data shards; fix: try 3"),
        ({"num_shards": 2, "shard_index": 2}, "shard_index"),
        ({"epochs": 0}, "epochs"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(changes, words):
    with pytest.raises(UserError, match=words):
        _run(1, **changes)


def test_a_position_is_restored_only_under_the_settings_it_was_saved_with():
    saved = loader_fingerprint(dataset="a", rows=23, batch_size=4, seed=0)
    check_restorable(json.loads(json.dumps(saved)), saved)
    for change in (
        {"dataset": "b"},
        {"rows": 22},
        {"batch_size": 8},
        {"seed": 1},
        {"num_shards": 2},
    ):
        ((name, value),) = change.items()
        with pytest.raises(UserError, match=rf"{name}.*{name}={value!r}.*{name}={saved[name]!r}"):
            check_restorable(saved, {**saved, **change})
    with pytest.raises(UserError, match="batch_size, seed"):
        check_restorable(saved, {**saved, "batch_size": 2, "seed": 9})
    with pytest.raises(UserError, match="num_shards"):
        check_restorable({k: v for k, v in saved.items() if k != "num_shards"}, saved)
