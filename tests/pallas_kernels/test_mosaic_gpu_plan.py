"""The tables of blocks to visit against the whole mask, exhaustively on small sizes."""

import itertools

import numpy as np
import pytest

from pallas_kernels.mosaic_gpu_plan import block_table
from pallas_kernels.window import NO_MARKS, Marks, attention_mask


def check(queries, keys, window, marks, q_block, k_block, *, tight):
    """Whether each row of each table has all that can be seen, and no mask where none is due."""
    widths = [(0, -queries % q_block), (0, -keys % k_block)] * 2
    padded = Marks(*(
        None if x is None else np.pad(x.astype(np.int32), ((0, 0), width))
        for x, width in zip(marks, widths, strict=True)
    ))  # fmt: skip
    mask = np.asarray(attention_mask(queries, keys, window, marks))
    # A key of the padding is seen by nobody; a query of the padding does not count.
    mask = np.pad(mask, ((0, 0), (0, 0), (0, -keys % k_block)))
    for by_key in (False, True):
        table = block_table(
            queries, keys, window, padded, q_block=q_block, k_block=k_block, by_key=by_key
        )
        assert table.dtype == np.int32
        for row, row_mask in zip(np.asarray(table), mask, strict=True):
            tiles = [
                [row_mask[i : i + q_block, j : j + k_block] for j in range(0, keys, k_block)]
                for i in range(0, queries, q_block)
            ]
            if by_key:
                tiles = list(zip(*tiles, strict=True))
            assert len(row) == len(tiles)
            for (start, inner_start, inner_stop, stop), line in zip(row, tiles, strict=True):
                assert 0 <= start <= inner_start <= inner_stop <= stop <= len(line)
                seen = [i for i, tile in enumerate(line) if tile.any()]
                whole = [i for i, tile in enumerate(line) if tile.all()]
                assert set(seen) <= set(range(start, stop))
                assert set(range(inner_start, inner_stop)) <= set(whole)
                if tight:
                    assert list(range(start, stop)) == seen
                    assert list(range(inner_start, inner_stop)) == whole


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 7, 8, 9, 13, 50, None])
def test_without_marks_the_table_is_as_tight_as_can_be(window):
    for queries, more, q_block, k_block in itertools.product(
        (1, 7, 8, 13), (0, 1, 6), (2, 4), (2, 3, 4)
    ):
        check(queries, queries + more, window, NO_MARKS, q_block, k_block, tight=True)


@pytest.mark.parametrize("window", [1, 4, 6, None])
@pytest.mark.parametrize("more", [0, 5])
def test_with_marks_nothing_seen_is_missed_and_nothing_hidden_shown(window, more):
    rng = np.random.default_rng(0)
    for _ in range(15):
        keys = 16
        ids = rng.integers(0, 4, (2, keys)).repeat(rng.integers(1, 7), axis=1)[:, :keys]
        places = np.cumsum(rng.integers(1, 4, (2, keys)), axis=1)
        segments, positions = (ids[:, more:], ids), (places[:, more:], places)
        for marks in (
            Marks(*segments), Marks(None, None, *positions), Marks(*segments, *positions)
        ):  # fmt: skip
            check(keys - more, keys, window, marks, 4, 2, tight=False)


def test_blocks_of_other_segments_are_not_visited_and_whole_ones_need_no_mask():
    ids = np.repeat(np.int32([[1, 2, 0]]), 8, axis=1)
    table = block_table(24, 24, None, Marks(ids, ids), q_block=4, k_block=4)
    assert np.asarray(table)[0].tolist() == [
        [0, 1, 1, 1],
        [0, 0, 1, 2],
        [2, 3, 3, 3],
        [2, 2, 3, 4],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]
