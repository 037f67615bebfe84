"""Progress bars with rate and time left, the same for every stage."""

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


def progress(
    total: int, *, description: str, unit: str, initial: int = 0, shown: bool = True
) -> "tqdm[Any]":
    """A bar over `total` units of work, of which `initial` are done already.

    Use as a context manager and call `.update(n)`; `.set_postfix(...)` adds figures. Where the
    output is no terminal it prints a line every ten seconds instead of redrawing. Of several
    hosts one should show it.
    """
    terminal = sys.stderr.isatty()
    kind: type[tqdm[Any]] = tqdm if terminal else _Lines
    return kind(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        unit_scale=total >= 10_000,
        mininterval=0.1 if terminal else _SECONDS_BETWEEN_LINES,
        # By time alone: how many units an update counts says nothing about when a line is due.
        miniters=None if terminal else 1,
        dynamic_ncols=terminal,
        disable=not shown,
    )


class _Lines(tqdm):
    """Prints each state on a line of its own: a log file has no line to draw anew."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """What tqdm calls with the bar's text."""

        def print_line(text: str) -> None:
            if text:
                print(text, file=file, flush=True)

        return print_line
