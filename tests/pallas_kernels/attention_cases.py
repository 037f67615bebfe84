"""Inputs for the attention tests, and the float64 oracle with its gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import sliding_window_attention


@dataclasses.dataclass(frozen=True)
class Case:
    """Random inputs of one call; arrays are numpy float64."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    d_out: np.ndarray
    d_lse: np.ndarray
    sinks: np.ndarray | None = None

    def cast(self, dtype) -> tuple[list, jax.Array]:
        """The differentiable inputs (sinks last, or None) and the output's cotangent."""
        inputs = [self.q, self.k, self.v, self.sinks]
        arrays = [None if x is None else jnp.asarray(x, dtype) for x in inputs]
        return arrays, jnp.asarray(self.d_out, dtype)


def make_case(
    *, batch=2, queries=40, keys=None, heads=2, kv_heads=2, head_dim=16, sinks=False, seed=0
) -> Case:
    rng = np.random.default_rng(seed)
    q_shape = (batch, queries, heads, head_dim)
    k_shape = (batch, keys or queries, kv_heads, head_dim)
    # Through float32 and back: both sides of a comparison start from the same numbers.
    shapes = (q_shape, k_shape, k_shape, q_shape, (heads,), q_shape[:3])
    q, k, v, d_out, sink, d_lse = (
        rng.standard_normal(shape).astype(np.float32).astype(np.float64) for shape in shapes
    )
    return Case(q, k, v, d_out, d_lse, sink if sinks else None)


@functools.partial(jax.jit, static_argnames="options")
def _output_and_gradients(inputs, cotangents, marks, options):
    def attend(q, k, v, sinks):
        return sliding_window_attention(q, k, v, sinks=sinks, **marks, **dict(options))

    out, pull = jax.vjp(attend, *inputs)
    return out, pull(cotangents)


def run(case: Case, dtype, *, segment_ids=None, positions=None, **options) -> list[np.ndarray]:
    """Output, log-sum-exp where `return_lse`, then gradients in q, k, v and sinks if any."""
    inputs, cotangents = case.cast(dtype)
    if options.get("return_lse"):
        wide = jnp.promote_types(dtype, jnp.float32)
        cotangents = (cotangents, jnp.asarray(case.d_lse, wide))
    marks = {"segment_ids": segment_ids, "positions": positions}
    results = _output_and_gradients(inputs, cotangents, marks, tuple(sorted(options.items())))
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(results)]


def run_oracle(case: Case, **options) -> list[np.ndarray]:
    """The same from the dense reference in float64."""
    with jax.enable_x64(True):
        return run(case, jnp.float64, implementation="reference", **options)
