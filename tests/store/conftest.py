"""Two small datasets of packed rows, and a store of the first."""

import pytest

from minillm.data.corpus import Example
from minillm.data.rows import RowsReader, write_rows
from minillm.data.tokenizer import BPETokenizer
from minillm.store.reader import StoreReader
from tests.store import toy

ROW_LENGTH = 32


@pytest.fixture(scope="session")
def tokenizer():
    texts = [f"Problem: {a} + {b} = {a + b}. It is so." for a in range(9) for b in range(9)]
    return BPETokenizer(320, only_seen_commands=True).train(texts)


def packed(directory, tokenizer, step):
    sums = [Example(f"{a} + {step} =", f" {a + step}" + "!" * (a % 7)) for a in range(60)]
    write_rows(
        directory,
        sums,
        tokenizer=tokenizer,
        row_length=ROW_LENGTH,
        config={},
        inputs={"s": f"{step}"},
    )
    return RowsReader(directory)


@pytest.fixture(scope="session")
def rows(tmp_path_factory, tokenizer):
    reader = packed(tmp_path_factory.mktemp("rows"), tokenizer, 7)
    # Several shards, the last one and its last batch not full.
    assert len(reader) > 3 * toy.ROWS_PER_SHARD
    return reader


@pytest.fixture(scope="session")
def other_rows(tmp_path_factory, tokenizer):
    return packed(tmp_path_factory.mktemp("other_rows"), tokenizer, 8)


@pytest.fixture(scope="session")
def vocab_size(tokenizer):
    return tokenizer.vocab_size


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory, rows, vocab_size):
    """The directory of a store written in one go; tests copy it before they damage it."""
    directory = tmp_path_factory.mktemp("store")
    toy.write(directory, rows, vocab_size)
    return directory


@pytest.fixture
def store(unbroken):
    return StoreReader(unbroken)
