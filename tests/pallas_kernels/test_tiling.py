"""The plan reaches every visible key, covers every query once, and skips what it can."""

import pytest

from pallas_kernels.tiling import plan_spans
from pallas_kernels.window import key_range


@pytest.mark.parametrize("queries", [1, 63, 64, 65, 200, 256, 300, 1024])
@pytest.mark.parametrize("offset", [0, 37])
@pytest.mark.parametrize("window", [1, 2, 64, 65, 256, 5000, None])
def test_every_tile_of_the_plan_holds_all_keys_its_queries_see(queries, offset, window):
    keys = queries + offset
    covered = []
    for span in plan_spans(queries, keys, window):
        for step in range(span.steps):
            first = span.first + step * span.block
            stop = min(first + span.block, queries)
            covered.extend(range(first, stop))
            start = min(max(first + span.block + offset - span.keys, 0), keys - span.keys)
            wanted = key_range(first + offset, stop + offset, window)
            assert start <= wanted[0] and wanted[1] <= start + span.keys <= keys
    assert covered == list(range(queries))


def test_a_short_causal_row_skips_most_of_the_upper_triangle():
    spans = plan_spans(256, 256, None)
    assert [(span.first, span.keys) for span in spans] == [
        (0, 64),
        (64, 128),
        (128, 192),
        (192, 256),
    ]
    assert plan_spans(256, 256, 256) == spans


def test_a_long_windowed_row_is_one_span_as_wide_as_the_window():
    (span,) = plan_spans(16384, 16384, 256)
    assert (span.steps, span.keys) == (256, 64 + 255)
