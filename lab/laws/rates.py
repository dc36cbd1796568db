"""L(N, D, lr): the law of N and D, and how its best learning rate drifts, fitted to every trial of a grid that need not be whole.

    log loss = log(E + A N^-a + B D^-b) + c (x - x*)^2,  x = log2 lr,  x* = x0 + p log N + q log D

with log N and log D from the points' middle, where the best is 2^x0. A size and horizon of one rate alone tells of all. p and q are octaves an e-fold;
what is printed is lr* ~ N^(p log 2) D^(q log 2). A trial that diverged has no height: it is left out, and only its own rate with it.
Trials of one size and horizon err alike as far as the law of N and D is wrong there, so noise is of two parts, which an analysis of variance tells apart.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from lab.errors import UserError
from lab.laws.fits import DRAWS, LEVEL, noises, refusal, span
from lab.laws.points import Points
from lab.laws.solve import LEAST, MOST, descend, losses, solve

FORM = "L(N, D, lr)"
FREE, BENT, BEST, BY_N, BY_D = 9, 5, 6, 7, 8  # parameters, and where c, x0, p and q are
OF_RATE = 4  # of them
SCALES = np.isin(np.arange(FREE), (1, 2, BENT))
LOW = np.array([0.0] * 3 + [LEAST] * 2 + [0.0] + [-np.inf] * 3)
HIGH = np.array([np.inf] * 3 + [MOST] * 2 + [np.inf] * 4)


def _law(x: np.ndarray, log2: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The model of `descend`: laws p [replicates, 9] (floor, two scales, two exponents, c, x0, p, q) at centred x [points, 2] and log2 lr [points]."""
    n, d = x.T
    at = [np.exp(-p[:, 3 + j, None] * x[:, j]) for j in (0, 1)]
    a, b = (p[:, 1 + j, None] * at[j] for j in (0, 1))
    off = log2 - p[:, BEST, None] - p[:, BY_N, None] * n - p[:, BY_D, None] * d
    up = np.exp(np.minimum(p[:, BENT, None] * off**2, 50.0))
    whole = (p[:, :1] + a + b) * up
    tilt = -2 * p[:, BENT, None] * off * whole
    return whole, np.stack([up, at[0] * up, at[1] * up, -a * n * up, -b * d * up, whole * off**2, tilt, tilt * n, tilt * d], 1)


class Rates(NamedTuple):
    """A law of N, D and the learning rate with draws of what else it may be."""

    value: np.ndarray  # [9] floor, scales at the centre, exponents, c, x0, p, q
    draws: np.ndarray  # [draws, 9]
    centre: np.ndarray  # [2] log N and log D
    sd: float  # relative: what the law leaves of a point, of its own
    shared: float  # and what it leaves that all points of a size and horizon share
    floor: float | None  # the floor that was given
    points: Points

    @property
    def scales(self) -> np.ndarray:
        """[2] in loss = floor + scale N^-exponent + scale D^-exponent, at the best rate."""
        return self.value[1:3] * np.exp(self.value[3:5] * self.centre)

    def interval(self, index: int, level: float = LEVEL) -> tuple[float, float]:
        """Of a parameter of `value`."""
        return span(self.draws[:, index], level)

    def best(self, params: float, examples: float) -> tuple[float, tuple[float, float]]:
        """log2 of the best rate of a size and horizon, and its interval."""
        one = np.concatenate([[1.0], np.log([params, examples]) - self.centre])
        return float(self.value[BEST:] @ one), span(self.draws[:, BEST:] @ one)

    def loss(self, params: float, examples: float) -> tuple[float, tuple[float, float]]:
        """Loss of a size and horizon at its best rate, and its interval."""
        x = (np.log([params, examples]) - self.centre)[None]
        return float(losses(self.value[None, :5], x)[0, 0]), span(losses(self.draws[:, :5], x)[:, 0])


def refused(p: Points, floor: float | None = None) -> str | None:
    """Why these points do not tell a law of N, D and the learning rate; None where they do."""
    if not np.isfinite(p.rate).all():
        return f"{FORM} needs the column 'rate'"
    if why := refusal(p, "L(N, D)", floor):
        return why.replace("L(N, D)", FORM)
    if (tried := len(np.unique(p.rate))) < 3:
        return f"{FORM} needs 3 learning rates, and there {'is' if tried == 1 else 'are'} {tried}"
    free = FREE - (floor is not None)
    if len(p.loss) <= free + 1:
        return f"{FORM} has {free} parameters, and there are {len(p.loss)} points: too little is left to tell the error"
    if (cells := _cells(p).max() + 1) <= free - OF_RATE + 1:
        return f"{FORM} has {free - OF_RATE} parameters without those of the rate, and there are {cells} sizes and horizons: too little is left"
    return None


def _cells(p: Points) -> np.ndarray:
    """[points] which size and horizon each is of."""
    return np.unique(np.stack([p.params, p.examples], 1), axis=0, return_inverse=True)[1]


def _noise(p: Points, left: np.ndarray, free: int, draws: int, seed: int) -> tuple[float, float, np.ndarray]:
    """Noise of a point's own and that its size and horizon share, of log residuals `left`, and draws [draws, points] of both; `free` of cells' means."""
    cell = _cells(p)
    count = np.bincount(cell).astype(float)
    mean = np.bincount(cell, left) / count
    inside = len(left) - len(count) - OF_RATE
    if inside < 1:  # a rate each: nothing tells the two apart
        sd = float(np.sqrt((left**2).sum() / (len(left) - FREE)))
        return sd, 0.0, noises(p, sd, len(left) - FREE, draws, seed)
    own, means = ((left - mean[cell]) ** 2).sum() / inside, (count * mean**2).sum() / free
    each, rng = (len(left) - (count**2).sum() / len(left)) / (len(count) - 1), np.random.default_rng((seed, 1))
    spread = np.maximum(means * free / rng.chisquare(free, (draws, 1)) - own, 0.0) / each
    both = noises(p, own**0.5, inside, draws, seed) + (spread**0.5 * rng.normal(size=(draws, len(count))))[:, cell]
    return float(own**0.5), float(np.sqrt(max(means - own, 0.0) / each)), both


def fit(p: Points, floor: float | None = None, draws: int = DRAWS, seed: int = 0) -> Rates:
    """Fit L(N, D, lr) to points of a rate each, all of one weight.

    Raises:
      UserError: the points do not tell such a law, or a loss that does not bend upwards in the learning rate.
    """
    if why := refused(p, floor):
        raise UserError(why)
    log = np.stack([np.log(p.params), np.log(p.examples)], 1)
    centre, log2 = log.mean(0), np.log2(p.rate)
    x, held = log - centre, {} if floor is None else {0: floor}
    y, flat = p.loss[None], np.ones(len(p.loss))
    middle = log2.mean()
    z, up, law = log2 - middle, np.zeros(len(log2)), None
    for _ in range(8):  # the law of N and D of losses freed of the rate's, and the parabola of what it leaves, by turns
        law = solve(x, y * np.exp(-up), flat, law, held)
        one = np.stack([np.ones(len(z)), x[:, 0], x[:, 1]], 1)
        basis = np.concatenate([z[:, None] ** 2, z[:, None] * one, one, one[:, 1:2] * one[:, 1:], one[:, 2:] ** 2], 1)
        found = np.linalg.lstsq(basis, np.log(p.loss / losses(law, x)[0]), rcond=None)[0]
        if found[0] <= 0:
            raise UserError(f"{FORM}: losses do not bend upwards in the learning rate, so none is best among those tried")
        best = -found[1:4] / (2 * found[0])
        up = np.minimum(found[0] * (z - one @ best) ** 2, 50.0)
    start = np.concatenate([law[0], [found[0], best[0] + middle], best[1:]])[None]
    still = np.arange(FREE) == (-1 if floor is None else 0)

    def descended(y: np.ndarray, start: np.ndarray) -> np.ndarray:
        p0 = np.array(np.broadcast_to(start, (len(y), FREE)), float)
        return descend(partial(_law, x, log2), y, np.ones_like(y), p0, (LOW, HIGH), still, SCALES)

    value = descended(y, start)
    fitted = _law(x, log2, value)[0][0]
    free = _cells(p).max() + 1 - (FREE - OF_RATE - (floor is not None))
    sd, shared, noise = _noise(p, np.log(p.loss / fitted), free, draws, seed)
    return Rates(value[0], descended(fitted * np.exp(noise), value), centre, sd, shared, floor, p)
