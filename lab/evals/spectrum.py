"""Loss by time and by frequency: where along the flow, and at which scale of the picture, a model errs."""

from typing import Any

import numpy as np
import scipy.fft

from lab.errors import UserError
from lab.evals._pictures import check


def bands(size: int, n: int) -> np.ndarray:
    """Band of every mode of fft2, int [size, size]: `n` bands of equal width in log2 |k|, from |k| <= 1 to the corner."""
    k = np.fft.fftfreq(size, 1 / size)
    log = np.log2(np.maximum(np.hypot(k[:, None], k), 1.0))
    return np.minimum((log / log.max() * n).astype(int), n - 1) if log.max() else np.zeros((size, size), int)


def by_time(t: np.ndarray, loss: np.ndarray, n: int) -> np.ndarray:
    """Mean of losses [M] at times [M] in each of `n` equal parts of [0, 1]; NaN where there is none."""
    at = np.minimum((np.asarray(t) * n).astype(int), n - 1)
    count = np.bincount(at, minlength=n)
    return np.where(count > 0, np.bincount(at, loss, n) / np.maximum(count, 1), np.nan)


def by_frequency(error: np.ndarray, n: int) -> np.ndarray:
    """Mean squared error [n] over the modes of each band, of errors [M, size, size, C]; by Parseval their mean over modes is the loss."""
    power = np.mean(np.abs(scipy.fft.fft2(error, axes=(1, 2), norm="ortho")) ** 2, axis=(0, 3))
    band = bands(error.shape[1], n).ravel()
    return np.bincount(band, power.ravel(), n) / np.maximum(np.bincount(band, minlength=n), 1)


class Judge:
    """Columns spectrum_time_<i> (i-th part of [0, 1], from data to noise) and spectrum_band_<i> (from coarse to fine)."""

    def __init__(self, real: Any, train: Any, times: int = 8, frequencies: int = 4):
        for key, value in (("times", times), ("frequencies", frequencies)):
            check(f"spectrum.{key}", value, 1, 64)
        shape = real.info.get("image", ())
        if len(shape) != 3 or shape[0] != shape[1]:
            raise UserError(f"judge 'spectrum' needs square images; {real.info['origin']!r} has {shape or 'none'}")
        self.times, self.frequencies = times, frequencies

    def __call__(self, subject: Any) -> dict[str, float]:
        error, t = subject.errors["error"].astype(float), subject.errors["t"]
        time = by_time(t, np.mean(error**2, axis=(1, 2, 3)), self.times)
        band = by_frequency(error, self.frequencies)
        out = {f"spectrum_time_{i}": float(x) for i, x in enumerate(time)}
        return out | {f"spectrum_band_{i}": float(x) for i, x in enumerate(band)}
