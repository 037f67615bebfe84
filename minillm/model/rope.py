"""What turns queries and keys: rotary frequencies, and the ways to stretch them.

A stretch lets a model reach further than it was trained for by dividing its frequencies. What it
divides them by is computed here in float64, once.
"""

import dataclasses
import math

import numpy as np

from minillm.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class LinearStretch:
    """Every frequency is divided by `factor` (Chen et al., 2023)."""

    factor: float

    def __post_init__(self) -> None:
        _require_positive(self, "factor")

    def divisors(self, theta: float, frequencies: np.ndarray) -> np.ndarray:
        return np.full_like(frequencies, self.factor)


@dataclasses.dataclass(frozen=True)
class Llama3Stretch:
    """By `factor` where a wave is long beside the original length, by 1 where it is short.

    Attributes:
        low_frequency_factor, high_frequency_factor: a wave is long above `original_length` over
            the first, short below `original_length` over the second, and blended in between.
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_length: int

    def __post_init__(self) -> None:
        _require_positive(self, "factor", "low_frequency_factor", "original_length")
        low, high = self.low_frequency_factor, self.high_frequency_factor
        good = low < high < math.inf
        _require("high_frequency_factor", good, high, f"above low_frequency_factor={low}")

    def divisors(self, theta: float, frequencies: np.ndarray) -> np.ndarray:
        turns = self.original_length * frequencies / (2 * math.pi)
        span = self.high_frequency_factor - self.low_frequency_factor
        kept = np.clip((turns - self.low_frequency_factor) / span, 0, 1)
        return 1 / ((1 - kept) / self.factor + kept)


@dataclasses.dataclass(frozen=True)
class YarnStretch:
    """By `factor` where a pair turns seldom within the original length (Peng et al., 2023).

    Attributes:
        beta_fast, beta_slow: a pair that makes more than `beta_fast` turns is left alone, one
            with fewer than `beta_slow` is divided by `factor`; between them there is a ramp.
        truncate: whether the ramp's ends are rounded outward to whole pairs.
    """

    factor: float
    original_length: int
    beta_fast: float
    beta_slow: float
    truncate: bool

    def __post_init__(self) -> None:
        _require_positive(self, "factor", "original_length", "beta_fast", "beta_slow")

    def divisors(self, theta: float, frequencies: np.ndarray) -> np.ndarray:
        pairs = len(frequencies)

        def pair_that_makes(turns: float) -> float:
            return pairs * math.log(self.original_length / (turns * 2 * math.pi), theta)

        first, last = pair_that_makes(self.beta_fast), pair_that_makes(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        # The last pair is pairs - 1; the reference lets the ramp end later, at 2 · pairs - 1.
        first, last = max(first, 0), min(last, 2 * pairs - 1)
        divided = np.clip((np.arange(pairs) - first) / (last - first or 0.001), 0, 1)
        return 1 / (divided / self.factor + 1 - divided)


@dataclasses.dataclass(frozen=True)
class LongStretch:
    """LongRoPE (Ding et al., 2024): each pair has a divisor of its own.

    Attributes:
        short, long: of segments of at most `original_length` tokens, and of longer ones.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_length: int

    def __post_init__(self) -> None:
        for name in ("short", "long"):
            values = getattr(self, name)
            _require(name, all(0 < x < math.inf for x in values), values, "numbers above 0")
        _require_positive(self, "original_length")

    def divisors(self, theta: float, frequencies: np.ndarray) -> np.ndarray:
        return np.asarray(self.short)


@dataclasses.dataclass(frozen=True)
class Rope:
    """How a layer turns its queries and keys.

    Attributes:
        theta: base of the frequencies: `theta^(-2i / R)` for pair i, R the features turned.
        fraction: of the head size that is turned, its first features; the rest stays as it is.
        stretch: what the frequencies are divided by.
        magnitude: factor on what is turned.
    """

    theta: float
    fraction: float = 1.0
    stretch: LinearStretch | Llama3Stretch | YarnStretch | LongStretch | None = None
    magnitude: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(self, "theta", "magnitude")
        _require("fraction", 0 < self.fraction <= 1, self.fraction, "above 0 and at most 1")
        if isinstance(self.stretch, YarnStretch):
            _require("theta", self.theta > 1, self.theta, "above 1, for a yarn stretch")

    def size(self, head_dim: int) -> int:
        """R, how many features of a head are turned."""
        return int(head_dim * self.fraction)

    def divisors(self, head_dim: int) -> np.ndarray | None:
        """What the frequency of each pair is divided by; of `LongStretch`, its short ones."""
        if self.stretch is None:
            return None
        size = self.size(head_dim)
        return self.stretch.divisors(self.theta, self.theta ** -(np.arange(0, size, 2) / size))

    def check(self, head_dim: int) -> None:
        """Raise UserError unless heads of this size can be turned so."""
        size = self.size(head_dim)
        wanted = f"a share of head_dim={head_dim} that is an even number, since RoPE turns pairs"
        _require("fraction", size >= 2 and size % 2 == 0, self.fraction, wanted)
        if isinstance(self.stretch, LongStretch):
            for name in ("short", "long"):
                count = len(getattr(self.stretch, name))
                _require(name, count == size // 2, f"{count} numbers", f"{size // 2}, one a pair")


def _require_positive(value: object, *names: str) -> None:
    for name in names:
        got = getattr(value, name)
        _require(name, 0 < got < math.inf, got, "a number above 0")


def _require(name: str, good: bool, got: object, wanted: str) -> None:
    if not good:
        fix = "take the value that the model was trained with"
        raise UserError(field=f"model.ropes.{name}", got=got, wanted=wanted, fix=fix)
