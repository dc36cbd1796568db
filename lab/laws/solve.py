"""Many fits of loss = floor + sum_k scale_k exp(-exponent_k x_k) at once: one a replicate of a bootstrap, all in the same array operations.

Given its exponents the law is linear (variable projection: Golub and Pereyra, 1973; for scaling laws Czech, arXiv 2603.22339), so each
replicate starts from the best of a grid of exponents, where floor and scales come from nonnegative least squares of relative residuals; the
sums that these need are matrix products over all replicates and all exponents. From there a Levenberg-Marquardt descent in all
parameters minimises log residuals, squared or under Huber's loss (Hoffmann et al., arXiv 2203.15556, approach 3). Parameters stay linear,
not logarithms, so a floor of zero is reached and left; the x are to be centred, or scales and exponents are told apart by rounding alone.
"""

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np

LEAST, MOST = 1e-3, 4.0  # exponents
GRID = {1: np.geomspace(0.01, 2.0, 40), 2: np.geomspace(0.03, 2.0, 14)}  # exponents tried, by how many terms there are
ROUNDS = 300
CHUNK = 60_000  # points at a time, over all replicates
Model = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # as `descend` takes it


def terms(p: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Values [replicates, points, k] of the terms of laws p [replicates, 1 + 2k] (floor, scales, exponents) at x [points, k]."""
    k = x.shape[1]
    return p[:, None, 1 : 1 + k] * np.exp(-p[:, None, 1 + k :] * x)


def losses(p: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Loss [replicates, points] of laws p at x."""
    return p[:, :1] + terms(p, x).sum(-1)


def _law(x: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The model of `descend` whose laws p [replicates, 1 + 2k] are at x."""
    k = x.shape[1]
    slopes = np.empty((len(p), 1 + 2 * k, len(x)))
    slopes[:, 0] = 1.0
    whole = p[:, :1]
    for j in range(k):
        shape = np.exp(-p[:, 1 + k + j, None] * x[:, j])
        part = p[:, 1 + j, None] * shape
        whole = whole + part
        slopes[:, 1 + j] = shape
        slopes[:, 1 + k + j] = -part * x[:, j]
    return whole, slopes


def _drawn(x: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`_law` with exp(exponent) as a further point for each: its log residual is how far an exponent is from what it is drawn to (a ridge)."""
    k = x.shape[1]
    whole, slopes = _law(x, p)
    e = np.exp(p[:, 1 + k :])
    more = np.concatenate([np.zeros((len(p), 1 + k, k)), e[:, :, None] * np.eye(k)], 1)
    return np.concatenate([whole, e], 1), np.concatenate([slopes, more], 2)


def solve(
    x: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    start: np.ndarray | None = None,
    held: dict[int, float | np.ndarray] | None = None,
    delta: float | None = None,
    prior: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """Laws [replicates, 1 + 2k] of losses y [replicates, points] at centred x [points, k] under weights [replicates, points].

    Args:
      start: laws [1 or replicates, 1 + 2k] to descend from in place of the best of the grid: for replicates of data whose own law is known.
      held: index of a parameter -> the value at which it stays, one or one a replicate; without, all are fitted, the floor to zero or more.
      delta: where Huber's loss of log residuals turns linear; None takes squares.
      prior: what exponents are drawn to, [1 or replicates, k], and the weight [1 or replicates, 1] of the squares of how far they are from it.
    """
    y, weight = np.broadcast_arrays(np.atleast_2d(y), np.atleast_2d(weight))
    held = {i: np.broadcast_to(np.asarray(v, float), len(y)) for i, v in (held or {}).items()}
    k, out, chunk = x.shape[1], [], max(1, CHUNK // len(x))
    bounds = np.array([0.0] * (1 + k) + [LEAST] * k), np.array([np.inf] * (1 + k) + [MOST] * k)
    still, scales = np.isin(np.arange(1 + 2 * k), list(held)), np.isin(np.arange(1 + 2 * k), range(1, 1 + k))
    for at in range(0, len(y), chunk):
        part = slice(at, at + chunk)
        mine = {i: v[part] for i, v in held.items()}
        if start is None:
            p = _start(x, y[part], weight[part], mine)
        else:
            p = np.array(np.broadcast_to(start, (len(y), start.shape[1]))[part], float)
            for i, v in mine.items():
                p[:, i] = v
        if prior is None:
            out.append(descend(partial(_law, x), y[part], weight[part], p, bounds, still, scales, delta))
            continue
        towards = np.exp(np.broadcast_to(prior[0], (len(y), k))[part])
        pull = np.broadcast_to(prior[1], (len(y), k))[part]
        seen, weighs = np.concatenate([y[part], towards], 1), np.concatenate([weight[part], pull], 1)
        out.append(descend(partial(_drawn, x), seen, weighs, p, bounds, still, scales, delta))
    return np.concatenate(out)


def _start(x: np.ndarray, y: np.ndarray, weight: np.ndarray, held: dict[int, np.ndarray]) -> np.ndarray:
    """The best of a grid of exponents for every replicate, floor and scales by nonnegative least squares of relative residuals."""
    r, k = len(y), x.shape[1]
    floor = held.get(0)
    target = y if floor is None else y - floor[:, None]
    q = weight / y**2
    u = [np.exp(-GRID[k][:, None] * x[:, j]).T for j in range(k)]  # [points, exponents]
    columns = ([] if floor is not None else [0]) + list(range(1, k + 1))
    # cells of the grid: which exponent each term has
    cells = np.stack([g.ravel() for g in np.meshgrid(*[np.arange(len(GRID[k]))] * k, indexing="ij")])
    gram, by = np.zeros((r, cells.shape[1], k + 1, k + 1)), np.zeros((r, cells.shape[1], k + 1))
    gram[..., 0, 0], by[..., 0] = q.sum(1)[:, None], (q * target).sum(1)[:, None]
    for j in range(k):
        gram[..., 0, j + 1] = gram[..., j + 1, 0] = (q @ u[j])[:, cells[j]]
        gram[..., j + 1, j + 1] = (q @ u[j] ** 2)[:, cells[j]]
        by[..., j + 1] = ((q * target) @ u[j])[:, cells[j]]
    for i, j in itertools.combinations(range(k), 2):
        cross = (q @ (u[i][:, :, None] * u[j][:, None, :]).reshape(len(x), -1)).reshape(r, -1)
        gram[..., i + 1, j + 1] = gram[..., j + 1, i + 1] = cross
    scale, gain = nonnegative(gram, by, columns)
    for j in range(k):  # a held scale or exponent leaves the grid where it does not hold
        if 1 + k + j in held:
            far = abs(np.log(GRID[k]) - np.log(held[1 + k + j])[:, None])
            gain = np.where((far == far.min(1, keepdims=True))[:, cells[j]], gain, -np.inf)
    best = np.argmax(gain, 1)
    p = np.concatenate([scale[np.arange(r), best], GRID[k][cells[:, best]].T], 1)
    p[:, 1 : 1 + k] = np.maximum(p[:, 1 : 1 + k], 1e-3 * y.min(1, keepdims=True))  # a scale of zero has no exponent
    for i, v in held.items():
        p[:, i] = v
    return p


def nonnegative(gram: np.ndarray, by: np.ndarray, columns: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Nonnegative least squares of a few columns from Gram matrices [..., n, n] and products [..., n]: solution, and by how much it lowers the squares.

    Every set of columns is tried, and the best whose solution is nowhere negative is taken: exact, and the same work for all.
    """
    n = gram.shape[-1]
    best, most = np.zeros(by.shape), np.full(by.shape[:-1], -np.inf)
    for size in range(1, len(columns) + 1):
        for chosen in itertools.combinations(columns, size):
            at = np.ix_(chosen, chosen)
            own = gram[(..., *at)] + 1e-13 * np.einsum("...ii->...", gram)[..., None, None] * np.eye(size)
            found = np.linalg.solve(own, by[..., list(chosen)][..., None])[..., 0]
            gain = np.where((found >= 0).all(-1), (found * by[..., list(chosen)]).sum(-1), -np.inf)
            better = gain > most
            most = np.where(better, gain, most)
            full = np.zeros((*by.shape[:-1], n))
            full[..., list(chosen)] = found
            best = np.where(better[..., None], full, best)
    return best, most


def _cost(r: np.ndarray, weight: np.ndarray, delta: float | None) -> np.ndarray:
    far = abs(r)
    each = r**2 / 2 if delta is None else np.where(far <= delta, r**2 / 2, delta * (far - delta / 2))
    return (weight * each).sum(1)


def descend(
    model: Model,
    y: np.ndarray,
    weight: np.ndarray,
    p: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
    still: np.ndarray,
    scales: np.ndarray,
    delta: float | None = None,
) -> np.ndarray:
    """Levenberg-Marquardt on log residuals; a parameter at its bound that would leave it stays, replicates that are done drop out.

    Args:
      model: parameters [replicates, m] -> losses [replicates, points] and their derivatives [replicates, m, points].
      y, weight: [replicates, points]. p: [replicates, m] to descend from. bounds: lowest and highest of each parameter.
      still, scales: [m] which parameters stay where they are, and which fall to a tenth in one step at most: at zero an exponent has no gradient.
    """
    out, (low, high) = p.copy(), bounds
    log_y = np.log(y)
    live, damp = np.arange(len(p)), np.full(len(p), 1e-3)
    whole, slopes = model(p)
    r = np.log(np.maximum(whole, 1e-300)) - log_y
    cost, calm = _cost(r, weight, delta), np.zeros(len(p), int)
    for _ in range(ROUNDS):
        trust = weight[live] if delta is None else weight[live] * np.minimum(1, delta / np.maximum(abs(r), 1e-300))
        jacobian = slopes / whole[:, None]
        weighed = jacobian * trust[:, None]
        slope = (weighed @ r[..., None])[..., 0]
        curve = weighed @ jacobian.transpose(0, 2, 1)
        frozen = still | ((p <= low) & (slope > 0)) | ((p >= high) & (slope < 0))
        diagonal = np.einsum("rii->ri", curve)
        curve = curve + (damp[:, None] * diagonal + 1e-300)[..., None] * np.eye(p.shape[1])
        curve = np.where(frozen[:, :, None] | frozen[:, None, :], np.eye(p.shape[1]), curve)
        size = np.sqrt(np.einsum("rii->ri", curve))
        step = -np.linalg.solve(curve / size[:, :, None] / size[:, None, :], (np.where(frozen, 0, slope) / size)[..., None])[..., 0] / size
        there = np.clip(p + step, low, high)
        there = np.where(scales, np.maximum(there, p / 10), there)
        new_whole, new_slopes = model(there)
        new_r = np.log(np.maximum(new_whole, 1e-300)) - log_y[live]
        new_cost = _cost(new_r, weight[live], delta)
        better = new_cost <= cost
        small = abs(cost - new_cost) <= 1e-10 * cost + 1e-300
        calm = np.where(small, calm + 1, np.where(better, 0, calm))
        p, whole, r = (np.where(better[:, None], a, b) for a, b in ((there, p), (new_whole, whole), (new_r, r)))
        slopes = np.where(better[:, None, None], new_slopes, slopes)
        cost = np.where(better, new_cost, cost)
        damp = np.clip(np.where(better, damp / 5, damp * 4), 1e-12, 1e12)
        done = (calm >= 2) | (damp >= 1e10)
        out[live] = p
        if done.all():
            break
        live, p, whole, slopes, r, cost, calm, damp = (v[~done] for v in (live, p, whole, slopes, r, cost, calm, damp))
    return out
