"""Does a hyperparameter transfer? Its drift over the ladder, what the small model's value costs the large one, and how sure that is."""

import math
from typing import NamedTuple

import numpy as np

from lab.laws.optimum import Curve, Fit, Optimum, curve, fit, loss_at, optimum, quantiles

STAYS = 0.5  # octaves: a best value that moves less over the whole ladder stays put
LEVEL = 0.9  # coverage of intervals
TRANSFERS, DRIFTS, UNSURE = "transfers", "drifts", "cannot tell"

Interval = tuple[float, float] | None  # over seeds; None where no seed repeats


class Transfer(NamedTuple):
    """What a ladder says of one arm and hyperparameter. Intervals are of coverage LEVEL, None where no seed repeats."""

    rungs: list[float]
    optima: list[Optimum]
    drift: float  # octaves from the smallest to the largest rung; negative: downwards
    slope: float  # octaves per doubling of the rung, least squares over all rungs
    penalty: float  # relative loss at the largest rung of the smallest rung's optimum over its own optimum
    drift_interval: Interval
    slope_interval: Interval
    penalty_interval: Interval
    seeds: tuple[int, int]  # fewest and most of a rung
    more: float  # seeds a rung that would probably settle the verdict; infinite where more seeds alone would not
    offsets: list[dict[float, float]]  # each rung's seeds -> how far the seed lies above all, relative to the loss
    fit: Fit | None

    @property
    def stays(self) -> bool:
        """Whether the optimum moves by no more than STAYS octaves over the ladder, as far as the point estimate goes."""
        return bool(abs(self.drift) <= STAYS)

    @property
    def verdict(self) -> str | None:
        """TRANSFERS where the interval lies within +-STAYS octaves, DRIFTS where wholly outside, else UNSURE; None without an interval."""
        return None if self.drift_interval is None else judged(*self.drift_interval)

    @property
    def wander(self) -> float:
        """Octaves between the highest and the lowest optimum of all rungs."""
        at = [o.log2 for o in self.optima if np.isfinite(o.log2)]
        return max(at) - min(at) if at else np.nan

    @property
    def bounded(self) -> bool:
        """Whether an optimum at an edge makes the drift only a bound."""
        return any(o.edge for o in (self.optima[0], self.optima[-1]))


def judged(low: float, high: float) -> str:
    """The verdict on an interval of drift in octaves."""
    if low > STAYS or high < -STAYS:
        return DRIFTS
    return TRANSFERS if low >= -STAYS and high <= STAYS else UNSURE


def octaves(rungs: list[float]) -> np.ndarray:
    """Doublings of each rung over the smallest."""
    return np.log2(np.array(rungs) / rungs[0])


def moved(rungs: int) -> np.ndarray:
    """Weights [rungs] that give the drift of optima: the last less the first."""
    return np.eye(rungs)[-1] - np.eye(rungs)[0]


def line(steps: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights [rungs] that give slope and value at step 0 of least squares through the known rungs; NaN with fewer than two."""
    x = np.where(known, steps - steps[known].mean() if known.any() else 0.0, 0.0)
    slope = x / (x @ x) if known.sum() > 1 and x @ x else np.full(len(steps), np.nan)
    return slope, known / max(known.sum(), 1) - slope * (steps[known].mean() if known.any() else 0.0)


def combined(weights: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """[2, draws]: bounds on weights [rungs] @ optima, where draws [rungs, 2, draws] bound these."""
    used = [(w, d) for w, d in zip(weights, draws, strict=True) if w]  # nothing is known of a rung that diverged everywhere
    return np.array([sum(w * d[i if w > 0 else 1 - i] for w, d in used) for i in (0, 1)])


def transfer(rung: np.ndarray, log2: np.ndarray, loss: np.ndarray, seed: np.ndarray, coverage: float = LEVEL) -> Transfer:
    """Drift and penalty of one arm from the final losses of its trials (NaN: diverged); one entry a trial.

    Rungs and values may have any number of seeds. Trials that share a rung and a seed are paired; rungs are taken as independent of one
    another, which is cautious, for seeds share their data over rungs.
    """
    rung, log2, loss, seed = (np.asarray(v, float) for v in (rung, log2, loss, seed))
    rungs = sorted(set(rung.tolist()))
    curves = [curve(*(v[rung == r] for v in (log2, loss, seed))) for r in rungs]
    seeds = [len(np.unique(seed[rung == r])) for r in rungs]
    steps, fitted = octaves(rungs), fit(curves, coverage=coverage)
    optima = fitted.optima if fitted else [optimum(c.tried, c.mean) for c in curves]
    at = np.array([o.log2 for o in optima])
    drift, known = float(at[-1] - at[0]), np.isfinite(at)
    tilt = line(steps, known)[0]
    penalty = _penalty(curves[-1], optima[-1].log2, optima[0].log2)
    told = drift, float(tilt @ np.where(known, at, 0.0)), penalty
    offsets = [dict(zip(v.seeds.tolist(), v.offset.tolist(), strict=True)) if (v := c.level) else {} for c in curves]
    if fitted is None or not np.isfinite(drift):
        return Transfer(rungs, optima, *told, None, None, None, (min(seeds), max(seeds)), math.inf, offsets, fitted)
    interval, still = (quantiles(combined(moved(len(rungs)), d), coverage) for d in (fitted.draws, fitted.shape_draws))
    slopes = quantiles(combined(tilt, fitted.draws), coverage) if np.isfinite(tilt).all() else None
    costs = quantiles(_penalties(curves[-1], fitted), coverage)
    wanted = seeds_wanted(interval, still, 2 / (1 / seeds[0] + 1 / seeds[-1]))
    return Transfer(rungs, optima, *told, interval, slopes, costs, (min(seeds), max(seeds)), wanted, offsets, fitted)


def _penalty(c: Curve, own: float, at: float) -> float:
    if not np.isfinite([own, at]).all():
        return np.nan
    least, there = loss_at(c.tried, np.stack([c.mean] * 2, 1), np.array([own, at]))
    return max(float(there / least - 1), 0.0)


def _penalties(c: Curve, f: Fit) -> np.ndarray:
    """[2, draws] bounds on the penalty: positions of both optima vary, and every loss of the largest rung."""
    rng = np.random.default_rng(1)
    count = np.ones(len(c.tried))
    count[np.isin(c.tried, c.x)] = c.level.count
    spread = f.noise.white * c.level.scale / np.sqrt(count)[:, None]
    noisy = c.mean[:, None] + spread * rng.normal(size=spread.shape)
    own, (low, high) = np.clip(f.draws[-1], c.x[0], c.x[-1]).mean(0), f.draws[0]
    at = np.where(np.isinf(low), high, low)
    # between the last stable value and the first that diverged, all that is not beyond the rung's own optimum is stable
    at = np.where((at > c.x[-1]) & (at <= f.draws[-1, 1]), c.x[-1], np.where((at < c.x[0]) & (at >= f.draws[-1, 0]), c.x[0], at))
    cost = np.maximum(loss_at(c.tried, noisy, at) / loss_at(c.tried, noisy, own) - 1, 0.0)
    return np.stack([cost, np.where(low == high, cost, np.inf)])


def seeds_wanted(interval: tuple[float, float], shape: tuple[float, float], seeds: float) -> float:
    """Seeds to add to each rung until the interval, as it narrows with 1/sqrt(seeds) to what shape leaves, is on one side of STAYS."""
    if judged(*interval) != UNSURE:
        return 0
    (low, high), still = interval, (shape[1] - shape[0]) / 2
    half, room = (high - low) / 2, abs(abs(high + low) / 2 - STAYS)
    if not np.isfinite(half) or still >= room:
        return math.inf
    return max(1, math.ceil(seeds * (half**2 - still**2) / (room**2 - still**2) - seeds))


def wanted(t: Transfer) -> str:
    """What would settle a verdict that is UNSURE."""
    if t.verdict != UNSURE:
        return ""
    if not np.isfinite(t.drift_interval).all():
        return "needs values beyond those tried"
    return (
        f"needs about {t.more:,.0f} more seed{'s' * (t.more > 1)}"
        if np.isfinite(t.more)
        else "needs values closer together; more seeds alone would not tell"
    )


def difference(a: Transfer, b: Transfer) -> tuple[float, float]:
    """Interval of |drift of a| - |drift of b|, the two taken as independent; both were fitted from seeds."""
    (low, high), other = (combined(moved(len(t.rungs)), t.fit.draws) for t in (a, b))
    # one generator makes the draws of every fit, so those of two arms are paired anew
    sizes = [
        np.stack([np.maximum(0, np.maximum(x, -y)), np.maximum(-x, y)])
        for x, y in ((low, high), np.random.default_rng(2).permutation(other, axis=1))
    ]
    return quantiles(np.stack([sizes[0][0] - sizes[1][1], sizes[0][1] - sizes[1][0]]), LEVEL)
