"""How well a hyperparameter's rule holds over a ladder: learning rate sensitivity, and three measures after arXiv 2605.21486.

That paper judges a rule by how well a law of the optimum fits, how an error in extrapolating it costs ever more or less with size, and what
loss a parametrization costs in the limit. Its exact formulas were not at hand; here they are, plainly: the root mean square distance of the
optima from a power law, and the distance of the largest from the law of the others (octaves); the exponent with which the relative loss of
a fixed error in octaves grows with the rung; the excess of an arm's tuned loss over another's, carried to an infinite rung by a line in 1/rung.
"""

from typing import NamedTuple

import numpy as np

from lab.laws.optimum import quantiles
from lab.laws.seeds import over_seeds
from lab.laws.transfer import LEVEL, Interval, Transfer, combined, line, octaves


def sensitivity(log2: np.ndarray, loss: np.ndarray, initial: float) -> float:
    """Mean excess over the best of min(loss, initial) over the rates tried, uniform in log rate (Wortsman et al., arXiv 2309.14322).

    A diverged rate (NaN) counts as the loss at initialisation. It compares curves over the same rates only.
    """
    order = np.argsort(log2)
    x, y = np.asarray(log2, float)[order], np.asarray(loss, float)[order]
    y = np.minimum(np.where(np.isfinite(y), y, initial), initial)
    return float(np.trapezoid(y, x) / np.ptp(x) - y.min()) if len(x) > 1 else np.nan


def sensitivities(log2: np.ndarray, loss: np.ndarray, seed: np.ndarray, initial: float) -> tuple[float, Interval]:
    """Mean over the seeds of one rung that tried every rate, and its interval."""
    tried = np.unique(log2)
    whole = [s for s in np.unique(seed) if len(np.unique(log2[seed == s])) == len(tried)]
    return over_seeds(np.array([sensitivity(log2[seed == s], loss[seed == s], initial) for s in whole]), LEVEL)


class Rule(NamedTuple):
    """How well a power law holds of the optima. Octaves; NaN where there are too few rungs."""

    error: float  # root mean square distance from the law, three rungs or more
    forecast: float  # the largest rung's optimum minus that foretold by the law of the others
    exponent: float  # the relative loss of a fixed error in octaves grows as rung^exponent; above 0: larger sizes forgive less
    forecast_interval: Interval
    exponent_interval: Interval


def rule(t: Transfer) -> Rule:
    """Fit quality, forecast and robustness exponent of a ladder; without seeds no curvature is fitted, so no exponent."""
    steps, at = octaves(t.rungs), np.array([o.log2 for o in t.optima])
    known = np.isfinite(at)
    error = told = exponent = np.nan
    told_interval = exponent_interval = None
    if known.all() and len(at) > 2:
        slope, start = line(steps, known)
        error = float(np.sqrt(np.mean((at - start @ at - slope @ at * steps) ** 2)))
        slope, start = line(steps, known & (steps < steps[-1]))
        ahead = np.eye(len(at))[-1] - start - slope * steps[-1]
        told, told_interval = float(ahead @ at), None if t.fit is None else quantiles(combined(ahead, t.fit.draws), LEVEL)
    if t.fit is not None and len(steps) > 1:
        bent = np.isfinite(t.fit.curvature).all(0)
        growth = np.log2(t.fit.curvature[:, bent]).T @ line(steps, np.isfinite(steps))[0]
        if bent.mean() > LEVEL:  # else some rung has no certain minimum
            exponent, exponent_interval = float(np.median(growth)), quantiles(np.stack([growth] * 2), LEVEL)
    return Rule(error, told, exponent, told_interval, exponent_interval)


def asymptotic(arm: Transfer, other: Transfer) -> tuple[float, Interval]:
    """Relative excess of `arm`'s tuned loss over `other`'s at an infinite rung, by a line in 1/rung; NaN with fewer than three shared rungs.

    Paired over the seeds that every rung of both has.
    """
    rungs = [r for r in arm.rungs if r in other.rungs]
    pairs = [[t.optima[t.rungs.index(r)] for t in (arm, other)] for r in rungs]
    if len(rungs) < 3 or not all(np.isfinite(o.loss) for pair in pairs for o in pair):
        return np.nan, None
    offsets = [[t.offsets[t.rungs.index(r)] for t in (arm, other)] for r in rungs]
    seeds = set.intersection(*(set(o) for pair in offsets for o in pair))
    inverse = rungs[0] / np.array(rungs)

    def limit(excess):
        return np.polyfit(inverse, excess, 1)[1]

    best = [a.loss / b.loss for a, b in pairs]
    if not seeds:
        return float(limit(np.array(best) - 1)), None
    excess = [[ratio * (1 + a[s]) / (1 + b[s]) - 1 for s in sorted(seeds)] for ratio, (a, b) in zip(best, offsets, strict=True)]
    return over_seeds(np.array([limit(np.array(e)) for e in zip(*excess, strict=True)]), LEVEL)
