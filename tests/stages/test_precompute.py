"""The precompute stage: what it refuses before it loads, and several hosts that write one store."""

import dataclasses
import json
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from minillm.core.errors import UserError
from minillm.core.manifest import read_manifest
from minillm.core.sharding import MeshConfig
from minillm.data.rows import RowsReader
from minillm.stages import precompute as stage
from minillm.stages.precompute import PrecomputeConfig, precompute, rows_for
from minillm.stages.preparation import RowsConfig
from minillm.store import StoreReader
from tests.stages.precompute_hosts import finish, start, start_pair
from tests.stages.precompute_inputs import ROW_LENGTH, ROWS_PER_SHARD, write_inputs, write_teacher
from tests.tolerances import STORED

CONFIG = PrecomputeConfig(candidates=6, rows_per_shard=ROWS_PER_SHARD)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    directory = tmp_path_factory.mktemp("work")
    rows = write_inputs(directory)
    # More turns than one, and a last one in which one of two hosts has no shard.
    assert len(rows) > 4 * ROWS_PER_SHARD
    assert -(-len(rows) // ROWS_PER_SHARD) % 2 == 1
    return directory


@pytest.fixture(scope="module")
def store(work):
    run(work, work / "store")
    return work / "store"


def run(work, output, config=CONFIG, teacher="teacher"):
    return precompute(output, config, teacher=str(work / teacher), rows=work / "rows")


def assert_same_rows(found, wanted):
    found, wanted = StoreReader(found, verify="sha256"), StoreReader(wanted)
    assert len(found) == len(wanted)
    assert found.manifest.inputs == wanted.manifest.inputs
    assert found.manifest.config == wanted.manifest.config
    for row_id in range(len(wanted)):
        mine, theirs = found[row_id], wanted[row_id]
        assert mine.digest == theirs.digest
        np.testing.assert_allclose(
            mine.targets.candidate_log_probs, theirs.targets.candidate_log_probs, rtol=STORED
        )
        np.testing.assert_allclose(
            mine.targets.tail_log_prob, theirs.targets.tail_log_prob, rtol=STORED
        )
        same = mine.targets.candidate_ids == theirs.targets.candidate_ids
        assert same.mean() > 0.999


@pytest.fixture
def nothing_loaded(monkeypatch):
    def load(*args, **options):
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(stage, "load_teacher", load)


def other_store(work, output):
    run(work, output, dataclasses.replace(CONFIG, candidates=5))


def a_file(work, output):
    output.write_text("not a folder")


def other_tokenizer(work, output):
    from minillm.data.tokenizer import BPETokenizer

    shutil.rmtree(work / "stranger", ignore_errors=True)
    texts = [f"{a} times {b} is {a * b}?" for a in range(20) for b in range(20)]
    size = RowsReader(work / "rows").manifest.counts["vocab_size"]
    tokenizer = BPETokenizer(int(size), only_seen_commands=True).train(texts)
    write_teacher(work / "stranger", tokenizer)


@pytest.mark.parametrize(
    ("prepare", "change", "teacher", "words"),
    [
        (other_store, {}, "teacher", r"config\.candidates was 5, now 6"),
        (a_file, {}, "teacher", "output folder .*which is a file"),
        (None, {}, "absent", "teacher: got .*absent, no such folder"),
        (None, {"mesh": MeshConfig(tensor=64)}, "teacher", "mesh: got .*product is the number"),
        (
            other_tokenizer,
            {},
            "stranger",
            "tokenizer_path: got .*stranger .*fingerprint|vocabulary of",
        ),
    ],
)
def test_what_is_wrong_is_said_before_the_teacher_is_loaded(
    work, tmp_path, request, prepare, change, teacher, words
):
    output = tmp_path / "store"
    if prepare:
        prepare(work, output)
    request.getfixturevalue("nothing_loaded")
    with pytest.raises(UserError, match=words):
        run(work, output, dataclasses.replace(CONFIG, **change), teacher)
    assert output.exists() == (prepare in (other_store, a_file))


def a_store_of_other_candidates(work, output):
    shutil.copytree(work / "store", output)


@pytest.mark.parametrize(
    ("prepare", "change", "words"),
    [
        (None, {"mesh": MeshConfig(tensor=64)}, "mesh: got .*product is the number"),
        (None, {"mesh": MeshConfig(data=2, tensor=-1), "batch_size": 3}, "batch_size: got 3"),
        (None, {"rows": RowsConfig(row_length=65)}, r"max_length: got 64; wanted at least 65"),
        (a_file, {}, "output folder .*which is a file"),
        (a_store_of_other_candidates, {"candidates": 5}, r"config\.candidates was 6, now 5"),
        (a_store_of_other_candidates, {"targets": "spans"}, "schema was 'store/1'"),
    ],
)
def test_what_is_wrong_without_rows_is_said_before_they_are_packed(
    work, store, tmp_path, monkeypatch, prepare, change, words
):
    monkeypatch.setattr(stage, "_all_devices", lambda: np.array(jax.devices()).repeat(2).tolist())
    output, texts = tmp_path / "store", tmp_path / "texts.txt"
    texts.write_text("One and one make two.\n")
    if prepare:
        prepare(work, output)
    config = dataclasses.replace(CONFIG, rows=RowsConfig(row_length=ROW_LENGTH))
    options = {"teacher": str(work / "teacher"), "tokenizer_path": None, "output": output}
    packed = tmp_path / "store-rows"
    with pytest.raises(UserError, match=words):
        rows_for(str(texts), dataclasses.replace(config, **change), **options, packed=packed)
    assert not packed.exists()
    # Nothing else is wrong with these settings.
    options["output"] = tmp_path / "other"
    assert rows_for(str(texts), config, **options, packed=packed)[0] == packed
    assert (packed / "manifest.json").exists()


def test_rows_longer_than_the_teacher_reads_are_refused(work, tmp_path, nothing_loaded):
    folder = shutil.copytree(work / "teacher", tmp_path / "short")
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_length": 63}))
    with pytest.raises(UserError, match=r"max_length: got 63; wanted at least 64"):
        precompute(tmp_path / "store", CONFIG, teacher=str(folder), rows=work / "rows")


def test_the_batch_that_was_found_is_kept_for_the_rest_of_a_store(work, store, tmp_path):
    size = read_manifest(store).measured["batch_size"]
    assert size == 32
    output = shutil.copytree(store, tmp_path / "store")
    (output / "targets-00001.array_record").unlink()
    manifest = json.loads((output / "manifest.json").read_text())
    manifest["measured"]["batch_size"] = 2
    (output / "manifest.json").write_text(json.dumps(manifest))
    made = run(work, output)
    assert made.measured["batch_size"] == 2
    assert_same_rows(output, store)


def test_bfloat16_targets_are_near_and_another_teacher(work, store, tmp_path):
    run(work, tmp_path / "store", dataclasses.replace(CONFIG, dtype="bfloat16"))
    narrow, wide = StoreReader(tmp_path / "store"), StoreReader(store)
    assert narrow.manifest.inputs["teacher"] != wide.manifest.inputs["teacher"]
    mine, theirs = (
        np.concatenate([store[i].targets.candidate_log_probs for i in range(len(wide))])
        for store in (narrow, wide)
    )
    stored = np.isfinite(theirs)
    assert np.array_equal(np.isfinite(mine), stored)
    # bfloat16 keeps eight bits of a number.
    assert 1e-4 < np.abs(mine[stored] - theirs[stored]).mean() < 2**-4


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"data": 2}, {"fsdp": 2}, {"tensor": 2}], ids=str)
def test_two_hosts_write_the_store_of_one(work, store, tmp_path, sizes):
    pair = [finish(process) for process in start_pair(work, tmp_path / "pair", sizes)]
    assert pair[0][0] == pair[1][0]
    assert_same_rows(tmp_path / "pair", store)
    # One bar, the first host's, to the last row.
    total = len(StoreReader(store))
    assert f"{total}/{total}" in pair[0][1] and "tokens/s" in pair[0][1]
    assert "tokens/s" not in pair[1][1]


@pytest.mark.slow
def test_two_devices_a_host_share_a_row_with_those_of_the_other(work, store, tmp_path):
    sizes = {"data": 1, "tensor": 4}
    for process in start_pair(work, tmp_path / "pair", sizes, devices=2):
        finish(process)
    assert_same_rows(tmp_path / "pair", store)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_either_of_two_hosts_is_killed_and_the_store_comes_out_the_same(work, tmp_path, victim):
    sizes = {"fsdp": 2}
    for process in start_pair(work, tmp_path / "whole", sizes):
        finish(process)
    killed = tmp_path / "killed"
    pair = start_pair(work, killed, sizes, pause=0.5)
    while len(getattr(read_manifest(killed), "shards", ())) < 2:
        assert all(process.poll() is None for process in pair)
        time.sleep(0.01)
    pair[victim].send_signal(signal.SIGKILL)
    # The other one cannot go on alone; whoever looks after the job ends it.
    time.sleep(1)
    pair[1 - victim].kill()
    for process in pair:
        process.communicate()
    begun = read_manifest(killed)
    assert not begun.complete and 2 <= len(begun.shards) < 5
    for process in start_pair(work, killed, sizes):
        finish(process)
    files = [
        {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        for folder in (killed, tmp_path / "whole")
    ]
    assert files[0] == files[1]
    # A single host, too, goes on with what two have begun.
    shutil.copytree(killed, tmp_path / "alone")
    (tmp_path / "alone" / "targets-00003.array_record").unlink()
    finish(start(work, tmp_path / "alone", {}))
    assert_same_rows(tmp_path / "alone", killed)
