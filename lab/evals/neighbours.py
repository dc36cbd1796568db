"""What two sets of vectors [n, d], [m, d] cover of each other, by balls that reach to a vector's k-th nearest neighbour in its own set."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

ROWS = 1024  # of a matrix of distances held at a time


class Cover(NamedTuple):
    """What `cover` says. `precise` tells of every sample whether it lies in a ball of the real set; `precision` is its share."""

    precision: float
    recall: float
    density: float
    coverage: float
    precise: np.ndarray


def _blocks(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of x and their distances to y: differences are taken first, so that a copy is at exactly 0 and ties are ties."""
    for at in range(0, len(x), ROWS):
        rows = slice(at, at + ROWS)
        yield rows, cdist(x[rows], y)


def radii(x: np.ndarray, k: int) -> np.ndarray:
    """Distance [n] of every vector of a set to its k-th nearest other one; 1 <= k < n."""
    out, x = np.empty(len(x)), np.asarray(x, float)
    for rows, d in _blocks(x, x):
        out[rows] = np.partition(d, k, axis=1)[:, k]  # the nearest of all is itself
    return out


def cover(real: np.ndarray, samples: np.ndarray, k: int, reach: np.ndarray | None = None) -> Cover:
    """Precision and recall (arXiv 1904.06991, eq. 1), density and coverage (arXiv 2002.09797, eq. 4 and 5) of samples.

    precision: share of samples that lie in a real vector's ball. recall: share of real vectors that lie in a sample's ball.
    density: how many real balls a sample lies in, over k: 1 is expected for equal distributions, and it may be more.
    coverage: share of real vectors whose ball holds a sample: 1 - prod over i < k of (n - 1 - i) / (n + m - 1 - i) is expected for
      equal distributions of n real vectors and m samples.
    A vector at a ball's very edge lies within it for the first two and without for the others, as their authors' code has it.

    Args:
      reach: `radii` of the real set, where they are at hand.
    """
    real, samples = np.asarray(real, float), np.asarray(samples, float)
    mine, theirs = radii(real, k) if reach is None else reach, radii(samples, k)
    precise, held, recalled, covered = np.zeros(len(samples), bool), 0, 0, 0
    for rows, d in _blocks(real, samples):
        own = mine[rows, None]
        precise |= (d <= own).any(0)
        recalled += np.sum((d <= theirs).any(1))
        within = d < own
        held += within.sum()
        covered += within.any(1).sum()
    n, m = len(real), len(samples)
    return Cover(float(precise.mean()), float(recalled / n), float(held / (k * m)), float(covered / n), precise)
