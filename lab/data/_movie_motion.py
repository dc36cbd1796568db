"""How objects of the movie world move: one table says how likely every next motion is, and all of the world follows from it.

A motion is a step of whole pixels a frame. An object lives in a zone of its own; its state is where it is and the motion that
brought it there. A step that would leave the zone is reversed, along each axis by itself. With probability `turn` the object then
goes in another direction at its speed, any that stays inside being equally likely. Positions never fall short of a step at a
wall, so every motion can be seen as the difference of two positions, and the chain of states is Markov and fully observed.
"""

from functools import lru_cache

import numpy as np
from scipy.special import entr

from lab.data._shapes_scene import SIZES, canvas
from lab.data.world import check
from lab.errors import UserError

DIRECTIONS = {
    **{"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)},
    **{"up left": (-1, -1), "up right": (-1, 1), "down left": (1, -1), "down right": (1, 1)},
}
SPEEDS = ("slow", "fast")  # one and two units of `size // 16` pixels a frame
ZONES = {1: (1, 1), 2: (2, 1), 4: (2, 2)}  # rows and columns of zones, by the number of objects


class Stage:
    """A picture cut into one zone an object, the motions in it, and their chances.

    steps: int [M, 2], down and right in pixels a frame, 'still' first; names: of the motions; zones: int [K, 2], the top left pixels;
    rooms: int [2, 2], by size of an object how far down and right it can be; starts: int [2, M, 2, 2], by size and first motion the
    lowest start down and right, and how many there are; chance: [2, M, H, W, M], by size, motion that led here, row and column in the
    zone, the probability of every next motion.
    """

    def __init__(self, size: int, objects: int, directions: int, speeds: int, turn: float):
        if objects not in ZONES or type(objects) is not int:
            raise UserError(f"config key data.objects={objects!r} must be 1, 2 or 4")
        if directions not in (4, 8) or type(directions) is not int:
            raise UserError(f"config key data.directions={directions!r} must be 4 or 8")
        check("speeds", speeds, 1, len(SPEEDS))
        check("turn", turn, 0.0, 1.0)
        check("size", size, 8, 64)
        self.canvas, self.turn = canvas(size, 3 if size >= 12 else 2), float(turn)  # its cells give objects their sizes
        rows, cols = ZONES[objects]
        self.zone = np.array([size // rows, size // cols])
        self.zones = np.array([(r * self.zone[0], c * self.zone[1]) for r in range(rows) for c in range(cols)])
        self.rooms = self.zone - np.array(self.canvas.sides)[:, None]
        unit = max(1, size // 16)
        if self.rooms.min() < 2 * unit * speeds - 1:  # else neither a step nor its reverse may fit
            raise UserError(f"config key data.objects={objects} with data.speeds={speeds} has no room in pictures of data.size={size}")
        ways = np.array(list(DIRECTIONS.values())[:directions])
        self.steps = np.concatenate([np.zeros((1, 2), int), *(unit * (k + 1) * ways for k in range(speeds))])
        self.speed = np.repeat(np.arange(speeds + 1), [1] + [directions] * speeds)
        tails = [f" {s}" for s in SPEEDS] if speeds > 1 else [""]
        self.names = ["still", *(way + tail for tail in tails for way in list(DIRECTIONS)[:directions])]
        self._reach = unit * speeds
        self._index = np.full((2 * self._reach + 1,) * 2, -1)
        self._index[tuple((self.steps + self._reach).T)] = np.arange(len(self.steps))
        self.starts, self.chance = self._starts(), self._chances()
        total = np.cumsum(self.chance, -1)
        # its last entry is exactly 1, and so are those behind the last motion that can be: a number below 1 never falls on one that cannot
        self.cumulative = total / total[..., -1:]

    def motion(self, steps: np.ndarray) -> np.ndarray:
        """Number of the motion with these steps [..., 2], -1 where there is none; int [...]."""
        near = (np.abs(steps) <= self._reach).all(-1)
        row, col = np.moveaxis(np.where(near[..., None], steps, 0) + self._reach, -1, 0)
        return np.where(near, self._index[row, col], -1)

    def _chances(self) -> np.ndarray:
        height, width = self.rooms.max(0) + 1
        at = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1)
        to = at[:, :, None] + self.steps  # [H, W, M, 2]
        out = np.zeros((len(SIZES), len(self.steps), height, width, len(self.steps)))
        for size, room in enumerate(self.rooms):
            inside = (at <= room).all(-1)
            leaves = (to < 0) | (to > room)
            onward = self.motion(np.where(leaves, -self.steps, self.steps))
            for m in range(len(self.steps)):
                ahead = np.eye(len(self.steps))[onward[:, :, m]]
                free = ~leaves.any(-1) & (self.speed == self.speed[m]) & (ahead == 0)
                ways = free.sum(-1, keepdims=True)
                turn = np.where(ways > 0, self.turn, 0)
                p = (1 - turn) * ahead + turn * free / np.maximum(ways, 1)
                out[size, m] = np.where(inside[..., None], p, np.eye(len(self.steps))[0])
        return out

    def _starts(self) -> np.ndarray:
        steps = np.broadcast_to(self.steps, (len(SIZES), *self.steps.shape))
        return np.stack([np.maximum(0, -steps), self.rooms[:, None] - abs(steps) + 1], 2)

    def states(self, frames: int) -> np.ndarray:
        """Exact probability of an object's state in frames 1 to frames - 1, [frames - 1, 2, M, H, W]; labels equally likely."""
        mass = np.zeros((frames - 1, *self.chance.shape[:-1]))
        for size in range(len(SIZES)):
            for m, step in enumerate(self.steps):
                low, count = self.starts[size, m]
                box = tuple(slice(a, a + n) for a, n in zip(low + step, count, strict=True))
                mass[0, size, m][box] = 1 / (len(SIZES) * len(self.steps) * count.prod())
        for t in range(frames - 2):
            flow = np.einsum("bmhw,bmhwn->bnhw", mass[t], self.chance)
            for m, step in enumerate(self.steps):  # no mass leaves, so none comes in where a roll wraps
                mass[t + 1, :, m] = np.roll(flow[:, m], step, (1, 2))
        return mass

    def entropies(self, frames: int) -> np.ndarray:
        """Exact mean entropy of each frame after the first in nats, given all before and the label, [frames - 1]."""
        given = entr(self.chance).sum(-1)
        later = np.einsum("tbmhw,bmhw->t", self.states(frames - 1), given) if frames > 2 else np.zeros(0)
        return len(self.zones) * np.concatenate([[0.0], later])


@lru_cache(maxsize=16, typed=True)  # typed: 16.0 must not pass for 16
def stage(size: int, objects: int, directions: int, speeds: int, turn: float) -> Stage:
    """The stage of these options, made once."""
    return Stage(size, objects, directions, speeds, turn)
