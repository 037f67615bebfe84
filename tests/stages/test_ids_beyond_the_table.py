"""A teacher whose tokenizer has a special id more than its table has rows, as Gemma 3 1B has."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer

from minillm.core.errors import UserError
from minillm.data.load_tokenizer import load_tokenizer
from minillm.data.rows import RowsReader
from minillm.data.vocabulary import Verdict, compare
from minillm.stages.precompute import precompute, rows_for
from minillm.stages.preparation import RowsConfig
from minillm.store import StoreReader
from minillm.teachers import load_teacher
from tests.data import foreign
from tests.stages import tiny
from tests.teachers.folders import DESCRIPTION, WHOLE, random_tensors, write_files

CONFIG = replace(tiny.CONFIG.precompute, rows=RowsConfig(64))
TEXT = "It is 2, and not 3.\n\n" * 60


def write_teacher(folder, table):
    """A Llama with so many rows of a table, and GPT-2's tokenizer with one special token more."""
    foreign.gpt2(folder)
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.add_special_tokens(["<image_soft_token>"])
    made.save(str(folder / "tokenizer.json"))
    table = made.get_vocab_size() + table
    write_files(folder, random_tensors(replace(WHOLE, vocab_size=table)))
    (folder / "config.json").write_text(json.dumps({**DESCRIPTION, "vocab_size": table}))
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp("teacher"), -1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "notes.txt"
    path.write_text(TEXT)
    return str(path)


def test_its_candidates_are_of_the_table(teacher, data, tmp_path):
    rows, tokenizer = rows_for(
        data, CONFIG, teacher=str(teacher), tokenizer_path=None, packed=tmp_path / "rows"
    )
    size = load_tokenizer(teacher).vocab_size
    assert RowsReader(rows).manifest.counts["vocab_size"] == size
    assert load_teacher(teacher, vocab_size=size).config.vocab_size == size - 1
    store = tmp_path / "store"
    made = precompute(store, CONFIG, teacher=str(teacher), rows=rows, tokenizer=tokenizer)
    assert made.config["vocab_size"] == size - 1
    ids = StoreReader(store)[0].targets.candidate_ids
    assert ids.max() < size - 1 and ids.max() > 0


def test_a_student_of_another_tokenizer_learns_from_its_spans(teacher, data, tmp_path):
    student = foreign.qwen2(tmp_path / "student")
    rows, tokenizer = rows_for(
        data, CONFIG, teacher=str(teacher), tokenizer_path=str(student), packed=tmp_path / "rows"
    )
    store = tmp_path / "store"
    precompute(store, CONFIG, teacher=str(teacher), rows=rows, tokenizer=tokenizer)
    found = StoreReader(store)[0].targets
    there = found.span_lengths > 0
    assert there.any() and np.isfinite(found.span_log_likelihoods[there]).all()


def test_it_has_the_vocabulary_of_its_tokenizer_and_logits_for_the_table(teacher):
    tokenizer = load_tokenizer(teacher)
    size = tokenizer.vocab_size
    found = compare(tokenizer, tokenizer, size - 1)
    assert (found.verdict, found.kept) == (Verdict.SAME, size - 1)


def test_an_end_beyond_the_table_is_refused(tmp_path):
    # The last but one is the end of every document.
    folder = write_teacher(tmp_path / "teacher", -2)
    with pytest.raises(UserError, match="its tokenizer: got 504 tokens; wanted about 502"):
        load_teacher(folder)
    tokenizer = load_tokenizer(folder)
    with pytest.raises(UserError, match="got 502 logits for 504 ids"):
        compare(tokenizer, tokenizer, 502)
