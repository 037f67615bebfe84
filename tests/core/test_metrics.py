"""Metrics: whole lines, and none twice after a restart."""

import math

from minillm.core.metrics import METRICS_NAME, MetricWriter, read_metrics


def test_lines_past_the_restored_step_are_dropped_and_a_cut_line_is_ignored(tmp_path):
    writer = MetricWriter(tmp_path)
    for step in (1, 2, 3):
        writer.write(step, {"loss": 1.0 / step})
    writer.close()
    with (tmp_path / METRICS_NAME).open("a") as stream:
        stream.write('{"step": 4, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    writer = MetricWriter(tmp_path, resume_step=2)
    writer.write(3, {"loss": 0.5})
    writer.close()
    assert read_metrics(tmp_path)[-2:] == [{"step": 2, "loss": 0.5}, {"step": 3, "loss": 0.5}]
    assert list((tmp_path / "tensorboard").iterdir())


def test_value_that_is_not_finite_is_null(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(1, {"loss": math.nan})
    writer.close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": None}]
