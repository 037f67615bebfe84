"""The TPU kernels' arithmetic: which tiles are visited, what is masked, which blocks are taken."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from pallas_kernels import decode_attention, mosaic_tpu_backward, sliding_window_attention
from pallas_kernels.mosaic_tpu_tiles import (
    BESIDE_BYTES,
    CORE_BYTES,
    PART,
    Band,
    fit_blocks,
    pad_rows,
    query_bytes,
    visible_pairs,
)
from pallas_kernels.tuning import TPU, block_sizes
from pallas_kernels.window import attention_mask


def dense(band: Band, window, step):
    """The mask of a step's tile, keys by queries, from the definition."""
    distance = band.distance(step)
    places = distance + np.arange(band.queries)[None] - np.arange(band.keys)[:, None]
    return (places >= 0) & (places < (window or 10**9))


@pytest.mark.parametrize("blocks", [(128, 128), (256, 128), (512, 128), (384, 384)])
def test_tiles_cover_what_the_window_shows_and_mask_only_edges(blocks):
    for window in (1, 2, 127, 128, 129, 255, 256, 257, 300, 1000, None):
        for band in (
            Band.of_queries(blocks, window, 1536), Band.of_keys(blocks[::-1], window, 1536),
        ):  # fmt: skip
            assert {band.stride} == {min(blocks)}
            for step in range(band.steps):
                mask = dense(band, window, step)
                covered = np.zeros_like(mask)
                for width in (PART, band.queries):
                    covered[...] = False
                    for n, parts in enumerate(band.strips_of_queries(step, width)):
                        rows = [part.row for part in parts]
                        assert not rows or rows == list(range(rows[0], rows[-1] + PART, PART))
                        for part in parts:
                            columns = slice(n * width, (n + 1) * width)
                            here = np.s_[part.row : part.row + PART, columns]
                            covered[here] = True
                            assert mask[here].any()
                            assert mask[here].all() != (part.causal or part.windowed)
                    assert covered[mask].all()
                both = band.strips_of_queries(step), band.strips_of_keys(step)
                assert len({frozenset(itertools.chain(*strips)) for strips in both}) == 1
                assert band.whole(step) == mask.all()
            first, stop = band.inner()
            assert sorted([*range(first, stop), *band.edges()]) == list(range(band.steps))
            if window is not None:
                past = dense(band, window, band.steps)
                assert not past.any() or band.steps * band.stride >= 1536


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (3, 11), (5, 600), (600, 601)])
def test_rows_are_padded_onto_blocks_and_pairs_counted(queries, keys):
    for unit in (4, 8):
        rows = pad_rows(queries, keys, unit)
        assert rows.offset % unit == rows.queries % unit == rows.keys % unit == 0
        assert rows.offset + rows.front == keys - queries and rows.offset >= 0
        assert rows.queries >= rows.front + queries and rows.keys >= keys
    for window in (1, 3, 7, 500, None):
        wanted = int(attention_mask(queries, keys, window).sum())
        assert visible_pairs(queries, keys, window) == wanted


def test_blocks_shrink_to_short_rows_and_to_large_groups():
    one, many = jnp.zeros((1, 1, 1, 64), jnp.bfloat16), jnp.zeros((1, 1, 64, 128), jnp.bfloat16)
    assert fit_blocks((512, 512), 8192, one, 1) == (512, 512)
    assert fit_blocks((512, 256), 300, one, 1) == (512, 256)
    assert fit_blocks((512, 512), 200, one, 1) == (256, 256)
    assert fit_blocks((128, 512), 100, one, 1) == (128, 128)
    assert fit_blocks((512, 512), 8192, many, 8) == (512, 512)
    assert fit_blocks((512, 256), 8192, many, 2) == (128, 128)


def test_a_group_too_large_for_vmem_is_an_error_that_names_the_largest():
    def queries(heads):
        return jax.ShapeDtypeStruct((1, 1, heads, 128), jnp.bfloat16)

    fits = (CORE_BYTES - BESIDE_BYTES) // query_bytes(PART, 1, 128, jnp.bfloat16)
    assert fit_blocks((512, 512), 8192, queries(fits), 1) == (PART, PART)
    wanted = f"q: got {fits + 1} query heads of size 128 .*; wanted at most {fits} heads.*; fix: "
    with pytest.raises(ValueError, match=wanted):
        fit_blocks((512, 512), 8192, queries(fits + 1), 1)
    with pytest.raises(ValueError, match=wanted), on_tpu():
        jax.eval_shape(
            lambda q, k: sliding_window_attention(q, k, k, window=9, implementation="mosaic_tpu"),
            queries(fits + 1),
            queries(1),
        )


def on_tpu():
    """A TPU in force, as in compilation ahead of time."""
    abstract = AbstractDevice("TPU v5 lite", 1, "tpu")
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=abstract))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_dtypes_that_the_kernels_do_not_load_are_refused_by_name(dtype):
    message = f"q: got dtype {dtype} for 'mosaic_tpu'; wanted bfloat16 or float32; fix: "
    with jax.enable_x64(True), on_tpu():
        q = jax.ShapeDtypeStruct((1, 8, 2, 64), dtype)
        for attend in (
            lambda q: sliding_window_attention(q, q, q, window=4, implementation="mosaic_tpu"),
            lambda q: decode_attention(
                q[:, 0], q, q, jnp.ones(1, jnp.int32), implementation="mosaic_tpu"
            ),
        ):
            with pytest.raises(ValueError, match=message):
                jax.eval_shape(attend, q)


@pytest.mark.parametrize(
    ("kind", "strip"), [("TPU v4", 128), ("TPU v5p", 128), ("TPU v6e", 256), ("TPU7x", 256)]
)
def test_every_name_of_a_chip_gets_strips_as_wide_as_its_matrix_unit(kind, strip):
    assert block_sizes(kind, 64, 4096).strip == strip
    assert block_sizes("TPU v5p", 64, 4096) == block_sizes("TPU v5", 64, 4096)


def test_every_choice_of_block_sizes_aligns():
    chosen = [block_sizes(*key) for key in TPU]
    chosen += [
        block_sizes(kind, head_dim, window)
        for kind in ("TPU v5 lite", "TPU7x")
        for head_dim in (64, 256)
        for window in (1, 300, 5000, None)
    ]
    for sizes in chosen:
        Band.of_queries(sizes.forward, 100, 8192)
        Band.of_queries(sizes.dq, 100, 8192)
        Band.of_keys(sizes.dkv, 100, 8192)
        assert sizes.forward[0] % sizes.strip == 0


def test_one_kernel_gathers_all_gradients_where_the_ring_fits():
    band = Band.of_keys((512, 512), 1024, 8192)
    assert mosaic_tpu_backward.fuses(band, group=1, head_dim=128)
    assert not mosaic_tpu_backward.fuses(band, group=8, head_dim=128)


def test_more_marked_rows_than_scalar_memory_holds_are_refused_with_the_number_that_fits():
    def attend(batch):
        q = jax.ShapeDtypeStruct((batch, 8192, 1, 64), jnp.bfloat16)
        ids = jax.ShapeDtypeStruct((batch, 8192), jnp.int32)
        with on_tpu():
            return jax.eval_shape(
                lambda q, ids: sliding_window_attention(
                    q, q, q, window=100, segment_ids=ids, implementation="mosaic_tpu"
                ),
                q,
                ids,
            )

    with pytest.raises(ValueError, match="segment_ids, positions: got 1024 marked rows") as caught:
        attend(1024)
    most = int(re.search(r"wanted at most (\d+)", str(caught.value))[1])
    assert 128 < most < 1024
    assert attend(most).shape == (most, 8192, 1, 64)
