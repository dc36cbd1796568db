"""Scenes of coloured shapes on a textured ground, and how they become pixels: every pixel has one of ten palette colours."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from lab.errors import UserError

SHAPES = ("circle", "square", "triangle", "cross", "heart", "moon")
COLOURS = ("red", "yellow", "green", "cyan", "blue", "purple")
SIZES = ("small", "large")
TONES = ("dark", "light")
PATTERNS = ("plain", "striped", "checked", "dotted")
GROUNDS = 2 * len(TONES)  # a tone has two palette colours

# two colours of the dark ground, two of the light one, then COLOURS; no two are closer than 60, and no object to a ground than 120
PALETTE = np.array(
    [
        *[(28, 30, 40), (62, 66, 82), (244, 240, 230), (212, 204, 188)],
        *[(228, 48, 56), (255, 214, 48), (32, 188, 88), (56, 212, 236), (44, 92, 240), (168, 60, 216)],
    ],
    np.uint8,
)

# at 3 and 4 pixels the outlines below would coincide, so these are drawn by hand; rows from the top
STAMPS = {
    3: ("010 111 010", "111 111 111", "010 010 111", "101 010 101", "101 111 010", "011 110 011"),
    4: (
        *("0110 1111 1111 0110", "1111 1111 1111 1111", "0110 0110 1111 1111"),
        *("1001 0110 0110 1001", "1001 1111 1111 0110", "0111 1100 1100 0111"),
    ),
}
SUPERSAMPLE = 8


class Object(NamedTuple):
    """One object: indices into SHAPES, COLOURS and SIZES, and the pixel of its top left corner."""

    shape: int
    colour: int
    size: int
    row: int
    col: int


class Scene(NamedTuple):
    """Objects in reading order of their cells, and the ground: indices into TONES and PATTERNS, and the pattern's two phases."""

    objects: tuple[Object, ...]
    tone: int
    pattern: int
    phases: tuple[int, int]


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    lobes = (abs(x) - 0.5) ** 2 + (y + 0.45) ** 2 <= 0.24
    return lobes | ((y > -0.45) & (abs(x) <= 0.72 * (1.1 - y)) & (abs(x) <= 1))


# over the box [-1, 1]^2, y downwards
OUTLINES = (
    lambda x, y: x**2 + y**2 <= 1,
    lambda x, y: x**14 + y**14 <= 1,
    lambda x, y: abs(x) <= (y + 1.22) / 2.22,
    lambda x, y: abs(abs(x) - abs(y)) <= 0.36,
    _heart,
    lambda x, y: (x**2 + y**2 <= 1) & ((x - 0.5) ** 2 + (y + 0.1) ** 2 > 0.55),
)


def stamp(shape: int, side: int) -> np.ndarray:
    """The pixels of a shape in its box, bool [side, side]: those that its outline covers by half or more."""
    if side in STAMPS:
        return np.array([[c == "1" for c in row] for row in STAMPS[side][shape].split()])
    at = (np.arange(side * SUPERSAMPLE) + 0.5) / (side * SUPERSAMPLE) * 2 - 1
    inside = OUTLINES[shape](at[None, :], at[:, None])
    return inside.reshape(side, SUPERSAMPLE, side, SUPERSAMPLE).mean((1, 3)) >= 0.5


def _textures(size: int) -> np.ndarray:
    """Palette indices of every ground, uint8 [tone, pattern, phase, phase, size, size]; a period is four phases."""
    unit = max(1, size // 16)
    at = (np.arange(size)[None, :] // unit + np.arange(4)[:, None]) % 4
    row, col = at[:, None, :, None], at[None, :, None, :]
    zero = np.zeros((4, 4, size, size), bool)
    patterns = np.stack([zero, (row < 2) | zero, (row < 2) ^ (col < 2), (row == 0) & (col == 0)])
    return (2 * np.arange(len(TONES), dtype=np.uint8)[:, None, None, None, None, None] + patterns).astype(np.uint8)


class Canvas:
    """A square picture of `size` pixels cut into grid x grid cells of `cell` pixels; a cell holds at most one object.

    An object is about 0.55 (small) or 0.8 (large) of a cell wide, and lies anywhere in it but for its last row and column, so that no
    two touch. Cells of 4 pixels (size 8) have no such room: there objects are 3 and 4 pixels wide and may touch.
    """

    def __init__(self, size: int, grid: int):
        if type(size) is not int or not 8 <= size <= 64:
            raise UserError(f"config key data.size={size!r} must be a whole number from 8 to 64")
        if grid not in (1, 2, 3) or size < 4 * grid:
            raise UserError(f"config key data.grid={grid!r} must be 1, 2, or 3 where data.size is at least 12 (it is {size})")
        self.size, self.grid, self.cell = size, grid, size // grid
        self.cells, self.origin = grid * grid, (size - grid * self.cell) // 2
        self.sides = (max(3, round(0.55 * self.cell)), max(4, round(0.8 * self.cell)))
        self.stamps = [[stamp(k, s) for s in self.sides] for k in range(len(SHAPES))]
        self.textures = _textures(size)

    def slack(self, size: int) -> int:
        """How many pixels an object can move in its cell, each way."""
        return self.cell - self.sides[size] - (self.cell > 4)

    def place(self, cell: int, shape: int, colour: int, size: int, down: int, right: int) -> Object:
        """An object `down` and `right` pixels from the top left of a cell."""
        row, col = divmod(cell, self.grid)
        return Object(shape, colour, size, self.origin + row * self.cell + down, self.origin + col * self.cell + right)

    def cell_of(self, thing: Object) -> int:
        """The cell that an object lies in, in reading order."""
        return (thing.row - self.origin) // self.cell * self.grid + (thing.col - self.origin) // self.cell

    def indices(self, scene: Scene) -> np.ndarray:
        """Palette indices of a scene, uint8 [size, size]."""
        out = self.textures[scene.tone, scene.pattern, *scene.phases].copy()
        for o in scene.objects:
            side = self.sides[o.size]
            out[o.row : o.row + side, o.col : o.col + side][self.stamps[o.shape][o.size]] = GROUNDS + o.colour
        return out

    def mask(self, scene: Scene) -> np.ndarray:
        """Which object a pixel shows, uint8 [size, size]: 0 is the ground, k the k-th object of the scene."""
        out = np.zeros((self.size, self.size), np.uint8)
        for k, o in enumerate(scene.objects, 1):
            side = self.sides[o.size]
            out[o.row : o.row + side, o.col : o.col + side][self.stamps[o.shape][o.size]] = k
        return out


@lru_cache(maxsize=16, typed=True)  # typed: 16.0 must not pass for 16
def canvas(size: int, grid: int) -> Canvas:
    """The canvas of a size, made once."""
    return Canvas(size, grid)
