"""Attention of JAX and of PyTorch as contestants: prepared for a shape, a pass and a dtype."""

import functools
import importlib
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from minillm.stages.benchmark.shapes import BACKWARD, BOTH, Shape
from minillm.stages.benchmark.timing import Contestant, Prepared, UnavailableError
from pallas_kernels import sliding_window_attention

# Enough to see whether two contestants compute the same; all heads take long to copy from a GPU.
SAMPLED_HEADS = 2

Attention = Callable[[Shape, Array, Array, Array], Array]


def ours(implementation: str | None) -> Attention:
    def attend(shape: Shape, q: Array, k: Array, v: Array) -> Array:
        return sliding_window_attention(q, k, v, window=shape.window, implementation=implementation)

    return attend


def masked_attention(
    shape: Shape,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
) -> Float[Array, "B T N H"]:
    """What one writes without a kernel: all logits, a mask, a softmax."""
    logits = jnp.einsum("btnh,bsnh->bnts", q, k) * shape.head_dim**-0.5
    distance = jnp.arange(shape.length)[:, None] - jnp.arange(shape.length)[None, :]
    mask = (distance >= 0) & (distance < shape.window)
    weights = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf), axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", weights, v)


def of_jax(attend: Attention, dtype: jnp.dtype, *, same_output: bool = True) -> Contestant:
    """A JAX function as a contestant; `same_output` is False where it has no window."""
    return functools.partial(_prepare_jax, attend, dtype, same_output)


def _prepare_jax(
    attend: Attention, dtype: jnp.dtype, same_output: bool, shape: Shape, which: str
) -> Prepared:
    q, k, v, d_out = (jnp.asarray(x, dtype) for x in shape.random_inputs())
    forward = functools.partial(attend, shape)

    def forward_and_backward(q, k, v, d_out):
        out, pull = jax.vjp(forward, q, k, v)
        return out, *pull(d_out)

    inputs: tuple[Any, ...]
    if which == BACKWARD:
        # The pull-back alone: a pytree that holds what the forward pass kept.
        _, pull = jax.jit(lambda q, k, v: jax.vjp(forward, q, k, v))(q, k, v)
        inputs = (pull, d_out)
        lowered = jax.jit(lambda pull, d_out: pull(d_out)).lower(*inputs)
    elif which == BOTH:
        inputs = (q, k, v, d_out)
        lowered = jax.jit(forward_and_backward).lower(*inputs)
    else:
        inputs = (q, k, v)
        lowered = jax.jit(lambda q, k, v: (forward(q, k, v),)).lower(*inputs)
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    temp = 0 if memory is None else memory.temp_size_in_bytes
    if jax.default_backend() == "cpu" and temp > _free_memory():
        raise UnavailableError(f"needs {temp / 2**30:.1f} GiB, {_free_memory() / 2**30:.1f} free")
    return Prepared(
        run=lambda: compiled(*inputs),
        wait=jax.block_until_ready,
        sample=_sample_jax if same_output else None,
        temp_bytes=temp,
    )


def _sample_jax(results: Sequence[Array]) -> list[np.ndarray]:
    return [np.asarray(x[:, :, :SAMPLED_HEADS], np.float32) for x in results]


def _free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def torch_module(device: str) -> ModuleType:
    """PyTorch with as many threads as this process has cores; it must see a CUDA device on GPU."""
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError:
        raise UnavailableError("no PyTorch here") from None
    if device == "cuda" and not torch.cuda.is_available():
        raise UnavailableError("PyTorch without CUDA")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch


def of_torch(prepare: Callable[..., Callable[..., Any]], device: str, dtype: str) -> Contestant:
    """`prepare(torch, shape, device)` gives a function of q, k and v, each [B, N, T, H]."""
    return functools.partial(_prepare_torch, prepare, device, dtype)


def _prepare_torch(
    prepare: Callable[..., Callable[..., Any]], device: str, dtype: str, shape: Shape, which: str
) -> Prepared:
    torch = torch_module(device)
    *qkv, d_out = (
        torch.tensor(x).transpose(1, 2).contiguous().to(device, getattr(torch, dtype))
        for x in shape.random_inputs()
    )
    attend = prepare(torch, shape, device)

    def forward() -> tuple:
        with torch.no_grad():
            return (attend(*qkv),)

    def forward_and_backward() -> tuple:
        out = attend(*qkv)
        return out, *torch.autograd.grad(out, qkv, d_out)

    run = forward
    if which in (BOTH, BACKWARD):
        qkv = [x.requires_grad_() for x in qkv]
        run = forward_and_backward
    if which == BACKWARD:
        out = attend(*qkv)

        def run() -> tuple:
            return torch.autograd.grad(out, qkv, d_out, retain_graph=True)

    return Prepared(
        run=run,
        wait=lambda _: torch.cuda.synchronize() if device == "cuda" else None,
        sample=_sample_torch,
    )


def _sample_torch(results: Sequence[Any]) -> list[np.ndarray]:
    heads = [x.detach()[:, :SAMPLED_HEADS] for x in results]
    return [x.float().cpu().transpose(1, 2).numpy() for x in heads]


def torch_masked(torch: Any, shape: Shape, device: str) -> Callable[..., Any]:
    """SDPA with the window as a boolean mask."""
    places = torch.arange(shape.length, device=device)
    distance = places[:, None] - places[None, :]
    mask = (distance >= 0) & (distance < shape.window)
    return functools.partial(torch.nn.functional.scaled_dot_product_attention, attn_mask=mask)


def torch_causal(torch: Any, shape: Shape, device: str) -> Callable[..., Any]:
    """SDPA told that it is causal, which is all that a window as long as the row asks for."""
    if shape.window < shape.length:
        raise UnavailableError("has no window")
    return functools.partial(torch.nn.functional.scaled_dot_product_attention, is_causal=True)


def torch_flex(torch: Any, shape: Shape, device: str) -> Callable[..., Any]:
    """flex_attention, compiled, with a block mask."""
    flex = importlib.import_module("torch.nn.attention.flex_attention")
    # Once a compilation has failed, as the backward pass on CPU does, PyTorch would run the
    # function uncompiled from then on.
    torch.compiler.reset()

    def sees(batch, head, query, key):
        return (query >= key) & (query - key < shape.window)

    length = shape.length
    mask = flex.create_block_mask(sees, None, None, length, length, device=device)
    compiled = torch.compile(flex.flex_attention, dynamic=False)
    return functools.partial(compiled, block_mask=mask)
