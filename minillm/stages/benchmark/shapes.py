"""What is measured: the shape of a call, its inputs, and the work that its window asks for."""

import dataclasses
import functools

import numpy as np

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward + backward"


@dataclasses.dataclass(frozen=True)
class Shape:
    """One call of self-attention; a window as long as the row, or longer, is causal attention."""

    batch: int
    length: int
    heads: int
    head_dim: int
    window: int

    def __str__(self) -> str:
        return (
            f"B{self.batch} T{self.length} N{self.heads} H{self.head_dim} "
            f"W{min(self.window, self.length)}"
        )

    def random_inputs(self) -> list[np.ndarray]:
        """q, k, v and the output's cotangent, [B, T, N, H] in float32, from a fixed seed."""
        return _random(self.batch, self.length, self.heads, self.head_dim)

    @property
    def visible_pairs(self) -> int:
        """Pairs of a query and a key it sees, in one row and head."""
        window = min(self.window, self.length)
        # The first W - 1 queries see fewer than W keys: 1, 2, ..., W - 1.
        return self.length * window - window * (window - 1) // 2

    def flops(self, which: str) -> float:
        """Useful floating-point operations: two products forward, five backward, of 2 H each."""
        products = {FORWARD: 2, BACKWARD: 5, BOTH: 7}[which]
        return 2.0 * products * self.head_dim * self.visible_pairs * self.batch * self.heads


@functools.lru_cache(maxsize=1)
def _random(*size: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(size, np.float32) for _ in range(4)]
