"""What one more run is worth to a forecast: by how much it shrinks the forecast's interval, told before it is run.

The fit is least squares of log residuals, so near its optimum an estimate moves by (J' W J)^-1 J' W noise, J the derivatives of log loss at the points (the delta
method). A candidate adds a row to J, whatever it will measure: the variance of the forecast is known beforehand (c-optimal design; Sherman and Morrison's
formula gives it for all candidates at once). Noise is that of which the fit makes its intervals: what the law leaves of a point, with Student's tails that a
further point narrows, and the level that all runs of a seed share.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from lab.laws import allocation
from lab.laws.fits import FORMS, LEVEL, NEAR, Fit
from lab.laws.solve import LEAST, MOST, terms

REACH = 4.0  # times the largest budget, size and horizon: as far as candidates go
SIDE = 30  # sizes tried, and horizons
HALF = 0.5  # of the most that any candidate does: what does less is no suggestion, however cheap


class Run(NamedTuple):
    """A candidate; size and horizon are NaN where the law is of FLOPs alone."""

    flops: float
    params: float
    examples: float
    shrinks: float  # by this share does the 90% interval shrink


def derivatives(f: Fit, x: np.ndarray) -> np.ndarray:
    """[points, fitted parameters] of the log of the law's loss at centred x [points, k]; what is known or lies at its bound does not move."""
    k, (part,) = x.shape[1], terms(f.value[None], x)
    whole = f.value[0] + part.sum(-1)
    share = part / whole[:, None]
    out = np.concatenate([1 / whole[:, None], share / f.value[1 : 1 + k], -share * x], 1)
    return out[:, _free(f)]


def _free(f: Fit) -> np.ndarray:
    k = len(f.centre)
    free = np.ones(1 + 2 * k, bool)
    free[0] = FORMS[f.form].floor and f.floor is None and f.value[0] > 0
    free[1 + k :] = (f.exponents > LEAST) & (f.exponents < MOST)
    return free


def shrinking(f: Fit, target: dict[str, float], candidates: dict[str, np.ndarray]) -> np.ndarray:
    """[candidates] share by which one more point at each shrinks the 90% interval of the law's loss at the target.

    Args:
      target, candidates: values of the law's variables. A candidate has as many seeds as the points have, and the same ones.
    """
    p = f.points
    own, (goal,), more = (
        derivatives(f, f.at(**at)) for at in ({v: getattr(p, v) for v in f.variables}, target, {v: candidates[v] for v in f.variables})
    )
    known = (
        np.where(np.arange(len(f.value)) > len(f.centre), (f.sd / NEAR[1]) ** 2, 0.0) * FORMS[f.form].near
    )  # of exponents, without a point
    solved = np.linalg.pinv(own.T @ (f.weight[:, None] * own) + np.diag(known[_free(f)]))
    seeds, level = own.T @ (f.weight[:, None] * p.runs), p.runs.mean(0)
    before = solved @ goal
    after = before - (more @ solved) * ((more @ before) / (1 + ((more @ solved) * more).sum(1)))[:, None]
    # a quantile of a sum of Student's two, near enough: the root of the sum of squares of theirs
    wide = p.offset * _tail(p.runs.shape[1] - 1) if p.offset else 0.0
    was = (_tail(f.freedom) * f.sd) ** 2 * goal @ before + wide**2 * ((before @ seeds) ** 2).sum()
    shared = after @ seeds + (after * more).sum(1)[:, None] * level
    now = (_tail(f.freedom + 1) * f.sd) ** 2 * after @ goal + wide**2 * (shared**2).sum(1)
    return 1 - np.sqrt(now / was) if was > 0 else np.zeros(len(now))  # of points that lie on the law there is nothing to shrink


def _tail(freedom: int) -> float:
    return float(student.ppf((1 + LEVEL) / 2, freedom))


def candidates(f: Fit) -> dict[str, np.ndarray]:
    """Sizes and horizons, or FLOPs alone, from the smallest that was run up to REACH times the largest, of as many examples a parameter as were run.

    Under another number of examples a parameter a run would tell more of the law, if the law held there, which nothing has shown.
    """
    p = f.points
    low, high = p.flops.min(), REACH * p.flops.max()
    if len(f.variables) == 1:
        return {"flops": np.geomspace(low, high, SIDE * SIDE)}
    axes = (np.geomspace(v.min(), REACH * v.max(), SIDE) for v in (p.params, p.examples))
    params, examples = (v.ravel() for v in np.meshgrid(*axes))
    cost = allocation.price(p)
    flops = np.exp(cost.log + cost.power * np.log(params)) * examples
    ratio, seen = examples / params, p.examples / p.params
    keep = (low <= flops) & (flops <= high) & (seen.min() <= ratio) & (ratio <= seen.max())
    return {"flops": flops[keep], "params": params[keep], "examples": examples[keep]}


def suggest(f: Fit, target: dict[str, float]) -> tuple[Run, Run]:
    """The run that shrinks the interval most per FLOP, of those that do at least half of what the best does; and that best one."""
    tried = candidates(f)
    share = shrinking(f, target, tried)
    able = share >= HALF * share.max()

    def at(i: int) -> Run:
        return Run(
            float(tried["flops"][i]), *(float(tried[v][i]) if v in tried else np.nan for v in ("params", "examples")), float(share[i])
        )

    return at(int(np.argmax(np.where(able, share / tried["flops"], -np.inf)))), at(int(np.argmax(share)))
