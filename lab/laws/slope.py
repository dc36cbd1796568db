"""Slopes of sizes against scale on log axes, over seeds, and which of many differ from what is promised."""

from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

LEVEL = 0.95
LEAST = 1e-3  # standard error below which a slope is not believed: rounding


class Slope(NamedTuple):
    """d log y / d log x with the half-width of its interval, what it should be, and the p-value of its being within a bound of that."""

    value: float
    half: float
    promised: float
    p: float

    @property
    def off(self) -> float:
        """By how much it is not what was promised."""
        return self.value - self.promised


def slope(x: np.ndarray, y: np.ndarray, promised: float = 0.0, bound: float = 0.2, level: float = LEVEL) -> Slope:
    """The slope of log sizes y [size, seed] against log scale x [size], one line a seed, all of one slope.

    The error is of all that the lines leave, so it counts seeds and bends alike, with seeds (sizes - 1) - 1 degrees of freedom. `p` is of a
    t-test against |slope - promised| <= bound.
    """
    x, free = x - x.mean(), y.shape[1] * (len(x) - 1) - 1
    centred = y - y.mean(0)
    value = float(np.mean(x @ centred) / (x @ x))
    left = np.sum((centred - value * x[:, None]) ** 2)
    error = max(np.sqrt(left / free / (y.shape[1] * (x @ x))), LEAST)
    p = student.sf((abs(value - promised) - bound) / error, free)
    return Slope(value, float(student.ppf((1 + level) / 2, free) * error), promised, float(p))


def holm(p: list[float], level: float = LEVEL) -> list[bool]:
    """Which of several hypotheses are rejected, so that one true one among them is with a chance of 1 - level at most (Holm, 1979)."""
    rejected, order = [False] * len(p), np.argsort(p, kind="stable")
    for rank, i in enumerate(order):
        if p[i] > (1 - level) / (len(p) - rank):
            break
        rejected[i] = True
    return rejected
