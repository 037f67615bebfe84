"""Manifests: a stage goes on, is skipped, or refuses."""

import dataclasses
import json

import pytest

from minillm.core import manifest
from minillm.core.errors import UserError

CONFIG = {"vocab_size": 512, "windows": (4, None)}
INPUTS = {"corpus": "aa"}


def start(path, config=CONFIG, inputs=INPUTS):
    return manifest.open_stage(path, schema="rows/1", config=config, inputs=inputs)


def test_stage_opened_twice_with_the_same_inputs_returns_what_was_written(tmp_path):
    first = start(tmp_path)
    finished = dataclasses.replace(first, complete=True, counts={"rows": 3})
    manifest.write_manifest(tmp_path, finished)
    assert start(tmp_path) == finished


@pytest.mark.parametrize(
    ("config", "inputs", "named"),
    [
        ({**CONFIG, "vocab_size": 513}, INPUTS, "config.vocab_size was 512, now 513"),
        (CONFIG, {"corpus": "bb"}, "inputs.corpus was 'aa', now 'bb'"),
        (CONFIG, {**INPUTS, "store": "cc"}, "inputs.store was '(absent)', now 'cc'"),
    ],
)
def test_changed_stage_is_an_error_that_names_the_change(tmp_path, config, inputs, named):
    shard = manifest.Shard("part-0", 0, 1, 8, "aa")
    manifest.write_manifest(tmp_path, dataclasses.replace(start(tmp_path), shards=(shard,)))
    with pytest.raises(UserError) as caught:
        start(tmp_path, config, inputs)
    assert named in str(caught.value)


def test_stage_that_was_opened_but_wrote_nothing_can_be_opened_with_other_settings(tmp_path):
    start(tmp_path)
    assert start(tmp_path, {**CONFIG, "vocab_size": 513}).config["vocab_size"] == 513
    arguments = {"schema": "rows/1", "config": CONFIG, "inputs": INPUTS}
    with pytest.raises(UserError, match="was 513, now 512"):
        manifest.open_stage(tmp_path, **arguments, begun=True)


def test_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "notes").write_text("words")
    for place in ("notes", "notes/rows", "notes/deep/rows"):
        with pytest.raises(UserError, match=r"output folder .*notes, which is a file"):
            start(tmp_path / place)
    assert start(tmp_path / "new" / "rows").complete is False


def test_unfinished_or_foreign_stage_is_not_accepted_as_complete(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        manifest.require_complete(tmp_path / "nowhere", "rows/1")
    made = start(tmp_path)
    with pytest.raises(UserError, match="unfinished"):
        manifest.require_complete(tmp_path, "rows/1")
    manifest.write_manifest(tmp_path, dataclasses.replace(made, complete=True))
    with pytest.raises(UserError, match="store/1"):
        manifest.require_complete(tmp_path, "store/1")


def test_fingerprint_is_of_content_and_not_of_versions_or_times(tmp_path):
    made = start(tmp_path)
    assert dataclasses.replace(made, measured={"seconds": 1.0}).fingerprint == made.fingerprint
    assert dataclasses.replace(made, counts={"rows": 1}).fingerprint != made.fingerprint
    assert manifest.read_manifest(tmp_path).fingerprint == made.fingerprint


@pytest.mark.parametrize("damage", [b"abcdefgX", b"abc", None])
def test_damaged_shard_is_named(tmp_path, damage):
    path = tmp_path / "part-0"
    path.write_bytes(b"abcdefgh")
    shard = manifest.list_shard(tmp_path, "part-0", first=0, records=1)
    made = dataclasses.replace(start(tmp_path), shards=(shard,))
    manifest.verify_shards(tmp_path, made)
    path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.raises(UserError, match="part-0"):
        manifest.verify_shards(tmp_path, made)


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    manifest.write_json(path, {"a": 1})

    def cut_off(_):
        raise OSError("killed")

    monkeypatch.setattr(manifest.os, "fsync", cut_off)
    with pytest.raises(OSError, match="killed"):
        manifest.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}


def test_text_that_is_no_manifest_is_an_error(tmp_path):
    (tmp_path / manifest.MANIFEST_NAME).write_text('{"schema": ')
    with pytest.raises(UserError, match="wanted a manifest"):
        manifest.read_manifest(tmp_path)
