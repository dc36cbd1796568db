"""L(N, D, U): the law of N and D where examples repeat, and how soon repeats stop counting (Muennighoff et al., arXiv 2305.16264).

    loss = E + A N^-a + B D'^-b,  D' = U + U R* (1 - exp(-(D / U - 1) / R*))

with U unique examples among the D seen. After R* repeats one more is worth 1 / e of a new example, and all repeats together at most R* U of them. What is fitted
is the reciprocal, which is 0 where repeats count as new and the law is L(N, D). Whether they count less is an F-test of the squares which that costs. Excess
parameters, which the paper discounts alike, count in full here.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.stats import f as fisher

from lab.errors import UserError
from lab.laws.allocation import Price
from lab.laws.fits import DRAWS, LEVEL, noises, refusal, span
from lab.laws.points import Points
from lab.laws.solve import LEAST, MOST, descend, losses, solve

FORM = "L(N, D, U)"
ALIKE = 0.05  # p-value below which repeats count less than new examples
FADES = np.concatenate([[0.0], np.geomspace(0.01, 10.0, 13)])  # 1 / R* tried; the last is the most, where a first repeat is worth a tenth
REPEATED, TIMES = 4, 1.05  # least number of points in which examples repeat, and how often they are seen in one of them
REACH, SIZES = np.log(1e4), 121  # best sizes are looked for so far from the points' middle, and among so many
SCALES = np.array([False, True, True, False, False, False])
LOW, HIGH = np.array([0.0] * 3 + [LEAST] * 2 + [0.0]), np.array([np.inf] * 3 + [MOST] * 2 + [FADES[-1]])


def effective(examples: np.ndarray, unique: np.ndarray, fade: np.ndarray | float) -> np.ndarray:
    """D' of D examples, U of them unique, under 1 / R* = fade."""
    return _effective(np.maximum(examples / unique - 1, 0.0), fade)[0] * unique


def _effective(more: np.ndarray, fade: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """D' / U after `more` repeats, and its derivative by 1 / R* = fade."""
    z = fade * more
    small = z < 1e-3
    safe, rest = np.where(small, 1.0, z), -np.expm1(-z)
    worth = np.where(small, 1 - z / 2 + z**2 / 6, rest / safe)
    slope = np.where(small, -1 / 2 + z / 3 - z**2 / 8, (z * np.exp(-z) - rest) / safe**2)
    return 1 + more * worth, more**2 * slope


def _law(x: np.ndarray, unique: np.ndarray, more: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The model of `descend`: laws p [replicates, 6] (floor, two scales, two exponents, 1 / R*) at centred log N and log U [points], after `more` repeats."""
    data, slope = _effective(more, p[:, 5:])
    n, d = np.exp(-p[:, 3:4] * x), np.exp(-p[:, 4:5] * (unique + np.log(data)))
    a, b = p[:, 1:2] * n, p[:, 2:3] * d
    slopes = [np.ones_like(a), n, d, -a * x, -b * (unique + np.log(data)), -p[:, 4:5] * b * slope / data]
    return p[:, :1] + a + b, np.stack(slopes, 1)


class Repeats(NamedTuple):
    """A law of N, D and U with draws of what else it may be, and whether repeats count less than new examples."""

    value: np.ndarray  # [6] floor, scales at the centre, exponents, 1 / R*
    draws: np.ndarray  # [draws, 6]
    centre: np.ndarray  # [2] log N and log D
    sd: float  # relative: what the law leaves of a point
    freedom: int  # with which it is known
    chance: float  # p-value of repeats that count as new; NaN where R* was given
    given: bool  # R* was
    points: Points

    @property
    def repeats(self) -> float:
        """R*; infinite where repeats count as new."""
        return _reciprocal(self.value[5])

    @property
    def scales(self) -> np.ndarray:
        """[2] in loss = floor + scale N^-exponent + scale D'^-exponent."""
        return self.value[1:3] * np.exp(self.value[3:5] * self.centre)

    @property
    def less(self) -> bool:
        """Whether repeats count less than new examples."""
        return self.chance < ALIKE

    def interval(self, index: int, level: float = LEVEL) -> tuple[float, float]:
        """Of parameter `index`: 0 the floor, 1 and 2 scales, 3 and 4 exponents, 5 is of R* itself; an end of R* may be infinite."""
        low, high = span(self.draws[:, index], level)
        return (_reciprocal(high), _reciprocal(low)) if index == 5 else (low, high)

    def losses(self, params: np.ndarray, examples: np.ndarray, unique: np.ndarray) -> np.ndarray:
        """[draws, points] loss of every draw."""
        return _at(self.draws, self.centre, params, examples, unique)

    def loss(self, params: np.ndarray, examples: np.ndarray, unique: np.ndarray) -> np.ndarray:
        """[points]"""
        return _at(self.value[None], self.centre, params, examples, unique)[0]


class Limited(NamedTuple):
    """L(N, D, U) where no more than `unique` distinct examples are to be had: a law of N and D."""

    law: Repeats
    unique: float | np.ndarray  # [points] for one of each of so many points

    form = FORM
    variables = ("params", "examples")

    @property
    def sd(self) -> float:
        """Relative: what the law leaves of a point."""
        return self.law.sd

    @property
    def freedom(self) -> int:
        """With which that is known."""
        return self.law.freedom

    @property
    def points(self) -> Points:
        """That it was fitted to."""
        return self.law.points

    def losses(self, params: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """[draws, points] loss of every draw."""
        return self.law.losses(params, examples, np.minimum(self.unique, examples))

    def loss(self, params: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """[points]"""
        return self.law.loss(params, examples, np.minimum(self.unique, examples))

    def best(self, cost: Price, flops: float) -> tuple[float, np.ndarray]:
        """Log of compute-optimal params, and of every draw [draws]; no formula has it where examples repeat, so the lowest of many sizes, and the parabola there."""
        around = np.log(self.points.params).mean() + 0.5 * np.log(flops / self.points.flops.max())
        x = np.linspace(around - REACH, around + REACH, SIZES)
        where = np.exp(x), np.exp(cost.examples(flops, x))
        lowest = [_lowest(x, v) for v in (self.loss(*where)[None], self.losses(*where))]
        return float(lowest[0][0]), lowest[1]


def _lowest(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[rows] where rows y [rows, points] over even x are lowest; infinite at either end."""
    at = np.argmin(y, 1)
    inside = (at > 0) & (at < len(x) - 1)
    i = np.clip(at, 1, len(x) - 2)
    left, mid, right = (y[np.arange(len(y)), i + k] for k in (-1, 0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        off = (left - right) / (left - 2 * mid + right) / 2
    return np.where(inside, x[i] + off * (x[1] - x[0]), np.where(at == 0, -np.inf, np.inf))


def _reciprocal(fade: float) -> float:
    return np.inf if fade < 1e-9 else float(1 / fade)


def _columns(params: np.ndarray, examples: np.ndarray, unique: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, ...]:
    n, d, u = (np.atleast_1d(np.asarray(v, float)) for v in (params, examples, unique))
    return np.log(n) - centre[0], np.log(np.minimum(u, d)) - centre[1], np.maximum(d / u - 1, 0.0)


def _at(p: np.ndarray, centre: np.ndarray, *where: float) -> np.ndarray:
    return _law(*_columns(*where, centre), p)[0]


def refused(p: Points, floor: float | None = None, repeats: float | None = None) -> str | None:
    """Why these points do not tell how soon repeats stop counting; None where they do."""
    if not np.isfinite(p.unique).all():
        return f"{FORM} needs the column 'unique'"
    if why := refusal(p, "L(N, D)", floor):
        return why.replace("L(N, D)", FORM)
    times = p.examples / p.unique
    if (times >= TIMES).sum() < REPEATED:
        return f"{FORM} needs {REPEATED} points in which examples repeat, and there are {(times >= TIMES).sum()}"
    if np.ptp(np.log(times)) < np.log(TIMES):
        return f"{FORM} needs points that repeat examples more and less, and all see them {times[0]:.3g} times"
    free = 6 - (floor is not None) - (repeats is not None)
    if len(p.loss) <= free + 1:
        return f"{FORM} has {free} parameters, and there are {len(p.loss)} points: too little is left to tell the error"
    return None


def fit(p: Points, floor: float | None = None, repeats: float | None = None, draws: int = DRAWS, seed: int = 0) -> Repeats:
    """Fit L(N, D, U) to points, all of one weight.

    Args:
      floor, repeats: the floor, and R*, where they are known.

    Raises:
      UserError: the points do not tell such a law.
    """
    if why := refused(p, floor, repeats):
        raise UserError(why)
    if repeats is not None and not repeats > 0:
        raise UserError(f"R* of {repeats:g}: a number of repeats above 0 was expected")
    centre = np.array([np.log(p.params).mean(), np.log(p.examples).mean()])
    columns = _columns(p.params, p.examples, p.unique, centre)
    held = {} if floor is None else {0: floor}
    fades = FADES if repeats is None else np.array([1 / repeats])
    tried = []
    for fade in fades:  # given R* it is a law of N and D'
        x = np.stack([columns[0], columns[1] + np.log(_effective(columns[2], fade)[0])], 1)
        law = solve(x, p.loss, np.ones(len(x)), None, held)
        tried.append((float((np.log(p.loss / losses(law, x)[0]) ** 2).sum()), np.append(law[0], fade)))
    still = np.array([floor is not None, False, False, False, False, repeats is not None])

    def descended(y: np.ndarray, start: np.ndarray) -> np.ndarray:
        model, p0 = partial(_law, *columns), np.array(np.broadcast_to(start, (len(y), 6)), float)
        return descend(model, y, np.ones_like(y), p0, (LOW, np.maximum(HIGH, 1 / (repeats or np.inf))), still, SCALES)

    value = descended(p.loss[None], min(tried, key=lambda t: t[0])[1])
    fitted = _law(*columns, value)[0][0]
    left, free = float((np.log(p.loss / fitted) ** 2).sum()), len(p.loss) - int((~still).sum())
    chance = np.nan
    if repeats is None:  # 1 / R* of 0 is the end of what it may be, so half of all tables without an effect lie there
        cost = max(tried[0][0] - left, 0.0) / (left / free)
        chance = float(fisher.sf(cost, 1, free)) / (2 if cost else 1)
    sd = float(np.sqrt(left / free))
    again = descended(fitted * np.exp(noises(p, sd, free, draws, seed)), value)
    return Repeats(value[0], again, centre, sd, free, chance, repeats is not None, p)
