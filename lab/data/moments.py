"""Mean and standard deviation of bfloat16 numbers, exact whatever the order of adding.

A bfloat16 is a whole number of 8 bits times a power of two, so whole numbers are summed by channel and exponent.
"""

from fractions import Fraction

import ml_dtypes
import numpy as np


class Moments:
    """Exact sums of x and x^2 over arrays [..., channels]."""

    def __init__(self, channels: int):
        self.channels, self.n = channels, 0
        self._sums = np.zeros((2, channels * 256), np.int64)

    def add(self, x: np.ndarray) -> None:
        """Add finite bfloat16 numbers [..., channels]."""
        bits = np.ascontiguousarray(x, ml_dtypes.bfloat16).reshape(-1, self.channels).view(np.uint16).astype(np.int64)
        exponent = bits >> 7 & 255
        whole = (bits & 127) + np.where(exponent > 0, 128, 0)  # below the least exponent there is no leading one
        at = (np.arange(self.channels) * 256 + np.maximum(exponent, 1)).ravel()
        for sums, terms in zip(self._sums, (np.where(bits >> 15, -whole, whole), whole**2), strict=True):
            sums += np.bincount(at, terms.ravel(), len(sums)).astype(np.int64)  # floats of 53 bits hold these whole numbers
        self.n += len(bits)

    def result(self) -> dict[str, list[float]]:
        """Mean and std by channel, each rounded once; std divides by n."""
        out = {"mean": [], "std": []}
        for first, second in np.moveaxis(self._sums.reshape(2, self.channels, 256), 0, 1):
            # a number is whole * 2^(exponent - 134): bias 127, 7 bits after the leading one
            mean = Fraction(sum(int(s) << e for e, s in enumerate(first)), self.n << 134)
            square = Fraction(sum(int(s) << 2 * e for e, s in enumerate(second)), self.n << 268)
            out["mean"].append(float(mean))
            out["std"].append(float(square - mean**2) ** 0.5)
        return out
