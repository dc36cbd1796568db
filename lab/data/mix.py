"""Mixture of sources by weight, interleaved so that any first n items hold n times each source's share, to within one.

A source is gone through in a shuffled order, another one every time round. The loader shuffles the items of an epoch again, so a
batch holds the shares on average and an epoch holds them exactly.
"""

import hashlib
import json
import math
from fractions import Fraction
from typing import Any

import grain
import numpy as np
from scipy.special import gammaln

from lab.data._inner import content, inner
from lab.errors import UserError, unknown

STOPS = ("first_exhausted", "all_exhausted")
# longest epochs: train too long to be decoded as a whole, eval quick to permute, and both within grain's shuffle of 32 bits
LENGTH = {"train": 1 << 27, "eval": 1 << 20}
ABOUT = ("image", "tokens", "vocabulary", "palette", "drawn")  # what is told of the mixture where it holds for every source
PERIOD = 100_000  # longest pattern


def whole(weights: tuple[float, ...]) -> list[int]:
    """The least whole numbers in the ratios of weights; grain's own mixing rounds them to hundredths of the least weight."""
    parts = [Fraction(w).limit_denominator(10_000) for w in weights]
    scale = math.lcm(*(p.denominator for p in parts))
    counts = [int(p * scale) for p in parts]
    return [c // math.gcd(*counts) for c in counts]


def interleave(counts: list[int]) -> np.ndarray:
    """Sources in turn, [sum(counts)]: source k is in the first n places n counts[k] / sum(counts) times, to within one.

    The quota method (Balinski & Young 1975): of the sources below their share, the one that must come next soonest.
    """
    total, had, out = sum(counts), [0] * len(counts), []
    for n in range(1, total + 1):
        below = [k for k, c in enumerate(counts) if had[k] * total < n * c]
        k = min(below, key=lambda k: (had[k] + 1) / counts[k])
        had[k] += 1
        out.append(k)
    return np.array(out)


def _seen(length: int, copies: int, n: int) -> float:
    """Probability that at least one of `copies` items is among `n` drawn from `length` without replacement."""
    if copies == 0 or n > length - copies:
        return float(copies > 0)
    if copies < 1000:
        return float(-np.expm1(np.log1p(-n / (length - np.arange(copies))).sum()))
    a, b, c, d = gammaln([length - copies + 1.0, length - n + 1.0, length + 1.0, length - copies - n + 1.0])
    return float(-np.expm1(a + b - c - d))


def _weights(weights: Any, n: int) -> list[int]:
    """Weights as whole numbers; UserError unless there are `n`, all positive and in ratios of small numbers."""
    numbers = isinstance(weights, (tuple, list)) and all(type(w) in (int, float) and 0 < w < math.inf for w in weights)
    if not numbers or len(weights) != n:
        raise UserError(f"config key data.weights={weights!r} must be {n} positive numbers, one a source, such as {(1,) * n}")
    largest = max(weights)
    counts = whole([w / largest for w in weights])
    if min(counts) == 0 or sum(counts) > PERIOD:
        raise UserError(f"config key data.weights={weights!r} are in no ratio of small whole numbers; round them, such as to (0.7, 0.3)")
    return counts


def _same(what: str, names: list[str], values: list[Any]) -> None:
    """UserError unless all sources have the same."""
    for name, value in zip(names, values, strict=True):
        if value != values[0]:
            raise UserError(
                f"config key data.sources: {what} is {values[0]!r} in {names[0]!r} but {value!r} in {name!r}; expected the same in all"
            )


class Source:
    """Examples of several sources, each a section as config key data has it, in the ratio of `weights`.

    stop: an epoch ends at 'first_exhausted', so that none is repeated in it and the larger sources give a part of theirs, the same in
      every epoch; or at 'all_exhausted', the smaller ones being repeated (at most 2^27 items, where a source is endless).
    Classes are shared where all sources have the same list of them, else each source has its own, named source/class. Only what every
    source gives is kept. Eval is the mixture of the held-out splits, without repeats.
    """

    def __init__(self, split: str, data_dir: str, sources: tuple[dict, ...], weights: tuple[float, ...], stop: str = "first_exhausted"):
        if not isinstance(sources, (tuple, list)) or len(sources) < 2:
            raise UserError(
                f"config key data.sources={sources!r} must be two sections of sources or more, such as (dict(name='icons', size=16), ...)"
            )
        if stop not in STOPS:
            raise unknown("config key data.stop", stop, STOPS)
        self.counts = _weights(weights, len(sources))
        self.sources = [inner(f"sources[{k}]", s, split, data_dir) for k, s in enumerate(sources)]
        names = [s["name"].rpartition("/")[2].removesuffix(".py") for s in sources]
        self._names = [n if names.count(n) == 1 else f"{n}{k}" for k, n in enumerate(names)]
        self._arrange(STOPS[0] if split == "eval" else stop, LENGTH[split])
        self._agree()
        kinds = [s.info["class_names"] for s in self.sources]
        shared = all(c == kinds[0] for c in kinds)
        self._offsets = [0 if shared else sum(map(len, kinds[:k])) for k in range(len(kinds))]
        classes = kinds[0] if shared else [f"{n}/{c}" for n, names in zip(self._names, kinds, strict=True) for c in names]
        common = [k for k in self.sources[0].dims if all(k in s.dims for s in self.sources)]
        self.dims = {k: self.sources[0].dims[k] for k in common} | {"classes": len(classes)}
        parts = [content(s, opened) for s, opened in zip(sources, self.sources, strict=True)]
        text = json.dumps([parts, self.counts, stop])
        self.info = {
            **{k: v for k, v in self.sources[0].info.items() if k in ABOUT and all(s.info.get(k) == v for s in self.sources)},
            **{"classes": len(classes), "class_names": classes, "examples": len(self), "sources": self._shares()},
            **{
                "fingerprint": hashlib.sha256(text.encode()).hexdigest()[:32],
                "origin": f"mix of {', '.join(self._names)}",
                "best_loss": None,
            },
        }

    def _arrange(self, stop: str, most: int) -> None:
        """Lay out the pattern and the length of an epoch."""
        self._pattern = interleave(self.counts)
        self._places = [np.flatnonzero(self._pattern == k) for k in range(len(self.counts))]
        sizes = [len(s) for s in self.sources]
        self._orders = [grain.MapDataset.range(min(n, 1 << 31)).seed(k).shuffle().repeat() for k, n in enumerate(sizes)]
        if stop == "first_exhausted":
            ends = min(self._place(k, n) for k, n in enumerate(sizes))
        else:
            ends = max(self._place(k, n - 1) + 1 for k, n in enumerate(sizes))
        self._length = min(ends, most)

    def _place(self, k: int, j: int) -> int:
        """Where draw j of source k stands in the mixture."""
        rounds, rest = divmod(j, self.counts[k])
        return rounds * len(self._pattern) + int(self._places[k][rest])

    def drawn(self, k: int, n: int) -> int:
        """How many of the first n items are of source k."""
        rounds, rest = divmod(n, len(self._pattern))
        return rounds * self.counts[k] + int(np.searchsorted(self._places[k], rest))

    def _agree(self) -> None:
        """Find the keys that all sources give; UserError where they or the sizes differ."""
        firsts = [s[0] for s in self.sources]
        self._keys = [k for k in firsts[0] if all(k in f for f in firsts)]
        for k in self._keys:
            arrays = [np.asarray(f[k]) for f in firsts]
            if any(a.dtype.kind in "iufb" for a in arrays):
                _same(k, self._names, [f"{a.dtype}{list(a.shape)}" for a in arrays])
        for k in self.sources[0].dims:
            if k != "classes" and all(k in s.dims for s in self.sources):
                _same(f"size {k!r}", self._names, [s.dims[k] for s in self.sources])
        if "text" in self._keys and len({json.dumps(s.info.get("vocabulary")) for s in self.sources}) > 1:
            raise UserError(
                "config key data.sources: their vocabularies differ; expected text around the mixture: dict(name='text', source=dict(name='mix', ...))"
            )

    def _shares(self) -> list[dict[str, Any]]:
        """For each source: its share, its examples, and how many an epoch draws and how many of those are different."""
        rows = []
        for k, (name, source) in enumerate(zip(self._names, self.sources, strict=True)):
            drawn = self.drawn(k, len(self))
            row = {"name": name, "share": self.counts[k] / len(self._pattern), "examples": len(source)}
            rows.append({**row, "drawn": drawn, "unique": min(drawn, len(source)), "fingerprint": source.info["fingerprint"]})
        return rows

    def unique(self, examples: int) -> int:
        """How many different examples are among the first `examples` of training, in the mean over the loader's orders.

        Exact and the same in every order where none is repeated within an epoch, and from a whole epoch on.
        """
        n, found = min(examples, len(self)), 0.0
        for k, source in enumerate(self.sources):
            times, more = divmod(self.drawn(k, len(self)), len(source))
            found += more * _seen(len(self), times + 1, n) + (len(source) - more) * _seen(len(self), times, n)
        return round(found)

    def at(self, i: int) -> tuple[int, int]:
        """(k, index): item i is that example of source k."""
        if not 0 <= i < len(self):
            raise IndexError(f"item {i} of {len(self)}")
        k = int(self._pattern[i % len(self._pattern)])
        return k, int(self._orders[k][self.drawn(k, int(i))])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> dict:
        k, index = self.at(i)
        item = self.sources[k][index]
        return {key: item[key] for key in self._keys} | {"label": np.int32(item["label"] + self._offsets[k])}
