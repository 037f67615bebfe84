"""What is read is what was written, or an error that says why not."""

import json
import pickle
import random
import shutil

import numpy as np
import pytest

from minillm.core.errors import UserError
from minillm.store.reader import StoreReader


def same(one, other):
    return (one.row_id, one.digest) == (other.row_id, other.digest) and all(
        np.array_equal(a, b) for a, b in zip(one.targets, other.targets, strict=True)
    )


def test_rows_are_read_at_random_and_carry_their_key(store, rows):
    order = list(range(len(rows)))
    random.Random(1).shuffle(order)
    for row_id in order:
        stored = store[row_id]
        assert stored.row_id == row_id
        assert stored.digest == rows[row_id]["digest"].tobytes()


def test_a_row_outside_is_an_index_error(store):
    for row_id in (-1, len(store)):
        with pytest.raises(IndexError):
            store[row_id]


def test_a_reader_survives_pickling_before_and_after_its_first_read(unbroken):
    reader = StoreReader(unbroken)
    early = pickle.loads(pickle.dumps(reader))
    assert same(early[3], reader[3])
    late = pickle.loads(pickle.dumps(reader))
    assert same(late[3], reader[3])


def test_every_flipped_byte_is_noticed_by_checksum_and_none_changes_what_is_read(
    tmp_path, unbroken, store
):
    directory = shutil.copytree(unbroken, tmp_path / "store")
    originals = [store[i] for i in range(len(store))]
    names = [shard.name for shard in store.manifest.shards]
    chance = random.Random(2)
    noticed = 0
    for _ in range(150):
        path = directory / chance.choice(names)
        whole = path.read_bytes()
        # The second half of a small file is padding: flip in the part that holds records.
        content = bytearray(whole)
        content[chance.randrange(len(whole.rstrip(b"\0")))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        with pytest.raises(UserError, match=path.name):
            StoreReader(directory, verify="sha256")
        try:
            damaged = StoreReader(directory)
            for original in originals:
                assert same(damaged[original.row_id], original)
        except UserError:
            noticed += 1
        path.write_bytes(whole)
    assert noticed > 0


@pytest.mark.parametrize("verify", ["size", "sha256"])
def test_a_truncated_or_missing_shard_is_noticed_at_open(tmp_path, unbroken, verify):
    directory = shutil.copytree(unbroken, tmp_path / "store")
    path = directory / "targets-00002.array_record"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="targets-00002"):
        StoreReader(directory, verify=verify)
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        StoreReader(directory, verify=verify)


def test_shards_in_each_others_place_are_noticed_by_key(tmp_path, unbroken):
    directory = shutil.copytree(unbroken, tmp_path / "store")
    manifest = json.loads((directory / "manifest.json").read_text())
    first, second = manifest["shards"][:2]
    first["name"], second["name"] = second["name"], first["name"]
    for shard in (first, second):
        path = directory / shard["name"]
        shard["bytes"] = path.stat().st_size
    (directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="the record says that it is row 5"):
        StoreReader(directory)[0]


def edit(directory, **changes):
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_store_of_another_schema_or_unfinished_is_refused(tmp_path, unbroken):
    directory = shutil.copytree(unbroken, tmp_path / "store")
    edit(directory, complete=False)
    with pytest.raises(UserError, match="unfinished"):
        StoreReader(directory)
    edit(directory, complete=True, schema="store/9")
    with pytest.raises(UserError, match=r"got store/9; wanted store/1"):
        StoreReader(directory)


def test_a_manifest_with_an_unknown_setting_is_refused(tmp_path, unbroken, store):
    directory = shutil.copytree(unbroken, tmp_path / "store")
    edit(directory, config={**store.manifest.config, "bits": 3})
    with pytest.raises(UserError, match="bits"):
        StoreReader(directory)
    edit(directory, config={**store.manifest.config, "mode": "sampled"})
    with pytest.raises(UserError, match="sampled"):
        StoreReader(directory)


def test_a_manifest_that_lost_a_shard_is_refused(tmp_path, unbroken, store):
    directory = shutil.copytree(unbroken, tmp_path / "store")
    manifest = json.loads((directory / "manifest.json").read_text())
    edit(directory, shards=manifest["shards"][:-1])
    with pytest.raises(UserError, match="belong"):
        StoreReader(directory)


def test_a_directory_without_a_store_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no manifest\.json"):
        StoreReader(tmp_path)
