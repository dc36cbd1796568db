"""Pictures -> what they show: in every cell the shape, colour, size and position whose pixels explain it best.

A pixel costs its squared distance to the palette colour it is said to have, those outside the object to the nearest ground. Least
cost is maximum likelihood under Gaussian noise; no two objects have the same pixels, so a clean picture is read without error.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from lab.data._shapes_scene import GROUNDS, PALETTE, PATTERNS, SHAPES, Canvas, Object, canvas
from lab.errors import UserError

CHUNK = 1 << 17  # pixels worked on at a time


class Found(NamedTuple):
    """What is in each cell, arrays [N, cells]: the best object even where `present` says that the bare ground is better.

    `score` is its cost less that of the bare ground, in squared grey levels: the lower, the surer.
    """

    present: np.ndarray
    shape: np.ndarray
    colour: np.ndarray
    size: np.ndarray
    row: np.ndarray
    col: np.ndarray
    score: np.ndarray


def pixels(images: np.ndarray) -> np.ndarray:
    """Pictures [N, size, size, 3], uint8 or floats in [-1, 1] -> float32 in 0 to 255."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
        raise UserError(f"images of shape {images.shape} are not pictures; expected [N, size, size, 3]")
    return images.astype(np.float32) if images.dtype == np.uint8 else (images.astype(np.float32) + 1) * 127.5


def distances(images: np.ndarray) -> np.ndarray:
    """Squared distance of every pixel to every palette colour, [..., 10], less the pixel's own square."""
    palette = PALETTE.astype(np.float32)
    return np.square(palette).sum(-1) - 2 * images @ palette.T


def nearest(images: np.ndarray) -> np.ndarray:
    """The palette index nearest to every pixel, int32 [N, size, size]: exact where pictures have palette colours only."""
    return distances(pixels(images)).argmin(-1).astype(np.int32)


@lru_cache(maxsize=16)
def _templates(size: int, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Every (shape, size, down, right) that fits a cell, int [M, 4], and its pixels, float32 [cell^2, M]."""
    on = canvas(size, grid)
    kinds, flat = [], []
    for shape in range(len(SHAPES)):
        for big, side in enumerate(on.sides):
            for down in range(on.slack(big) + 1):
                for right in range(on.slack(big) + 1):
                    where = np.zeros((on.cell, on.cell), np.float32)
                    where[down : down + side, right : right + side] = on.stamps[shape][big]
                    kinds.append((shape, big, down, right))
                    flat.append(where.ravel())
    return np.array(kinds), np.stack(flat, 1)


def _find(images: np.ndarray, on: Canvas) -> list[np.ndarray]:
    g, c, o = on.grid, on.cell, on.origin
    kinds, flat = _templates(on.size, g)
    d = distances(images[:, o : o + g * c, o : o + g * c]).reshape(-1, g, c, g, c, len(PALETTE))
    d = d.transpose(0, 1, 3, 5, 2, 4).reshape(-1, on.cells, len(PALETTE), c * c)
    gain = d[:, :, GROUNDS:] - d[:, :, :GROUNDS].min(2, keepdims=True)
    score = (gain.reshape(-1, c * c) @ flat).reshape(len(images), on.cells, -1)
    best = score.argmin(-1)
    colour, kind = np.divmod(best, len(kinds))
    shape, size, down, right = np.moveaxis(kinds[kind], -1, 0)
    row, col = np.divmod(np.arange(on.cells), g)
    lowest = np.take_along_axis(score, best[..., None], -1)[..., 0]
    return [lowest < 0, shape, colour, size, o + row * c + down, o + col * c + right, lowest]


def find(images: np.ndarray, grid: int = 2) -> Found:
    """The objects of pictures [N, size, size, 3], uint8 or floats in [-1, 1]."""
    given = pixels(images)
    on = canvas(given.shape[1], grid)
    step = max(1, CHUNK // on.size**2)
    parts = [_find(given[i : i + step], on) for i in range(0, max(1, len(given)), step)]
    return Found(*[np.concatenate(p) for p in zip(*parts, strict=True)])


def parse(image: np.ndarray, grid: int = 2) -> list[Object]:
    """The objects of one picture [size, size, 3], in reading order of their cells."""
    f = find(np.asarray(image)[None], grid)
    return [
        Object(*[int(v[0, k]) for v in (f.shape, f.colour, f.size, f.row, f.col)]) for k in range(f.present.shape[1]) if f.present[0, k]
    ]


def grounds(images: np.ndarray, grid: int = 2) -> np.ndarray:
    """Tone and pattern of the ground of pictures, int [N, 2], from the pixels that no object covers.

    Where objects hide all that tells two grounds apart, which takes a picture of 8 pixels, or of 12 with one cell, the answer is one of them.
    """
    given, f = pixels(images), find(images, grid)
    on = canvas(given.shape[1], grid)
    tones = (on.textures.reshape(-1, on.size**2) == np.arange(GROUNDS)[:, None, None]).astype(np.float32)
    d = distances(given)[..., :GROUNDS].reshape(len(given), -1, GROUNDS)
    for n, k in zip(*np.nonzero(f.present), strict=True):
        side = on.sides[f.size[n, k]]
        box = d[n].reshape(on.size, on.size, GROUNDS)[f.row[n, k] : f.row[n, k] + side, f.col[n, k] : f.col[n, k] + side]
        box[on.stamps[f.shape[n, k]][f.size[n, k]]] = 0
    cost = np.einsum("npg,gtp->nt", d, tones, optimize=True)
    best = cost.argmin(1) // 16  # four phases each way
    return np.stack(np.divmod(best, len(PATTERNS)), 1)


def attributes(images: np.ndarray, asked: list[list[Object]], grid: int = 2) -> dict[str, np.ndarray]:
    """How much of what was asked for each picture shows, floats [N].

    Returns:
      present, shape, colour, size: the share of asked objects in whose cell there is an object, and one with that attribute;
      exact: 1 where every cell holds the asked shape, colour and size, or nothing where nothing was asked.
    """
    f = find(images, grid)
    on = canvas(np.asarray(images).shape[1], grid)
    want = np.full((3, *f.present.shape), -1)
    for n, objects in enumerate(asked):
        for o in objects:
            want[:, n, on.cell_of(o)] = o.shape, o.colour, o.size
    here = want[0] >= 0
    count = np.maximum(here.sum(1), 1)
    right = {k: here & f.present & (getattr(f, k) == w) for k, w in zip(("shape", "colour", "size"), want, strict=True)}
    exact = (right["shape"] & right["colour"] & right["size"] | ~here & ~f.present).all(1)
    shares = {k: v.sum(1) / count for k, v in {"present": here & f.present, **right}.items()}
    return {**shares, "exact": exact.astype(float)}
