"""Loss where examples repeat: L(N, D') = E + A N^-a + B D'^-b, with D' what D examples of U distinct ones are worth (Muennighoff et al., arXiv 2305.16264).

    D' = U + U R (1 - exp(-(D / U - 1) / R))      for D > U, else D

so a repeated example is worth as much as a new one at first, and R U of them at most in all. Fitted is s = 1 / R, of which zero says that repeats count as new: then
it is L(N, D) itself, and an F-test tells whether it is refuted.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from lab.errors import UserError
from lab.laws.fits import DRAWS, LEVEL, refusal, span
from lab.laws.joint import chance
from lab.laws.points import Points
from lab.laws.solve import LEAST, MOST, descend, solve

GRID = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # s from which it is descended
MOST_S = 30.0  # repeats are worth next to nothing
REPEATED = 2.0  # times that examples repeat at least, in as many cells as there are parameters
FREE = 6  # parameters


def worth(examples: np.ndarray, unique: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log D' [replicates, points] of D examples of U distinct ones [points] at s [replicates], and its derivative by s."""
    more, s = np.maximum(examples / unique - 1, 0.0), np.maximum(s, 1e-9)[:, None]
    decay = np.exp(-more * s)
    new = -np.expm1(-more * s) / s
    slope = (more * s * decay + np.expm1(-more * s)) / s**2
    return np.log(np.minimum(examples, unique)) + np.log1p(new), slope / (1 + new)


def _model(n: np.ndarray, examples: np.ndarray, unique: np.ndarray, centre: float, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The model of `descend`: p [replicates, 6] are E, A, B, a, b, s at centred log N n [points]."""
    z, by_s = worth(examples, unique, p[:, 5])
    z = z - centre
    shapes = np.exp(-p[:, 3, None] * n), np.exp(-p[:, 4, None] * z)
    parts = [p[:, 1 + j, None] * shapes[j] for j in range(2)]
    slopes = [np.ones_like(z), *shapes, -parts[0] * n, -parts[1] * z, -p[:, 4, None] * parts[1] * by_s]
    return p[:, :1] + parts[0] + parts[1], np.stack(slopes, 1)


class Repeats(NamedTuple):
    """The law with draws of what else it may be."""

    value: np.ndarray  # [6] E, A and B at the centre, a, b, s
    draws: np.ndarray  # [draws, 6]
    centre: np.ndarray  # [2] of log N and log D
    sd: float  # relative: what the law leaves of a point
    p: float  # of repeats that count as new
    points: Points

    def worn(self, level: float = LEVEL) -> tuple[float, tuple[float, float]]:
        """R, infinite where repeats count as new, and its interval."""
        low, high = span(self.draws[:, 5], level)
        return _inverse(self.value[5]), (_inverse(high), _inverse(low))

    def losses(self, params: float, examples: float, unique: float) -> np.ndarray:
        """[1 + draws] loss of the law and of every draw."""
        at = (np.array([float(v)]) for v in (examples, unique))
        return _model(np.log([params]) - self.centre[0], *at, self.centre[1], np.vstack([self.value, self.draws]))[0][:, 0]


def _inverse(s: float) -> float:
    return float(1 / s) if s > 1e-6 else np.inf


def fit(p: Points, floor: float | None = None, draws: int = DRAWS, seed: int = 0) -> Repeats:
    """Fit the law to points that tell `unique`.

    Raises:
      UserError: points that tell no L(N, D), or of which too few repeat their examples.
    """
    if why := refusal(p, "L(N, D)", floor):
        raise UserError(why)
    often = p.examples / p.unique
    if not (enough := (often >= REPEATED).sum() >= FREE) or len(p.loss) <= FREE:
        said = (
            f"examples repeat {REPEATED:g} times or more in {np.nansum(often >= REPEATED):.0f} sizes and horizons"
            if not enough
            else f"there are {len(p.loss)} points"
        )
        raise UserError(
            f"what repeats are worth needs {FREE} sizes and horizons that repeat their examples {REPEATED:g} times, and more points than that: {said}"
        )
    log, y = np.stack([np.log(p.params), np.log(p.examples)], 1), p.loss[None]
    centre, one = log.mean(0), np.ones_like(p.loss[None])
    model = partial(_model, log[:, 0] - centre[0], p.examples, p.unique, centre[1])
    held = None if floor is None else {0: floor}
    bounds = np.array([0.0] * 3 + [LEAST] * 2 + [0.0]), np.array([np.inf] * 3 + [MOST] * 2 + [MOST_S])
    still, scales = np.arange(FREE) == (0 if floor is not None else -1), np.isin(np.arange(FREE), (1, 2))

    def cost(q: np.ndarray) -> np.ndarray:
        return (np.log(model(q)[0] / y) ** 2).sum(1)

    plain = np.append(solve(log - centre, y, one, held=held)[0], 0.0)
    starts = [plain]
    for s in GRID:
        x = np.stack([log[:, 0] - centre[0], worth(p.examples, p.unique, np.array([s]))[0][0] - centre[1]], 1)
        starts.append(np.append(solve(x, y, one, held=held)[0], s))
    tried = descend(model, np.repeat(y, len(starts), 0), np.repeat(one, len(starts), 0), np.array(starts), bounds, still, scales)
    best = tried[np.argmin(cost(tried))]
    less, more, freedom = cost(best[None])[0], cost(plain[None])[0], len(p.loss) - FREE + (floor is not None)
    sd, rng = np.sqrt(less / freedom), np.random.default_rng(seed)
    noise = np.sqrt(freedom / rng.chisquare(freedom, (draws, 1))) * sd * rng.normal(size=(draws, len(p.loss)))
    if p.offset:
        free = p.runs.shape[1] - 1
        noise += p.offset * np.sqrt(free / rng.chisquare(free, (draws, 1))) * rng.normal(size=(draws, free + 1)) @ p.runs.T
    start = np.repeat(np.where(np.arange(FREE) == 5, np.maximum(best, GRID[0]), best)[None], draws, 0)  # at zero s may not leave
    again = descend(model, model(best[None])[0] * np.exp(noise), np.ones_like(noise), start, bounds, still, scales)
    return Repeats(best, again, centre, float(sd), chance(less, more, 1, freedom), p)
