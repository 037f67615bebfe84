"""What a progress bar writes where nobody watches."""

import io
import re
import sys

from minillm.core import progress as module
from minillm.core.progress import progress


def lines_of(monkeypatch, seconds, **options):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", seconds)
    with progress(40, description="targets", unit="row", **options) as bar:
        for _ in range(4):
            bar.set_postfix_str("7 tokens/s", refresh=False)
            bar.update(10)
    return log.getvalue()


def test_a_log_gets_a_line_for_each_state_with_rows_rate_and_time_left(monkeypatch):
    text = lines_of(monkeypatch, 0.0)
    assert "\r" not in text
    # At the end tqdm may say the last state again, and adds an empty line.
    assert list(dict.fromkeys(re.findall(r"(\d+)/40", text))) == ["0", "10", "20", "30", "40"]
    lines = [line for line in text.splitlines() if line]
    assert all(line.startswith("targets") and "<" in line for line in lines)
    assert all("7 tokens/s" in line for line in lines[1:])


def test_between_lines_of_a_log_time_passes(monkeypatch):
    # The beginning and the end, and nothing in the microseconds between.
    assert lines_of(monkeypatch, 10.0).count("/40") == 2


def test_only_one_of_several_hosts_shows_it(monkeypatch):
    assert lines_of(monkeypatch, 0.0, shown=False) == ""
