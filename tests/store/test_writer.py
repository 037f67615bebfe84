"""A store comes out whole and the same, whatever happened on the way."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from minillm.core import manifest as manifests
from minillm.core.errors import UserError
from minillm.core.manifest import read_manifest
from minillm.store import writer
from minillm.store.codec import decode_row
from minillm.store.reader import StoreReader
from minillm.store.schema import TeacherTargets
from tests.store import toy

REPOSITORY = Path(__file__).parents[2]


class Killed(BaseException):
    """Like a signal: nothing may catch it on the way."""


def interrupt_at(monkeypatch, moment, score):
    """Make the `moment`-th step that a writer takes the last one; steps taken so far in [0]."""
    taken = [0]

    def watched(function):
        def step(*args, **kwargs):
            taken[0] += 1
            if taken[0] == moment:
                raise Killed
            return function(*args, **kwargs)

        return step

    monkeypatch.setattr(writer, "write_manifest", watched(manifests.write_manifest))
    monkeypatch.setattr(writer, "encode_row", watched(writer.encode_row))
    monkeypatch.setattr(writer, "file_sha256", watched(manifests.file_sha256))
    monkeypatch.setattr(os, "fsync", watched(os.fsync))
    return watched(score), taken


def test_every_row_is_there_once_and_in_its_place(unbroken, rows):
    manifest = read_manifest(unbroken)
    config = StoreReader(unbroken).config
    found = []
    for number, shard in enumerate(manifest.shards):
        assert shard.first == number * toy.ROWS_PER_SHARD
        records = ArrayRecordReader(str(unbroken / shard.name)).read_all()
        assert len(records) == shard.records
        found += [decode_row(record, config).row_id for record in records]
    assert found == list(range(len(rows)))


def test_targets_are_kept_where_a_token_follows_and_nowhere_else(store, rows, vocab_size):
    for row_id in range(len(rows)):
        row = rows[row_id]
        targets = store[row_id].targets
        segments = [*row["segment_ids"], 0]
        dense = toy.log_probs({"tokens": row["tokens"][None]}, vocab_size)[0]
        for t in range(rows.row_length):
            follows = segments[t] != 0 and segments[t] == segments[t + 1]
            ids = targets.candidate_ids[t]
            if follows:
                assert ids.tolist() == np.argsort(-dense[t], kind="stable")[:6].tolist()
                mass = np.exp(targets.candidate_log_probs[t]).sum() + np.exp(
                    targets.tail_log_prob[t]
                )
                assert mass == pytest.approx(1, abs=5e-3)
            else:
                assert np.all(ids == -1)
                assert np.all(np.isneginf(targets.candidate_log_probs[t]))
                assert np.isneginf(targets.tail_log_prob[t])


def test_stopped_at_any_step_and_run_again_it_is_byte_for_byte_the_same(
    tmp_path, monkeypatch, unbroken, rows, vocab_size
):
    expected = toy.files(unbroken)
    moment, finished = 0, False
    while not finished:
        moment += 1
        directory = tmp_path / str(moment)
        with monkeypatch.context() as patch:
            score, taken = interrupt_at(patch, moment, toy.scorer(vocab_size))
            try:
                toy.write(directory, rows, vocab_size, score=score)
                finished = taken[0] < moment
            except Killed:
                pass
        toy.write(directory, rows, vocab_size)
        assert toy.files(directory) == expected, f"stopped at step {moment}"
    assert moment > 2 * len(rows)


def test_killed_by_the_system_it_is_byte_for_byte_the_same(tmp_path, unbroken, rows, vocab_size):
    directory = tmp_path / "store"
    shards = len(read_manifest(unbroken).shards)
    command = [sys.executable, "-m", "tests.store.toy"]
    command += [str(directory), str(rows.directory), str(vocab_size), "0.1"]
    moments = random.Random(0)
    outcomes = []
    for wanted in range(1, shards - 1):
        process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            manifest = read_manifest(directory)
            if manifest is not None and len(manifest.shards) >= wanted:
                break
            time.sleep(0.002)
        time.sleep(0.1 * moments.random())
        process.send_signal(signal.SIGKILL)
        outcomes.append(process.wait(timeout=30))
    # On a machine under load one of them may have come to its end first.
    assert -signal.SIGKILL in outcomes
    toy.write(directory, rows, vocab_size)
    assert toy.files(directory) == toy.files(unbroken)


def test_shards_that_are_listed_are_not_scored_again(tmp_path, monkeypatch, rows, vocab_size):
    calls = []

    def counting(batch):
        calls.append(int(batch["row_id"][0]))
        if len(calls) == 8:
            raise Killed
        return toy.scorer(vocab_size)(batch)

    with pytest.raises(Killed):
        toy.write(tmp_path, rows, vocab_size, score=counting)
    kept = len(read_manifest(tmp_path).shards) * toy.ROWS_PER_SHARD
    assert kept > 0
    toy.write(tmp_path, rows, vocab_size, score=counting)
    assert min(calls[8:]) == kept


def test_a_finished_store_is_left_alone(tmp_path, unbroken, rows, vocab_size):
    directory = shutil.copytree(unbroken, tmp_path / "store")

    def never(batch):
        raise AssertionError("scored again")

    manifest = toy.write(directory, rows, vocab_size, score=never)
    assert manifest.complete
    assert toy.files(directory) == toy.files(unbroken)


@pytest.mark.parametrize("damage", ["cut short", "emptied", "removed", "flipped"])
def test_a_damaged_shard_is_written_anew(tmp_path, unbroken, rows, vocab_size, damage):
    directory = shutil.copytree(unbroken, tmp_path / "store")
    path = directory / "targets-00001.array_record"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    if damage == "removed":
        path.unlink()
    else:
        shorter = {"cut short": path.read_bytes()[:-1], "emptied": b"", "flipped": bytes(content)}
        path.write_bytes(shorter[damage])
    toy.write(directory, rows, vocab_size)
    assert toy.files(directory) == toy.files(unbroken)


def test_what_a_killed_run_left_aside_is_cleared(tmp_path, unbroken, rows, vocab_size):
    for name in (".targets-00000.array_record.part", ".manifest.json.123.part"):
        (tmp_path / name).write_bytes(b"half")
    toy.write(tmp_path, rows, vocab_size)
    assert toy.files(tmp_path) == toy.files(unbroken)


def test_a_manifest_that_is_cut_short_is_an_error_and_not_a_new_start(
    tmp_path, unbroken, rows, vocab_size
):
    directory = shutil.copytree(unbroken, tmp_path / "store")
    (directory / "manifest.json").write_bytes((directory / "manifest.json").read_bytes()[:-20])
    with pytest.raises(UserError, match=r"manifest\.json"):
        toy.write(directory, rows, vocab_size)


def test_a_full_disk_ends_the_run_with_its_cause(tmp_path, unbroken, rows, vocab_size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for a manifest, none for a shard.
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, hard))
    try:
        with pytest.raises(RuntimeError, match=r"File too large.*targets-00000"):
            toy.write(tmp_path, rows, vocab_size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_manifest(tmp_path).shards == ()
    toy.write(tmp_path, rows, vocab_size)
    assert toy.files(tmp_path) == toy.files(unbroken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": 5}, r"config\.candidates was 6, now 5"),
        ({"rows_per_shard": 4}, r"config\.rows_per_shard was 5, now 4"),
        ({"teacher_fingerprint": "another"}, r"inputs\.teacher was 'toy', now 'another'"),
    ],
)
def test_another_teacher_or_setting_never_goes_on_with_a_store(
    tmp_path, unbroken, rows, vocab_size, change, message
):
    directory = shutil.copytree(unbroken, tmp_path / "store")
    with pytest.raises(UserError, match=message):
        toy.write(directory, rows, vocab_size, **change)
    assert toy.files(directory) == toy.files(unbroken)


def test_a_teacher_with_another_tokenizer_is_refused_before_anything_is_written(
    tmp_path, rows, vocab_size
):
    with pytest.raises(UserError) as caught:
        toy.write(tmp_path / "store", rows, vocab_size, tokenizer_fingerprint="of the teacher")
    assert "of the teacher" in str(caught.value)
    assert rows.manifest.inputs["tokenizer"] in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_a_teacher_with_too_few_tokens_is_refused(tmp_path, rows):
    with pytest.raises(UserError, match="below the teacher's vocabulary of 50"):
        toy.write(tmp_path, rows, 50)


def test_targets_without_a_tail_are_refused_and_name_the_row(tmp_path, rows, vocab_size):
    def truncated(batch):
        targets = toy.scorer(vocab_size)(batch)
        return targets._replace(tail_log_prob=np.full_like(targets.tail_log_prob, -np.inf))

    with pytest.raises(UserError, match="row 0, position 0: got a total mass"):
        toy.write(tmp_path, rows, vocab_size, score=truncated)


@pytest.mark.parametrize(
    "change", [{"candidates": 0}, {"candidates": 10**6}, {"batch_size": 0}, {"rows_per_shard": 0}]
)
def test_a_setting_out_of_range_is_named(tmp_path, rows, vocab_size, change):
    with pytest.raises(UserError, match=next(iter(change))):
        toy.write(tmp_path, rows, vocab_size, score=lambda batch: TeacherTargets(), **change)
