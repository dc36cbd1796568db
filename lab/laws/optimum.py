"""Best value of a hyperparameter at every rung, in log2, and what noise and shape leave unknown of it.

Where no seed repeats nothing is known of the noise, and the optimum is the lowest point of Akima's interpolant. Where seeds repeat, near
the minimum

    loss = least + slope z + bent (e^(skew z) - 1 - skew z) / skew^2,  z = octaves from the best point

a parabola where `skew` is 0, steeper on the right where it is above. All rungs of an arm share one skew, for their curves are alike; once
it is fixed the fit is linear. A point's error is the noise of its mean and SHAPE h (1 + h / FAR), h being its height above the lowest:
what lies far up says little of the bottom, and what is up a cliff nothing. Errors have Student's tails, so one wall does not bend the
curve. Intervals are quantiles over draws of noise, shape and skew: a coarse grid beside a cliff gives a wide one however small the noise.
"""

from typing import NamedTuple

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from lab.laws.seeds import Level, level, noise, sway

SHAPE, FAR = 0.03, 0.03  # how far true curves stray from the fitted form, as a share of the relative height; from FAR on, ever more
WALL = 2.0  # relative height from which a loss says no more of the bottom than that of a trial that diverged
TAILS, ROUNDS = 2, 6  # degrees of freedom of those errors; rounds of reweighting
SKEWS, SKEW_SPREAD = np.arange(-4, 7) * 0.25, 0.7  # per octave: what is tried, held to zero by a normal prior of this spread
DRAWS = 2000


class Optimum(NamedTuple):
    """Best log2 value and the loss there; `edge` is 'low' or 'high' where it is no more than a bound, for nothing beyond was tried or stable."""

    log2: float
    loss: float
    edge: str | None
    interval: tuple[float, float] | None = None  # infinite on the side on which nothing bounds it


def interpolant(x: np.ndarray, loss: np.ndarray) -> Akima1DInterpolator | None:
    """Akima's curve through the finite points of rising x; None with fewer than three.

    It is exact on a parabola and, unlike a fitted one, does not overshoot where a neighbour lies up a cliff (Porian et al., arXiv
    2406.19146, read optima off it too).
    """
    good = np.isfinite(loss)
    return Akima1DInterpolator(x[good], loss[good]) if good.sum() > 2 else None


def optimum(log2: np.ndarray, loss: np.ndarray) -> Optimum:
    """Lowest point of the interpolated curve between the best point's neighbours.

    A diverged trial (non-finite loss) is censored: it bounds the optimum but has no height, so when the best point's neighbour
    diverged, or there is none, the best point itself is the optimum and `edge` says so.
    """
    order = np.argsort(log2)
    x, y = np.asarray(log2, float)[order], np.asarray(loss, float)[order]
    through, y = interpolant(x, y), np.where(np.isfinite(y), y, np.inf)
    if not np.isfinite(y).any():
        return Optimum(np.nan, np.nan, None)
    i = int(np.argmin(y))
    low, high = i == 0 or not np.isfinite(y[i - 1]), i == len(x) - 1 or not np.isfinite(y[i + 1])
    if low or high:
        return Optimum(x[i], y[i], "high" if high else "low")
    flat = through.derivative().roots(extrapolate=False)
    near = np.concatenate([[x[i]], flat[(flat > x[i - 1]) & (flat < x[i + 1])]])
    at = near[np.argmin(through(near))]
    return Optimum(float(at), float(through(at)), None)


class Curve(NamedTuple):
    """Losses of one rung: every value tried, and the level of those around the best between which nothing diverged or is up a wall."""

    tried: np.ndarray  # [all] log2, rising
    mean: np.ndarray  # [all] loss, freed of seed offsets; NaN where any seed diverged
    x: np.ndarray  # [points] of `tried`, around the best
    level: Level | None  # of these points; None where every value diverged
    below: float  # the nearest value on either side that did; infinite where none did
    above: float


def curve(log2: np.ndarray, loss: np.ndarray, seed: np.ndarray) -> Curve:
    """Pool the trials of one rung; a value at which any seed diverged counts as diverged."""
    tried = np.unique(log2)
    gone = np.array([not np.isfinite(loss[log2 == v]).all() for v in tried])
    mean = np.full(len(tried), np.nan)
    if gone.all():
        return Curve(tried, mean, tried[:0], None, -np.inf, np.inf)
    mine = np.isin(log2, tried[~gone])
    every = level(np.unique(log2[mine], return_inverse=True)[1], loss[mine], seed[mine])
    mean[~gone] = every.mean * every.scale
    best = tried[np.nanargmin(mean)]
    gone |= mean - np.nanmin(mean) > WALL * abs(np.nanmin(mean))
    below = max(tried[gone & (tried < best)], default=-np.inf)
    above = min(tried[gone & (tried > best)], default=np.inf)
    mine = (log2 > below) & (log2 < above)
    x, point = np.unique(log2[mine], return_inverse=True)
    return Curve(tried, mean, x, level(point, loss[mine], seed[mine]), below, above)


class Part(NamedTuple):
    """A fit that is linear in its coefficients, for each of some forms: coefficients [forms, n] = solve [forms, n, points] @ means."""

    centre: np.ndarray | float  # the lowest point, from which the others are measured
    strays: np.ndarray  # [points] errors of shape, relative
    solve: np.ndarray
    found: np.ndarray
    cost: np.ndarray  # [forms] twice the negative log likelihood, up to a constant


def part(v: Level, basis: np.ndarray, sd: float, centre: np.ndarray | float) -> Part:
    """Fit means by basis [forms, points, n], iteratively reweighted; `sd` is the relative noise of one trial."""
    strays = SHAPE * v.height * (1 + v.height / FAR)
    variance = sd**2 / v.count + strays**2
    trust = np.ones(basis.shape[:2])
    for _ in range(ROUNDS):
        weight = np.sqrt(trust / variance)[..., None]
        weighed = basis * weight
        size = np.linalg.norm(weighed, axis=1, keepdims=True)  # columns of one size, or the skewed ones are lost in rounding
        normal = np.swapaxes(weighed / size, 1, 2)
        solve = np.linalg.solve(normal @ weighed, normal * np.swapaxes(weight, 1, 2))
        found = solve @ v.mean
        off = (v.mean - np.einsum("kpb,kb->kp", basis, found)) ** 2 / variance
        trust = (TAILS + 1) / (TAILS + off)
    return Part(centre, strays, solve, found, (TAILS + 1) * np.log1p(off / TAILS).sum(1))


def _basis(z: np.ndarray) -> np.ndarray:
    """[skews, points, 3]: what least, slope and bent are multiplied by."""
    k, flat = SKEWS[:, None], (SKEWS == 0)[:, None]
    bent = np.where(flat, z**2 / 2, (np.exp(k * z) - 1 - k * z) / np.where(flat, 1, k) ** 2)
    return np.stack([np.ones_like(bent), np.broadcast_to(z, bent.shape), bent], -1)


def _lowest(skew: np.ndarray, slope: np.ndarray, bent: np.ndarray) -> np.ndarray:
    """Octaves to where the form is lowest; infinite on the side to which it falls for ever."""
    with np.errstate(all="ignore"):
        inner = 1 - skew * slope / bent
        at = np.where(skew == 0, -slope / bent, np.log(np.maximum(inner, 1e-300)) / np.where(skew == 0, 1, skew))
        at = np.where((inner <= 0) & (skew != 0), -np.sign(skew) * np.inf, at)
    return np.where(bent > 0, at, np.where(slope > 0, -np.inf, np.inf))


def _influence(skew: float, solve: np.ndarray, found: np.ndarray) -> np.ndarray:
    """[points] how noise in the means tilts the form at its lowest point."""
    z = np.clip(_lowest(np.array(skew), found[1], found[2]), -1, 1)
    return solve[1] + (z if skew == 0 else np.expm1(skew * z) / skew) * solve[2]


class Noise(NamedTuple):
    """Draws of how noisy one trial is, relative to the loss."""

    sd: float  # near the bottom, once its seed's offset is gone
    freedom: float  # with which its effect on an optimum is known
    white: np.ndarray  # [draws] from point to point
    tilt: np.ndarray  # [draws] smooth in the value tried, so that a seed's whole curve is tilted


def noise_of(levels: list[Level], influences: list[np.ndarray], sd: float, rng: np.random.Generator) -> Noise:
    """Split what an optimum feels of the noise into that of points and what is left, which must be smooth."""
    felt, freedom = sway(levels, influences)
    felt = felt or sd**2
    tail = np.sqrt(freedom / rng.chisquare(freedom, DRAWS)) if np.isfinite(freedom) else np.ones(DRAWS)
    return Noise(sd, freedom, tail * min(sd, felt**0.5), tail * max(felt - sd**2, 0.0) ** 0.5)


class Fit(NamedTuple):
    """Optima of an arm's rungs from repeated seeds, with draws of where else they may be."""

    optima: list[Optimum]
    draws: np.ndarray  # [rungs, 2, draws] log2: the optimum is between the two, which differ where it is beyond what was tried
    shape_draws: np.ndarray  # [rungs, 2, draws] the same without noise: what more seeds would not tell
    curvature: np.ndarray  # [rungs, draws] relative loss per squared octave, NaN where the fit has no minimum
    noise: Noise
    skew: float


def fit(curves: list[Curve], coverage: float = 0.9) -> Fit | None:
    """Fit all rungs of an arm together; None where no seed repeats."""
    sd = noise([c.level for c in curves if c.level is not None])
    if not np.isfinite(sd):
        return None
    parts = []
    for c in curves:
        able = c.level is not None and len(c.x) > 2
        centre = c.x[np.argmin(c.level.mean)] if able else np.nan
        parts.append(part(c.level, _basis(c.x - centre), sd, centre) if able else None)
    cost = (SKEWS / SKEW_SPREAD) ** 2 + sum(p.cost for p in parts if p)
    best, rng = int(np.argmin(cost)), np.random.default_rng(0)
    influences = [None if p is None else _influence(SKEWS[best], p.solve[best], p.found[best]) for p in parts]
    pairs = [(c.level, i[:, None]) for c, i in zip(curves, influences, strict=True) if i is not None]
    heard = noise_of([v for v, _ in pairs], [i for _, i in pairs], sd, rng)
    chance = np.exp((cost.min() - cost) / 2)
    skews = rng.choice(len(SKEWS), DRAWS, p=chance / chance.sum())
    rows = []
    for c, p, i in zip(curves, parts, influences, strict=True):
        if p is None:
            rows.append(_few(c))
            continue
        pull = np.sqrt((i**2 / c.level.count).sum())
        at, shaped, bent = _scattered(c, p, skews, heard, pull, rng)
        rows.append((_best(c, p, best, at, coverage), at, shaped, bent))
    optima, *draws = zip(*rows, strict=True)
    return Fit(list(optima), *map(np.array, draws), heard, float(SKEWS[best]))


def _few(c: Curve) -> tuple[Optimum, np.ndarray, np.ndarray, np.ndarray]:
    """A rung with too few points for a curve: the best one's neighbours bound its optimum."""
    unknown = np.full(DRAWS, np.nan)
    if c.level is None:
        return Optimum(np.nan, np.nan, None), np.stack([unknown] * 2), np.stack([unknown] * 2), unknown
    i = int(np.argmin(c.level.mean))
    low, high = np.concatenate([[c.below], c.x, [c.above]])[[i, i + 2]]
    edge = "high" if i == len(c.x) - 1 else "low" if i == 0 else None
    at = np.repeat([[low], [high]], DRAWS, 1)
    return Optimum(c.x[i], c.level.mean[i] * c.level.scale, edge, (float(low), float(high))), at, at, unknown


def _scattered(c: Curve, p: Part, skews: np.ndarray, heard: Noise, pull: float, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Draws of a rung's optimum, with noise and without, and of its curvature."""
    shape = p.strays * rng.normal(size=(DRAWS, len(c.x)))
    whole = shape + heard.white[:, None] * rng.normal(size=shape.shape) / np.sqrt(c.level.count)
    # an optimum beyond the last stable value: the edge of stability is anywhere from there to the first that diverged
    stop = [np.isfinite(c.below), np.isfinite(c.above)]
    low = rng.uniform(c.below, c.x[0], DRAWS) if stop[0] else -np.inf
    high = rng.uniform(c.x[-1], c.above, DRAWS) if stop[1] else np.inf
    at, bents = [], []
    for deviation, tilt in ((whole, heard.tilt * pull * rng.normal(size=DRAWS)), (shape, 0.0)):
        _, slope, bent = (p.found[skews] + np.einsum("dbp,dp->db", p.solve[skews], deviation)).T
        there = np.clip(p.centre + _lowest(SKEWS[skews], slope + tilt, bent), low, high)
        at.append(bounded(there, -np.inf if stop[0] else c.x[0], np.inf if stop[1] else c.x[-1]))
        bents.append(np.where(bent > 0, bent, np.nan))
    return at[0], at[1], bents[0]


def bounded(at: np.ndarray, low: float, high: float) -> np.ndarray:
    """[2, ...]: bounds on `at`, which is not believed outside low to high: there it is anywhere beyond."""
    return np.stack([np.where(at < low, -np.inf, np.minimum(at, high)), np.where(at > high, np.inf, np.maximum(at, low))])


def _best(c: Curve, p: Part, form: int, draws: np.ndarray, coverage: float) -> Optimum:
    z = _lowest(SKEWS[form], p.found[form, 1], p.found[form, 2])
    at = float(np.clip(p.centre + z, c.x[0], c.x[-1]))
    edge = "high" if p.centre + z >= c.x[-1] else "low" if p.centre + z <= c.x[0] else None
    least = float(_basis(np.array([at - p.centre]))[form, 0] @ p.found[form]) * c.level.scale
    return Optimum(at, least, edge, quantiles(draws, coverage))


def quantiles(draws: np.ndarray, coverage: float) -> tuple[float, float]:
    """Central interval of what lies between draws[0] and draws[1]."""
    # no interpolation: a draw may be infinite
    pairs = zip(draws, ((1 - coverage) / 2, (1 + coverage) / 2), strict=True)
    return tuple(float(np.quantile(v, q, method="inverted_cdf")) for v, q in pairs)


def loss_at(tried: np.ndarray, mean: np.ndarray, at: np.ndarray | float) -> np.ndarray:
    """Losses at `at` (one, or [n]) on the interpolant through means [points] or [points, n]; infinite where a neighbour diverged (NaN).

    Outside the points tried the curve is continued by its end point, which understates the loss there.
    """
    at, mean = np.clip(np.atleast_1d(np.asarray(at, float)), tried[0], tried[-1]), np.asarray(mean, float)
    column = np.arange(len(at)) if mean.ndim == 2 else np.zeros(len(at), int)
    mean = mean.reshape(len(tried), -1)
    right = np.searchsorted(tried, at)
    left = np.where(tried[right] == at, right, right - 1)
    good = np.isfinite(mean[:, 0])
    x, y, known = tried[good], mean[good], good[left] & good[right]
    piece = np.clip(np.searchsorted(x, at, side="right") - 1, 0, max(len(x) - 2, 0))
    step = at - x[piece]
    if len(x) > 2:
        c = Akima1DInterpolator(x, y).c[:, piece, column]
        value = ((c[0] * step + c[1]) * step + c[2]) * step + c[3]
    else:
        slope = (y[-1] - y[0])[column] / (np.ptp(x) or 1.0)
        value = y[piece, column] + slope * step
    return np.where(known, value, np.inf)
