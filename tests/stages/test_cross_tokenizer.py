"""The benchmark across tokenizers: same text for all, targets where they belong, a table."""

import json

import numpy as np
import pytest

from minillm.stages.benchmark import cross_tokenizer as benchmark
from minillm.stages.benchmark.cross_tokenizer import METHODS, Sizes, benchmark_cross_tokenizer

TINY = Sizes(
    teacher_problems=60, student_problems=30, heldout_problems=8, teacher_steps=2, student_steps=2,
    teacher_width=16, student_width=16, seeds=2,
)  # fmt: skip


def test_all_tokenizers_read_the_same_text_and_held_out_problems_are_new():
    corpus = benchmark._Corpus(TINY)
    tokenizers = [benchmark._tokenizer(corpus.teaching, pieces) for pieces in (420, 900)]
    corpus.keep_what_fits(tokenizers)
    assert set(corpus.learning) < set(corpus.teaching)
    assert not set(corpus.heldout) & set(corpus.teaching)
    wanted = "".join(example.completion for example in corpus.heldout)
    for tokenizer in tokenizers:
        rows = benchmark._rows(corpus.heldout, tokenizer, TINY.row_length)
        counted = rows["loss_mask"] > 0
        read = sum(len(tokenizer.token_bytes(int(i)) or b"") for i in rows["tokens"][counted])
        assert read == len(wanted.encode())
        assert np.sum(rows["tokens"] == tokenizer.eos_id) == len(corpus.heldout)


def test_the_table_takes_differences_seed_by_seed():
    alone, other = (f"{METHODS[i].name} (1)" for i in (0, 2))
    text = benchmark.table_of(
        {"teacher, other tokenizer": [0.1], alone: [1.0, 3.0], other: [0.9, 2.7]}
    )
    lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    assert lines[2][2:4] == ["0.1000", ""]
    assert lines[3][2:4] == ["2.0000 ± 1.4142", ""]
    assert lines[4][2:4] == ["1.8000 ± 1.2728", "-0.2000 ± 0.1414"]


@pytest.mark.slow
def test_the_whole_benchmark_trains_every_kind_of_student(tmp_path):
    text = benchmark_cross_tokenizer(TINY, out=str(tmp_path / "figures.json"))
    found = json.loads((tmp_path / "figures.json").read_text())["bits_per_byte"]
    assert len(found) == len(METHODS) + 2 == len(text.splitlines()) - 2
    for name, bits in found.items():
        assert len(bits) == (1 if name.startswith("teacher") else 2)
        assert all(1 < value < 9 for value in bits), name
