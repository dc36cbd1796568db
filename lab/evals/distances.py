"""Distances between two sets of vectors [n, d], [m, d], in float64: Fréchet's, a kernel's and the sliced Wasserstein distance."""

from typing import NamedTuple

import numpy as np
from scipy.linalg import lapack, svdvals

ROWS = 1024  # of a Gram matrix held at a time


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] and unbiased covariance [d, d] of vectors [n, d]."""
    x = np.array(x, float)
    mean = x.mean(0)
    x -= mean
    return mean, x.T @ x / (len(x) - 1)


def _factor(cov: np.ndarray) -> np.ndarray:
    """F [d, rank] with F F' = cov, by pivoted Cholesky, which finds the rank (Higham, Accuracy and Stability, section 10.3)."""
    packed, pivots, rank, _ = lapack.dpstrf(np.asarray(cov, float), lower=1)
    out = np.empty((len(cov), rank))
    out[pivots - 1] = np.tril(packed)[:, :rank]
    return out


def frechet(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """Squared W2 between Gaussians: |a - b|^2 + tr A + tr B - 2 tr (A^1/2 B A^1/2)^1/2 (FID: arXiv 1706.08500), never negative.

    With A = F F' and B = G G' the last trace is the sum of the singular values of F' G: no root of a matrix is taken, so
    covariances of any rank cost no precision.
    """
    shift = np.sum(np.square(np.asarray(mean_a, float) - mean_b))
    f, g = _factor(cov_a), _factor(cov_b)
    shared = svdvals(f.T @ g, check_finite=False).sum() if f.size and g.size else 0.0
    return float(max(shift + np.trace(cov_a) + np.trace(cov_b) - 2 * shared, 0.0))


def frechet_of(x: np.ndarray, y: np.ndarray) -> float:
    """`frechet` of the Gaussians fitted to two sets; its bias falls like 1/n."""
    return frechet(*moments(x), *moments(y))


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float


def _gram(x: np.ndarray, y: np.ndarray, apart: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """Sums over columns [n] and over rows [m], and of the squares, of k(x, y); without its diagonal where `apart`."""
    rows, cols, square = np.empty(len(x)), np.zeros(len(y)), 0.0
    for at in range(0, len(x), ROWS):
        k = x[at : at + ROWS] @ y.T / x.shape[1] + 1
        k *= k * k
        if apart:
            np.fill_diagonal(k[:, at:], 0)
        rows[at : at + ROWS] = k.sum(1)
        cols += k.sum(0)
        square += np.sum(k * k)
    return rows, cols, square


def _within(x: np.ndarray) -> tuple[np.ndarray, float]:
    """Sum of every vector's kernel with the others [n], and the variance of what no sum of two functions of one vector explains.

    The variance is unbiased (U-centring: Székely and Rizzo, Annals of Statistics 42(6), 2014).
    """
    n = len(x)
    r, _, square = _gram(x, x, apart=True)
    rest = square - 2 * np.sum(r**2) / (n - 2) + r.sum() ** 2 / ((n - 1) * (n - 2))
    return r, rest / (n * (n - 3))


def mmd(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Unbiased squared MMD with kernel (x.y / d + 1)^3, and unbiased estimates of the two parts of its variance.

    Hoeffding's decomposition of the two-sample U-statistic, exact at any size: with g the kernel's mean over one set less that over the
    other and e what the sum of two such functions leaves of the kernel, the variance is
    4 var(g_x) / n + 4 var(g_y) / m, which is zero for equal distributions, + 2 e_xx / (n (n - 1)) + 2 e_yy / (m (m - 1)) + 4 e_xy / (n m).
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    n, m = len(x), len(y)
    (xx, e_x), (yy, e_y) = _within(x), _within(y)
    xy, yx, square = _gram(x, y, apart=False)
    total = xy.sum()
    e_xy = (square - np.sum(xy**2) / m - np.sum(yx**2) / n + total**2 / (n * m)) / ((n - 1) * (m - 1))
    # n - 2, for a sum over others lacks the vector's own part; the noise of the means is taken off
    g_x = np.var(xx / (n - 2) - xy / m, ddof=1) - e_x / (n - 2) - e_xy / m
    g_y = np.var(yy / (m - 2) - yx / n, ddof=1) - e_y / (m - 2) - e_xy / n
    value = xx.sum() / (n * (n - 1)) + yy.sum() / (m * (m - 1)) - 2 * total / (n * m)
    return value, 4 * g_x / n + 4 * g_y / m, 2 * e_x / (n * (n - 1)) + 2 * e_y / (m * (m - 1)) + 4 * e_xy / (n * m)


def kernel(x: np.ndarray, y: np.ndarray) -> Estimate:
    """Kernel distance (KID: arXiv 1801.01401), the unbiased squared MMD, and its standard error; sets of at least 4 vectors.

    The first part of the variance counts where it is positive, so near equal distributions the error is up to 1.5 times too large.
    """
    value, first, second = mmd(x, y)
    return Estimate(float(value), float(np.sqrt(max(first, 0.0) + max(second, 0.0))))


def directions(d: int, projections: int, seed: int = 0) -> np.ndarray:
    """Fixed random unit vectors, [d, projections]."""
    v = np.random.default_rng(seed).standard_normal((d, projections))
    return v / np.linalg.norm(v, axis=0)


def sliced(x: np.ndarray, y: np.ndarray, projections: int = 256, seed: int = 0) -> float:
    """Sliced W2 (Bonneel et al., JMIV 51, 2015): root of the mean over `directions` of the squared W2 between projections.

    In one dimension W2 matches quantiles; sets of unequal sizes are cut where either steps, so it is exact for them too.
    """
    n, m, v = len(x), len(y), directions(x.shape[1], projections, seed)
    a, b = np.sort(np.asarray(x, float) @ v, axis=0), np.sort(np.asarray(y, float) @ v, axis=0)
    cuts = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # levels times n m, whole numbers
    mass = np.diff(cuts, prepend=0) / (n * m)
    return float(np.sqrt(np.mean(mass @ np.square(a[(cuts - 1) // m] - b[(cuts - 1) // n]))))
