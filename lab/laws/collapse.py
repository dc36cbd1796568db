"""Do the training curves of all rungs fall on one another once loss and length are normalised, and from where does a run leave them?

After Qiu et al., arXiv 2507.02119: l(x) = (L(x T) - floor) / (L(T) - floor) with T a run's last step. At one seed all rungs see the same
batches, so what batches do to the loss cancels between them; where their curves then differ by less than one rung's do between seeds, they
collapse. Curves that do not were scaled otherwise: the learning rate, the horizon (collapse wants one that is as good for every rung) or
the floor.
"""

from typing import NamedTuple

import numpy as np

BINS, START = 20, 0.1  # parts of a run over which losses are averaged; the share at its start that is left out, where rates warm up
ALIGN = 0.35  # up to here an alarm learns a run's level, for the end of one that runs is not known
REACH, PATIENCE = 3.0, 2  # half width of the band in standard deviations; parts in a row outside it that are an alarm
COLLAPSE, SCATTER, UNSURE = "collapse", "do not collapse", "cannot tell whether they collapse"


class Run(NamedTuple):
    """Training losses of one trial."""

    rung: float
    seed: int
    steps: np.ndarray  # [n], from 0
    loss: np.ndarray  # [n]
    last: int  # steps of the whole run


class Collapse(NamedTuple):
    """How far the normalised curves lie apart, relative, root mean square over the run."""

    rungs: list[float]
    seeds: int
    spread: float  # between rungs at one seed
    noise: float  # of one rung between seeds; NaN with one seed
    lasting: float  # between rungs once what is left of the noise in the spread is taken off; NaN with one seed
    floor: float
    fitted: bool  # whether the floor is the one that makes the spread least

    @property
    def verdict(self) -> str | None:
        """COLLAPSE where the spread is within the noise, SCATTER where the lasting part of it is not; None with one seed."""
        if np.isnan(self.noise):
            return None
        return COLLAPSE if self.spread <= self.noise else SCATTER if self.lasting > self.noise else UNSURE


def binned(run: Run, bins: int = BINS) -> np.ndarray:
    """[bins] mean losses over equal parts of the run; NaN where nothing was recorded."""
    part = np.minimum((run.steps * bins / run.last).astype(int), bins - 1)
    good = np.isfinite(run.loss)
    count = np.bincount(part[good], minlength=bins)
    total = np.bincount(part[good], run.loss[good], bins)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _parts(runs: list[Run]) -> int:
    """Parts of a run that leave no part of any empty."""
    fewest = min(len(r.steps) for r in runs)
    return int(np.clip(fewest // 2, 4, BINS))


def _compared(curves: np.ndarray, floor: float) -> tuple[float, float, float]:
    """(spread, noise, lasting) of losses [rungs, seeds, bins], the last bin being the end of training."""
    from_ = int(np.ceil(START * curves.shape[2]))
    left = curves[:, :, from_:-1] - floor
    shape = left / (curves[:, :, -1:] - floor)
    middle = shape.mean((0, 1))
    between = shape.var(0, ddof=1)  # [seeds, bins]
    spread = np.sqrt((between.mean(0) / middle**2).mean())
    seeds = curves.shape[1]
    if seeds < 2:
        return float(spread), np.nan, np.nan
    noise = np.sqrt((left.var(1, ddof=1) / left.mean(1) ** 2).mean())
    # of the variance between rungs, what is not the same at every seed is noise that did not cancel
    alone = shape - shape.mean(1, keepdims=True) - shape.mean(0) + middle
    left_over = (alone**2).sum((0, 1)) / ((len(shape) - 1) * (seeds - 1))
    lasting = np.sqrt(max(((between.mean(0) - left_over) / middle**2).mean(), 0.0))
    return float(spread), float(noise), float(lasting)


def collapse(runs: list[Run], floor: float | None = None) -> Collapse | None:
    """Compare the runs of two rungs or more over the seeds that all of them have; None where there are too few.

    Args:
      runs: one a rung and seed, each at its rung's tuned (or transferred) hyperparameters.
      floor: least possible loss; by default the one of 0 to 0.95 times the least final loss that makes spread over noise least.
    """
    rungs = sorted({r.rung for r in runs})
    held = {(r.rung, r.seed): r for r in runs}
    seeds = [s for s in sorted({r.seed for r in runs}) if all((k, s) in held for k in rungs)]
    if len(rungs) < 2 or not seeds or min(len(r.steps) for r in runs) < 8:
        return None
    parts = _parts(runs)
    curves = np.array([[binned(held[k, s], parts) for s in seeds] for k in rungs])
    if not np.isfinite(curves).all():
        return None
    tried = [floor] if floor is not None else np.linspace(0, 0.95, 39) * curves[:, :, -1].min()
    found = [(*_compared(curves, f), float(f)) for f in tried]
    # with one seed there is no noise to divide by
    best = min(found, key=lambda x: x[0] / max(x[1], 1e-12) if len(seeds) > 1 else x[0])
    return Collapse(rungs, len(seeds), *best, floor is None)


class Band(NamedTuple):
    """Where normalised curves of runs that collapse lie: each divided by its level over the first ALIGN of the run."""

    centre: np.ndarray  # [bins]
    half: np.ndarray  # [bins]
    floor: float


def _aligned(losses: np.ndarray, centre: np.ndarray, floor: float) -> np.ndarray:
    """[..., bins] reducible losses divided by how far they lie above `centre` while a run is young."""
    bins = losses.shape[-1]
    young = slice(int(np.ceil(START * bins)), max(int(ALIGN * bins), int(np.ceil(START * bins)) + 1))
    level = np.nanmean((losses[..., young] - floor) / centre[young], axis=-1, keepdims=True)
    return (losses - floor) / level


def band(runs: list[Run], floor: float) -> Band:
    """The band of finished runs, three or more, that were found to collapse."""
    curves = np.array([binned(r, _parts(runs)) for r in runs])
    shape = _aligned(curves, (curves - floor).mean(0), floor)
    return Band(shape.mean(0), REACH * shape.std(0, ddof=1) * np.sqrt(1 + 1 / len(runs)), floor)


def leaves(within: Band, run: Run) -> int | None:
    """The step from which a run, finished or not, is outside the band for PATIENCE parts of the run in a row; None where it stays.

    A loss that is no number is outside. The run's level is learned while it is young, so its end need not be known.
    """
    bins, lost = len(within.centre), ~np.isfinite(run.loss)
    losses = binned(run, bins)
    if not np.isfinite(losses[: int(ALIGN * bins)]).all():
        return int(run.steps[np.argmax(lost)]) if lost.any() else None  # it diverged, or has not come so far
    seen = int(np.max(run.steps) * bins / run.last)  # the part in which the run now is may be half told
    reached = bins if np.max(run.steps) + 1 >= run.last else seen
    away = np.abs(_aligned(losses, within.centre, within.floor) - within.centre) > within.half
    outside = (away | ~np.isfinite(losses))[:reached]
    outside[: int(ALIGN * bins)] = False
    for i in range(reached - PATIENCE + 1):
        if outside[i : i + PATIENCE].all():
            return int(np.ceil(i * run.last / bins))
    return None
