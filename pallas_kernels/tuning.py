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
