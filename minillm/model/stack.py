"""Running a stack of layers, as one loop over repeats of the window pattern.

Every window is a constant to the compiler, also where windows alternate: one turn of the loop is
one repeat of the pattern. Layers left over after the last whole repeat follow one by one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from minillm.model.config import ModelConfig

# (carry, block, slot, repeat) -> (carry, made), for layer `repeat · P + slot`.
LayerStep = Callable[[Any, Any, int, Any], tuple[Any, Any]]

_REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def run_layers(
    config: ModelConfig, blocks: nnx.Module, carry: Any, step: LayerStep, *, remat: str = "none"
) -> tuple[Any, Any]:
    """Thread `carry` through all layers.

    Args:
        blocks: a module whose parameters are stacked `[L, ...]`, or each a tuple of L arrays:
            XLA on CPU copies what it cuts from a stack, a third of the time of a short row.
        step: called with the carry, the module cut down to one layer, the layer's place `slot`
            in the window pattern (static) and the number `repeat` of whole patterns before it.
        remat: a policy name of `ModelConfig.remat`.

    Returns:
        The last carry; and for each slot, what `step` made in its layers, stacked `[R, ...]`.
    """
    period = len(config.windows)
    repeats, rest = divmod(config.num_layers, period)
    graph, stacked = nnx.split(blocks)

    def layer(carry: Any, weights: Any, slot: int, repeat: Any) -> tuple[Any, Any]:
        return step(carry, nnx.merge(graph, weights), slot, repeat)

    if remat != "none":
        # In a loop XLA cannot merge the recomputation with the first computation anyway.
        layer = jax.checkpoint(
            layer,
            policy=_REMAT_POLICIES[remat],
            prevent_cse=not config.scan_layers,
            static_argnums=2,
        )

    def pattern(carry: Any, given: tuple[Any, Any]) -> tuple[Any, tuple[Any, ...]]:
        weights, repeat = given
        made = []
        for slot in range(period):
            carry, out = layer(carry, _at(weights, slot), slot, repeat)
            made.append(out)
        return carry, tuple(made)

    if any(isinstance(leaf, tuple) for leaf in jax.tree.leaves(stacked, is_leaf=_is_layers)):
        outs: list[list[Any]] = [[] for _ in range(period)]
        for at in range(config.num_layers):
            carry, out = layer(carry, _at(stacked, at), at % period, at // period)
            outs[at % period].append(out)
        return carry, tuple(jax.tree.map(lambda *each: jnp.stack(each), *out) for out in outs)
    whole = repeats * period
    by_repeat = jax.tree.map(lambda w: w[:whole].reshape(repeats, period, *w.shape[1:]), stacked)
    unroll = 1 if config.scan_layers else repeats
    carry, stacks = jax.lax.scan(pattern, carry, (by_repeat, jnp.arange(repeats)), unroll=unroll)
    made = list(stacks)
    for slot in range(rest):
        carry, out = layer(carry, _at(stacked, whole + slot), slot, repeats)
        made[slot] = jax.tree.map(_append, made[slot], out)
    return carry, tuple(made)


def _at(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree, is_leaf=_is_layers)


def _is_layers(value: Any) -> bool:
    return isinstance(value, tuple)


def _append(stack: jax.Array, one: jax.Array) -> jax.Array:
    return jnp.concatenate([stack, one[None]])
