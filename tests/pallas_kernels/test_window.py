"""The window, written out as matrices and checked exhaustively on small sizes."""

import numpy as np
import pytest

from pallas_kernels.window import Marks, attention_mask, key_range, query_range


def test_window_of_two_is_self_and_the_one_before():
    wanted = [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]
    np.testing.assert_array_equal(attention_mask(4, 4, 2)[0], wanted)


def test_window_of_one_is_self_alone():
    np.testing.assert_array_equal(attention_mask(3, 3, 1)[0], np.eye(3))


def test_no_window_is_the_causal_triangle():
    np.testing.assert_array_equal(attention_mask(3, 3, None)[0], np.tri(3))


def test_last_query_sits_on_the_last_key():
    wanted = [
        [0, 1, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]
    np.testing.assert_array_equal(attention_mask(2, 5, 3)[0], wanted)


def test_segments_cut_the_window_and_padding_sees_nothing():
    segment_ids = np.array([[1, 1, 2, 2, 2, 0]])
    wanted = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(
        attention_mask(6, 6, 2, Marks(segment_ids, segment_ids))[0], wanted
    )


def test_a_segment_id_that_comes_back_is_the_same_segment():
    segment_ids = np.array([[1, 2, 1]])
    wanted = [[1, 0, 0], [0, 1, 0], [1, 0, 1]]
    np.testing.assert_array_equal(
        attention_mask(3, 3, None, Marks(segment_ids, segment_ids))[0], wanted
    )


def test_the_window_counts_positions_as_well_as_places():
    positions = np.array([[0, 1, 4, 5]])
    wanted = [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 1, 1],
    ]
    marks = Marks(q_positions=positions, k_positions=positions)
    np.testing.assert_array_equal(attention_mask(4, 4, 3, marks)[0], wanted)


def test_marks_of_fewer_queries_than_keys_stand_beside_their_own_tokens():
    marks = Marks(q_segments=np.array([[1, 2]]), k_segments=np.array([[1, 1, 1, 2]]))
    wanted = [
        [1, 1, 1, 0],
        [0, 0, 0, 1],
    ]
    np.testing.assert_array_equal(attention_mask(2, 4, None, marks)[0], wanted)


@pytest.mark.parametrize("window", [1, 2, 3, 7, 12, 20, None])
def test_key_and_query_ranges_are_the_tightest_that_cover_the_mask(window):
    size = 12
    mask = np.asarray(attention_mask(size, size, window)[0])
    for first in range(size):
        for stop in range(first + 1, size + 1):
            seen = np.flatnonzero(mask[first:stop].any(axis=0))
            assert key_range(first, stop, window) == (seen[0], seen[-1] + 1)
            seeing = np.flatnonzero(mask[:, first:stop].any(axis=1))
            assert query_range(first, stop, window, size) == (seeing[0], seeing[-1] + 1)
