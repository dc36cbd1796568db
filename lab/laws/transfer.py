"""Does a hyperparameter transfer? Optimum of each rung, its drift over the ladder, and what using the small model's costs."""

from typing import NamedTuple

import numpy as np
from scipy.interpolate import Akima1DInterpolator

STAYS = 0.5  # octaves: a best learning rate that moves less over the whole ladder stays put


class Optimum(NamedTuple):
    """Best log2 learning rate and the loss there; `edge` is 'low' or 'high' where the best point is the last one tried."""

    log2_lr: float
    loss: float
    edge: str | None


def _curve(log2_lr: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray, Akima1DInterpolator | None]:
    """Points in order of the rate, and Akima's interpolant through the finite ones; None where fewer than three are finite.

    Akima's curve is exact on a parabola and, unlike a fitted one, does not overshoot where a neighbour lies up a cliff
    (Porian et al., arXiv 2406.19146, read optima off it too).
    """
    order = np.argsort(log2_lr)
    x, y = np.asarray(log2_lr, float)[order], np.asarray(loss, float)[order]
    good = np.isfinite(y)
    return x, y, Akima1DInterpolator(x[good], y[good]) if good.sum() > 2 else None


def optimum(log2_lr: np.ndarray, loss: np.ndarray) -> Optimum:
    """Lowest point of the interpolated curve between the best point's neighbours, in log2 learning rate.

    A diverged trial (non-finite loss) is censored: it bounds the optimum from above but has no height, so when the best
    point's neighbour diverged, or there is none, the best point itself is the optimum and `edge` says so.
    """
    x, y, curve = _curve(log2_lr, loss)
    y = np.where(np.isfinite(y), y, np.inf)
    if not np.isfinite(y).any():
        return Optimum(np.nan, np.nan, None)
    i = int(np.argmin(y))
    low, high = i == 0 or not np.isfinite(y[i - 1]), i == len(x) - 1 or not np.isfinite(y[i + 1])
    if low or high:
        return Optimum(x[i], y[i], "high" if high else "low")
    flat = curve.derivative().roots(extrapolate=False)
    near = np.concatenate([[x[i]], flat[(flat > x[i - 1]) & (flat < x[i + 1])]])
    at = near[np.argmin(curve(near))]
    return Optimum(float(at), float(curve(at)), None)


def loss_at(log2_lr: np.ndarray, loss: np.ndarray, at: float) -> float:
    """Loss of a rung's curve at a learning rate between its points, on the interpolated curve; infinite where it diverged.

    Outside the points tried the curve is continued by its end point, which understates the loss there.
    """
    x, y, curve = _curve(log2_lr, loss)
    at = float(np.clip(at, x[0], x[-1]))
    near = (x >= x[x <= at].max()) & (x <= x[x >= at].min())
    if not np.isfinite(y[near]).all():
        return np.inf
    return float(np.interp(at, x, y) if curve is None else curve(at))


class Transfer(NamedTuple):
    """What a ladder says of one arm. Intervals are (low, high) over seeds, None with fewer than three seeds."""

    rungs: list[float]
    optima: list[Optimum]
    drift: float  # octaves from the smallest to the largest rung; negative: downwards
    slope: float  # octaves per doubling of the rung, least squares over all rungs
    penalty: float  # relative loss at the largest rung of the smallest rung's optimum over its own optimum
    drift_interval: tuple[float, float] | None
    penalty_interval: tuple[float, float] | None
    seeds: int

    @property
    def stays(self) -> bool:
        """Whether the optimum moves by no more than STAYS octaves over the ladder."""
        return bool(abs(self.drift) <= STAYS)

    @property
    def wander(self) -> float:
        """Octaves between the highest and the lowest optimum of all rungs."""
        at = [o.log2_lr for o in self.optima if np.isfinite(o.log2_lr)]
        return max(at) - min(at) if at else np.nan

    @property
    def bounded(self) -> bool:
        """Whether an optimum at an edge makes the drift only a bound."""
        return any(o.edge for o in (self.optima[0], self.optima[-1]))


def _measure(rung, log2_lr, loss, rungs):
    curves = []
    for r in rungs:
        x = np.unique(log2_lr[rung == r])
        # a learning rate at which any seed diverged counts as diverged
        curves.append((x, np.array([np.mean(loss[(rung == r) & (log2_lr == v)]) for v in x])))
    optima = [optimum(x, y) for x, y in curves]
    at = np.array([o.log2_lr for o in optima])
    steps = np.log2(np.array(rungs) / rungs[0]) if len(rungs) > 1 else np.zeros(1)
    found = np.isfinite(at)
    slope = float(np.polyfit(steps[found], at[found], 1)[0]) if found.sum() > 1 else np.nan
    penalty = loss_at(*curves[-1], at[0]) / optima[-1].loss - 1 if np.isfinite(at[0]) else np.nan
    return optima, float(at[-1] - at[0]), slope, float(max(penalty, 0.0))


def transfer(rung: np.ndarray, log2_lr: np.ndarray, loss: np.ndarray, seed: np.ndarray, draws: int = 1000, level: float = 0.9) -> Transfer:
    """Drift and penalty of one arm from the final losses of its trials (NaN: diverged), with bootstrap intervals over seeds.

    Args:
      rung, log2_lr, loss, seed: one entry a trial.
      draws, level: bootstrap resamples of whole seeds, and the coverage of the intervals.
    """
    rung, log2_lr, loss, seed = (np.asarray(v, float) for v in (rung, log2_lr, loss, seed))
    rungs, seeds = sorted(set(rung.tolist())), np.unique(seed)
    optima, drift, slope, penalty = _measure(rung, log2_lr, loss, rungs)
    intervals = None, None
    if len(seeds) >= 3:
        rng, found = np.random.default_rng(0), []
        for _ in range(draws):
            rows = np.concatenate([np.flatnonzero(seed == s) for s in rng.choice(seeds, len(seeds))])
            found.append(_measure(rung[rows], log2_lr[rows], loss[rows], rungs)[1::2])
        # no interpolation: a penalty may be infinite
        ends = np.nanquantile(np.array(found), [(1 - level) / 2, (1 + level) / 2], axis=0, method="inverted_cdf")
        intervals = tuple(ends[:, 0].tolist()), tuple(ends[:, 1].tolist())
    return Transfer(rungs, optima, drift, slope, penalty, *intervals, len(seeds))
