"""Power laws of loss against compute, judged on a rung they have not seen."""

from typing import NamedTuple

import numpy as np

from lab.laws.solve import solve


class Law(NamedTuple):
    """loss = floor + scale * compute^-exponent; a floor that the points cannot tell is fixed at zero."""

    floor: float
    scale: float
    exponent: float

    def __call__(self, compute: np.ndarray) -> np.ndarray:
        """Loss at `compute`."""
        return self.floor + self.scale * np.asarray(compute, float) ** -self.exponent


def fit(compute: np.ndarray, loss: np.ndarray, delta: float = 1e-3) -> Law:
    """Fit by Huber loss on log residuals (Hoffmann et al., arXiv 2203.15556, approach 3).

    Fewer than five points do not tell a floor from a smaller exponent, so the floor is then zero.
    """
    c, y = np.asarray(compute, float), np.asarray(loss, float)
    if len(c) < 2 or (c <= 0).any() or (y <= 0).any():
        raise ValueError("a power law needs at least two points with positive compute and loss")
    middle = np.log(c).mean()
    p = solve((np.log(c) - middle)[:, None], y, np.ones(len(c)), held={} if len(c) >= 5 else {0: 0.0}, delta=delta)[0]
    return Law(float(p[0]), float(p[1] * np.exp(p[2] * middle)), float(p[2]))


class Holdout(NamedTuple):
    """A law fitted without the largest rung, and how well it foretold it."""

    law: Law
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted / self.measured - 1


def holdout(compute: np.ndarray, loss: np.ndarray) -> Holdout:
    """Fit all rungs but the one of largest compute and predict that one; needs at least three rungs."""
    c, y = np.asarray(compute, float), np.asarray(loss, float)
    if len(c) < 3:
        raise ValueError("a held-out rung needs at least three rungs")
    order = np.argsort(c)
    law = fit(c[order[:-1]], y[order[:-1]])
    return Holdout(law, float(law(c[order[-1]])), float(y[order[-1]]))
