"""Progress bars with rate and time left, the same for every stage."""

import sys
from typing import Any

from tqdm import tqdm


def progress(total: int, *, description: str, unit: str, initial: int = 0) -> "tqdm[Any]":
    """A bar over `total` units of work, of which `initial` are done already.

    Use as a context manager and call `.update(n)`; `.set_postfix(...)` adds figures. Where the
    output is no terminal it prints a line every ten seconds instead of redrawing.
    """
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        unit_scale=total >= 10_000,
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
        dynamic_ncols=True,
    )
