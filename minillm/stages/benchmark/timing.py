"""Contestants, prepared one by one and timed in turns."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minillm.stages.benchmark.shapes import Shape

# Threads of one library still spin for a while after its call; the next one's time is its own.
_PAUSE = 0.02


class UnavailableError(Exception):
    """Why a contestant does not take part; printed in its cell."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A contestant compiled for one shape.

    Attributes:
        run: starts one call and returns what it computes: output, gradients or both.
        wait: returns when that is computed.
        sample: some heads of each as [B, T, n, H], to compare contestants by; None for one that
            computes something else.
        temp_bytes: temporary memory of a call as its compiler states it, where it does.
    """

    run: Callable[[], Any]
    wait: Callable[[Any], None]
    sample: Callable[[Any], list[np.ndarray]] | None = None
    temp_bytes: int | None = None


Contestant = Callable[[Shape, str], Prepared]


@dataclasses.dataclass
class Cell:
    """A contestant's best time of a call, or why there is none."""

    seconds: float | None = None
    temp_bytes: int | None = None
    reason: str | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One shape and pass: a line of the table."""

    shape: Shape
    which: str
    cells: Mapping[str, Cell]

    def as_json(self) -> dict[str, Any]:
        cells = {name: dataclasses.asdict(cell) for name, cell in self.cells.items()}
        return {"shape": dataclasses.asdict(self.shape), "pass": self.which, "cells": cells}


def measure(
    contestants: Mapping[str, Contestant],
    shape: Shape,
    which: str,
    *,
    seconds: float,
    tolerance: float,
    calls: int = 1,
) -> Row:
    """Best times of all contestants for one shape and pass, or their reasons.

    Args:
        contestants: what the first computes the others must compute too.
        which: FORWARD, BACKWARD or BOTH.
        seconds: about how long to time; whoever takes half of it for a call has one turn only.
        tolerance: the largest difference between results; a contestant beyond it is not timed.
        calls: how many calls are started before one is waited for, for a device that queues.
    """
    cells = {name: Cell() for name in contestants}
    ready: dict[str, Prepared] = {}
    wanted = None
    for name, contestant in contestants.items():
        try:
            prepared = contestant(shape, which)
            result = prepared.run()
            prepared.wait(result)
            if prepared.sample is not None:
                found = prepared.sample(result)
                wanted = found if wanted is None else wanted
                worst = max(_difference(a, b) for a, b in zip(found, wanted, strict=True))
                if not worst <= tolerance:
                    raise UnavailableError(f"differs by {worst:.1e}")
        # Anything: a library that is missing, too old, out of memory or broken is what a cell of
        # the table has to say, and no reason to lose the other cells.
        except Exception as error:
            cells[name].reason = _one_line(error)
            continue
        ready[name], cells[name].temp_bytes = prepared, prepared.temp_bytes
    for name, best in best_times(ready, seconds, calls).items():
        cells[name].seconds = best
    return Row(shape, which, cells)


def best_times(ready: Mapping[str, Prepared], seconds: float, calls: int = 1) -> dict[str, float]:
    """Best seconds a call, measured in turns, so that a busy machine is busy for all of them."""
    best = dict.fromkeys(ready, float("inf"))
    stop, turns = time.perf_counter() + seconds, 0
    while ready and (turns < 2 or time.perf_counter() < stop):
        for name, prepared in ready.items():
            if turns and best[name] > seconds / 2:
                # Another turn of a slow contestant would take the time of the whole table.
                continue
            time.sleep(_PAUSE)
            if best[name] < 1:
                # Back into the cache; a call of seconds does not notice.
                prepared.wait(prepared.run())
            # A turn is long enough for a fast contestant to show its best beside a slow one.
            turn_stop = time.perf_counter() + 0.1
            while True:
                started = time.perf_counter()
                result = None
                for _ in range(calls):
                    result = prepared.run()
                prepared.wait(result)
                ended = time.perf_counter()
                best[name] = min(best[name], (ended - started) / calls)
                if ended >= turn_stop:
                    break
        turns += 1
    return best


def _difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference, against the largest value where that is above 1."""
    return float(np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max()))


def _one_line(error: Exception) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 80 else words[:77] + "..."
