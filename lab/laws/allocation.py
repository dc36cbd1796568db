"""How to spend FLOPs: compute-optimal sizes by a law of N and D, by isoFLOP profiles freed of their bias, by envelopes of training curves.

FLOPs an example are read from the points as price N^power, for what is counted is not 6N an example (small models pay for embeddings and attention). On a
budget C = price N^power D the loss E + A N^-a + B D^-b is least where a A N^-a = power b B D^-b.

Approach 2 of Hoffmann et al. (arXiv 2203.15556) takes the lowest point of a parabola in log N through the runs of each budget. Profiles are no
parabolas where a and b differ, so it is off even without noise, by more the wider the grid (Czech, arXiv 2603.22339). What the same grid and
parabola make of the fitted law, whose optimum is known, is that bias, and is taken off.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np

from lab.errors import UserError
from lab.laws.fits import LEVEL, Fit, fit, replicates, span
from lab.laws.points import Points, budgets
from lab.laws.solve import losses

ENVELOPE = 200  # budgets at which the lowest curve is looked for


class Price(NamedTuple):
    """FLOPs an example = exp(log + power log N)."""

    log: float
    power: float
    error: float  # largest relative distance of a point from it

    def examples(self, flops: np.ndarray | float, log_params: np.ndarray) -> np.ndarray:
        """Log of how many examples a budget pays for."""
        return np.log(flops) - self.log - self.power * log_params


def price(p: Points) -> Price:
    """What an example costs at every size, from flops, params and examples.

    Raises:
      UserError: params or examples are not told, or there is one size.
    """
    if not (np.isfinite(p.params).all() and np.isfinite(p.examples).all()):
        raise UserError("an allocation needs the columns 'params' and 'examples'")
    x, y = np.log(p.params), np.log(p.flops / p.examples)
    if np.ptp(x) < 1e-9:
        raise UserError(f"an allocation needs several values of params, and there is one ({p.params[0]:g})")
    power, log = np.polyfit(x, y, 1)
    return Price(float(log), float(power), float(np.expm1(abs(y - log - power * x).max())))


def best(law: np.ndarray, centre: np.ndarray, cost: Price, flops: np.ndarray | float) -> np.ndarray:
    """[laws, budgets] log of compute-optimal params of laws [laws, 5] of N and D whose scales are at `centre`; infinite where a term is nothing."""
    flops = np.atleast_1d(np.asarray(flops, float))
    _, big, more, a, b = law.T[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.log(a * big) + a * centre[0] - np.log(cost.power * b * more) - b * centre[1]
        return (gain + b * (np.log(flops) - cost.log)) / (a + cost.power * b)


def along(law: np.ndarray, centre: np.ndarray, cost: Price, flops: float, log_params: np.ndarray) -> np.ndarray:
    """[laws] loss of laws [laws, 5] at their own log_params [laws] on a budget."""
    x = np.stack([log_params, cost.examples(flops, log_params)], -1) - centre
    return law[:, 0] + (law[:, 1:3] * np.exp(-law[:, 3:] * x)).sum(-1)


def vertices(x: np.ndarray, y: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest points [replicates, groups] in x of parabolas through y [replicates, points] of each group, and the curvatures."""
    at, bent = [], []
    for g in range(group.max() + 1):
        mine = group == g
        centre = x[mine].mean()
        c = np.linalg.pinv(np.vander(x[mine] - centre, 3)) @ y[:, mine].T
        with np.errstate(divide="ignore", invalid="ignore"):
            at.append(centre - c[1] / (2 * c[0]))
        bent.append(c[0])
    return np.array(at).T, np.array(bent).T


class Profiles(NamedTuple):
    """Best size of every budget by isoFLOP profiles, freed of their bias, and how it grows."""

    flops: np.ndarray  # [budgets]
    params: np.ndarray  # [budgets]
    draws: np.ndarray  # [draws, budgets] log params
    bias: np.ndarray  # [budgets] log params, which were taken off
    slope: float  # of log params in log FLOPs
    slopes: np.ndarray  # [draws]
    left_out: tuple[str, ...]

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Of the slope."""
        return span(self.slopes, level)


def profiles(p: Points, law: Fit | None = None) -> Profiles:
    """Approach 2 on points, by a law of N and D of the same points (fitted where not given).

    Budgets of fewer than three sizes, and those whose parabola has no minimum among its sizes, are left out.

    Raises:
      UserError: the points tell no law of N and D, or fewer than two budgets are left.
    """
    law, cost, group = law or fit(p), price(p), budgets(p.flops)
    x, left, keep = np.log(p.params), [], []
    for g in range(group.max() + 1):
        mine = group == g
        flops = float(np.exp(np.log(p.flops[mine]).mean()))
        if len(np.unique(p.params[mine])) < 3:
            left.append((flops, "fewer than three sizes"))
            continue
        (at,), (bent,) = vertices(x[mine], p.loss[None, mine], np.zeros(mine.sum(), int))
        if bent[0] <= 0 or not x[mine].min() < at[0] < x[mine].max():
            left.append((flops, "no minimum among its sizes"))
            continue
        keep.append(g)
    if len(keep) < 2:
        why = ", ".join(f"{n} with {reason}" for reason, n in Counter(reason for _, reason in left).items())
        raise UserError(
            f"isoFLOP profiles need two budgets with a minimum among three sizes, and there are {len(keep)} of {len(keep) + len(left)} ({why})"
        )
    inside = np.isin(group, keep)
    group, x = np.searchsorted(keep, group[inside]), x[inside]
    flops = np.exp(np.bincount(group, np.log(p.flops[inside])) / np.bincount(group))

    def off(values: np.ndarray) -> np.ndarray:
        """[laws, budgets] what parabolas make of laws, less where these are lowest."""
        on = losses(values, law.at(params=p.params, examples=p.examples))[:, inside]
        return vertices(x, on, group)[0] - best(values, law.centre, cost, flops)

    bias = off(law.value[None])[0]
    found = vertices(x, p.loss[None, inside], group)[0][0] - bias
    again = vertices(x, replicates(law, len(law.draws))[:, inside], group)[0] - off(law.draws)
    draws = found + again - best(law.value[None], law.centre, cost, flops)
    logs = np.log(flops) - np.log(flops).mean()
    slope, slopes = (v @ logs / (logs @ logs) for v in (found, draws))
    out = tuple(f"budget {c:.3g}: {reason}" for c, reason in left)
    return Profiles(flops, np.exp(found), draws, bias, float(slope), slopes[np.isfinite(slopes)], out)


class Envelope(NamedTuple):
    """The lowest loss of all runs at every budget, whose it is, and how its size grows."""

    flops: np.ndarray  # [budgets]
    loss: np.ndarray
    params: np.ndarray
    slope: float
    slopes: np.ndarray  # [draws] of runs drawn with replacement


def envelope(curves: list[tuple[float, np.ndarray, np.ndarray]], draws: int = 200, seed: int = 0) -> Envelope:
    """Approach 1: of runs (params, flops, loss), smoothed, whose loss on the way is that of a run which ends there (a constant learning rate).

    Budgets at which the smallest or the largest size is best are left out: a size beyond may be better.

    Raises:
      UserError: fewer than three sizes.
    """
    sizes = np.array([c[0] for c in curves], float)
    if len(np.unique(sizes)) < 3:
        raise UserError(f"an envelope needs runs of three sizes, and there are {len(np.unique(sizes))}")
    grid = np.geomspace(min(c[1].min() for c in curves), max(c[1].max() for c in curves), ENVELOPE)
    table = np.array([np.interp(np.log(grid), np.log(f), y, left=np.inf, right=np.inf) for _, f, y in curves])

    def lowest(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        mine, run = table[rows], sizes[rows]
        at = np.argmin(mine, 0)
        inside = np.isfinite(mine.min(0)) & (run[at] > sizes.min()) & (run[at] < sizes.max())
        slope = np.polyfit(np.log(grid[inside]), np.log(run[at][inside]), 1)[0] if len(np.unique(run[at][inside])) > 1 else np.nan
        return inside, at, float(slope)

    every = np.arange(len(curves))
    inside, at, slope = lowest(every)
    if np.isnan(slope):
        raise UserError("no two sizes between the smallest and the largest are ever the best, so an envelope tells no slope")
    rng = np.random.default_rng(seed)
    slopes = np.array([lowest(rng.choice(every, len(every)))[2] for _ in range(draws)])
    return Envelope(grid[inside], table.min(0)[inside], sizes[at][inside], slope, slopes[np.isfinite(slopes)])
