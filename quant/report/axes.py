"""Where a block, and where a value, stands in a plot; which values are labelled, and how numbers are written.

Value axes are linear, or "spread": y = asinh(v / c), linear where |v| << c and logarithmic beyond, for values of both
signs that differ by orders of magnitude.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

WIDTH, HEIGHT = 420, 230  # pixels of a panel
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 10, 32  # margins of the plotting area
TICKS = 5


class Across:
    """Block index -> x in the panel, pixels. blocks: the indices that have a place; left: the margin there, pixels."""

    def __init__(self, blocks: Sequence[int], left: int = LEFT):
        self.left, self.first, self.last = left, min(blocks, default=0), max(blocks, default=0)
        self.width = (WIDTH - left - RIGHT) / (self.last - self.first + 1)

    def __call__(self, block: int) -> float:
        return self.left + (block - self.first + 0.5) * self.width

    def ticks(self) -> list[int]:
        """The blocks that are named: at most nine, at round distances."""
        count = self.last - self.first + 1
        step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, count) if count / step <= 9)
        return [block for block in range(self.first, self.last + 1) if block % step == 0]


@dataclass(frozen=True)
class Axis:
    """Value -> y in the panel, and the values to label."""

    place: Callable[[float], float]
    low: float
    high: float
    ticks: list[float]

    def __call__(self, value: float) -> float:
        low, high = self.place(self.low), self.place(self.high)
        share = (self.place(min(max(value, self.low), self.high)) - low) / (high - low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def linear_axis(low: float, high: float) -> Axis:
    """Round ticks that enclose [low, high]."""
    if high <= low:
        high = low + 1.0
    raw = (high - low) / (TICKS - 1)
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(lambda value: value, first * step, last * step, [number * step for number in range(first, last + 1)])


def spread_axis(low: float, high: float) -> Axis:
    """Around 0, for low <= 0 <= high: asinh(v / c) with c a thirtieth of the largest value."""
    if low == high:  # nothing but zeros
        low, high = -1.0, 1.0
    largest = max(-low, high)
    ticks, power = [0.0], math.floor(math.log10(largest))
    for exponent in (power - 1, power):
        ticks += [
            sign * factor * 10.0**exponent for factor in ((1, 3) if exponent < power else (1, 2, 5)) for sign in (1, -1)
        ]
    ticks = _apart([tick for tick in sorted(ticks, key=abs, reverse=True) if low <= tick <= high], largest)
    return Axis(lambda value: math.asinh(30 * value / largest), low * 1.02, high * 1.02, ticks)


def _apart(ticks: list[float], largest: float) -> list[float]:
    """Those of `ticks` whose labels do not run into one that came before, 0 always."""
    kept = [0.0]
    for tick in ticks:
        if all(abs(math.asinh(30 * tick / largest) - math.asinh(30 * other / largest)) > 0.9 for other in kept):
            kept.append(tick)
    return sorted(kept)


def finite(value: float | None) -> TypeGuard[float]:
    """Whether it is a number that can be drawn: neither missing nor NaN nor Inf."""
    return value is not None and math.isfinite(value)


def number(value: float) -> str:
    """Three digits that matter: 0.0123, 1.5, 1200, 1.2e+06."""
    return f"{value:.3g}" if abs(value) < 1000 or abs(value) >= 1e5 else f"{value:.0f}"


def span(values: tuple[float, float]) -> str:
    """A pair of numbers as text."""
    return f"{number(values[0])} to {number(values[1])}"
