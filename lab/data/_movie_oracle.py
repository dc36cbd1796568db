"""Movies -> what they show and whether it obeys the dynamics: in every zone of every frame the object whose pixels explain it best.

A pixel's cost is that of _shapes_oracle, least cost being maximum likelihood under Gaussian noise. Every frame is read by itself, so
what changes between frames is seen. What a zone shows beside its surest object goes unseen.
"""

from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
import scipy.fft

from lab.data._movie_motion import Stage
from lab.data._shapes_oracle import CHUNK, Found, distances, pixels
from lab.data._shapes_scene import GROUNDS, PALETTE, SHAPES, SIZES, Canvas, Object, Scene
from lab.errors import UserError


class Track(NamedTuple):
    """What movies show. found: arrays [..., F, K] with zones in reading order, rows and columns in pixels of the picture; ground:
    [..., F], a row of `textures`; velocity: [..., F - 1, K, 2], down and right in pixels; motion: [..., F - 1, K], -1 for none."""

    found: Found
    ground: np.ndarray
    velocity: np.ndarray
    motion: np.ndarray


@lru_cache(maxsize=16)
def textures(on: Canvas) -> np.ndarray:
    """Every ground once, palette indices [58, size, size]: phases that make no difference are one."""
    return np.unique(on.textures.reshape(-1, on.size, on.size), axis=0)


@lru_cache(maxsize=16)
def _stamps(stage: Stage) -> list[tuple[int, int, np.ndarray]]:
    """Shape, size and conjugate Fourier transform over a zone of every stamp."""
    kinds = product(range(len(SHAPES)), range(len(SIZES)))
    return [(k, b, scipy.fft.rfft2(stage.canvas.stamps[k][b].astype(np.float32), stage.zone).conj()) for k, b in kinds]


def _zone(d: np.ndarray, stage: Stage) -> np.ndarray:
    """Best object in one zone by costs [N, 10, h, w]: score, shape, colour, size, row and column, [N, 6].

    No object of a colour costs less than all the pixels that gain by it, so colours are tried until none can be better.
    """
    gain = d[:, GROUNDS:] - d[:, :GROUNDS].min(1, keepdims=True)
    bound = np.minimum(gain, 0).sum((2, 3))
    best = np.zeros((len(d), 6))
    best[:, 0] = np.inf
    for colours in bound.argsort(1).T:
        rows = np.flatnonzero(bound[np.arange(len(d)), colours] < best[:, 0])
        if not rows.size:
            break
        waves = scipy.fft.rfft2(gain[rows, colours[rows]])
        for shape, size, stamp in _stamps(stage):
            room = stage.rooms[size] + 1
            # a circular correlation, right wherever the stamp lies inside
            score = scipy.fft.irfft2(waves * stamp, stage.zone)[:, : room[0], : room[1]].reshape(len(rows), -1)
            at = score.argmin(1)
            low = score[np.arange(len(rows)), at]
            better = low < best[rows, 0]
            kind = [low, np.full(len(rows), shape), colours[rows], np.full(len(rows), size), *np.divmod(at, room[1])]
            best[rows[better]] = np.stack(kind, 1)[better]
    return best


def _grounds(d: np.ndarray, what: np.ndarray, on: Canvas) -> np.ndarray:
    """The ground that best explains the pixels no object covers, [N] rows of `textures`: by sums over a period of four phases."""
    hidden = np.stack([on.mask(Scene(tuple(Object(*o) for o in frame), 0, 0, (0, 0))) for frame in what.tolist()])
    unit = max(1, on.size // 16)
    times = -(-on.size // (4 * unit))
    pad = times * 4 * unit - on.size
    bare = np.pad(d[:, :GROUNDS] * (hidden == 0)[:, None], ((0, 0), (0, 0), (0, pad), (0, pad)))
    sums = bare.reshape(len(d), GROUNDS, times, 4, unit, times, 4, unit).sum((2, 4, 5, 7))
    period = textures(on)[:, None, : 4 * unit : unit, : 4 * unit : unit] == np.arange(GROUNDS, dtype=np.uint8)[:, None, None]
    return (sums.reshape(len(d), -1) @ period.reshape(len(period), -1).T.astype(np.float32)).argmin(1)


def _read(images: np.ndarray, stage: Stage) -> list[np.ndarray]:
    d = np.ascontiguousarray(np.moveaxis(distances(images), -1, 1))
    best = np.stack([_zone(d[:, :, r : r + stage.zone[0], c : c + stage.zone[1]], stage) for r, c in stage.zones], 1)
    what = best[..., 1:].astype(int) + np.concatenate([np.zeros((len(stage.zones), 3), int), stage.zones], 1)
    return [best[..., 0] < 0, *np.moveaxis(what, -1, 0), best[..., 0], _grounds(d, what, stage.canvas)]


def track(movies: np.ndarray, stage: Stage) -> Track:
    """What movies [..., F, size, size, 3] show, uint8 or floats in [-1, 1]."""
    movies = np.asarray(movies)
    given = pixels(movies.reshape(-1, *movies.shape[-3:]))
    step = max(1, CHUNK // stage.canvas.size**2)
    parts = [_read(given[i : i + step], stage) for i in range(0, len(given), step)]
    *found, ground = [np.concatenate(x).reshape(*movies.shape[:-3], *x[0].shape[1:]) for x in zip(*parts, strict=True)]
    found = Found(*found)
    velocity = np.diff(np.stack([found.row, found.col], -1), axis=-3)
    return Track(found, ground, velocity, stage.motion(velocity))


def places(seen: Track, stage: Stage) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of objects in their zones, [..., F, K] each."""
    return seen.found.row - stage.zones[:, 0], seen.found.col - stage.zones[:, 1]


def obeys(seen: Track, stage: Stage) -> np.ndarray:
    """Whether each transition is one that the dynamics can make, bool [..., F - 1].

    Objects and ground stay what they are; the first step is one motion of all; every later one has positive probability.
    """
    f, m = seen.found, seen.motion
    look = np.stack([f.shape, f.colour, f.size], -1)
    same = (look[..., 1:, :, :] == look[..., :-1, :, :]).all((-1, -2)) & (seen.ground[..., 1:] == seen.ground[..., :-1])
    there = f.present.all(-1)
    row, col = (x[..., 1:-1, :] for x in places(seen, stage))
    likely = stage.chance[f.size[..., 1:-1, :], m[..., :-1, :], row, col, m[..., 1:, :]] > 0
    first = (m[..., :1, :] == m[..., :1, :1]).all(-1)
    moves = np.concatenate([first, likely.all(-1) & (m[..., :-1, :] >= 0).all(-1)], -1) & (m >= 0).all(-1)
    return same & there[..., 1:] & there[..., :-1] & moves


def ahead(seen: Track, stage: Stage, labels: np.ndarray | None) -> np.ndarray:
    """Exact probability of every object's motion after the last frame seen, [..., K, M]; UserError after a step that is no motion."""
    size, (row, col) = seen.found.size[..., -1, :], (x[..., -1, :] for x in places(seen, stage))
    if seen.motion.shape[-2]:
        last = seen.motion[..., -1, :]
        if (last < 0).any():
            raise UserError(f"movies: {(last < 0).any(-1).sum()} of them end with a step that is none of: {', '.join(stage.names)}")
        return stage.chance[size, last, row, col]
    if labels is not None:
        labels = np.asarray(labels)
        if labels.min() < 0 or labels.max() >= len(stage.steps):  # -1 is how the lab hides a label, and would index the last motion
            raise UserError(f"labels must lie from 0 to {len(stage.steps) - 1}; a hidden label is None")
        p = np.eye(len(stage.steps))[labels]
    else:  # starts are equally likely where they fit, so a motion with fewer starts makes each of them more likely
        to = np.stack([row, col], -1)[..., None, :] + stage.steps
        fits = ((to >= 0) & (to <= stage.rooms[size][..., None, :])).all(-1)
        p = (fits / stage.starts[size, :, 1].prod(-1)).prod(-2)
        p /= p.sum(-1, keepdims=True)
    return np.broadcast_to(p[..., None, :], (*size.shape, p.shape[-1]))


def mean(seen: Track, stage: Stage, p: np.ndarray) -> np.ndarray:
    """Mean of the frame after the last one seen, 0 to 255, [..., size, size, 3], with motions of chances p [..., K, M]."""
    on, palette, f = stage.canvas, PALETTE.astype(float), seen.found
    shape, colour, size, row, col = (x[..., -1, :] for x in (f.shape, f.colour, f.size, f.row, f.col))
    out = palette[textures(on)[seen.ground[..., -1]]]
    for k in np.ndindex(shape.shape):
        side, cover = on.sides[size[k]], np.zeros((on.size, on.size, 1))
        for m in np.flatnonzero(p[k]):
            down, right = np.array([row[k], col[k]]) + stage.steps[m]
            cover[down : down + side, right : right + side, 0] += p[k][m] * on.stamps[shape[k]][size[k]]
        out[k[:-1]] += cover * (palette[GROUNDS + colour[k]] - out[k[:-1]])  # zones are apart, so no cover meets another
    return out
