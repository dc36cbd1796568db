"""Two hyperparameters at a time: the optimum of a quadratic surface in the log2 of both, and its drift in each, with intervals.

Points count as in lab/laws/optimum.py. The product term is fitted where the points tell it; where they form no grid (a cross of two
sweeps through one point) the surface is separable.
"""

import math
from typing import NamedTuple

import numpy as np

from lab.laws.optimum import DRAWS, WALL, Noise, Optimum, Part, bounded, noise_of, part, quantiles
from lab.laws.seeds import Level, level, noise
from lab.laws.transfer import LEVEL, Transfer, combined, line, moved, octaves, seeds_wanted

QUIET = 1e-3  # relative noise supposed where no seed repeats: it only sets how points are weighed


def _basis(z: np.ndarray, terms: int) -> np.ndarray:
    """[points, terms]: constant, two slopes, two halves of squares and, sixth, the product."""
    return np.stack([np.ones(len(z)), *z.T, *(z**2 / 2).T, z[:, 0] * z[:, 1]], 1)[:, :terms]


def _bent(found: np.ndarray) -> np.ndarray:
    """[n, 2, 2]: second derivatives of surfaces of coefficients [n, terms]."""
    cross = found[:, 5] if found.shape[1] > 5 else np.zeros(len(found))
    return np.stack([found[:, 3], cross, cross, found[:, 4]], 1).reshape(-1, 2, 2)


def _lowest(found: np.ndarray) -> np.ndarray:
    """[n, 2]: where surfaces are lowest; NaN where one has no minimum."""
    bent = _bent(found)
    valid = (bent[:, 0, 0] > 0) & (np.linalg.det(bent) > 0)
    safe = np.where(valid[:, None, None], bent, np.eye(2))
    return np.where(valid[:, None], -np.linalg.solve(safe, found[:, 1:3, None])[..., 0], np.nan)


def _influences(p: Part) -> np.ndarray:
    """[points, 2]: how noise in the means moves the optimum in either direction."""
    solve, found = p.solve[0], p.found
    z = np.clip(np.nan_to_num(_lowest(found)[0]), -1, 1)
    return (np.linalg.pinv(_bent(found)[0]) @ (solve[1:3] + np.einsum("abp,b->ap", _bent(solve.T).transpose(1, 2, 0), z))).T


class Table(NamedTuple):
    """Losses of one rung; points at which any seed diverged are left out and bound the optimum."""

    x: np.ndarray  # [points, 2] log2
    level: Level
    part: Part | None  # None with too few points for a surface
    ends: np.ndarray  # [2 (lowest, highest), 2]: values tried, up to what diverged on the lines through the best point


def table(log2: np.ndarray, loss: np.ndarray, seed: np.ndarray) -> Table | None:
    """Pool the trials of one rung; None where all diverged. What is up a wall counts as diverged."""
    tried, point = np.unique(log2, axis=0, return_inverse=True)
    rough = np.array([loss[point == i].mean() for i in range(len(tried))])
    if not np.isfinite(rough).any():
        return None
    gone = ~np.isfinite(rough) | (rough - np.nanmin(rough) > WALL * abs(np.nanmin(rough)))
    mine = ~gone[point]
    x, at = np.unique(log2[mine], axis=0, return_inverse=True)
    pooled = level(at, loss[mine], seed[mine])
    best = x[np.argmin(pooled.mean)]
    return Table(x, pooled, None, np.transpose([_ends(tried, gone, best, d) for d in (0, 1)]))


def _ends(tried: np.ndarray, gone: np.ndarray, best: np.ndarray, d: int) -> tuple[float, float]:
    lost, kept = tried[gone & (tried[:, 1 - d] == best[1 - d]), d], tried[~gone, d]
    low, high = max(lost[lost < best[d]], default=-np.inf), min(lost[lost > best[d]], default=np.inf)
    inside = kept[(kept > low) & (kept < high)]
    return float(inside.min()), float(inside.max())


def _fitted(t: Table, sd: float) -> Table:
    centre = t.x[np.argmin(t.level.mean)]
    ranks = [np.linalg.matrix_rank(_basis(t.x - centre, n)) for n in (5, 6)]
    if ranks[0] < 5:
        return t
    return t._replace(part=part(t.level, _basis(t.x - centre, ranks[1])[None], sd, centre))


def _optimum(t: Table | None, draws: np.ndarray | None) -> list[Optimum]:
    """Both coordinates of a rung's optimum; where the surface's minimum is not among stable points, a bound."""
    if t is None:
        return [Optimum(np.nan, np.nan, None)] * 2
    best = t.x[np.argmin(t.level.mean)]
    z = _lowest(t.part.found)[0] if t.part else np.full(2, np.nan)
    at = best + np.where(np.isnan(z), 0, z)
    inside, least = np.clip(at, *t.ends), t.level.mean.min()
    if t.part and np.isfinite(z).all():
        least = float(_basis(inside[None] - best, t.part.found.shape[1])[0] @ t.part.found[0])
    edges = ["high" if a >= high else "low" if a <= low else None for a, low, high in zip(at, *t.ends, strict=True)]
    intervals = [None if draws is None else quantiles(draws[:, :, d], LEVEL) for d in (0, 1)]
    return [Optimum(float(inside[d]), least * t.level.scale, edges[d], intervals[d]) for d in (0, 1)]


def _scattered(t: Table | None, heard: Noise, rng: np.random.Generator) -> np.ndarray:
    """[with noise and without, 2 (bounds), draws, 2]: where the optimum may be."""
    if t is None or t.part is None:
        return np.broadcast_to(np.array([-np.inf, np.inf])[:, None, None], (2, 2, DRAWS, 2))
    shape = t.part.strays * rng.normal(size=(DRAWS, len(t.x)))
    sd = np.hypot(heard.white, heard.tilt)[:, None] / np.sqrt(t.level.count)
    out = []
    for deviation in (shape + sd * rng.normal(size=shape.shape), shape):
        at = t.part.centre + _lowest(t.part.found[0] + deviation @ t.part.solve[0].T)
        low, high = bounded(at, *t.ends)
        out.append([np.where(np.isnan(at), -np.inf, low), np.where(np.isnan(at), np.inf, high)])  # NaN: the surface has no minimum
    return np.array(out)


def joint(rung: np.ndarray, log2: np.ndarray, loss: np.ndarray, seed: np.ndarray) -> tuple[Transfer, Transfer]:
    """What a ladder says of two hyperparameters swept together: log2 [trials, 2]; the other arguments as `transfer` takes them.

    The penalty is that of the smallest rung's pair at the largest, as the fitted surface has it, and has no interval.
    """
    rung, log2, loss, seed = (np.asarray(v, float) for v in (rung, log2, loss, seed))
    rungs = sorted(set(rung.tolist()))
    tables = [table(*(v[rung == r] for v in (log2, loss, seed))) for r in rungs]
    sd = noise([t.level for t in tables if t])
    tables = [t and _fitted(t, sd if np.isfinite(sd) else QUIET) for t in tables]
    able = [t for t in tables if t and t.part]
    draws = None
    if np.isfinite(sd):
        rng = np.random.default_rng(0)
        heard = noise_of([t.level for t in able], [_influences(t.part) for t in able], sd, rng)
        draws = np.array([_scattered(t, heard, rng) for t in tables])  # [rungs, 2, 2, draws, 2]
    optima = [_optimum(t, None if draws is None else draws[i, 0]) for i, t in enumerate(tables)]
    seeds = [len(np.unique(seed[rung == r])) for r in rungs]
    penalty = _penalty(tables[-1], optima)
    found = []
    for d in (0, 1):
        mine = [o[d] for o in optima]
        at = np.array([o.log2 for o in mine])
        known = np.isfinite(at)
        tilt = line(octaves(rungs), known)[0]
        told = rungs, mine, float(at[-1] - at[0]), float(tilt @ np.where(known, at, 0.0)), penalty
        intervals, wanted = (None, None, None), math.inf
        if draws is not None and np.isfinite(told[2]):
            drift, still = (quantiles(combined(moved(len(rungs)), draws[:, i, :, :, d]), LEVEL) for i in (0, 1))
            intervals = drift, quantiles(combined(tilt, draws[:, 0, :, :, d]), LEVEL) if np.isfinite(tilt).all() else None, None
            wanted = seeds_wanted(drift, still, 2 / (1 / seeds[0] + 1 / seeds[-1]))
        found.append(Transfer(*told, *intervals, (min(seeds), max(seeds)), wanted, [], None))
    return found[0], found[1]


def _penalty(t: Table | None, optima: list[list[Optimum]]) -> float:
    at, own = np.array([o.log2 for o in optima[0]]), optima[-1][0].loss
    if t is None or t.part is None or not np.isfinite(at).all():
        return np.nan
    there = _basis((at - t.part.centre)[None], t.part.found.shape[1])[0] @ t.part.found[0] * t.level.scale
    return max(float(there / own - 1), 0.0)
