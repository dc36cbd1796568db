"""The outlines of over 14,000 real icons as token sequences, in IconShop's grammar: class = icon set, caption = words of the file name.

IconShop: arXiv 2304.14400; the grammar is that of `_stroke_tokens.Grammar`. The icons, their classes and which of them are held
out are those of source `icons`. Outlines are read from the SVG files once a set and kept in data_dir/strokes; `grid` and
`length` are applied as the source is opened.
"""

import hashlib
from collections import Counter

import numpy as np

from lab.data._stroke_store import build, load, origin, verify
from lab.data._stroke_tokens import NAMES, PAD, ROOM, Grammar, framed
from lab.data._svg_paths import ARGUMENTS, Path, iou
from lab.data.icons import raster
from lab.data.world import check
from lab.errors import UserError, unknown

__all__ = ["Grammar", "Source", "build", "drawn", "iou", "round_trip", "verify"]
SIDE = 64  # pixels of a picture of tokens


class Source:
    """Icons of `sets` as tokens int32 [length] (padded), length int32 (tokens before the padding), label = set, caption.

    Args:
      sets: icon sets, each a class.
      grid: lattice points an axis, over the longer side of an icon; the vocabulary has 6 + grid^2 tokens.
      length: most tokens of a sequence, START and END included; longer icons are left out, and `info` counts them.
      infill: whether there is room to move a span to the end: three more tokens of padding, two more in the vocabulary, which are
        `sentinels` int32 [2] (MASK, EOM) of every example, for objective `infill`.

    `names` has set/name of every icon; `grammar` encodes, decodes, checks and renders sequences. `info["left_out"]` counts this
    split's icons that are not there, by reason; `info["clipped"]` those whose points beyond the box were moved to its edge.
    """

    def __init__(
        self, split: str, data_dir: str, sets: tuple[str, ...] = raster.SETS, grid: int = 100, length: int = 512, infill: bool = False
    ):
        if split not in ("train", "eval"):
            raise unknown("split", split, ("train", "eval"))
        check("grid", grid, 2, 256)
        check("length", length, 8, 16384)
        if isinstance(sets, str) or not sets:
            raise UserError(f"config key data.sets={sets!r} must be a list of sets; there are: {', '.join(raster.SETS)}")
        kinds = sorted({kind for kind, _, _ in raster.files(tuple(sets))})
        self.grammar, self.names, self._left_out, self._clipped = Grammar(grid), [], Counter(), 0
        found = [self._read(load(data_dir, kind), kind, split, length) for kind in kinds]
        sequences = [s for of_set in found for s in of_set]
        if not sequences:
            raise UserError(f"config key data.length={length!r} with data.grid={grid}: no icon is left: {', '.join(self._left_out)}")
        self.arrays = {
            "tokens": padded(sequences, length + ROOM * infill),
            "length": np.array([len(s) for s in sequences], np.int32),
            "label": np.repeat(np.arange(len(kinds), dtype=np.int32), [len(of_set) for of_set in found]),
        }
        if infill:
            self.arrays["sentinels"] = np.tile(np.int32(self.grammar.sentinels), (len(sequences), 1))
        self.dims = {"classes": len(kinds), **sizes(self.grammar, length, infill)}
        content = hashlib.sha256(b"".join(a.tobytes() for a in self.arrays.values()) + "\n".join(self.names).encode())
        self.info = {
            **{"classes": len(kinds), "class_names": kinds, "examples": len(sequences), "fingerprint": content.hexdigest()[:32]},
            **{"origin": origin(), "best_loss": None, "left_out": dict(self._left_out), "clipped": self._clipped},
            "vocabulary": {"size": self.dims["vocabulary"], "first": list(NAMES), "grid": grid},
            "drawn": {"name": "strokes", "grid": grid},
        }

    def _read(self, stored: dict[str, np.ndarray], kind: str, split: str, length: int) -> list[np.ndarray]:
        """Sequences of a set's icons in `split`."""
        n, grammar, path = len(stored["name"]), self.grammar, Path(stored["commands"], stored["points"])
        icon = np.repeat(np.arange(n), stored["count"])
        beyond = np.abs(path.points - 0.5).max(1) > 0.5 + 0.5 / (grammar.grid - 1)
        clipped = np.bincount(np.repeat(icon, ARGUMENTS[path.commands]), beyond, n) > 0
        path, left = grammar.snap(path)
        size = np.bincount(icon[left], 1 + ARGUMENTS[path.commands], n).astype(int)
        bodies = np.split(grammar.body(path), np.cumsum(size)[:-1])
        out = []
        for i, name in enumerate(stored["name"].tolist()):
            if raster.held_out(kind, name) != (split == "eval"):
                continue
            long = f"longer than {length} tokens" if size[i] + 2 > length else ""
            if reason := str(stored["refused"][i]) or long or ("" if size[i] else "draws nothing"):
                self._left_out[reason] += 1
                continue
            self._clipped += int(clipped[i])
            self.names.append(f"{kind}/{name}")
            out.append(framed(bodies[i]))
        return out

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> dict:
        return {**{k: v[i] for k, v in self.arrays.items()}, "caption": raster.caption(self.names[i])}

    def picture(self, i: int) -> np.ndarray:
        """Example `i`, drawn from its tokens: uint8 [64, 64, 1], black on white."""
        return self.grammar.render(self.arrays["tokens"][i], SIDE)


def padded(sequences: list[np.ndarray], length: int) -> np.ndarray:
    """Sequences as rows, PAD behind them, int32 [n, length]."""
    out = np.full((len(sequences), length), PAD, np.int32)
    for row, s in zip(out, sequences, strict=True):
        row[: len(s)] = s
    return out


def sizes(grammar: Grammar, length: int, infill: bool) -> dict[str, int]:
    """What dims says of sequences of at most `length` tokens, with room for a moved span or without."""
    return {"tokens": length + ROOM * infill, "vocabulary": grammar.vocabulary + len(grammar.sentinels) * infill}


def drawn(tokens: np.ndarray, grid: int) -> np.ndarray:
    """Pictures of sequences int [N, length], black on white: uint8 [N, 64, 64, 1]; what is not grammatical is a cross on grey."""
    grammar = Grammar(grid)
    line = np.eye(SIDE, dtype=bool) | np.eye(SIDE, k=1, dtype=bool)
    cross = np.where(line | line[:, ::-1], 128, 208).astype(np.uint8)[..., None]
    return np.stack([grammar.render(row, SIDE) if grammar.valid(row) else cross for row in np.asarray(tokens)])


def round_trip(source: Source, count: int, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """What the lattice loses: `count` examples, evenly spread, and the IoU [count] of each one's picture with the icon's own raster.

    The rasters of icons that are not square lie on whole pixels, off by up to one: this counts as loss too.
    """
    files = {f"{kind}/{name}": file for kind, name, file in raster.files(tuple(source.info["class_names"]))}
    picked = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
    pairs = ((source.grammar.render(source.arrays["tokens"][i], size), raster.raster(files[source.names[i]], size)) for i in picked)
    return picked, np.array([iou(a, b) for a, b in pairs])
