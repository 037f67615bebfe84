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


# By head size and window class: as large as registers and shared memory of Hopper allow without
# spills (`compile_report_gpu`); not yet timed on a device.
GPU = {
    (64, "narrow"): BlockSizes(forward=(128, 128), dq=(128, 128), dkv=(64, 128)),
    (64, "wide"): BlockSizes(forward=(128, 128), dq=(128, 128), dkv=(128, 128)),
    (128, "narrow"): BlockSizes(forward=(128, 128), dq=(128, 64), dkv=(64, 128)),
    (128, "wide"): BlockSizes(forward=(128, 128), dq=(128, 64), dkv=(64, 128)),
    (256, "narrow"): BlockSizes(forward=(128, 64), dq=(128, 32), dkv=(64, 64)),
    (256, "wide"): BlockSizes(forward=(128, 64), dq=(128, 32), dkv=(64, 64)),
}


def block_sizes(device_kind: str, head_dim: int, window: int | None) -> BlockSizes:
    """The block sizes for a device as `jax.Device.device_kind` names it."""
    del device_kind  # one table serves every NVIDIA chip that has kernels
    size = next((size for size in (64, 128) if head_dim <= size), 256)
    return GPU[size, "narrow" if window is not None and window <= 512 else "wide"]
