"""Block sizes of the kernels: a table by device, head size and window, and a rule beyond it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Rows of queries and of keys that a kernel holds at a time, for each of the three kernels.

    Attributes:
        forward, dq, dkv: (queries, keys) of a tile.
    """

    forward: tuple[int, int]
    dq: tuple[int, int]
    dkv: tuple[int, int]


def _square(size: int) -> BlockSizes:
    return BlockSizes((size, size), (size, size), (size, size))


# Chosen by bundles over the whole grid (`compile_report_tpu`), bfloat16, 8,192 tokens: by device
# kind, head size and window.
TPU: dict[tuple[str, int, int], BlockSizes] = {}


def block_sizes(device_kind: str, head_dim: int, window: int | None) -> BlockSizes:
    """Blocks for a TPU of `device_kind`, as `jax.Device.device_kind` names it."""
    if window is not None and (device_kind, head_dim, window) in TPU:
        return TPU[device_kind, head_dim, window]
    # Wider tiles than the window is wide are mostly outside it; above 512 nothing is gained.
    narrow = window is not None and window < 512
    return _square(256 if narrow or head_dim > 128 else 512)
