"""Ring-buffer caches of keys and values.

A layer with window W never needs more than the last W positions, so position p lives in slot
`p mod W`. Keys are stored after RoPE: attention over a ring does not care about the order of its
slots, only about which are filled, and they fill from slot 0 on.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from minillm.core.errors import UserError
from minillm.model.config import ModelConfig
from minillm.model.rope import LongStretch

Stack = Float[Array, "R B W K H"]


class Cache(NamedTuple):
    """Keys and values of every layer, for a batch of sequences of different lengths.

    Layer l is entry `l // P` of stack `l % P`, where P = len(config.windows): the layers of one
    stack share a window, hence a ring size, and the layer scan runs along R.

    Attributes:
        keys, values: one stack for each entry of `config.windows`.
        lengths: tokens seen of each sequence; also the position of its next token.
    """

    keys: tuple[Stack, ...]
    values: tuple[Stack, ...]
    lengths: Int[Array, " B"]


def ring_sizes(config: ModelConfig, max_length: int) -> tuple[int, ...]:
    """Slots of each stack's rings: its window, or a few over `max_length` without one."""
    # A window's ring is exact: one slot more and a query would see one key more. Rings of whole
    # eights need no padded copy in each step of the GPU's decode kernel.
    room = -(-max_length // 8) * 8
    return tuple(room if window is None else min(window, max_length) for window in config.windows)


def check_reach(config: ModelConfig, max_length: int) -> None:
    """Raise UserError where a sequence would outgrow its short frequencies while it is decoded.

    Its cached keys would have to be turned again by the long ones.
    """
    for slot in range(len(config.windows)):
        rope = config.rope(slot)
        if rope is None or not isinstance(rope.stretch, LongStretch):
            continue
        if max_length > rope.stretch.original_length:
            raise UserError(
                field="max_length",
                got=max_length,
                wanted=f"at most {rope.stretch.original_length}, up to where the model's short "
                "rotary factors hold; a cache cannot change over to the long ones",
                fix=f"set it to {rope.stretch.original_length}",
            )


def init_cache(config: ModelConfig, batch: int, max_length: int) -> Cache:
    """An empty cache for sequences of at most `max_length` tokens.

    A full-attention layer forgets what lies more than `max_length` back.
    """
    check_reach(config, max_length)
    period = len(config.windows)
    shapes = [
        (
            -(-(config.num_layers - slot) // period),
            batch,
            size,
            config.num_kv_heads,
            config.head_dim,
        )
        for slot, size in enumerate(ring_sizes(config, max_length))
    ]
    empty = tuple(jnp.zeros(shape, config.compute_dtype) for shape in shapes)
    return Cache(empty, empty, jnp.zeros(batch, jnp.int32))


class PromptSpan(NamedTuple):
    """Where each row of a padded batch keeps its prompt: columns [start, start + length)."""

    start: Int[Array, " B"]
    length: Int[Array, " B"]


def prompt_span(valid: Bool[Array, "B T"]) -> PromptSpan:
    """The span of true columns, which are adjacent: padding stands on the left or the right."""
    start = jnp.argmax(valid, axis=1).astype(jnp.int32)
    return PromptSpan(start, jnp.sum(valid, axis=1, dtype=jnp.int32))


def check_room(prompt_columns: int, max_length: int) -> None:
    """Raise UserError where a cache of `max_length` cannot hold the prompt."""
    if prompt_columns > max_length:
        raise UserError(
            field="max_length",
            got=max_length,
            wanted=f"at least the {prompt_columns} columns of the prompts",
            fix=f"raise it to {prompt_columns} plus the tokens to generate",
        )


def fill_ring(x: Float[Array, "B T K H"], span: PromptSpan, size: int) -> Float[Array, "B W K H"]:
    """The ring of `size` slots after the prompt: its last `size` positions, each in its slot.

    Slots of positions that do not exist yet hold arbitrary values; they come after the filled
    ones, and are written before `lengths` says that they count.
    """
    slots = jnp.arange(size)
    last = span.length[:, None] - 1
    # The largest position up to the last one that falls into the slot.
    positions = last - (last - slots) % size
    columns = jnp.clip(span.start[:, None] + positions, 0, x.shape[1] - 1)
    return jnp.take_along_axis(x, columns[:, :, None, None], axis=1)


def append(
    stack: Stack, layer: Int[Array, ""] | int, new: Float[Array, "B K H"], lengths: Int[Array, " B"]
) -> Stack:
    """Write one token a sequence into layer `layer` of a stack.

    Inside a loop that carries the stack this is done in place. (Scanning over the layers'
    caches as inputs and outputs instead copies them all, at three times the cost.)
    """
    rows = jnp.arange(new.shape[0])
    slots = lengths % stack.shape[2]
    return stack.at[layer, rows, slots].set(new, mode="promise_in_bounds", unique_indices=True)
