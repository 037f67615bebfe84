"""Block sizes of the kernels: a table by device, head size and window, and a rule beyond it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Rows of queries and of keys that a kernel holds at a time, for each of the three kernels.

    Attributes:
        forward, dq, dkv: (queries, keys) of a tile.
        strip: queries of a tile that the TPU's forward pass works on at a time: as many as its
            matrix unit is wide.
    """

    forward: tuple[int, int]
    dq: tuple[int, int]
    dkv: tuple[int, int]
    strip: int = 128


def _square(size: int, strip: int = 128) -> BlockSizes:
    return BlockSizes((size, size), (size, size), (size, size), strip)


_LONG = dataclasses.replace(_square(512), forward=(1024, 512))

# Chosen by bundles over the whole grid (`compile_report_tpu`), bfloat16, 8,192 tokens: by device
# kind (v5e, v5p and v6e in turn), head size and window.
TPU: dict[tuple[str, int, int], BlockSizes] = {
    (kind, head_dim, window): sizes
    for kind, by_window in {
        "TPU v5 lite": {256: _square(256), 1024: _square(512), 4096: _LONG},
        "TPU v5": {256: _square(256), 1024: _square(512), 4096: _LONG},
        "TPU v6 lite": {
            256: _square(256, 256),
            1024: _square(512, 256),
            4096: _square(512, 256),
        },
    }.items()
    for window, sizes in by_window.items()
    for head_dim in (64, 128)
}

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


_ALIASES = {"TPU v5e": "TPU v5 lite", "TPU v5p": "TPU v5", "TPU v6e": "TPU v6 lite"}
_NARROW = ("TPU v2", "TPU v3", "TPU v4", "TPU v5")


def block_sizes(device_kind: str, head_dim: int, window: int | None) -> BlockSizes:
    """Blocks for a device as `jax.Device.device_kind` names it: a TPU, or an NVIDIA GPU."""
    if not device_kind.startswith("TPU"):
        # One table serves every NVIDIA chip that has kernels.
        size = next((size for size in (64, 128) if head_dim <= size), 256)
        return GPU[size, "narrow" if window is not None and window <= 512 else "wide"]
    kind = _ALIASES.get(device_kind, device_kind)
    if window is not None and (kind, head_dim, window) in TPU:
        return TPU[kind, head_dim, window]
    # Wider tiles than the window is wide are mostly outside it; above 512 nothing is gained.
    narrow = window is not None and window < 512
    # From v6e on the matrix unit is 256 wide.
    strip = 128 if kind.startswith(_NARROW) else 256
    return _square(256 if narrow or head_dim > 128 else 512, strip)
