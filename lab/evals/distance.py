"""How far samples lie from held-out pictures, beside how far two sets of real pictures of those sizes lie apart."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import eigsh

from lab.errors import UserError, unknown
from lab.evals import distances
from lab.evals._pictures import check, need_pictures, pictures, sampled, subset

WIDEST = 4096  # features; a covariance of more takes minutes to compare


def flat(images: np.ndarray) -> np.ndarray:
    """Pictures [N, ...] as vectors [N, d] of float64."""
    return images.reshape(len(images), -1).astype(float)


def principal(x: np.ndarray, components: int) -> np.ndarray:
    """Orthonormal directions of most variance of vectors [n, d], [d, k] with the first one first; k is at most their rank."""
    x = x - x.mean(0)
    n, d = x.shape
    gram = x.T @ x if d <= n else x @ x.T  # the smaller has the same eigenvalues
    k = min(components, len(gram))
    if k < len(gram) // 8:  # a few of many: Lanczos, from a fixed start
        value, vector = eigsh(gram, k, v0=np.random.default_rng(0).standard_normal(len(gram)))
    else:
        value, vector = (v[..., len(gram) - k :] for v in eigh(gram))
    keep = np.flatnonzero(value > value[-1] * max(n, d) * np.finfo(float).eps)[::-1]
    return vector[:, keep] if d <= n else x.T @ vector[:, keep] / np.sqrt(value[keep])


class Judge:
    """Fréchet, kernel and sliced 2-Wasserstein distance to held-out pictures, each with its finite-sample floor.

    features: 'pca' (`components` directions of most variance among training pictures, blind to what lies outside them), 'raw'
      (pixels), or in code a matrix [pixels, d] or a function of pictures float32 [N, h, w, c] in the model's range -> [N, d].
    n: held-out pictures compared with, and training pictures that 'pca' is fitted to, at most.
    floors: sets of other real pictures, disjoint and each as large as the samples, whose mean distance is the floor; fewer where no more
      are held out. Where not even one is, training pictures take their place, and without enough of those there is no floor.
    """

    def __init__(
        self,
        real: Any,
        train: Any,
        features: str | np.ndarray | Callable[[np.ndarray], np.ndarray] = "pca",
        components: int = 64,
        n: int = 4096,
        projections: int = 256,
        floors: int = 8,
    ):
        need_pictures("distance", real)
        options = {"components": (components, 1, WIDEST), "n": (n, 4, 1 << 20), "projections": (projections, 1, 1 << 16)}
        for key, (value, low, high) in (options | {"floors": (floors, 1, 1000)}).items():
            check(f"distance.{key}", value, low, high)
        self._real, self._train, self._projections, self._sets = real, train, projections, floors
        order = np.random.default_rng(0).permutation(len(real))
        self._spare = order[n:]
        self._embed = self._features(features, components, n)
        self._reference = self._embed(pictures(real, order[:n]))
        if len(self._reference) < 4:
            raise UserError(f"judge 'distance' needs at least 4 held-out pictures; there are {len(real)}")
        self._floors: dict[int, dict[str, float]] = {}

    def _features(self, features: Any, components: int, n: int) -> Callable[[np.ndarray], np.ndarray]:
        if callable(features):
            return lambda images: np.asarray(features(images), float)
        if isinstance(features, np.ndarray):
            return lambda images: flat(images) @ features
        if features == "pca":
            basis = principal(flat(pictures(self._train, subset(self._train, n))), components)
            return lambda images: flat(images) @ basis
        if features != "raw":
            raise unknown("config key judge.options.distance.features", features, ("raw", "pca"))
        if (d := int(np.prod(self._real.info["image"]))) > WIDEST:
            raise UserError(
                f"config key judge.options.distance.features='raw' has {d} numbers a picture; expected at most {WIDEST}, or 'pca'"
            )
        return flat

    def _measure(self, x: np.ndarray) -> dict[str, float]:
        kernel = distances.kernel(x, self._reference)
        return {
            "distance_frechet": distances.frechet_of(x, self._reference),
            "distance_kernel": kernel.value,
            "distance_kernel_error": kernel.error,
            "distance_sliced": distances.sliced(x, self._reference, self._projections),
        }

    def floor(self, n: int) -> dict[str, float]:
        """Mean distance of sets of `n` other real pictures, and its standard deviation from set to set where there are several."""
        if n not in self._floors:
            source, rows = (self._real, self._spare) if len(self._spare) >= n else (self._train, subset(self._train, self._sets * n))
            sets = rows[: len(rows) // n * n][: self._sets * n].reshape(-1, n)
            found = [self._measure(self._embed(pictures(source, r))) for r in sets]
            self._floors[n] = out = {}
            for key in ("distance_frechet", "distance_kernel", "distance_sliced") if found else ():
                seen = [f[key] for f in found]
                out[f"{key}_floor"] = float(np.mean(seen))
                if len(seen) > 1:
                    out[f"{key}_floor_std"] = float(np.std(seen, ddof=1))
        return self._floors[n]

    def __call__(self, subject: Any) -> dict[str, float]:
        """distance_frechet, distance_kernel (with its standard error, _error), distance_sliced; of each a _floor and its _floor_std.

        Samples as good as the data lie among the sets that make the floor, within some _floor_std of it.
        """
        images = sampled("distance", subject, self._real, least=4)
        return self._measure(self._embed(images)) | self.floor(len(images))
