"""Cases for `compile_report_tpu`: our kernels, and jax's splash attention at the same shapes.

Blocks are (queries, keys) of a tile.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import mosaic_tpu, mosaic_tpu_backward, mosaic_tpu_decode
from pallas_kernels.flash import Call
from pallas_kernels.mosaic_tpu_marks import key_block, query_block
from pallas_kernels.mosaic_tpu_tiles import Band, pad_rows
from pallas_kernels.tuning import BlockSizes
from pallas_kernels.window import Marks


def _arrays(batch, length, heads, kv_heads, head_dim, dtype):
    kv = jax.ShapeDtypeStruct((batch, length, kv_heads, head_dim), dtype)
    q = jax.ShapeDtypeStruct((batch, length, heads, head_dim), dtype)
    return q, kv, kv


def _path_visits(
    band: Band, length: int, repeats: int, *, by_queries: bool, marked: bool
) -> list[int]:
    """How often each path of a kernel is taken, in the order of its code.

    With marks: of rows that are one segment each, so that none takes the code that masks all.
    """
    rows = pad_rows(length, length, max(band.queries, band.keys))
    other = key_block if by_queries else query_block
    counts = rows.queries // band.queries, rows.keys // band.keys
    blocks, others = counts if by_queries else counts[::-1]
    taken = [
        repeats * sum(0 <= other(band, rows, own, step) < others for own in range(blocks))
        for step in range(band.steps)
    ]
    first, stop = band.inner()
    paths = [taken[step] for step in band.edges()]
    if first < stop:
        paths.append(sum(taken[first:stop]))
    if marked:
        paths.append(0)
    once = repeats * blocks
    # dk and dv begin at zero, and so do all with marks; else the first tile begins them.
    return [*paths, once] if by_queries and not marked else [once, *paths, once]


def ours(
    *, batch=16, length=8192, heads=8, kv_heads=8, head_dim, window, blocks, backward,
    dtype="bfloat16", marked=False, soft_cap=None, strip=128,
):  # fmt: skip
    """Our forward pass, or our two backward kernels."""
    blocks = tuple(blocks)
    sizes = BlockSizes(blocks, blocks, blocks[::-1], strip)
    call = Call(window, head_dim**-0.5, soft_cap, sizes)
    qkv = _arrays(batch, length, heads, kv_heads, head_dim, dtype)
    tokens = [jax.ShapeDtypeStruct((batch, length), jnp.int32)] * (2 if marked else 0)

    def marks(segments=None, positions=None):
        return Marks(segments, segments, positions, positions)

    def visits(band, by_queries):
        return _path_visits(band, length, batch * kv_heads, by_queries=by_queries, marked=marked)

    of_queries = visits(Band.of_queries(blocks, window, length), True)
    if not backward:

        def forward(q, k, v, *tokens):
            return mosaic_tpu.KERNELS.forward(call, q, k, v, marks(*tokens), None)

        return forward, (*qkv, *tokens), {"window_attention_forward": of_queries}
    figures = jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)

    def gradients(q, k, v, lse, delta, d_out, *tokens):
        return mosaic_tpu.KERNELS.backward(call, q, k, v, marks(*tokens), lse, delta, d_out)

    by_keys = Band.of_keys(blocks[::-1], window, length)
    of_keys = visits(by_keys, False)
    inputs = (*qkv, figures, figures, qkv[0], *tokens)
    if mosaic_tpu_backward.fuses(by_keys, heads // kv_heads, head_dim):
        starts = batch * kv_heads * _ring_starts(by_keys, length)
        leaves = batch * kv_heads * (length // by_keys.queries)
        return gradients, inputs, {"window_attention_backward": [starts, *of_keys, leaves]}
    return gradients, inputs, {"window_attention_dq": of_queries, "window_attention_dkv": of_keys}


def _ring_starts(band: Band, length: int) -> int:
    """How often a block of keys is the first that a block of queries meets."""
    standing, blocks = band.keys // band.queries, length // band.queries
    return sum(
        key * standing + step < blocks and (key == 0 or step >= band.steps - standing)
        for key in range(length // band.keys)
        for step in range(band.steps)
    )


def decode(*, batch=64, slots=4096, heads=8, kv_heads=8, head_dim, block=None, dtype="bfloat16"):
    """A step over caches that are full."""
    q = jax.ShapeDtypeStruct((batch, heads, head_dim), dtype)
    cache = jax.ShapeDtypeStruct((batch, slots, kv_heads, head_dim), dtype)
    lengths = jax.ShapeDtypeStruct((batch,), jnp.int32)

    def step(q, k, v, lengths):
        return mosaic_tpu_decode.decode(
            q, k, v, lengths, scale=head_dim**-0.5, soft_cap=None, sinks=None, block=block
        )

    blocks = -(-slots // mosaic_tpu_decode.block_slots(block, slots, kv_heads))
    visits = [batch, batch * blocks, batch]
    return step, (q, cache, cache, lengths), {"decode_attention": visits}


def splash(
    *, batch=16, length=8192, heads=8, kv_heads=8, head_dim, window, blocks, backward, fused=False,
):  # fmt: skip
    """jax's splash attention with a LocalMask: multi-head where kv_heads == heads, else multi-query
    for each key head.

    Args:
        fused: one backward kernel in place of two. It writes a whole dq for every block of keys;
            XLA's sum over them is not counted.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    queries, keys = blocks
    group = heads // kv_heads
    mask = masks.MultiHeadMask(
        [masks.LocalMask((length, length), (window - 1, 0), 0)] * (heads if group == 1 else group)
    )
    sizes = kernel.BlockSizes(
        block_q=queries, block_kv=keys, block_kv_compute=keys,
        block_q_dkv=queries, block_kv_dkv=keys, block_kv_dkv_compute=keys,
        block_q_dq=None if fused else queries, block_kv_dq=None if fused else keys,
        use_fused_bwd_kernel=fused,
    )  # fmt: skip
    make = (
        kernel.make_splash_mha_single_device
        if group == 1
        else (kernel.make_splash_mqa_single_device)
    )
    attend = jax.vmap(make(mask, block_sizes=sizes))
    if group > 1:
        attend = jax.vmap(attend)
    outer = (batch,) if group == 1 else (batch, kv_heads)
    q = jax.ShapeDtypeStruct((*outer, mask.shape[0], length, head_dim), jnp.bfloat16)
    kv = jax.ShapeDtypeStruct(
        (*outer, *((heads,) if group == 1 else ()), length, head_dim), jnp.bfloat16
    )
    tiles, rows, columns = _splash_tiles(length, window, queries, keys)
    repeats = batch * heads
    paths = [repeats * rows, repeats * tiles, repeats * rows]
    by_keys = [repeats * columns, repeats * tiles, repeats * columns]
    kind = "mha" if group == 1 else "mqa"
    if not backward:
        return attend, (q, kv, kv), {f"splash_{kind}_fwd_no_residuals": paths}

    def gradients(q, k, v, d_out):
        return jax.vjp(attend, q, k, v)[1](d_out)

    visits = {f"splash_{kind}_dkv_no_residuals": by_keys}
    if not fused:
        visits[f"splash_{kind}_dq_no_residuals"] = paths
    return gradients, (q, kv, kv, q), visits


def _splash_tiles(length, window, queries, keys) -> tuple[int, int, int]:
    """Tiles with something to see, blocks of queries and blocks of keys."""
    seen = sum(
        i * queries + queries - 1 >= j * keys and i * queries - (j * keys + keys - 1) < window
        for i in range(length // queries)
        for j in range(length // keys)
    )
    return seen, length // queries, length // keys
