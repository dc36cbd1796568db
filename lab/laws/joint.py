"""Laws of several arms fitted together: one form, with a floor or exponents that all share, scales of each its own; and whether they may share them.

An arm's law [1 + 2k] (floor, scales, exponents) is a linear function of what is fitted, so any parameter may be common to arms. Whether floors or exponents
may be one is an F-test of the squares that sharing costs against what is left where each arm has its own.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls
from scipy.stats import f as fisher

from lab.errors import UserError
from lab.laws.fits import DRAWS, FORMS, LEVEL, refusal, span
from lab.laws.points import Points
from lab.laws.solve import GRID, LEAST, MOST, descend, solve

ALIKE = 0.05  # p-value below which what is tested is not one for all arms
FLOOR, SCALE, EXPONENT = range(3)


class Ties(NamedTuple):
    """How arms' laws are made of what is fitted: laws [arms, 1 + 2k] = of @ q [m]."""

    of: np.ndarray  # [arms, 1 + 2k, m]
    kinds: np.ndarray  # [m] FLOOR, SCALE or EXPONENT

    def laws(self, q: np.ndarray) -> np.ndarray:
        """[replicates, arms, 1 + 2k] of q [replicates, m]."""
        return np.einsum("ajm,rm->raj", self.of, q)


def ties(arms: int, k: int, floor: bool, exponents: bool, through: bool = False) -> Ties:
    """Ties of laws of k variables; `floor` and `exponents` say what all share, `through` that two arms have one loss where all variables are 0."""
    index = np.zeros((arms, 1 + 2 * k), int)
    kinds: list[int] = []
    for kind, at, shared in ((FLOOR, [0], floor), (SCALE, range(1, 1 + k), False), (EXPONENT, range(1 + k, 1 + 2 * k), exponents)):
        for j in at:
            for a in range(arms):
                if shared and a:
                    index[a, j] = index[0, j]
                else:
                    index[a, j] = len(kinds)
                    kinds.append(kind)
    of = np.eye(len(kinds))[index]
    if through:  # the second's scale is what the first's floor and scale leave above its own floor
        gone = index[1, 1]
        of[1, 1] = of[0, 0] + of[0, 1] - of[1, 0]
        of, kinds = np.delete(of, gone, 2), [*kinds[:gone], *kinds[gone + 1 :]]
    return Ties(of, np.array(kinds))


def _model(x: np.ndarray, arm: np.ndarray, t: Ties, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The model of `descend`: points x [n, k] of arms [n]."""
    k, law = x.shape[1], t.laws(q)[:, arm]
    shape = np.exp(-law[..., 1 + k :] * x)
    part = law[..., 1 : 1 + k] * shape
    own = np.concatenate([np.ones((*law.shape[:2], 1)), shape, -part * x], 2)
    return law[..., 0] + part.sum(-1), np.einsum("njm,rnj->rmn", t.of[arm], own)


def together(
    x: np.ndarray, arm: np.ndarray, y: np.ndarray, t: Ties, start: np.ndarray | None = None, floor: float | None = None
) -> np.ndarray:
    """[replicates, m] fits to losses y [replicates, n] at x [n, k] of arms [n]; from `start`, or the best of a grid of exponents for the first."""
    y = np.atleast_2d(y)
    if start is None:
        start = _start(x, arm, y[0], t)
    q = np.array(np.broadcast_to(start, (len(y), len(t.kinds))), float)
    held = (t.kinds == FLOOR) & (floor is not None)
    q[:, held] = floor
    low = np.where(t.kinds == EXPONENT, LEAST, 0.0)
    high = np.where(t.kinds == EXPONENT, MOST, np.inf)
    return descend(partial(_model, x, arm, t), y, np.ones_like(y), q, (low, high), held, t.kinds == SCALE)


def _start(x: np.ndarray, arm: np.ndarray, y: np.ndarray, t: Ties) -> np.ndarray:
    """[m]: exponents of a grid where arms share them, else each arm's own; floors and scales by nonnegative least squares of relative residuals."""
    arms, k = t.of.shape[0], x.shape[1]
    own = np.concatenate([solve(x[arm == a], y[arm == a], np.ones((arm == a).sum()))[0, 1 + k :] for a in range(arms)]).reshape(arms, k)
    tried = [own, np.broadcast_to(np.exp(np.log(own).mean(0)), own.shape)]
    if (t.kinds == EXPONENT).sum() == k:
        tried += [np.broadcast_to(e, own.shape) for e in np.stack(np.meshgrid(*[GRID[k]] * k), -1).reshape(-1, k)]
    best = None
    for e in tried:
        full = np.zeros((len(y), 1 + arms * k))
        full[:, 0] = 1
        for a in range(arms):
            full[arm == a, 1 + a * k : 1 + (a + 1) * k] = np.exp(-e[a] * x[arm == a])
        found, rest = nnls(full / y[:, None], np.ones(len(y)))
        if best is None or rest < best[0]:
            best = rest, np.concatenate([np.full((arms, 1), found[0]), np.maximum(found[1:].reshape(arms, k), 1e-3 * y.min()), e], 1)
    q = np.linalg.lstsq(t.of.reshape(-1, len(t.kinds)), best[1].ravel(), rcond=None)[0]
    return np.where(t.kinds == SCALE, np.maximum(q, 1e-3 * y.min()), np.clip(q, LEAST * (t.kinds == EXPONENT), None))


def squares(x: np.ndarray, arm: np.ndarray, y: np.ndarray, t: Ties, q: np.ndarray) -> float:
    """Sum of squared log residuals of one fit."""
    return float((np.log(_model(x, arm, t, q)[0] / y) ** 2).sum())


def chance(less: float, more: float, saved: int, left: int) -> float:
    """p-value of what `saved` parameters fewer cost: squares `more` in place of `less`, which leaves `left` degrees of freedom; 1 where there are none."""
    return float(fisher.sf(max(more - less, 0.0) / saved / (less / left), saved, left)) if left > 0 and less > 0 else 1.0


class Joint(NamedTuple):
    """Laws of one form of several arms, and what they share."""

    form: str
    value: np.ndarray  # [arms, 1 + 2k] floor, scales at the centre, exponents
    draws: np.ndarray  # [draws, arms, 1 + 2k]
    centre: np.ndarray  # [k]
    sd: float  # relative: what the laws leave of a point
    one_floor: bool
    one_exponents: bool
    floors: float  # p-value of one floor; 1 where it was given
    exponents: float  # p-value of one set of exponents

    def interval(self, arm: int, index: int, level: float = LEVEL) -> tuple[float, float]:
        """Of a parameter of an arm, as `Fit.interval`."""
        return span(self.draws[:, arm, index], level)

    def worth(self, arm: int, variable: int, base: int = 0) -> tuple[float, tuple[float, float]]:
        """How many of the base's units of a variable (parameters, examples, FLOPs) one of the arm's is worth, at the centre, and its interval.

        The arm's term at x is the base's at worth x; where exponents are one it is so at any x.
        """
        k = len(self.centre)

        def ratio(law: np.ndarray) -> np.ndarray:
            return (law[:, base, 1 + variable] / law[:, arm, 1 + variable]) ** (1 / law[:, base, 1 + k + variable])

        return float(ratio(self.value[None])[0]), span(ratio(self.draws))


def fit(arms: list[Points], form: str = "L(N, D)", floor: float | None = None, draws: int = DRAWS, seed: int = 0) -> Joint:
    """Fit arms together: with one floor unless the F-test says they have their own, then with exponents of all alike.

    Noise is of one size in all arms; seeds' own levels are each arm's.

    Raises:
      UserError: fewer than two arms, or one whose points tell no law of the form.
    """
    if len(arms) < 2:
        raise UserError(f"arms are fitted together from two on, and there {'is' if len(arms) == 1 else 'are'} {len(arms)}")
    for p in arms:
        if why := refusal(p, form, floor):
            raise UserError(why)
    log = np.concatenate([np.stack([np.log(getattr(p, v)) for v in FORMS[form].variables], 1) for p in arms])
    y, arm, centre = np.concatenate([p.loss for p in arms]), np.repeat(np.arange(len(arms)), [len(p.loss) for p in arms]), log.mean(0)
    x, k, fitted = log - centre, log.shape[1], {}

    def given(one_floor: bool, one: bool) -> tuple[Ties, np.ndarray, float, int]:
        if (one_floor, one) not in fitted:
            t = ties(len(arms), k, one_floor, one)
            q = together(x, arm, y, t, None, floor)
            free = len(t.kinds) - (floor is not None) * int((t.kinds == FLOOR).sum())
            fitted[one_floor, one] = t, q, squares(x, arm, y, t, q), len(y) - free
        return fitted[one_floor, one]

    def tested(less: tuple, more: tuple) -> float:
        return chance(less[2], more[2], more[3] - less[3], less[3])

    floors = 1.0 if floor is not None else tested(given(False, False), given(True, False))
    one_floor = floors >= ALIKE
    exponents = tested(given(one_floor, False), given(one_floor, True))
    t, q, left, free = given(one_floor, exponents >= ALIKE)
    sd, rng = np.sqrt(left / free), np.random.default_rng(seed)
    noise = np.sqrt(free / rng.chisquare(free, (draws, 1))) * sd * rng.normal(size=(draws, len(y)))
    for a, p in enumerate(arms):
        if p.offset:
            free = p.runs.shape[1] - 1
            level = p.offset * np.sqrt(free / rng.chisquare(free, (draws, 1))) * rng.normal(size=(draws, free + 1))
            noise[:, arm == a] += level @ p.runs.T
    again = together(x, arm, _model(x, arm, t, q)[0] * np.exp(noise), t, q, floor)
    return Joint(form, t.laws(q)[0], t.laws(again), centre, float(sd), one_floor, exponents >= ALIKE, floors, exponents)
