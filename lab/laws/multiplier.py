"""How many times the FLOPs a baseline needs for an arm's loss: the compute multiplier, as a function of scale, with an interval.

Both arms are fitted together, loss = floor + scale C^-exponent with one floor and a scale and exponent each: the baseline reaches at C what the
arm reaches at C / k(C), and log k is linear in log C. With equal exponents k is (ratio of scales)^(1/exponent) at all scales. Where the two have floors of
their own the arms differ at infinite compute, and no multiplier says so: that is tested first.

Runs of the two arms that share a seed share init, data and noise. How much of a cell's noise they share is estimated from repeated seeds, and the
draws share it too, so it leaves the interval of k as it leaves the difference.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import f as fisher

from lab.errors import UserError
from lab.laws.fits import DRAWS, refusal, span
from lab.laws.points import Points
from lab.laws.solve import losses, solve

ABSENT = 1e7  # an arm's own log compute, in the other's term: exp(-exponent ABSENT) is 0
HOLDS, GROWS, FADES, UNSURE = "holds", "grows", "fades", "cannot tell"
STAYS = 0.1  # d log k / d log C within which a multiplier holds: less than a quarter more or less over a factor of 10
ALIKE = 0.05  # p-value below which floors are not one


class Multiplier(NamedTuple):
    """k of an arm against a baseline, at any FLOPs of the baseline."""

    value: np.ndarray  # [5] floor, scales and exponents of baseline and arm at the centre
    draws: np.ndarray  # [draws, 5]
    centre: float  # log FLOPs
    low: float  # FLOPs of the baseline's smallest and largest run
    high: float
    floors: float  # p-value of one floor for both; 1 where it was given
    shared: float  # correlation of the two arms' noise at a cell

    def at(self, flops: float) -> tuple[float, tuple[float, float]]:
        """k and its interval."""
        return float(_factor(self.value[None], self.centre, flops)[0]), span(_factor(self.draws, self.centre, flops))

    @property
    def trend(self) -> tuple[float, tuple[float, float]]:
        """d log k / d log C, and its interval."""
        return float(1 - self.value[3] / self.value[4]), span(1 - self.draws[:, 3] / self.draws[:, 4])

    @property
    def verdict(self) -> str:
        """Whether k holds with scale, grows, fades, or cannot be told."""
        low, high = self.trend[1]
        k = self.at(np.sqrt(self.low * self.high))[0]
        if low > -STAYS and high < STAYS:
            return HOLDS
        if low > 0 or high < 0:  # away from 1, or towards it
            return GROWS if (low > 0) == (k > 1) else FADES
        return UNSURE

    @property
    def vanishes(self) -> float:
        """FLOPs of the baseline at which k is 1; NaN where it is not on its way there."""
        trend, log_k = self.trend[0], np.log(self.at(self.high)[0])
        if trend * log_k >= 0:
            return np.nan
        with np.errstate(over="ignore"):  # one that hardly moves gets there at no number of FLOPs
            return float(np.exp(np.log(self.high) - log_k / trend))


def _factor(law: np.ndarray, centre: float, flops: float) -> np.ndarray:
    """[laws] k: the arm needs exp(centre + x) for what the baseline reaches at flops."""
    own = np.log(flops) - centre
    x = (np.log(law[:, 2] / law[:, 1]) + law[:, 3] * own) / law[:, 4]
    return np.exp(own - x)


def multiplier(base: Points, arm: Points, floor: float | None = None, shared: float = 0.0, draws: int = DRAWS, seed: int = 0) -> Multiplier:
    """Compute multiplier of an arm over a baseline, of each the best cell of every budget.

    Args:
      floor: of both, where it is known.
      shared: correlation of the two arms' noise at a rung, the first with the first and so on; by `common`.

    Raises:
      UserError: an arm's points tell no law of compute, FLOPs are counted by two conventions, or the arms' floors are not one.
    """
    for name, p in (("baseline", base), ("arm", arm)):
        if why := refusal(p, "L(C)", floor):
            raise UserError(f"{name}: {why}")
    if base.convention != arm.convention:
        raise UserError(f"FLOPs of the arms are counted by two conventions ({base.convention[:60]}; {arm.convention[:60]})")
    first = np.arange(len(base.loss) + len(arm.loss)) < len(base.loss)
    logs, y = np.log(np.concatenate([base.flops, arm.flops])), np.concatenate([base.loss, arm.loss])
    centre, n = logs.mean(), len(y)
    x = np.stack([np.where(first, logs - centre, ABSENT), np.where(first, ABSENT, logs - centre)], 1)
    held, free = ({}, n - 5) if floor is None else ({0: floor}, n - 4)
    value = solve(x, y, np.ones(n), None, held)
    left = np.log(y / losses(value, x)[0])
    p_value = 1.0
    if floor is None:
        own = [solve(logs[m, None] - centre, y[m], np.ones(m.sum())) for m in (first, ~first)]
        apart = sum((np.log(y[m] / losses(v, logs[m, None] - centre)[0]) ** 2).sum() for v, m in zip(own, (first, ~first), strict=True))
        p_value = float(fisher.sf(max(left @ left - apart, 0) / (apart / (n - 6)), 1, n - 6)) if n > 6 and apart > 0 else 1.0
    if p_value < ALIKE:
        raise UserError(
            f"the arms have floors of their own (p = {p_value:.2g}): they differ at any compute, and no multiplier says by how much"
        )
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(draws, n))
    if shared:
        if len(base.loss) != len(arm.loss):
            raise UserError(f"noise is shared rung by rung, and the arms have {len(base.loss)} and {len(arm.loss)} rungs")
        mine, other = np.argsort(base.flops), len(base.loss) + np.argsort(arm.flops)
        noise[:, other] = shared * noise[:, mine] + np.sqrt(1 - shared**2) * noise[:, other]
    tail = np.sqrt(free / rng.chisquare(free, (draws, 1)))
    again = solve(x, losses(value, x)[0] * np.exp(tail * np.sqrt(left @ left / free) * noise), np.ones(n), value, held)
    return Multiplier(value[0], again, float(centre), float(base.flops.min()), float(base.flops.max()), p_value, shared)


def common(base: np.ndarray, arm: np.ndarray) -> float:
    """Correlation of two arms' noise from log losses [cells, seeds] of the same cells and seeds; 0 with fewer than three seeds or two cells."""
    if min(base.shape) < 2 or base.shape[1] < 3:
        return 0.0
    a, b = (v - v.mean(1, keepdims=True) for v in (base, arm))
    return float(np.clip((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()), 0.0, 0.999)) if a.any() and b.any() else 0.0
