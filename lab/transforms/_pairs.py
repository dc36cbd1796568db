"""What transforms share: weights of the same name, checked to be of one kind, and the one line for what cannot be carried."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from lab.axes import Arrow, Weight
from lab.errors import UserError


class Pair(NamedTuple):
    """One weight: its name, its arrow in the model to come, its numbers as trained and as that model would have drawn them."""

    name: str
    arrow: Arrow
    trained: np.ndarray
    fresh: np.ndarray

    def moved(self) -> list[tuple[int, str, int, int]]:
        """The dims in which they differ: place, axis, old size and new one."""
        sizes = zip(self.arrow.names, self.trained.shape, self.fresh.shape, strict=True)
        return [(i, axis, old, new) for i, (axis, old, new) in enumerate(sizes) if old != new]


def pairs(trained: Mapping[str, Weight], fresh: Mapping[str, Weight]) -> Iterator[Pair]:
    """The weights of two models by name; UserError for one that is not in both, or whose dims are others."""
    if odd := sorted(fresh.keys() ^ trained.keys()):
        has, lacks = ("the model begun from", "this one") if odd[0] in trained else ("this model", "the one begun from")
        raise UserError(f"init: weight {odd[0]!r} is in {has} and not in {lacks}, so no transform carries it ({len(odd)} such)")
    for name, w in fresh.items():
        mine, theirs = (" ".join(x.arrow.names) for x in (w, trained[name]))
        if mine != theirs:
            raise UserError(f"init: weight {name!r} has dims ({theirs}) in the model begun from and ({mine}) in this one")
        yield Pair(name, w.arrow, np.asarray(trained[name].get_value()), np.asarray(w.get_value()))


def cannot(pair: Pair, axis: str, old: int, new: int, why: str) -> UserError:
    """The error for a weight of which a transform cannot carry an axis."""
    return UserError(f"init: weight {pair.name!r} has {axis}={old} in the model begun from and {axis}={new} in this one; {why}")
