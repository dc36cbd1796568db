"""Synthetic studies of transfer: loss against a hyperparameter at every rung, with cliffs, divergence, seed noise and a planted drift."""

from typing import NamedTuple

import numpy as np

WIDTHS = (32, 64, 128, 256)
FINE = np.linspace(-8.0, 8.0, 3201)  # octaves from the nominal optimum: where the true one is looked for


class Study(NamedTuple):
    """Trials of one arm, one entry a trial, and the truth behind them."""

    rung: np.ndarray
    log2_lr: np.ndarray
    loss: np.ndarray  # NaN: diverged
    seed: np.ndarray
    optima: np.ndarray  # true best log2 rate of each rung
    regret: float  # true relative loss at the largest rung of the smallest rung's best rate; infinite where it diverges

    @property
    def drift(self) -> float:
        """Octaves from the smallest to the largest rung."""
        return float(self.optima[-1] - self.optima[0])

    @property
    def trials(self) -> tuple[np.ndarray, ...]:
        """What `transfer` takes."""
        return self.rung, self.log2_lr, self.loss, self.seed


def shape(rng: np.random.Generator, kind: str, steep: float):
    """Relative loss above the least against octaves from the nominal optimum. No kind is what the analysis fits, but for `skewed`.

    bowl: rises by ever less on the left (too small a rate still trains), by a parabola on the right. cliff: a parabola and a wall of
    `steep` octaves' width to its right. skewed: exponential on the right, linear on the left.
    """
    a, wall = rng.uniform(0.006, 0.025), rng.uniform(0.8, 2.5)
    if kind == "skewed":
        k = rng.uniform(0.2, 0.9)
        return lambda z: a * (np.exp(k * z) - k * z - 1) / k**2 * 2
    left = rng.uniform(1.0, 3.0)

    def bowl(z):
        return a * np.where(z < 0, 2 * left**2 * (np.sqrt(1 + (z / left) ** 2) - 1), z**2)

    if kind == "bowl":
        return bowl
    return lambda z: bowl(z) + 0.02 * np.logaddexp(0, (z - wall) / steep) ** 2


def study(
    seed: int = 0,
    drift: float = 0.0,
    kind: str = "cliff",
    seeds: int | tuple[int, ...] = 3,
    spacing: float = 1.0,
    noise: float = 0.005,
    shared: float = 0.9,
    sway: float = 0.05,
    room: tuple[float, float] = (1.5, 4.0),
    reach: tuple[float, float] = (-4.0, 4.0),
    steep: float = 0.15,
    rungs: tuple[int, ...] = WIDTHS,
) -> Study:
    """One synthetic study.

    Args:
      drift: octaves that the nominal optimum moves over the ladder, evenly; the true one differs by what wall and shape do to it.
      seeds: of every rung, or of each. spacing: octaves between rates.
      noise, shared, sway: spread of the loss over seeds (relative), the share of its variance that all rates of a seed and rung have in
        common, and the spread over seeds of each rung's own best rate (octaves).
      room: octaves above the optimum at which trials begin to diverge, drawn for each rung. reach: rates tried around the optimum of the
        middle of the ladder, widened by the drift.
      steep: width of the cliff in octaves.
    """
    rng = np.random.default_rng(seed)
    many = (seeds,) * len(rungs) if isinstance(seeds, int) else seeds
    steps = np.log2(np.array(rungs) / rungs[0]) / np.log2(rungs[-1] / rungs[0])
    at = -7 + rng.uniform(0, 1) + drift * steps
    grid = np.arange(np.floor(at.min() + reach[0]), np.ceil(at.max() + reach[1]) + spacing / 2, spacing)
    f, rows, optima, curves = shape(rng, kind, steep), [], [], []
    for r, centre, n in zip(rungs, at, many, strict=True):
        best, limit, own = (r / rungs[0]) ** -0.1, rng.uniform(*room), rng.uniform(0.9, 1.1)
        z = FINE[limit > FINE]
        optima.append(centre + z[np.argmin(f(own * z))])
        curves.append((best, limit, own))
        for s in range(n):
            offset, shift, edge = (
                noise * np.sqrt(shared) * rng.normal(),
                sway * rng.normal(),
                limit + 0.3 * np.clip(rng.normal(), -1, 1) * (limit > 1),
            )
            for x in grid:
                high = f(own * (x - centre - shift))
                jitter = noise * np.sqrt(1 - shared) * rng.normal() * min(1 + 50 * high, 20)
                loss = np.nan if x - centre > edge or high > 5 else best * (1 + high) * (1 + offset + jitter)
                rows.append((r, x, loss, s))
    best, limit, own = curves[-1]
    z = np.array([optima[0], optima[-1]]) - at[-1]
    moved, least = 1 + f(own * z)
    regret = np.inf if z[0] > limit else float(moved / least - 1)
    return Study(*map(np.array, zip(*rows, strict=True)), np.array(optima), regret)
