import dataclasses
import hashlib
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from minillm.core.errors import UserError
from minillm.core.manifest import file_sha256, read_manifest, write_manifest
from minillm.data import rows as rows_module
from minillm.data.corpus import Example, builtin_text_path, problem_prompt, read_text
from minillm.data.packing import PackedRow
from minillm.data.rows import RowsReader, decode_row, encode_row, row_digest, write_rows
from minillm.data.tokenizer import BPETokenizer

ROW_LENGTH = 48
TEXTS = [Example("", text) for text in read_text(builtin_text_path())]
PROBLEMS = [Example(problem_prompt(f"{n} + 1?"), f"It is {n + 1}.") for n in range(40)]
LONG = [Example(problem_prompt("Long?"), "word " * 100)]


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer(500, only_seen_commands=True).train(e.text for e in TEXTS)


def _write(directory, tokenizer, documents=(*TEXTS, *PROBLEMS, *LONG), **changes):
    settings = {
        "row_length": ROW_LENGTH,
        "config": {"kind": "test"},
        "inputs": {"corpus": "c0ffee"},
        "rows_per_shard": 16,
    }
    return write_rows(directory, documents, tokenizer=tokenizer, **{**settings, **changes})


@pytest.fixture(scope="module")
def written(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("rows") / "set"
    _write(directory, tokenizer)
    return directory


@pytest.fixture
def copy(written, tmp_path):
    return shutil.copytree(written, tmp_path / "copy")


def _bytes(directory):
    return {p.name: p.read_bytes() for p in sorted(directory.iterdir())}


def test_rows_hold_every_document_but_the_problem_that_is_too_long(written, tokenizer):
    reader = RowsReader(written)
    segments = []
    for index in range(len(reader)):
        row = reader[index]
        for segment in range(1, row["segment_ids"].max() + 1):
            segments.append(row["tokens"][row["segment_ids"] == segment])
    texts = [tokenizer.decode(tokens) for tokens in segments]
    for example in PROBLEMS:
        assert texts.count(example.text) == 1
    whole = [[tokenizer.bos_id, *tokenizer.encode(e.text), tokenizer.eos_id] for e in TEXTS]
    pieces = [w[i : i + ROW_LENGTH] for w in whole for i in range(0, len(w), ROW_LENGTH)]
    assert len(segments) == len(pieces) + len(PROBLEMS)
    found = [tokens.tolist() for tokens in segments]
    assert all(piece in found for piece in pieces)
    assert not any("Long?" in text for text in texts)


def test_manifest_counts_are_those_of_the_rows(written, tokenizer):
    reader = RowsReader(written)
    rows = [reader[i] for i in range(len(reader))]
    tokens = sum(np.count_nonzero(row["segment_ids"]) for row in rows)
    counts = reader.manifest.counts
    assert counts == {
        "rows": len(rows),
        "tokens": tokens,
        "target_tokens": sum(int(row["loss_mask"].sum()) for row in rows),
        "documents": len(TEXTS) + len(PROBLEMS) + 1,
        "dropped_documents": 1,
        "vocab_size": tokenizer.vocab_size,
        "padding_share": pytest.approx(1 - tokens / (len(rows) * ROW_LENGTH), abs=1e-6),
    }
    assert reader.manifest.inputs == {"corpus": "c0ffee", "tokenizer": tokenizer.fingerprint}
    assert reader.manifest.complete and reader.row_length == ROW_LENGTH
    for shard in reader.manifest.shards:
        content = (written / shard.name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == shard.sha256
        assert len(content) == shard.bytes


def test_every_target_has_a_token_of_its_segment_before_it(written):
    reader = RowsReader(written)
    for index in range(len(reader)):
        row = reader[index]
        (targets,) = np.nonzero(row["loss_mask"])
        assert (row["positions"][targets] > 0).all()
        assert (row["segment_ids"][targets] == row["segment_ids"][targets - 1]).all()


def test_a_row_carries_its_index_its_digest_and_the_types_of_the_contract(written):
    reader = RowsReader(written)
    assert len(reader) > 32 and len(reader.manifest.shards) > 2
    for index in (0, 15, 16, len(reader) - 1):
        row = reader[index]
        assert row["row_id"] == index and row["row_id"].dtype == np.int64
        assert row["digest"].tobytes() == row_digest(row["tokens"], row["segment_ids"])
        types = {name: (value.dtype.name, value.shape) for name, value in row.items()}
        assert types == {
            "row_id": ("int64", ()),
            "digest": ("uint8", (16,)),
            "tokens": ("int32", (ROW_LENGTH,)),
            "segment_ids": ("int32", (ROW_LENGTH,)),
            "positions": ("int32", (ROW_LENGTH,)),
            "loss_mask": ("uint8", (ROW_LENGTH,)),
        }
    for outside in (-1, len(reader)):
        with pytest.raises(IndexError):
            reader[outside]


def test_a_reader_can_be_pickled_and_read_from_threads(written):
    reader = RowsReader(written)
    again = pickle.loads(pickle.dumps(reader))
    assert again.fingerprint == reader.fingerprint
    indices = np.random.default_rng(0).integers(0, len(reader), 300).tolist()
    with ThreadPoolExecutor(8) as pool:
        for index, row in zip(indices, pool.map(again.__getitem__, indices), strict=True):
            np.testing.assert_array_equal(row["tokens"], reader[index]["tokens"])


def test_writing_twice_gives_the_same_bytes(written, tokenizer, tmp_path):
    _write(tmp_path / "again", tokenizer)
    assert _bytes(tmp_path / "again") == _bytes(written)


def test_a_finished_directory_is_left_as_it_is_and_documents_are_not_read(copy, tokenizer):
    before = {p: p.stat().st_mtime_ns for p in copy.iterdir()}

    def documents():
        raise AssertionError("read a document")
        yield

    assert _write(copy, tokenizer, documents()) == read_manifest(copy)
    assert {p: p.stat().st_mtime_ns for p in copy.iterdir()} == before


@pytest.mark.parametrize("survivors", [0, 1, 2])
def test_a_run_cut_off_after_any_shard_ends_with_the_same_bytes(
    written, tokenizer, tmp_path, monkeypatch, survivors
):
    directory = tmp_path / "cut"

    def cut_off(path):
        # The point where a shard lies whole beside its final name.
        if len(list(directory.glob("rows-*"))) == survivors:
            raise KeyboardInterrupt
        return file_sha256(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rows_module, "file_sha256", cut_off)
        _write(directory, tokenizer)
    with pytest.raises(UserError, match="unfinished"):
        RowsReader(directory)
    kept = _bytes(directory)
    assert sum(name.startswith("rows-") for name in kept) == survivors
    _write(directory, tokenizer)
    assert _bytes(directory) == _bytes(written)


def test_other_documents_under_the_same_inputs_are_noticed_on_going_on(copy, tokenizer):
    _forget_the_end(copy)
    with pytest.raises(UserError, match=r"rows-00000.*rows of other documents"):
        _write(copy, tokenizer, [Example("", TEXTS[0].text.upper()), *TEXTS[1:], *PROBLEMS])


def test_a_damaged_shard_of_an_unfinished_run_is_noticed_on_going_on(copy, tokenizer):
    _forget_the_end(copy)
    path = copy / "rows-00000.array_record"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"rows-00000.*SHA-256"):
        _write(copy, tokenizer)


def _forget_the_end(directory):
    """As a run looks that was cut off after two shards."""
    manifest = read_manifest(directory)
    for shard in manifest.shards[2:]:
        (directory / shard.name).unlink()
    cut = dataclasses.replace(manifest, complete=False, counts={}, shards=manifest.shards[:2])
    write_manifest(directory, cut)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"row_length": 40}, "config.row_length was 48, now 40"),
        ({"rows_per_shard": 8}, "config.rows_per_shard"),
        ({"inputs": {"corpus": "other"}}, "inputs.corpus"),
        ({"config": {"kind": "else"}}, "config.kind"),
    ],
)
def test_a_directory_made_from_something_else_is_refused_by_name(written, tokenizer, change, name):
    with pytest.raises(UserError, match=name):
        _write(written, tokenizer, **change)


def test_another_tokenizer_is_refused_by_name(written):
    other = BPETokenizer(501, only_seen_commands=True).train(e.text for e in TEXTS)
    with pytest.raises(UserError, match=r"inputs\.tokenizer"):
        _write(written, other)


def test_rows_without_a_fitting_document_are_refused(tokenizer, tmp_path):
    with pytest.raises(UserError, match="1 of 1 documents are longer"):
        _write(tmp_path / "a", tokenizer, LONG)
    with pytest.raises(UserError, match="row_length"):
        _write(tmp_path / "b", tokenizer, row_length=1)


def test_a_shard_cut_short_is_noticed_on_opening(copy):
    path = copy / "rows-00001.array_record"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="rows-00001"):
        RowsReader(copy)


def test_a_missing_shard_is_noticed_on_opening(copy):
    (copy / "rows-00001.array_record").unlink()
    with pytest.raises(UserError, match=r"rows-00001.*no such file"):
        RowsReader(copy)


def test_a_shard_of_the_right_size_with_too_few_records_is_noticed(copy):
    path = copy / "rows-00001.array_record"
    path.write_bytes(path.read_bytes()[:100].ljust(path.stat().st_size, b"\0"))
    reader = RowsReader(copy)
    with pytest.raises(UserError, match="rows-00001"):
        reader[17]
    assert reader[0]["row_id"] == 0


def test_no_flipped_byte_changes_a_row_unnoticed(copy):
    path = copy / "rows-00000.array_record"
    clean, content = RowsReader(copy), path.read_bytes()
    wanted = [clean[i] for i in range(16)]
    used = len(content.rstrip(b"\0"))
    noticed = 0
    for at in np.random.default_rng(0).integers(0, used, 40).tolist():
        damaged = bytearray(content)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        reader = RowsReader(copy)
        for index in range(16):
            try:
                row = reader[index]
            except UserError as error:
                assert "rows-00000" in str(error)
                noticed += 1
            else:
                for name, value in row.items():
                    np.testing.assert_array_equal(value, wanted[index][name])
    assert noticed


def test_a_record_in_the_wrong_place_is_noticed(copy):
    reader = RowsReader(copy)
    shard = reader.manifest.shards[0]
    path = copy / shard.name
    rows = [reader[index] for index in range(16)]
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for index in [1, 0, *range(2, 16)]:
        row = {name: rows[index][name] for name in vars(_row())}
        writer.write(encode_row(index, PackedRow(**row)))
    writer.close()
    assert path.stat().st_size == shard.bytes
    with pytest.raises(UserError, match=r"rows-00000.*says that it is row 1"):
        RowsReader(copy)[0]


def _row():
    return PackedRow(*np.ones((3, 4), np.int32), np.ones(4, np.uint8))


def test_a_record_whose_tokens_changed_does_not_decode():
    record = encode_row(7, _row())
    assert decode_row(record)["row_id"] == 7
    with pytest.raises(ValueError, match="digest"):
        decode_row(record.replace(b"tokens\xc4\x10\x01", b"tokens\xc4\x10\x02"))
    for bad in (b"", b"\xc1", b"\x01", record[:-1], rows_module.msgpack.packb({"row_id": 1})):
        with pytest.raises(ValueError, match=r"packed row|digest"):
            decode_row(bad)
