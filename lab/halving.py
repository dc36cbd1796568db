"""Successive halving: after some shares of the steps the best points of each arm go on, the rest is stopped (Jamieson and Talwalkar, arXiv 1502.07943).

A bracket is trials of one shape that are new together, a rung of it the populations that train to one mark; study.json keeps for each population
{"bracket", "marks", "keep", "rung"}.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np

from lab.errors import UserError
from lab.population import Trial


def marks(config: dict) -> list[int]:
    """The steps after which halving looks at a config's trials, rising; UserError for shares that give none such, or keep nothing or all."""
    halving, steps = config["run"]["halving"], config["train"]["steps"]
    at, keep = halving["at"], halving["keep"]
    if not all(isinstance(a, float) and 0 < a < 1 for a in at) or sorted(set(at)) != list(at):
        raise UserError(f"config key run.halving.at={at!r} must be rising shares of train.steps between 0 and 1, such as (0.25, 0.5)")
    if not 0 < keep < 1:
        raise UserError(f"config key run.halving.keep={keep} must be a share between 0 and 1 of the points that go on, such as 0.5")
    found = [round(a * steps) for a in at]
    if len({0, *found, steps}) < len(found) + 2:
        raise UserError(f"config key run.halving.at={at!r} gives steps {found} of train.steps={steps}; expected different ones in between")
    return found


def going_on(points: int, keep: float) -> int:
    """How many of an arm's points halving lets go on: the share `keep` rounded up, so that one always does."""
    return max(1, math.ceil(keep * points - 1e-9))


def halved(points: int, config: dict) -> float:
    """The share of the training of `points` points of an arm that halving leaves where none diverges."""
    steps, keep, n = config["train"]["steps"], config["run"]["halving"]["keep"], points
    total, ends = 0, [0, *marks(config), steps]
    for start, until in itertools.pairwise(ends):
        total, n = total + n * (until - start), going_on(n, keep)
    return total / (points * steps)


def best(trials: list[Trial], rows: dict[str, dict], metric: str, keep: float, point: Callable[[Trial], str]) -> set[str]:
    """Of the trials of one rung, those whose points are among the best of their arm by their `rows` at its mark; {trial: row}.

    `point` is equal for trials that differ in their seed alone. A point's loss is the mean over its seeds; where one diverged it has none.
    """
    arms: dict[str, dict[str, list[Trial]]] = {}
    for t in trials:
        arms.setdefault(t.arm, {}).setdefault(point(t), []).append(t)
    on: set[str] = set()
    for points in arms.values():
        losses = {p: [rows[t.id][metric] for t in ts] for p, ts in points.items()}
        mean = {p: np.inf if None in v else float(np.mean(v)) for p, v in losses.items()}
        n = going_on(len(points), keep)
        on |= {t.id for p in sorted(points, key=mean.get)[:n] if np.isfinite(mean[p]) for t in points[p]}
    return on
