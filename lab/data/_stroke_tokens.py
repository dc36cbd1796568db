"""Outlines as tokens, in the grammar of IconShop (arXiv 2304.14400): a command, then one token a point.

icon := START subpath+ END PAD*
subpath := M point (L point | C point point point)+

A command fixes how many points follow, so a sequence decodes in one way. In their code M has two points, its start and end; here
it has one, as the start is where the last command ended. Subpaths are filled, so they close without a command. MASK and EOM, by which
a span is moved to the end, are numbered behind the points and are no part of a grammatical sequence.
"""

from typing import NamedTuple

import numpy as np

from lab.data._svg_paths import ARGUMENTS, L, M, Path, draw

PAD, START, END, MOVE, LINE, CURVE = range(6)
NAMES = ("PAD", "START", "END", "M", "L", "C")  # of the first tokens; points are numbered from POINT
POINT = len(NAMES)
ROOM = 3  # tokens that a sequence grows by where a span of it is moved: two MASK and an EOM
_DRAWN = (MOVE, LINE, CURVE, END)
FOLLOWS = {START: (MOVE,), MOVE: (LINE, CURVE), LINE: _DRAWN, CURVE: _DRAWN, END: (PAD,), PAD: (PAD,)}  # once its points are there


class Fault(NamedTuple):
    """The first position at which a sequence is not grammatical, and what was expected there."""

    position: int
    expected: str


class Grammar(NamedTuple):
    """Tokens on a lattice of grid x grid points that spans the unit square; the token of (x, y) is POINT + x + y grid."""

    grid: int

    @property
    def vocabulary(self) -> int:
        """How many tokens there are, MASK and EOM left out."""
        return POINT + self.grid**2

    @property
    def sentinels(self) -> tuple[int, int]:
        """MASK and EOM."""
        return self.vocabulary, self.vocabulary + 1

    def snap(self, path: Path) -> tuple[Path, np.ndarray]:
        """The outline on the lattice, and the numbers of the commands that are left.

        What draws nothing there is gone: commands that do not move, lines that close a subpath, subpaths without area. Many icons
        may follow each other as one outline, as each begins with M.
        """
        # half a lattice step is common (12 of 24): noise in the last digit must not choose the side
        cells = np.floor(np.round(path.points * (self.grid - 1), 4) + 0.5).clip(0, self.grid - 1)
        path, left = Path(path.commands, cells), np.arange(len(path.commands))
        for wanted in (_moving, _not_closing, _with_area):
            if len(left):
                keep = wanted(path)
                path = Path(path.commands[keep], path.points[np.repeat(keep, ARGUMENTS[path.commands])])
                left = left[keep]
        return Path(path.commands, path.points / (self.grid - 1)), left

    def body(self, path: Path) -> np.ndarray:
        """Tokens between START and END; an outline whose points are on no lattice point takes the nearest."""
        cells = np.rint(path.points * (self.grid - 1)).astype(np.int32)
        size = 1 + ARGUMENTS[path.commands]
        tokens = np.empty(size.sum(), np.int32)
        at = np.cumsum(size) - size
        place = np.ones(len(tokens), bool)
        place[at] = False
        tokens[at] = MOVE + path.commands
        tokens[place] = POINT + cells @ np.array([1, self.grid], np.int32)
        return tokens

    def encode(self, path: Path) -> np.ndarray:
        """The sequence of an outline, int32 [n]."""
        return framed(self.body(path))

    def decode(self, tokens: np.ndarray) -> Path:
        """The outline of a sequence, padded or not; ValueError where it is not grammatical."""
        if fault := self.fault(tokens):
            raise ValueError(f"token {fault.position}: {fault.expected} was expected")
        tokens = np.asarray(tokens)
        cells = tokens[tokens >= POINT] - POINT
        commands = tokens[(tokens >= MOVE) & (tokens < POINT)] - MOVE
        return Path(commands.astype(np.int8), np.stack([cells % self.grid, cells // self.grid], -1) / (self.grid - 1))

    def fault(self, tokens: np.ndarray) -> Fault | None:
        """What is wrong with a sequence [n] first; None where it is grammatical."""
        points, last = 0, None
        for i, t in enumerate(np.asarray(tokens).tolist()):
            if points:
                if not POINT <= t < self.vocabulary:
                    return Fault(i, "a point")
                points -= 1
            elif t not in (allowed := FOLLOWS[last] if last is not None else (START,)):
                return Fault(i, " or ".join(NAMES[a] for a in allowed))
            else:
                last = t
                points = int(ARGUMENTS[t - MOVE]) if t >= MOVE else 0
        return None if last in (END, PAD) else Fault(len(tokens), "a point" if points else "END")

    def valid(self, tokens: np.ndarray) -> bool:
        """Whether a sequence [n] is grammatical."""
        return self.fault(tokens) is None

    def render(self, tokens: np.ndarray, size: int) -> np.ndarray:
        """The picture of a sequence, black on white: uint8 [size, size, 1]; ValueError where it is not grammatical."""
        return draw(self.decode(tokens), size)


def framed(body: np.ndarray) -> np.ndarray:
    """A body with START before it and END behind."""
    return np.concatenate([[START], body, [END]]).astype(np.int32)


def _ends(path: Path) -> np.ndarray:
    """Where each command ends, [n, 2]."""
    return path.points[np.cumsum(ARGUMENTS[path.commands]) - 1]


def _subpaths(path: Path) -> np.ndarray:
    return np.cumsum(path.commands == M) - 1


def _moving(path: Path) -> np.ndarray:
    """All but lines and curves whose points are all where the pen is already."""
    size, ends = ARGUMENTS[path.commands], _ends(path)
    away = np.abs(path.points - np.repeat(np.roll(ends, 1, 0), size, 0)).max(1)
    return (path.commands == M) | (np.maximum.reduceat(away, np.cumsum(size) - size) > 0)


def _not_closing(path: Path) -> np.ndarray:
    """All but a line that ends its subpath where it began."""
    ends, subpath = _ends(path), _subpaths(path)
    home = (ends == ends[path.commands == M][subpath]).all(1)
    return ~((path.commands == L) & home & (np.append(path.commands[1:], M) == M))


def _with_area(path: Path) -> np.ndarray:
    """All but subpaths of no curve and fewer than two lines."""
    subpath = _subpaths(path)
    weight = np.bincount(subpath, np.array([0, 1, 2])[path.commands])
    return (weight >= 2)[subpath]
