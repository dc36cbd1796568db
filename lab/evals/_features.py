"""Numbers that stand for pictures, those of the held-out pictures that samples are compared with, and of other real ones for a floor."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import eigsh

from lab.errors import UserError, unknown
from lab.evals import _learned
from lab.evals._inception import Inception
from lab.evals._pictures import check, need_pictures, pictures, subset

WIDEST = 4096  # features; a covariance of more takes minutes to compare
LEAST = 4  # pictures of a set that is compared


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


class Features:
    """Features of pictures, `reference` [m, d] those of held-out ones, and of other real pictures as many as are asked for.

    judge: whose options these are, for errors.
    features: 'pca' (`components` directions of most variance among training pictures, blind to what lies outside them), 'raw'
      (pixels), the folder of a study that trained a classifier or two towers (experiments/judges.py; the classifier's where it has both,
      or those of `trial`), a file of Inception-v3's weights (.safetensors), or in code a matrix [pixels, d] or a function of pictures
      float32 [N, h, w, c] in the model's range -> [N, d].
    n: held-out pictures compared with, and training pictures that 'pca' is fitted to, at most.
    """

    def __init__(
        self, judge: str, real: Any, train: Any, features: str | np.ndarray | Callable, trial: str, components: int, n: int, sets: int
    ):
        need_pictures(judge, real)
        options = {"components": (components, 1, WIDEST), "n": (n, LEAST, 1 << 20), "floors": (sets, 1, 1000)}
        for key, (value, low, high) in options.items():
            check(f"{judge}.{key}", value, low, high)
        self._judge, self._real, self._train, self._sets = judge, real, train, sets
        order = np.random.default_rng(0).permutation(len(real))
        self._spare = order[n:]
        self.embed = self._function(features, trial, components, n)
        self.reference = self.embed(pictures(real, order[:n]))
        if len(self.reference) < LEAST:
            raise UserError(f"judge {judge!r} needs at least {LEAST} held-out pictures; there are {len(real)}")

    def _function(self, features: Any, trial: str, components: int, n: int) -> Callable[[np.ndarray], np.ndarray]:
        key = f"config key judge.options.{self._judge}.features"
        named = isinstance(features, str) and features not in ("pca", "raw")
        if named and Path(features).expanduser().is_dir():
            judges = _learned.load(key, features, trial)
            judge = judges.get("classifier") or judges["two_tower"]
            _learned.fits(key, judge, self._real)
            return judge.features
        if trial:
            raise UserError(f"{key.removesuffix('features')}trial={trial!r} wants a study's folder as features, which {features!r} is not")
        if named and Path(features).suffix in (".safetensors", ".pth", ".pt"):
            return Inception(features)
        if callable(features):
            return lambda images: np.asarray(features(images), float)
        if isinstance(features, np.ndarray):
            return lambda images: flat(images) @ features
        if features == "pca":
            basis = principal(flat(pictures(self._train, subset(self._train, n))), components)
            return lambda images: flat(images) @ basis
        if features != "raw":
            raise unknown(key, features, ("raw", "pca", "the folder of a study", "FILE.safetensors"))
        if (d := int(np.prod(self._real.info["image"]))) > WIDEST:
            raise UserError(f"{key}='raw' has {d} numbers a picture; expected at most {WIDEST}, or 'pca'")
        return flat

    def others(self, n: int) -> Iterator[np.ndarray]:
        """Features of disjoint sets of `n` other real pictures each.

        They are held-out ones, or training pictures where not one set is held out; none where there are too few of those.
        """
        source, rows = (self._real, self._spare) if len(self._spare) >= n else (self._train, subset(self._train, self._sets * n))
        for r in rows[: len(rows) // n * n][: self._sets * n].reshape(-1, n):
            yield self.embed(pictures(source, r))


def beside(found: list[dict[str, float]], what: str) -> dict[str, float]:
    """Of each key its mean over real sets, KEY_`what`, and its standard deviation from set to set, KEY_`what`_std, where there are several."""
    out = {}
    for key in found[0] if found else ():
        seen = [f[key] for f in found]
        out[f"{key}_{what}"] = float(np.mean(seen))
        if len(seen) > 1:
            out[f"{key}_{what}_std"] = float(np.std(seen, ddof=1))
    return out
