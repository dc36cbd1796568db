"""Power laws of loss against compute, judged on a rung they have not seen."""

from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares


class Law(NamedTuple):
    """loss = floor + scale * compute^-exponent; a floor that the points cannot tell is fixed at zero."""

    floor: float
    scale: float
    exponent: float

    def __call__(self, compute: np.ndarray) -> np.ndarray:
        """Loss at `compute`."""
        return self.floor + self.scale * np.asarray(compute, float) ** -self.exponent


def fit(compute: np.ndarray, loss: np.ndarray, delta: float = 1e-3) -> Law:
    """Fit by Huber loss on log residuals (Hoffmann et al., arXiv 2203.15556, approach 3), from a grid of starts.

    Fewer than five points do not tell a floor from a smaller exponent, so the floor is then zero.
    """
    c, y = np.asarray(compute, float), np.asarray(loss, float)
    if len(c) < 2 or (c <= 0).any() or (y <= 0).any():
        raise ValueError("a power law needs at least two points with positive compute and loss")
    middle = np.exp(np.mean(np.log(c)))  # centred, so scale and exponent are nearly independent

    def residual(p):
        excess = p[0] - p[1] * np.log(c / middle)
        return (np.logaddexp(p[2], excess) if len(p) == 3 else excess) - np.log(y)

    level, best = np.mean(np.log(y)), None
    floors = [np.log(y.min() * share) for share in (0.1, 0.5, 0.9)] if len(c) >= 5 else [None]
    for exponent in (0.02, 0.1, 0.3, 0.6, 1.0):
        for floor in floors:
            start = [level, exponent] + ([floor] if floor is not None else [])
            found = least_squares(residual, start, loss="huber", f_scale=delta, x_scale="jac", xtol=1e-12, ftol=1e-12, gtol=1e-12)
            if best is None or found.cost < best.cost:
                best = found
    exponent = float(best.x[1])
    return Law(float(np.exp(best.x[2])) if len(best.x) == 3 else 0.0, float(np.exp(best.x[0]) * middle**exponent), exponent)


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
