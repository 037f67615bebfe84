"""Registers and spills of the Mosaic GPU kernels, from NVIDIA's own assembler, without a GPU.

Needs jax >= 0.11 and, at jax's own version V, without their dependencies:
`pip install --no-deps jax-cuda13-plugin==V jax-cuda13-pjrt==V`. Then

    python -m pallas_kernels.compile_report_gpu > tests/pallas_kernels/snapshots/gpu.json

writes the snapshot that `tests/pallas_kernels/test_compile_gpu.py` compares with. A kernel whose
warpgroups hand registers to one another is assembled for a fixed number of them, 168 of 384
threads; what it could not fit shows as spills.
"""

import argparse
import importlib.util
import inspect
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh, Mesh, NamedSharding, PartitionSpec

from pallas_kernels.flash import Call
from pallas_kernels.mosaic_gpu import HEAD_DIMS, KERNELS, OLDEST_JAX
from pallas_kernels.tuning import block_sizes
from pallas_kernels.window import NO_MARKS, Marks

# What XLA wants to know of a chip that it compiles for without having it. One H200; an H100
# differs in memory and bandwidth, neither of which a kernel's code depends on.
_NAME, _CORES = "NVIDIA H200", 132
_TARGET = f"""
platform_name: "CUDA"
device_description_str: "{_NAME}"
runtime_version {{ major: 13 }}
dnn_version_info {{ major: 9 minor: 10 }}
gpu_device_info {{
  cuda_compute_capability {{ major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }}
  core_count: {_CORES}
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  l2_cache_size: 52428800
  memory_bandwidth: 4800000000000
  device_memory_size: 150000000000
}}
"""

# Forward and backward by window class, and what is switched on; the decode step has all it knows.
# A feature alone is there too: fewer features once spilled where all of them did not.
VARIANTS = (
    "narrow",
    "narrow, soft cap",
    "narrow, segments",
    "narrow, all features",
    "wide",
    "wide, all features",
    "decode",
)
_WINDOWS = {"narrow": 300, "wide": None}
# T and S are no multiple of any block.
_BATCH, _QUERIES, _KEYS, _HEADS, _KV_HEADS = 2, 1000, 1100, 4, 2


def available() -> bool:
    """Whether this environment can assemble for Hopper."""
    plugins = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
    if jax.__version_info__ < OLDEST_JAX or importlib.util.find_spec("jax_plugins") is None:
        return False
    return any(importlib.util.find_spec(name) is not None for name in plugins)


def hoppers(devices: int) -> Mesh:
    """So many GPUs to compile for, along the axis "device"."""
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(
        platform="cuda", target_config=_TARGET, topology=f"1x1x{devices}"
    )
    return Mesh(topology.devices[:devices], ("device",))


def compile_for_hopper(
    fn: Callable[..., Any], *shapes: jax.ShapeDtypeStruct, placed: Any = None
) -> Any:
    """`fn` compiled for sm_90a; its `memory_analysis()` tells of the memory it would take.

    Args:
        placed: the shardings of the operands, over `hoppers`; one GPU if None.
    """
    if placed is None:
        placed = NamedSharding(hoppers(1), PartitionSpec())
    # Some versions of jax ask for the platform too.
    wanted = len(inspect.signature(AbstractDevice).parameters)
    about: Sequence[Any] = (_NAME, _CORES, "gpu")[:wanted]
    mesh = AbstractMesh((), (), abstract_device=AbstractDevice(*about))
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.jit(fn, in_shardings=placed).lower(*shapes).compile()


def report(head_dim: int, variant: str) -> dict[str, dict[str, int]]:
    """Registers and bytes of spill stores and loads of each kernel of a variant.

    Assembles in a process of its own: the assembler's words go to the output of the process.
    """
    module = "pallas_kernels.compile_report_gpu"
    done = subprocess.run(
        [sys.executable, "-m", module, "--compile", str(head_dim), variant],
        cwd=pathlib.Path(__file__).parents[1],
        env=os.environ | {"MOSAIC_GPU_DUMP_PTXAS": "1", "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"H = {head_dim}, {variant}: does not compile\n{done.stdout[-4000:]}")
    return _parse(done.stdout)


def _parse(output: str) -> dict[str, dict[str, int]]:
    """The assembler's words on each kernel: its name, then its spills, then its registers."""
    pattern = re.compile(
        r"entry function '(?:attend_)?(\w+)_mosaic_gpu_kernel'.*?"
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        re.DOTALL,
    )
    found = {
        name: {"registers": int(registers), "spill_stores": int(out), "spill_loads": int(back)}
        for name, out, back, registers in pattern.findall(output)
    }
    if not found:
        raise RuntimeError(f"the assembler said nothing of a kernel\n{output[-4000:]}")
    return dict(sorted(found.items()))


def _compile(head_dim: int, variant: str) -> None:
    def shape(*axes: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(axes, dtype)

    sinks = shape(_HEADS, dtype=jnp.float32)
    if variant == "decode":
        cache = shape(_BATCH, _KEYS, _KV_HEADS, head_dim)
        lengths = shape(_BATCH, dtype=jnp.int32)
        compile_for_hopper(_decode, shape(_BATCH, _HEADS, head_dim), cache, cache, lengths, sinks)
        return
    name, _, features = variant.partition(", ")
    everything = features == "all features"
    window = _WINDOWS[name]
    soft_cap = 30.0 if everything or features == "soft cap" else None
    call = Call(window, head_dim**-0.5, soft_cap, block_sizes(_NAME, head_dim, window))

    def both(q, k, v, d_out, lse, delta, sinks, *marks):
        given = Marks(*marks) if everything else NO_MARKS
        if features == "segments":
            given = Marks(*marks[:2])
        out = KERNELS.forward(call, q, k, v, given, sinks if everything else None)
        return out, KERNELS.backward(call, q, k, v, given, lse, delta, d_out)

    q = shape(_BATCH, _QUERIES, _HEADS, head_dim)
    k = shape(_BATCH, _KEYS, _KV_HEADS, head_dim)
    of_queries = shape(_BATCH, _HEADS, _QUERIES, dtype=jnp.float32)
    marks = [shape(_BATCH, n, dtype=jnp.int32) for n in (_QUERIES, _KEYS) * 2]
    compile_for_hopper(both, q, k, k, q, of_queries, of_queries, sinks, *marks)


def _decode(q, k_cache, v_cache, lengths, sinks):
    from pallas_kernels.mosaic_gpu_decode import decode

    return decode(q, k_cache, v_cache, lengths, scale=0.1, soft_cap=30.0, sinks=sinks)


def main() -> None:
    parser = argparse.ArgumentParser(description="Registers and spills of the GPU kernels, as JSON")
    parser.add_argument("--compile", nargs=2, metavar=("HEAD_DIM", "VARIANT"))
    chosen = parser.parse_args().compile
    if chosen:
        _compile(int(chosen[0]), chosen[1])
        return
    whole = {
        f"H {head_dim}, {variant}": report(head_dim, variant)
        for head_dim in HEAD_DIMS
        for variant in VARIANTS
    }
    print(json.dumps(whole, indent=1))


if __name__ == "__main__":
    main()
