"""Windowed attention on NVIDIA Hopper through Pallas Mosaic GPU: wgmma, TMA, warpgroups.

Takes bfloat16. Hopper's tensor core has no float32 product: its nearest, tf32, rounds to 11 bits,
5e-4, where this package promises 2e-6 for float32. So float32 is refused, with the name of the
implementation that takes it. The kernels are imported at the first call: what they need is not in
the oldest jax that the rest of the package supports.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.arguments import bad_argument
from pallas_kernels.flash import Call, Kernels
from pallas_kernels.mosaic_gpu_plan import block_table
from pallas_kernels.tuning import GPU, BlockSizes
from pallas_kernels.window import Marks

OLDEST_JAX = (0, 11, 0)
HEAD_DIMS = (64, 128, 256)
# TMA fills what lies beyond an array with zeros and stores nothing there, but it moves whole
# groups of 8 rows: a length that 8 divides needs no padded copy.
TMA_ROWS = 8
# jax refuses causal masks in its own Hopper attention for the same versions.
_BAD_CUDA = (12080, 12091)
_USE_XLA = 'pass implementation="xla", which serves here'


def forward(
    call: Call,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    marks: Marks,
    sinks: Float[Array, " N"] | None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """See `flash.Kernels`.

    Raises:
        ValueError: on a jax or a device without the backend, a dtype or head size without kernel.
    """
    check_support(call, q)
    check_blocks(call.blocks, q.shape[-1])
    from pallas_kernels import mosaic_gpu_forward

    queries, keys = q.shape[1], k.shape[1]
    block_q, block_k = call.blocks.forward
    marks = _pad_marks(marks, block_q, block_k)
    table = block_table(queries, keys, call.window, marks, q_block=block_q, k_block=block_k)
    out, lse = mosaic_gpu_forward.forward(
        call, keys - queries, ring_stages(q.shape[-1], block_q, block_k),
        _pad(q, 1, TMA_ROWS), _pad(k, 1, TMA_ROWS), _pad(v, 1, TMA_ROWS), marks,
        None if sinks is None else sinks.astype(jnp.float32), table,
    )  # fmt: skip
    return out[:, :queries], lse[:, :, :queries]


def backward(
    call: Call,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    marks: Marks,
    lse: Float[Array, "B N T"],
    delta: Float[Array, "B N T"],
    d_out: Float[Array, "B T N H"],
) -> tuple[Float[Array, "B T N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """See `flash.Kernels`; raises as `forward` does."""
    check_support(call, q)
    check_blocks(call.blocks, q.shape[-1])
    from pallas_kernels import mosaic_gpu_dkv, mosaic_gpu_dq

    queries, keys, head_dim = q.shape[1], k.shape[1], q.shape[-1]
    # +inf makes every probability 0: of a query without keys, and of the padding's queries.
    lse = jnp.where(jnp.isfinite(lse), lse * math.log2(math.e), jnp.inf)

    def arguments(block_q: int, block_k: int, by_key: bool) -> tuple:
        padded = _pad_marks(marks, block_q, block_k)
        table = block_table(
            queries, keys, call.window, padded, q_block=block_q, k_block=block_k, by_key=by_key
        )
        # Own are keys and values, or queries and their d_out; the ring brings the other two.
        own, ring = (block_k, block_q) if by_key else (block_q, block_k)
        stages = ring_stages(head_dim, 2 * own, ring)
        return (
            call, keys - queries, stages,
            *(_pad(x, 1, TMA_ROWS) for x in (q, k, v)), padded,
            _pad(lse, 2, block_q, jnp.inf), _pad(delta, 2, block_q),
            _pad(d_out, 1, TMA_ROWS), table,
        )  # fmt: skip

    dq = mosaic_gpu_dq.backward_dq(*arguments(*call.blocks.dq, by_key=False))
    dk, dv = mosaic_gpu_dkv.backward_dkv(*arguments(*call.blocks.dkv, by_key=True))
    return dq[:, :queries], dk[:, :keys], dv[:, :keys]


KERNELS = Kernels(forward, backward)


def ring_stages(head_dim: int, own_tokens: int, block: int) -> int:
    """How many pairs of [block, H] tiles fit into shared memory beside a block's own tokens."""
    # Of 227 KiB; barriers, marks and sums of rows take the rest.
    tokens = 220 * 1024 // (2 * head_dim) - own_tokens
    return max(2, min(4, tokens // (2 * block)))


def check_support(call: Call, q: Array) -> None:
    if jax.__version_info__ < OLDEST_JAX:
        raise bad_argument(
            "implementation", f"'mosaic_gpu' on jax {jax.__version__}", "jax >= 0.11",
            f"install a newer jax, which needs Python 3.12, or {_USE_XLA}",
        )  # fmt: skip
    if q.dtype != jnp.bfloat16:
        raise bad_argument(
            "q", f"dtype {q.dtype} for 'mosaic_gpu'", "bfloat16",
            f"Hopper's tensor core has no exact float32 product: cast, or {_USE_XLA}",
        )  # fmt: skip
    if q.shape[-1] not in HEAD_DIMS:
        raise bad_argument(
            "q", f"head size {q.shape[-1]} for 'mosaic_gpu'", "64, 128 or 256",
            f"pad the heads with zeros and pass the scale, or {_USE_XLA}",
        )  # fmt: skip
    # Elsewhere than on a GPU the call is compiled ahead for one, or Pallas itself refuses it.
    if not call.interpret and jax.default_backend() == "gpu":
        capability = getattr(jax.devices()[0], "compute_capability", "0")
        # wgmma belongs to 9.x alone: neither 8.x nor 10.x has the instruction.
        if not str(capability).startswith("9."):
            raise bad_argument(
                "implementation", f"'mosaic_gpu' on compute capability {capability}",
                "9.x (H100, H200)", _USE_XLA,
            )  # fmt: skip
        version = _cuda_version()
        if version is not None and _BAD_CUDA[0] <= version < _BAD_CUDA[1]:
            raise bad_argument(
                "implementation", f"'mosaic_gpu' on CUDA {version}",
                f"CUDA before {_BAD_CUDA[0]} or from {_BAD_CUDA[1]} on",
                f"its assembler miscompiles causal masks: update CUDA, or {_USE_XLA}",
            )  # fmt: skip


def check_blocks(blocks: BlockSizes, head_dim: int) -> None:
    """A block's own rows are two warpgroups' worth; what is loaded beside them must have room."""
    largest = GPU[head_dim, "wide"]
    for name, own in (("forward", 0), ("dq", 0), ("dkv", 1)):
        sizes, most = getattr(blocks, name), getattr(largest, name)
        fixed, loaded = most[own], [size for size in (32, 64, 128) if size <= most[1 - own]]
        if max(loaded) >= 64:
            loaded.remove(32)
        if sizes[own] != fixed or sizes[1 - own] not in loaded:
            queries, keys = (fixed, loaded) if own == 0 else (loaded, fixed)
            raise bad_argument(
                f"block_sizes.{name}", f"{sizes} for 'mosaic_gpu' with H = {head_dim}",
                f"queries of {queries} and keys of {keys}", "None takes the largest that fit",
            )  # fmt: skip


def _cuda_version() -> int | None:
    """1000 * major + 10 * minor + patch, as CUDA writes it; None if jax does not tell."""
    try:
        from jax._src.lib import cuda_versions
    except ImportError:
        return None
    return None if cuda_versions is None else cuda_versions.cuda_runtime_get_version()


def _pad(x: Array, axis: int, block: int, value: float = 0) -> Array:
    missing = -x.shape[axis] % block
    if missing == 0:
        return x
    widths = [(0, missing if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value)


def _pad_marks(marks: Marks, block_q: int, block_k: int) -> Marks:
    """int32, in whole blocks; padding has id 0 and so belongs to no segment."""
    return Marks(*(
        None if x is None else _pad(x.astype(jnp.int32), 1, block)
        for x, block in zip(marks, (block_q, block_k) * 2, strict=True)
    ))  # fmt: skip
