"""What several seeds say of a table of losses: means freed of each seed's own level, the noise that is left, and how much it sways a fit.

Trials that share a seed share init, data and noise, so most of what a seed does to a loss it does at every learning rate alike: an offset of
the seed, which says nothing of where the best rate is. Points need not have the same seeds.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

SHRINK = 0.1  # residual variance over that of seed offsets: offsets of points that share no seed are told apart by this alone
LOW = 0.05  # relative height up to which points tell the noise at the bottom of a curve


class Level(NamedTuple):
    """A rung's losses, relative to the least mean, split into points, seeds and what is left: loss = mean[point] + offset[seed] + rest."""

    mean: np.ndarray  # [points]
    count: np.ndarray  # [points] trials
    scale: float  # the loss that 1 stands for
    rest: np.ndarray  # [trials]
    seeds: np.ndarray  # [seeds] their names
    offset: np.ndarray  # [seeds]
    to_mean: np.ndarray  # [points, trials]: the means are to_mean @ losses
    to_rest: np.ndarray  # [trials, trials]
    at: np.ndarray  # [trials, points] one-hot
    of: np.ndarray  # [trials, seeds] one-hot

    @property
    def height(self) -> np.ndarray:
        """[points] above the lowest."""
        return self.mean - self.mean.min()


def level(point: np.ndarray, loss: np.ndarray, seed: np.ndarray) -> Level:
    """Split finite losses [trials] at points (whole numbers from 0) of seeds; least squares, offsets shrunk a little to zero."""
    seeds = np.unique(seed)
    at, of = (point[:, None] == np.arange(point.max() + 1)).astype(float), (seed[:, None] == seeds).astype(float)
    design = np.hstack([at, of])
    shrink = np.diag([0.0] * at.shape[1] + [SHRINK] * len(seeds))
    solved = np.linalg.solve(design.T @ design + shrink, design.T)
    mean, offset = np.split(solved @ loss, [at.shape[1]])
    scale = float(abs(mean.min())) or 1.0
    to_rest = np.eye(len(loss)) - design @ solved
    return Level(mean / scale, at.sum(0), scale, to_rest @ loss / scale, seeds, offset / scale, solved[: at.shape[1]], to_rest, at, of)


def noise(levels: list[Level], least: float = 1e-4) -> float:
    """Relative standard deviation of a trial's loss once its seed's offset is gone, near the bottom of all curves; nan where no seed repeats."""
    total = free = 0.0
    for v in levels:
        near = v.at @ (1 / (1 + (v.height / LOW) ** 2))
        total, free = total + near @ v.rest**2, free + near @ np.diag(v.to_rest)
    return max(float(np.sqrt(total / free)), least) if any(len(v.seeds) > 1 for v in levels) and free > 1e-9 else np.nan


def sway(levels: list[Level], influences: list[np.ndarray]) -> tuple[float, float]:
    """Variance of one trial as a fit feels it, and the degrees of freedom with which it is known.

    `influences[i]` [points, n] are directions in which noise in the means moves what is fitted. What a seed does is smooth in the learning
    rate, so it moves an optimum by more, or less, than as much independent noise would. Each seed's own pull along a direction
    tells by how much (a cluster-robust variance, pooled over rungs); the freedom is Satterthwaite's.
    """
    total = free = square = 0.0
    for v, directions in zip(levels, influences, strict=True):
        for d in directions.T:
            pull = (v.to_mean.T @ (d / np.linalg.norm(d)))[:, None] * v.of
            shared = pull.T @ v.to_rest @ pull
            total, free, square = total + ((pull.T @ v.rest) ** 2).sum(), free + np.trace(shared), square + (shared**2).sum()
    return (total / free, free**2 / square) if free > 1e-12 else (0.0, np.inf)


def over_seeds(values: np.ndarray, coverage: float) -> tuple[float, tuple[float, float] | None]:
    """Mean of one number a seed, and Student's interval; None with fewer than two."""
    values = np.asarray(values, float)
    if len(values) < 2 or not np.isfinite(values).all():
        return (float(np.mean(values)) if len(values) else np.nan), None
    half = student.ppf((1 + coverage) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), (float(values.mean() - half), float(values.mean() + half))
