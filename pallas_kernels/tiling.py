"""How a row is cut into tiles: which queries share a step, and how many keys they need."""

import dataclasses
import itertools

# At a window of 256 a block of 64 leaves a fifth of the tile masked, one of 128 a third.
BLOCK = 64
_MAX_SPANS = 4


@dataclasses.dataclass(frozen=True)
class Span:
    """`steps` query blocks from query `first` on, each against `keys` keys."""

    first: int
    block: int
    steps: int
    keys: int

    @property
    def stop(self) -> int:
        return self.first + self.block * self.steps

    @property
    def cost(self) -> int:
        return self.block * self.steps * self.keys


def _spans(queries: int, keys: int, window: int | None, block: int, parts: int) -> list[Span]:
    """Query blocks in `parts` spans of about equal length; those of one span share their width."""
    blocks = -(-queries // block)
    cuts = [blocks * i // parts for i in range(parts + 1)]
    spans = []
    for start, stop in itertools.pairwise(cuts):
        first, steps = start * block, stop - start
        # A span of one step need not be padded to a whole block.
        size = min(block, queries - first) if steps == 1 else block
        width = min(keys, first + size * steps + keys - queries)
        if window is not None:
            width = min(width, size + window - 1)
        spans.append(Span(first, size, steps, width))
    return spans


def plan_spans(queries: int, keys: int, window: int | None, block: int = BLOCK) -> list[Span]:
    """One scan over all query blocks, or a few spans where the causal triangle makes that pay."""
    whole = _spans(queries, keys, window, block, 1)
    split = _spans(queries, keys, window, block, min(_MAX_SPANS, -(-queries // block)))
    # Every span is compiled by itself: 4 of them must save a fifth of the work to be worth it.
    return split if sum(s.cost for s in split) < 0.8 * whole[0].cost else whole
