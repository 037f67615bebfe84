"""The benchmark of a teacher's forward pass, on a model of a few numbers."""

import json

import pytest

from minillm.stages.benchmark import teacher

TINY = {
    "vocab_size": 256,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
}


def test_the_ratio_is_against_the_faster_of_the_others():
    row = teacher.Row(
        8,
        128,
        {teacher.OURS: 0.5, teacher.EAGER: 2.0, teacher.SDPA: 1.0},
        {teacher.OURS: 1.0, teacher.EAGER: 3.0, teacher.SDPA: 4.0},
        7.25,
    )
    assert (row.ratio, row.cpu_ratio) == (2.0, 3.0)
    assert row.tokens_per_second(teacher.OURS) == 2048
    cells = [cell.strip() for cell in teacher.table_of([row]).splitlines()[2].split("|")[1:-1]]
    assert cells == ["B8 T128", "2,048", "512", "1,024", "2.00×", "3.00×", "7.2"]


@pytest.mark.reference
def test_both_sides_compute_the_same_and_are_timed(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    monkeypatch.setattr(teacher, "MODEL", TINY)
    out = tmp_path / "teacher.json"
    text = teacher.benchmark_teacher(shapes=[(2, 12)], seconds=0, out=str(out))
    assert "B2 T12" in text
    (row,) = json.loads(out.read_text())["rows"]
    assert set(row["seconds"]) == {teacher.OURS, teacher.EAGER, teacher.SDPA}
    assert all(0 < seconds < 60 for seconds in row["seconds"].values())
