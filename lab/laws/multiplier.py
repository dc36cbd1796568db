"""How many times the FLOPs a baseline needs for an arm's loss: the compute multiplier, as a function of scale, with an interval.

Both arms are fitted together, loss = floor + scale C^-exponent with one floor and a scale and exponent each: the baseline reaches at C what the
arm reaches at C / k(C), and log k is linear in log C. With equal exponents k is (ratio of scales)^(1/exponent) at all scales. Where the two have floors of
their own the arms differ at infinite compute, and no multiplier says so: that is tested first.

Runs of the two arms that share a seed share init, data and noise. How much of a cell's noise they share is estimated from repeated seeds, and the
draws share it too, so it leaves the interval of k as it leaves the difference.

Where the arms have a cell that is the same to the last digit (two parametrizations at the base size are one model) both laws go through it: k is 1 there.
"""

from typing import NamedTuple

import numpy as np

from lab.errors import UserError
from lab.laws.fits import DRAWS, refusal, span
from lab.laws.joint import ALIKE, chance, squares, ties, together
from lab.laws.points import Points

HOLDS, GROWS, FADES, CROSSES, UNSURE = "holds", "grows", "fades", "crosses 1", "cannot tell"
STAYS = 0.1  # d log k / d log C within which a multiplier holds: less than a quarter more or less over a factor of 10


class Multiplier(NamedTuple):
    """k of an arm against a baseline, at any FLOPs of the baseline."""

    value: np.ndarray  # [5] floor, scales and exponents of baseline and arm at the centre
    draws: np.ndarray  # [draws, 5]
    centre: float  # log FLOPs
    low: float  # FLOPs of the baseline's smallest and largest run
    high: float
    floors: float  # p-value of one floor for both; 1 where it was given
    shared: float  # correlation of the two arms' noise at a cell
    one: bool  # whether the arms are the same runs at exp(centre) FLOPs, where k is then 1

    def at(self, flops: float) -> tuple[float, tuple[float, float]]:
        """k and its interval."""
        return float(_factor(self.value[None], self.centre, flops)[0]), span(_factor(self.draws, self.centre, flops))

    @property
    def trend(self) -> tuple[float, tuple[float, float]]:
        """d log k / d log C, and its interval."""
        return float(1 - self.value[3] / self.value[4]), span(1 - self.draws[:, 3] / self.draws[:, 4])

    @property
    def verdict(self) -> str:
        """Whether k holds with scale, grows, fades, crosses 1 between the smallest and the largest budget, or cannot be told."""
        if np.isfinite(self.crosses):
            return CROSSES
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
        return self._one() if self.trend[0] * np.log(self.at(self.high)[0]) < 0 else np.nan

    @property
    def crosses(self) -> float:
        """FLOPs of the baseline at which k is 1, where its interval lies on one side of 1 at the smallest budget and on the other at the largest; else NaN."""
        (_, (low, high)), (_, (least, most)) = self.at(self.low), self.at(self.high)
        return self._one() if (high < 1 < least) or (most < 1 < low) else np.nan

    def _one(self) -> float:
        with np.errstate(over="ignore"):  # one that hardly moves gets there at no number of FLOPs
            return float(np.exp(np.log(self.high) - np.log(self.at(self.high)[0]) / self.trend[0]))


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
    one = same(base, arm)
    keep = np.ones(len(base.loss) + len(arm.loss), bool)
    if one:  # told once
        keep[len(base.loss) + one[1]] = False
    of, y = (np.arange(len(keep)) >= len(base.loss)).astype(int), np.concatenate([base.loss, arm.loss])
    logs = np.log(np.concatenate([base.flops, arm.flops]))
    centre = np.log(base.flops[one[0]]) if one else logs.mean()
    x, of, y = (logs - centre)[keep, None], of[keep], y[keep]
    t = ties(2, 1, True, False, bool(one))
    value = together(x, of, y, t, None, floor)
    left, free = squares(x, of, y, t, value), len(y) - len(t.kinds) + (floor is not None)
    p_value = 1.0
    if floor is None:
        apart = ties(2, 1, False, False, bool(one))
        p_value = chance(squares(x, of, y, apart, together(x, of, y, apart)), left, 1, free - 1)
    if p_value < ALIKE:
        raise UserError(
            f"the arms have floors of their own (p = {p_value:.2g}): they differ at any compute, and no multiplier says by how much"
        )
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(draws, len(keep)))
    if shared:
        if len(base.loss) != len(arm.loss):
            raise UserError(f"noise is shared rung by rung, and the arms have {len(base.loss)} and {len(arm.loss)} rungs")
        mine, other = np.argsort(base.flops), len(base.loss) + np.argsort(arm.flops)
        noise[:, other] = shared * noise[:, mine] + np.sqrt(1 - shared**2) * noise[:, other]
    tail = np.sqrt(free / rng.chisquare(free, (draws, 1)))
    fitted = t.laws(value)[0, of]
    told = fitted[:, 0] + fitted[:, 1] * np.exp(-fitted[:, 2] * x[:, 0])
    again = together(x, of, told * np.exp(tail * np.sqrt(left / free) * noise[:, keep]), t, value, floor)
    laws = [t.laws(q)[:, [0, 0, 1, 0, 1], [0, 1, 1, 2, 2]] for q in (value, again)]
    return Multiplier(laws[0][0], laws[1], float(centre), float(base.flops.min()), float(base.flops.max()), p_value, shared, bool(one))


def same(base: Points, arm: Points) -> tuple[int, int] | None:
    """The smallest cell that the two arms have in common to the last digit, in each: there they are the same runs, or the same model."""
    pairs = [(i, j) for i in np.argsort(base.flops) for j in np.flatnonzero((arm.flops == base.flops[i]) & (arm.loss == base.loss[i]))]
    return pairs[0] if pairs else None


def common(base: np.ndarray, arm: np.ndarray) -> float:
    """Correlation of two arms' noise from log losses [cells, seeds] of the same cells and seeds; 0 with fewer than three seeds or two cells."""
    if min(base.shape) < 2 or base.shape[1] < 3:
        return 0.0
    a, b = (v - v.mean(1, keepdims=True) for v in (base, arm))
    return float(np.clip((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()), 0.0, 0.999)) if a.any() and b.any() else 0.0
