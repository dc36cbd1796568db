"""How many steps a batch size costs: steps to a target loss against the batch, and the critical batch size.

Steps to a target, S, fall as 1 / batch while gradients are noisy and not at all once they are not (McCandlish et al., arXiv 1812.06162):

    (S / S_min - 1) (E / E_min - 1) = 1 with E = B S, so S = S_min (1 + B_crit / B) and B_crit = E_min / S_min

Zhang et al. (arXiv 2410.21676) ask for the batch at which steps exceed what linear scaling promises by 20%; under this law it is B_crit / 5. Beside
it S = S_min (1 + (B_crit / B)^exponent) is fitted, which tells whether an exponent of one is good enough.

Intervals are regions of the likelihood and no resampling, for three seeds have ten resamples: of log S each seed has a level of its own,
what is left is noise, and a B_crit is in the interval where it leaves no more than that noise explains. So an end that data do not tell is infinite.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import f as fisher
from scipy.stats import t as student

from lab.laws.optimum import loss_at, optimum
from lab.laws.transfer import LEVEL, Interval

OVERHEAD = 0.2  # of steps over linear scaling, at Zhang et al.'s critical batch
MISS, CHANCE = 0.1, 0.05  # the law does not fit where it misses steps by more than this and the chance of that under seeds' noise is less
REACH, POINTS = 12, 1001  # octaves beyond the batches in which B_crit is looked for; values of it tried
EXPONENTS = np.linspace(0.2, 4.0, 77)
ROUNDING = 1e-8  # variance of log steps below which seeds are not believed to agree


def reach(step: np.ndarray, loss: np.ndarray, target: float) -> float:
    """Steps at which a run first has the target loss, interpolated in log steps; infinite where it never has, NaN where it diverged before.

    Args:
      step, loss: evaluations in rising order; a loss that is no number is of a run that diverged.
    """
    there = np.flatnonzero(loss <= target)
    lost = np.flatnonzero(~np.isfinite(loss))
    if len(lost) and (not len(there) or lost[0] < there[0]):
        return np.nan
    if not len(there):
        return np.inf
    i = there[0]
    if i == 0:
        return float(step[0])
    share = (loss[i - 1] - target) / (loss[i - 1] - loss[i])
    low, high = np.log1p(step[i - 1 : i + 1])
    return float(np.expm1(low + share * (high - low)))


class Tuned(NamedTuple):
    """One batch size at its best learning rate."""

    batch: float
    log2: float  # the rate, by the mean over seeds; NaN where every rate diverged
    edge: str | None  # as in Optimum: 'low' or 'high' where no better rate was tried, or none was stable, on that side
    seeds: np.ndarray
    steps: np.ndarray  # [seeds] to the target; a lower bound where not `reached`
    reached: bool  # by all seeds, at the best of the rates tried


def tune(batch: float, log2: np.ndarray, steps: np.ndarray, seed: np.ndarray, limit: float) -> Tuned:
    """The rate at which the mean over seeds of log steps is least, on Akima's interpolant, and every seed's own steps there.

    Args:
      log2, steps, seed: one entry a trial, steps as `reach` gives them. Rates that not every seed has are left out.
      limit: steps that trials had: one that has not come to the target in them needs more, which bounds the optimum but is no measure.
    """
    seeds = np.unique(seed)
    tried = np.array([x for x in np.unique(log2) if np.isin(seeds, seed[log2 == x]).all()])
    table = np.array([[steps[(log2 == x) & (seed == s)][0] for s in seeds] for x in tried], float).reshape(len(tried), len(seeds))
    late = np.isinf(table)
    table = np.log(np.where(late, limit, table))
    table[np.isnan(table).any(1)] = np.nan
    best = optimum(tried, table.mean(1))
    if not np.isfinite(best.log2):
        return Tuned(batch, np.nan, None, seeds, np.full(len(seeds), limit), False)
    least = np.nanargmin(table.mean(1))
    at = loss_at(tried, table, np.full(len(seeds), best.log2))
    return Tuned(batch, best.log2, best.edge, seeds, np.exp(at), not late[least].any())


class Law(NamedTuple):
    """The law of one target. Intervals are of coverage LEVEL, 0 or infinite at an end that nothing bounds, and None where no seed repeats."""

    batches: np.ndarray  # [batches] rising
    critical: float
    least: float  # S_min
    critical_interval: Interval
    least_interval: Interval
    exponent: float
    exponent_interval: Interval
    miss: float  # of the law, root mean square over batches, relative
    chance: float  # of missing by so much by seeds' noise alone; NaN with one seed
    noise: float  # of one trial once its seed's level is gone, relative; NaN with one seed
    unit: float  # half-width of the interval of one trial's log steps; NaN with one seed
    region: np.ndarray  # [4, n] joint: log B_crit, log S_min, its half-width, that for the seeds at hand; n is 0 with one seed

    @property
    def fits(self) -> bool:
        """Whether the law misses by less than MISS, or by no more than seeds do."""
        return bool(self.miss <= MISS or self.chance >= CHANCE)

    @property
    def bound(self) -> str:
        """'at least' or 'at most' where B_crit is known on one side only, 'unknown' where on none, else ''.

        Where the largest batch does not exceed linear scaling by OVERHEAD, or the smallest is not as near to it, the law alone would tell.
        """
        low, high = self.critical_interval or (self.critical, self.critical)
        more = np.isinf(high) or self.critical > self.batches[-1] / OVERHEAD
        less = low == 0 or self.critical < self.batches[0] * OVERHEAD
        return "unknown" if more and less else "at least" if more else "at most" if less else ""

    @property
    def told(self) -> float:
        """B_crit, or where it is bounded alone, the bound."""
        if self.critical_interval is None:
            return {"at least": self.batches[-1] / OVERHEAD, "at most": self.batches[0] * OVERHEAD}.get(self.bound, self.critical)
        low, high = self.critical_interval
        return {"at least": low, "at most": high}.get(self.bound, self.critical)

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Steps to the target at `batch`."""
        return self.least * (1 + self.critical / np.asarray(batch, float))

    def band(self, batch: np.ndarray, same: bool = False) -> np.ndarray:
        """[2, n] ends of the interval of the law's steps at `batch` [n], where seeds repeat: of the mean seed, or of the same ones."""
        critical, least, half = self.region[0], self.region[1], self.region[3 if same else 2]
        at = least[:, None] + np.log1p(np.exp(critical)[:, None] / np.asarray(batch, float))
        return np.exp([(at - half[:, None]).min(0), (at + half[:, None]).max(0)])

    @property
    def overhead(self) -> float:
        """The batch at which steps exceed linear scaling by OVERHEAD."""
        return OVERHEAD * self.critical


def tuned(batch: np.ndarray, log2: np.ndarray, steps: np.ndarray, seed: np.ndarray, limit: np.ndarray) -> list[Tuned]:
    """Every batch of one arm, rising, at its best rate; one entry a trial, `limit` being the steps that it had."""
    return [tune(b, log2[m], steps[m], seed[m], float(limit[m].max())) for b in np.unique(batch) for m in [batch == b]]


def law(found: list[Tuned], without: float | None = None) -> "Law | None":
    """The law of the batches that come to the target, but for one that is left out; None where fewer than three do."""
    used = [t for t in found if t.reached and t.batch != without]
    if len(used) < 3:
        return None
    return fit(*map(np.concatenate, zip(*[([t.batch] * len(t.seeds), t.steps, t.seeds) for t in used], strict=True)))


class Forecast(NamedTuple):
    """What the law of the other batches says of one."""

    steps: float
    interval: Interval  # of the mean that the same seeds are to give


def forecast(found: list[Tuned], batch: float) -> "Forecast | None":
    """Steps at a batch by the law of the others that come to the target; None where these are fewer than three."""
    fitted = law(found, without=batch)
    if fitted is None:
        return None
    if fitted.critical_interval is None:
        return Forecast(float(fitted(batch)), None)
    low, high = np.log(fitted.band(np.array([batch]), same=True))[:, 0]
    middle = float(np.log(fitted(batch)))
    n = next(len(t.seeds) for t in found if t.batch == batch)
    own = fitted.unit * np.sqrt(1 / n)
    ends = middle - np.hypot(middle - low, own), middle + np.hypot(high - middle, own)
    return Forecast(float(np.exp(middle)), (float(np.exp(ends[0])), float(np.exp(ends[1]))))


class Design(NamedTuple):
    """Trials of some batches and seeds, and sums over what of them is free of every seed's own level."""

    y: np.ndarray  # [trials] log steps
    batches: np.ndarray  # rising
    point: np.ndarray  # [trials] which of them
    of: np.ndarray  # [trials, seeds] one-hot
    square: float  # of y, each seed's mean off
    cross: np.ndarray  # [batches] its product with each batch's trials
    gram: np.ndarray  # [batches, batches]

    def left(self, curves: np.ndarray) -> np.ndarray:
        """Squares [n] that log S = level[seed] + curve leaves; curves [batches, n]."""
        return self.square - 2 * self.cross @ curves + (curves * (self.gram @ curves)).sum(0)

    def levels(self, curves: np.ndarray) -> np.ndarray:
        """[seeds, n] of the same fit."""
        return self.of.T @ (self.y[:, None] - curves[self.point]) / self.of.sum(0)[:, None]

    def pure(self) -> float:
        """Squares that no curve can take off: of log S = level[seed] + any[batch]."""
        return max(float(self.square - self.cross @ np.linalg.lstsq(self.gram, self.cross, rcond=None)[0]), 0.0)

    def curves(self, critical: np.ndarray, exponent: float = 1.0) -> np.ndarray:
        """log(1 + (B_crit / B)^exponent) [batches, n] at log B_crit [n]."""
        return np.log1p(np.exp(exponent * (critical - np.log(self.batches)[:, None])))


def design(batch: np.ndarray, steps: np.ndarray, seed: np.ndarray) -> Design:
    """Of one entry a batch and seed."""
    batches, point = np.unique(np.asarray(batch, float), return_inverse=True)
    y, at = np.log(np.asarray(steps, float)), (point[:, None] == np.arange(len(batches))).astype(float)
    of = (np.asarray(seed)[:, None] == np.unique(seed)).astype(float)

    def free(v):
        return v - of @ ((of.T @ v).T / of.sum(0)).T

    return Design(y, batches, point, of, float(free(y) @ free(y)), at.T @ free(y), at.T @ free(at))


def fit(batch: np.ndarray, steps: np.ndarray, seed: np.ndarray) -> Law:
    """Fit the law to steps of tuned trials at three batches or more, one entry a batch and seed; seeds may differ from batch to batch.

    Least squares of log S with a level a seed, so that what a seed does at all batches alike is no noise. The noise is that between seeds;
    where the law misses by more than it explains, at a chance below CHANCE, the misses are the noise. S_min is of the mean seed.
    """
    d = design(batch, steps, seed)
    n, k, s = len(d.y), len(d.batches), d.of.shape[1]
    ends = np.log(d.batches[0]) - REACH * np.log(2), np.log(d.batches[-1]) + REACH * np.log(2)
    wide = np.linspace(*ends, POINTS)

    def cost(critical):
        return d.left(d.curves(critical))

    def powers(exponents):
        return np.array([_lowest(d.left(d.curves(wide, a))) for a in exponents])

    i = int(np.clip(np.argmin(cost(wide)), 1, POINTS - 2))
    best = minimize_scalar(lambda x: cost(np.array([x]))[0], bounds=(wide[i - 1], wide[i + 1]), method="bounded", options={"xatol": 1e-7})
    own, pure, freedom = d.levels(d.curves(np.array([best.x])))[:, 0], d.pure(), n - k - s + 1
    missed = max(float(best.fun) - pure, 0.0)
    noise = max(pure / freedom, ROUNDING) if freedom > 0 else np.nan
    chance = float(fisher.sf(missed / (k - 2) / noise, k - 2, freedom)) if freedom > 0 else np.nan
    sd2, told = (noise, freedom) if not chance < CHANCE else (missed / (k - 2), k - 2)
    far = sd2 * student.ppf((1 + LEVEL) / 2, told) ** 2 if freedom > 0 else 0.0
    near = noise * student.ppf((1 + LEVEL) / 2, freedom) ** 2 if freedom > 0 else 0.0  # where the law misses, another exponent need not
    exponents, by_exponent = _closer(powers, EXPONENTS, near)
    found = {
        **dict(batches=d.batches, critical=float(np.exp(best.x)), least=float(np.exp(own.mean()))),
        **dict(
            exponent=float(exponents[by_exponent.argmin()]), miss=float(np.sqrt(missed / n)), chance=chance, noise=float(np.sqrt(noise))
        ),
    }
    if freedom <= 0:
        return Law(**found, critical_interval=None, least_interval=None, exponent_interval=None, unit=np.nan, region=np.empty((4, 0)))
    grid, left = _closer(cost, wide, far, best.fun)
    inside = left - best.fun <= far
    room = np.sqrt(np.clip(1 - (left - best.fun) / far, 0, 1))
    half = student.ppf((1 + LEVEL) / 2, s - 1) * np.sqrt(max(own.var(ddof=1) / s, sd2 / n)) * room
    region = np.stack([grid, d.levels(d.curves(grid)).mean(0), half, np.sqrt(far / n) * room])[:, inside]
    return Law(
        **found,
        critical_interval=tuple(np.exp(_bounds(grid, inside, ends)).tolist()),
        least_interval=(
            0.0 if region[0, -1] >= ends[1] else float(np.exp((region[1] - region[2]).min())),
            float(np.exp((region[1] + region[2]).max())),
        ),
        exponent_interval=_bounds(exponents, by_exponent - by_exponent.min() <= near, EXPONENTS[[0, -1]]),
        unit=float(np.sqrt(far)),
        region=region,
    )


def _lowest(cost: np.ndarray) -> float:
    """The least of a smooth cost on an even grid, by the parabola through the three lowest points."""
    i = int(np.argmin(cost))
    if not 0 < i < len(cost) - 1:
        return float(cost[i])
    left, middle, right = cost[i - 1 : i + 2]
    bent = left - 2 * middle + right
    return float(middle - (right - left) ** 2 / (8 * bent)) if bent > 0 else float(middle)


def _closer(cost: Callable, grid: np.ndarray, far: float, least: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """An even grid and its costs, laid anew around what is within `far` of the least unless that comes to an end of the grid."""
    left = cost(grid)
    near = np.flatnonzero(left - (left.min() if least is None else least) <= far)
    near = near if len(near) else [int(np.argmin(left))]
    low, high = max(near[0] - 1, 0), min(near[-1] + 1, len(grid) - 1)
    if near[0] == 0 or near[-1] == len(grid) - 1:
        return grid, left
    grid = np.linspace(grid[low], grid[high], len(grid))
    return grid, cost(grid)


def _bounds(grid: np.ndarray, inside: np.ndarray, ends: tuple[float, float]) -> tuple[float, float]:
    """First and last value inside; infinite where the search ended there."""
    low, high = grid[np.flatnonzero(inside)[[0, -1]]]
    return -np.inf if low <= ends[0] else float(low), np.inf if high >= ends[1] else float(high)
