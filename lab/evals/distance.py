"""How far samples lie from held-out pictures, beside how far two sets of real pictures of those sizes lie apart."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lab.evals import distances
from lab.evals._features import LEAST, Features, beside
from lab.evals._pictures import check, sampled


class Judge:
    """Fréchet, kernel and sliced 2-Wasserstein distance to held-out pictures, each with its finite-sample floor.

    features, trial, components, n: what is compared (lab/evals/_features.py).
    floors: sets of other real pictures, disjoint and each as large as the samples, whose mean distance is the floor; fewer where no more
      are held out. Where not even one is, training pictures take their place, and without enough of those there is no floor.
    """

    def __init__(
        self,
        real: Any,
        train: Any,
        features: str | np.ndarray | Callable[[np.ndarray], np.ndarray] = "pca",
        trial: str = "",
        components: int = 64,
        n: int = 4096,
        projections: int = 256,
        floors: int = 8,
    ):
        check("distance.projections", projections, 1, 1 << 16)
        self._features, self._projections = Features("distance", real, train, features, trial, components, n, floors), projections
        self._real, self._floors = real, {}

    def _measure(self, x: np.ndarray) -> dict[str, float]:
        reference = self._features.reference
        kernel = distances.kernel(x, reference)
        return {
            "distance_frechet": distances.frechet_of(x, reference),
            "distance_kernel": kernel.value,
            "distance_kernel_error": kernel.error,
            "distance_sliced": distances.sliced(x, reference, self._projections),
        }

    def floor(self, n: int) -> dict[str, float]:
        """Mean distance of sets of `n` other real pictures, and its standard deviation from set to set where there are several."""
        if n not in self._floors:
            found = [self._measure(x) for x in self._features.others(n)]
            self._floors[n] = beside([{k: v for k, v in f.items() if k != "distance_kernel_error"} for f in found], "floor")
        return self._floors[n]

    def __call__(self, subject: Any) -> dict[str, float]:
        """distance_frechet, distance_kernel (with its standard error, _error), distance_sliced; of each a _floor and its _floor_std.

        Samples as good as the data lie among the sets that make the floor, within some _floor_std of it.
        """
        images = sampled("distance", subject, self._real, least=LEAST)
        return self._measure(self._features.embed(images)) | self.floor(len(images))
