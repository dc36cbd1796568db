"""Do samples lie where real pictures do, and everywhere there? Fidelity apart from variety, which a distance makes one number of."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lab.errors import UserError
from lab.evals import neighbours
from lab.evals._features import Features, beside
from lab.evals._pictures import check, sampled
from lab.evals.intervals import wilson


class Judge:
    """Precision, recall, density and coverage (lab/evals/neighbours.py) by `k` neighbours, each beside its ceiling, that of real pictures.

    Precision and density fall where samples lie off the data; recall and coverage where some of it is never shown. Copies of training
    pictures have all four: `novelty` tells those.

    features, trial, components, n: what is compared (lab/evals/_features.py). floors: as of `distance`, sets of real pictures for the ceiling.
    """

    def __init__(
        self,
        real: Any,
        train: Any,
        features: str | np.ndarray | Callable[[np.ndarray], np.ndarray] = "pca",
        trial: str = "",
        components: int = 64,
        n: int = 1024,
        k: int = 5,
        floors: int = 8,
    ):
        self._features = Features("support", real, train, features, trial, components, n, floors)
        check("support.k", k, 1, n - 1)
        if len(self._features.reference) <= k:
            raise UserError(f"judge 'support' needs over support.k={k} held-out pictures; there are {len(real)}")
        self._real, self._k, self._ceilings = real, k, {}
        self._reach = neighbours.radii(self._features.reference, k)

    def _measure(self, x: np.ndarray) -> tuple[dict[str, float], int]:
        found = neighbours.cover(self._features.reference, x, self._k, self._reach)
        values = {f"support_{n}": v for n, v in found._asdict().items() if n != "precise"}
        return values, int(found.precise.sum())

    def ceiling(self, n: int) -> dict[str, float]:
        """The mean of each over sets of `n` other real pictures, and its standard deviation from set to set where there are several."""
        if n not in self._ceilings:
            self._ceilings[n] = beside([self._measure(x)[0] for x in self._features.others(n)], "ceiling")
        return self._ceilings[n]

    def __call__(self, subject: Any) -> dict[str, float]:
        """support_precision with Wilson's interval (_low, _high), support_recall, _density, _coverage; of each a _ceiling and its _ceiling_std."""
        images = sampled("support", subject, self._real, least=self._k + 1)
        values, inside = self._measure(self._features.embed(images))
        low, high = wilson(inside, len(images))
        return values | {"support_precision_low": low, "support_precision_high": high} | self.ceiling(len(images))
