"""World of polygons as token sequences, in the grammar of source `strokes`, every one as likely as another of its class.

class (8 polygons of 3 to 8 corners) x scale x offset x first corner: of a class's N sequences each has -log p = log N exactly, so the
loss of an autoregressive model less log N is its excess loss.
"""

import hashlib
import json
from functools import cached_property

import numpy as np

from lab.data._stroke_tokens import END, LINE, MOVE, NAMES, POINT, ROOM, START, Grammar
from lab.data.strokes import SIDE, padded, sizes
from lab.data.world import check
from lab.errors import UserError, unknown

# corners in order; the box of each begins at 0, and no two are alike at any scale
CORNERS = {
    "triangle": ((0, 0), (2, 2), (0, 2)),
    "rectangle": ((0, 0), (2, 0), (2, 1), (0, 1)),
    "diamond": ((1, 0), (2, 1), (1, 2), (0, 1)),
    "house": ((1, 0), (2, 1), (2, 2), (0, 2), (0, 1)),
    "hexagon": ((1, 0), (2, 0), (3, 1), (2, 2), (1, 2), (0, 1)),
    "corner": ((0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (0, 2)),
    "flag": ((0, 0), (3, 0), (2, 1), (3, 2), (1, 2), (1, 3), (0, 3)),
    "octagon": ((1, 0), (2, 0), (3, 1), (3, 2), (2, 3), (1, 3), (0, 2), (0, 1)),
}
EVAL = 4096
STREAMS = {"train": 0, "eval": 1}


class Source:
    """Sequences as tokens int32 [length] (padded), length int32, label = kind of polygon: independent draws, so that some repeat.

    Args:
      grid: lattice points an axis; the vocabulary has 6 + grid^2 tokens.
      scales: how many sizes a polygon has: its corners times 1, 2, ...
      infill: whether there is room to move a span to the end, as in `strokes`.
      examples: of training, drawn from `seed`; eval has 4,096 others.

    `info["best_loss"]` is the mean over classes of log N / tokens, in nats a token, for predicting from left to right.
    """

    def __init__(
        self, split: str, data_dir: str, grid: int = 16, scales: int = 3, infill: bool = False, examples: int = 16384, seed: int = 0
    ):
        if split not in STREAMS:
            raise unknown("split", split, STREAMS)
        for key, value, low, high in (("grid", grid, 5, 64), ("scales", scales, 1, 16), ("examples", examples, 1, 1 << 22)):
            check(key, value, low, high)
        check("seed", seed, 0, 2**32 - 1)
        largest = max(max(x) for corners in CORNERS.values() for x in corners)
        if scales * largest >= grid:
            raise UserError(
                f"config key data.scales={scales} with data.grid={grid}: the largest polygon is {scales * largest + 1} points wide"
            )
        self.grammar, self.scales = Grammar(grid), scales
        rng = np.random.default_rng([STREAMS[split], seed])
        label = rng.integers(len(CORNERS), size=examples if split == "train" else EVAL)
        at = rng.integers(np.array([len(every) for every in self.sequences])[label])
        rows = [self.sequences[k][i] for k, i in zip(label, at, strict=True)]
        longest = max(len(every[0]) for every in self.sequences)
        self.arrays = {
            "tokens": padded(rows, longest + ROOM * infill),
            "length": np.array([len(s) for s in rows], np.int32),
            "label": label.astype(np.int32),
        }
        if infill:
            self.arrays["sentinels"] = np.tile(np.int32(self.grammar.sentinels), (len(rows), 1))
        self.dims = {"classes": len(CORNERS), **sizes(self.grammar, longest, infill)}
        content = hashlib.sha256(b"".join(a.tobytes() for a in self.arrays.values()))
        options = {"grid": grid, "scales": scales, "infill": infill, "examples": examples, "seed": seed}
        self.info = {
            **{"classes": len(CORNERS), "class_names": list(CORNERS), "examples": len(rows), "fingerprint": content.hexdigest()[:32]},
            **{
                "origin": f"{__name__} {json.dumps(options)}",
                "best_loss": float(np.mean(self.floor / [len(e[0]) for e in self.sequences])),
            },
            **{
                "vocabulary": {"size": self.dims["vocabulary"], "first": list(NAMES), "grid": grid},
                "drawn": {"name": "strokes", "grid": grid},
            },
        }

    @cached_property
    def sequences(self) -> list[list[np.ndarray]]:
        """All sequences of each class, each of which is as likely as another."""
        return [self._all(np.array(corners)) for corners in CORNERS.values()]

    @property
    def floor(self) -> np.ndarray:
        """log N of each class in nats, [classes]: what a sequence costs a model that knows the world."""
        return np.log([len(every) for every in self.sequences])

    def _all(self, corners: np.ndarray) -> list[np.ndarray]:
        grid, n = self.grammar.grid, len(corners)
        out = []
        for scale in range(1, self.scales + 1):
            wide, high = scale * corners.max(0)
            for y in range(grid - high):
                for x in range(grid - wide):
                    points = POINT + (corners * scale + (x, y)) @ (1, grid)
                    out += [_sequence(np.roll(points, -first)) for first in range(n)]
        return out

    def __len__(self) -> int:
        return len(self.arrays["label"])

    def __getitem__(self, i: int) -> dict:
        return {k: v[i] for k, v in self.arrays.items()}

    def parse(self, tokens: np.ndarray) -> np.ndarray:
        """The class of each sequence [N, length], -1 for one that the world cannot make."""
        known = {tuple(s.tolist()): k for k, every in enumerate(self.sequences) for s in every}
        ends = [np.flatnonzero(row == END) for row in np.asarray(tokens)]
        return np.array([known.get(tuple(row[: e[0] + 1].tolist()), -1) if len(e) else -1 for row, e in zip(tokens, ends, strict=True)])

    def picture(self, i: int) -> np.ndarray:
        """Example `i`, drawn from its tokens: uint8 [64, 64, 1], black on white."""
        return self.grammar.render(self.arrays["tokens"][i], SIDE)


def _sequence(points: np.ndarray) -> np.ndarray:
    """START, M and the first point, L and each of the others, END."""
    out = np.empty(2 * len(points) + 2, np.int32)
    out[0], out[1:-1:2], out[2:-1:2], out[-1] = START, LINE, points, END
    out[1] = MOVE
    return out
