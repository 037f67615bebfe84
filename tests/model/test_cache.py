import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minillm.core.errors import UserError
from minillm.model.cache import PromptSpan, fill_ring, init_cache
from minillm.model.rope import LongStretch, Rope
from tests.model.models import SMALL, build, forward
from tests.tolerances import TOLERANCES

LOGITS = TOLERANCES["float32"].logits
ROWS = np.arange(3)
LENGTHS = np.array([4, 9, 6])


@functools.partial(nnx.jit, static_argnames="max_length")
def prefill(model, prompts, max_length, valid=None):
    return model.prefill(prompts, max_length=max_length, valid=valid)


@nnx.jit
def decode(model, ids, cache):
    return model.decode_step(ids, cache)


def padded_prompts(tokens, side):
    """Prompts of 4, 9 and 6 tokens in 10 columns, and where they are."""
    prompts = np.full((3, 10), 11)
    valid = np.zeros((3, 10), bool)
    for row, length in enumerate(LENGTHS):
        where = slice(0, length) if side == "right" else slice(10 - length, 10)
        prompts[row, where] = tokens[row, :length]
        valid[row, where] = True
    return jnp.asarray(prompts), jnp.asarray(valid)


@pytest.mark.parametrize("side", ["right", "left"])
def test_prefill_and_decode_equal_the_full_forward_at_every_position(
    side, small_model, tokens, full_logits
):
    prompts, valid = padded_prompts(tokens, side)
    logits, cache = prefill(small_model, prompts, 18, valid)
    np.testing.assert_allclose(logits, full_logits[ROWS, LENGTHS - 1], atol=LOGITS)
    # Nine more tokens: every row goes past the window of 5, and round its ring.
    for step in range(9):
        at = LENGTHS + step
        logits, cache = decode(small_model, tokens[ROWS, at], cache)
        np.testing.assert_allclose(logits, full_logits[ROWS, at], atol=LOGITS)
    np.testing.assert_array_equal(cache.lengths, LENGTHS + 9)


def test_decoding_from_an_empty_cache_equals_the_full_forward(small_model, tokens, full_logits):
    cache = init_cache(SMALL, 3, 18)
    for at in range(8):
        logits, cache = decode(small_model, tokens[:, at], cache)
        np.testing.assert_allclose(logits, full_logits[:, at], atol=LOGITS)


def test_a_prompt_without_padding_needs_no_mask(small_model, tokens, full_logits):
    logits, cache = prefill(small_model, tokens, 18)
    np.testing.assert_allclose(logits, full_logits[:, -1], atol=LOGITS)
    np.testing.assert_array_equal(cache.lengths, 18)


def test_rings_are_as_long_as_their_window_or_whole_eights_and_layers_share_stacks_by_window():
    cache = init_cache(SMALL, 3, 18)
    assert [stack.shape for stack in cache.keys] == [(3, 3, 5, 2, 8), (2, 3, 24, 2, 8)]
    short = init_cache(dataclasses.replace(SMALL, compute_dtype="bfloat16"), 3, 4)
    assert [stack.shape[2] for stack in short.keys] == [4, 8]
    assert {stack.dtype for stack in short.keys + short.values} == {jnp.dtype("bfloat16")}


def test_fill_ring_puts_each_position_in_its_slot():
    columns = jnp.arange(6.0)[None, :, None, None]
    # Positions 0..4 stand in columns 1..5; the last four are 1, 2, 3, 4.
    ring = fill_ring(columns, PromptSpan(jnp.array([1]), jnp.array([5])), 4)
    np.testing.assert_array_equal(ring[0, :, 0, 0], [4 + 1, 1 + 1, 2 + 1, 3 + 1])
    ring = fill_ring(columns, PromptSpan(jnp.array([1]), jnp.array([3])), 4)
    np.testing.assert_array_equal(ring[0, :3, 0, 0], [0 + 1, 1 + 1, 2 + 1])


def test_bfloat16_caches_decode_close_to_the_forward_pass(tokens):
    config = dataclasses.replace(SMALL, compute_dtype="bfloat16", num_layers=2, windows=(5,))
    model = build(config)
    full = forward(model, tokens)
    logits, cache = prefill(model, tokens[:, :9], 18)
    logits, cache = decode(model, tokens[:, 9], cache)
    scale = float(jnp.abs(full).max())
    tolerance = TOLERANCES["bfloat16"].logits * scale
    np.testing.assert_allclose(logits, full[:, 9], atol=tolerance)


def test_prompts_longer_than_the_cache_are_an_error(small_model, tokens):
    with pytest.raises(UserError, match="max_length"):
        small_model.prefill(tokens, max_length=17)


def test_decode_program_size_does_not_grow_with_depth(tokens):
    def equations(layers):
        config = dataclasses.replace(SMALL, num_layers=layers)
        cache = jax.eval_shape(lambda: init_cache(config, 3, 18))
        graph, weights = nnx.split(build(config))
        program = jax.make_jaxpr(lambda w, c: nnx.merge(graph, w).decode_step(tokens[:, 0], c))
        return str(program(weights, cache)).count(" = ")

    assert equations(4) == equations(20)


def test_a_cache_does_not_reach_beyond_the_short_factors(tokens):
    long = Rope(1e4, stretch=LongStretch((1.0,) * 4, (2.0,) * 4, original_length=20))
    config = dataclasses.replace(SMALL, ropes=(None, long))
    assert init_cache(config, 3, 20).lengths.shape == (3,)
    with pytest.raises(UserError, match="max_length: got 21; wanted at most 20"):
        init_cache(config, 3, 21)
    model = build(config)
    with pytest.raises(UserError, match="max_length: got 21; wanted at most 20"):
        model.prefill(tokens, max_length=21)
