"""Which implementation a call runs: by name, or by the device it is compiled for."""

import importlib
import re
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.arguments import bad_argument

IMPLEMENTATIONS = ("mosaic_tpu", "mosaic_gpu", "xla", "reference")
_GPU_HEAD_SIZES = (64, 128, 256)


def chosen_implementation(implementation: str | None, dtype: jnp.dtype, head_dim: int) -> str:
    """The implementation's name: `implementation` itself, or the device's best where it is None.

    A name is checked against the names there are and never replaced: what its kernels ask for is
    theirs to check. Without a name, what Mosaic kernels do not serve takes the XLA path.
    """
    if implementation is None:
        platform, _ = device()
        if platform == "tpu":
            return "mosaic_tpu" if dtype in (jnp.bfloat16, jnp.float32) else "xla"
        served = platform == "gpu" and _has_wgmma() and _gpu_kernels_take(dtype, head_dim)
        return "mosaic_gpu" if served else "xla"
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(f'"{name}"' for name in IMPLEMENTATIONS)
        raise bad_argument(
            "implementation", repr(implementation), f"one of {known}, or None", "leave it out"
        )
    return implementation


def device() -> tuple[str, str]:
    """Platform and kind of the device that is compiled for.

    An abstract device in force comes first: that is how a program is compiled ahead of time for
    another machine than this one.
    """
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    if abstract is None:
        chosen = _default_device()
        return chosen.platform, chosen.device_kind
    # Before jax 0.12 an abstract device has a kind but need not have a platform.
    guessed = "tpu" if abstract.device_kind.startswith("TPU") else "gpu"
    return getattr(abstract, "platform", guessed), abstract.device_kind


def _default_device() -> jax.Device:
    """What JAX runs on here: the device of `jax.default_device`, or the first there is."""
    given = jax.config.jax_default_device  # type: ignore[attr-defined]  # made at run time
    if given is None:
        return jax.devices()[0]
    return jax.devices(given)[0] if isinstance(given, str) else given


def kernels(implementation: str, name: str) -> Any:
    """`name` of the kernels' module; imported here, since a CPU needs neither of the two.

    Raises:
        ValueError: the device compiled for is not the kernels'.
    """
    wanted = "tpu" if implementation.startswith("mosaic_tpu") else "gpu"
    platform, kind = device()
    if platform != wanted:
        raise bad_argument(
            "implementation", f"kernels for a {wanted.upper()} on {kind}", f"a {wanted.upper()}",
            'None takes what the device has, "xla" runs on all; to compile for chips that are not '
            "here, put them into force with jax.set_mesh",
        )  # fmt: skip
    return getattr(importlib.import_module(f"pallas_kernels.{implementation}"), name)


def _gpu_kernels_take(dtype: jnp.dtype, head_dim: int) -> bool:
    new_enough = jax.__version_info__ >= (0, 11)
    return new_enough and dtype == jnp.bfloat16 and head_dim in _GPU_HEAD_SIZES


def _has_wgmma() -> bool:
    # The instruction belongs to compute capability 9.x alone: neither 8.x nor 10.x has it.
    if jax.sharding.get_abstract_mesh().abstract_device is None:
        return str(getattr(_default_device(), "compute_capability", "")).startswith("9.")
    # An abstract device has a name only: H100, H200, H20, H800, GH200.
    return re.search(r"\bG?H\d", device()[1]) is not None
