"""Sliding-window attention whose cost grows with the window, forward and backward."""

from pallas_kernels.choice import chosen_implementation
from pallas_kernels.decode import decode_attention
from pallas_kernels.sliding_window import sliding_window_attention
from pallas_kernels.tuning import BlockSizes

__all__ = [
    "BlockSizes",
    "chosen_implementation",
    "decode_attention",
    "sliding_window_attention",
]
