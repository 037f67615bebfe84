"""Continue prompts, many at a time, in few compiled programs."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from minillm.core import axes
from minillm.core.errors import UserError
from minillm.core.sharding import mesh_of, rounded_up
from minillm.inference.sampling import GREEDY, Sampler
from minillm.model.cache import Cache
from minillm.model.config import ModelConfig
from minillm.model.transformer import Transformer

# Prompts shorter than this share one program: padding costs less than compiling another.
_SHORTEST_BUCKET = 64


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_id: int | Sequence[int],
    pad_id: int,
    sampler: Sampler = GREEDY,
    key: Key[Array, ""] | None = None,
    batch_size: int = 64,
) -> list[list[int]]:
    """Continue every prompt until an `eos_id`, for `max_new_tokens` tokens (the EOS counted), or
    until prompt and continuation fill the model's `max_length`.

    A prompt's continuation depends on the prompt, the key and its index in `prompts`, not on
    what else is in its batch.

    Args:
        prompts: token ids, at least one each (a BOS will do).
        eos_id: the token that ends a continuation, or several that do.
        pad_id: any valid token id; fills the batches.
        key: needed unless the sampler is greedy.
        batch_size: prompts decoded at a time, shared by the devices the weights lie on.

    Returns:
        The new tokens of each prompt, without the EOS: fewer than there was room for exactly
        where the model stopped by itself.

    Raises:
        UserError: an empty prompt, one that leaves no room in the model's length or with ids
            outside its vocabulary, or sampling without a key.
    """
    _check(model, prompts, max_new_tokens, sampler, key, batch_size)
    key = jax.random.key(0) if key is None else key
    ends = np.atleast_1d(np.asarray(eos_id, np.int32))
    # No prompt can have more, and the cache has a place for each.
    max_new_tokens = min(max_new_tokens, model.config.max_length - 1)
    graph, weights = nnx.split(model)
    mesh = mesh_of(weights)
    # Every device that shares the batch gets as many rows.
    rows = rounded_up(min(batch_size, _power_of_two(len(prompts))), mesh, axes.BATCH)
    # Alike lengths together: a batch is as wide as its longest prompt and runs until its last
    # row is done.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    results: list[list[int]] = [[] for _ in prompts]
    for first in range(0, len(order), rows):
        indices = order[first : first + rows]
        longest = max(len(prompts[index]) for index in indices)
        width = max(_SHORTEST_BUCKET, _power_of_two(longest))
        tokens = np.full((rows, width), pad_id, np.int32)
        lengths, room = np.zeros((2, rows), np.int32)
        for row, index in enumerate(indices):
            lengths[row] = len(prompts[index])
            tokens[row, : lengths[row]] = prompts[index]
            room[row] = model.config.max_length - lengths[row]
        which = np.array(indices + [0] * (rows - len(indices)), np.int32)
        batch = _Batch(tokens, lengths, room, which, ends, np.int32(pad_id))
        with jax.set_mesh(mesh):
            made = _generate_batch(graph, weights, batch, key, sampler, max_new_tokens)
        new, counts = jax.device_get(made)
        for row, index in enumerate(indices):
            results[index] = new[row, : counts[row]].tolist()
    return results


class _Batch(NamedTuple):
    """Right-padded prompts, and the tokens that may follow each; rows of length 0 only fill the
    batch."""

    tokens: Int[Array, "B T"] | np.ndarray
    lengths: Int[Array, " B"] | np.ndarray
    room: Int[Array, " B"] | np.ndarray
    indices: Int[Array, " B"] | np.ndarray
    eos_ids: Int[Array, " E"] | np.ndarray
    pad_id: Int[Array, ""] | np.int32


class _Loop(NamedTuple):
    """State of the decoding loop; `written` counts new tokens, the EOS left out."""

    step: Int[Array, ""]
    last: Int[Array, " B"]
    done: Bool[Array, " B"]
    written: Int[Array, " B"]
    new: Int[Array, "B M"]
    cache: Cache


# Weights are an argument: captured as constants they would be compiled into the program.
@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _generate_batch(
    graph: Any,
    weights: Any,
    batch: _Batch,
    key: Key[Array, ""],
    sampler: Sampler,
    max_new_tokens: int,
) -> tuple[Int[Array, "B M"], Int[Array, " B"]]:
    model = nnx.merge(graph, weights)
    rows, width = batch.tokens.shape
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch.indices)

    def advance(state: _Loop, logits: Float[Array, "B V"], cache: Cache) -> _Loop:
        keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, state.step)
        token = jnp.where(state.done, batch.pad_id, sampler(logits, keys))
        done = state.done | jnp.isin(token, batch.eos_ids)
        return _Loop(
            step=state.step + 1,
            last=token,
            done=done | (state.step + 1 >= batch.room),
            written=state.written + ~done,
            new=state.new.at[:, state.step].set(token),
            cache=cache,
        )

    def unfinished(state: _Loop) -> Bool[Array, ""]:
        return (state.step < max_new_tokens) & ~jnp.all(state.done)

    def decode(state: _Loop) -> _Loop:
        return advance(state, *model.decode_step(state.last, state.cache))

    # An empty row reads one padding token, so that every row has a last position.
    valid = jnp.arange(width) < jnp.maximum(batch.lengths, 1)[:, None]
    logits, cache = model.prefill(batch.tokens, max_length=width + max_new_tokens, valid=valid)
    start = _Loop(
        step=jnp.int32(0),
        last=jnp.zeros(rows, jnp.int32),
        done=batch.lengths == 0,
        written=jnp.zeros(rows, jnp.int32),
        new=jnp.full((rows, max_new_tokens), batch.pad_id, jnp.int32),
        cache=cache,
    )
    last = jax.lax.while_loop(unfinished, decode, advance(start, logits, cache))
    return last.new, last.written


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def _check(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampler: Sampler,
    key: Any,
    batch_size: int,
) -> None:
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(field=name, got=value, wanted="at least 1", fix="try 64")
    if sampler.temperature > 0 and key is None:
        raise UserError(
            field="key", got=None, wanted="a key to sample with", fix="pass jax.random.key(0)"
        )
    for index, prompt in enumerate(prompts):
        _check_prompt(f"prompts[{index}]", prompt, model.config)


def _check_prompt(field: str, prompt: Sequence[int], config: ModelConfig) -> None:
    if len(prompt) == 0:
        raise UserError(
            field=field,
            got="no tokens",
            wanted="at least one token",
            fix="begin it with the BOS token",
        )
    if len(prompt) >= config.max_length:
        raise UserError(
            field=field,
            got=f"{len(prompt)} tokens",
            wanted=f"fewer than model.max_length={config.max_length}",
            fix="shorten the prompt",
        )
    for place, token in enumerate(prompt):
        if not 0 <= token < config.vocab_size:
            raise UserError(
                field=f"{field}[{place}]",
                got=token,
                wanted=f"a token id below model.vocab_size={config.vocab_size}",
                fix="encode the prompt with the tokenizer that the model was trained with",
            )
