"""Sliding-window attention whose cost grows with the window, forward and backward."""

from pallas_kernels.decode import decode_attention
from pallas_kernels.sliding_window import sliding_window_attention

__all__ = ["decode_attention", "sliding_window_attention"]
