"""Other sizes of the data: an image of other patches, a patch of other pixels, a text of other length (PixArt-alpha, arXiv 2310.00426).

What is computed from the size, sine-cosine and rotary positions, is computed anew. Learned positions are interpolated over the grid of
tokens (ViT, arXiv 2010.11929, section 3.2); patches are resized so that what reads and writes them answers as before to a picture
that was resized itself (FlexiViT, arXiv 2212.08013, section 3.4).
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lab.axes import Dims, Weight
from lab.transforms._pairs import Pair, cannot, pairs


def matrix(old: int, new: int) -> np.ndarray:
    """Linear interpolation of `old` points to `new` [new, old], smoothed where there are fewer."""
    return np.asarray(jax.image.resize(jnp.eye(old), (new, old), "linear"), np.float64)


def _along(x: np.ndarray, axis: int, by: np.ndarray) -> np.ndarray:
    """x with `by` [new, old] applied to one of its axes."""
    return np.moveaxis(np.tensordot(by, x, axes=(1, axis)), 0, axis)


class Transform:
    """Weights of the same shape are carried as they are; another size is that of `patch`, `patch_out`, `tokens` or `length`.

    Of a longer text the words beyond what was known are drawn as at an init; of a shorter one the first are kept.
    """

    keeps = False  # another size of data is another function

    def __call__(self, trained: Mapping[str, Weight], fresh: Mapping[str, Weight], source: Dims, dims: Dims) -> dict[str, np.ndarray]:
        """Arrays by name in the shapes of `fresh`; `source` and `dims` are the sizes of the two models.

        Raises:
          UserError: a weight that has another size in an axis of another name.
        """
        out = {}
        for pair in pairs(trained, fresh):
            x = pair.trained
            for i, axis, old, new in pair.moved():
                x = self._axis(pair, x, i, axis, old, new, source, dims)
            out[pair.name] = np.asarray(x, pair.fresh.dtype)
        return out

    def _axis(self, pair: Pair, x: np.ndarray, i: int, axis: str, old: int, new: int, source: Dims, dims: Dims) -> np.ndarray:
        if axis in ("patch", "patch_out"):
            return self._patch(pair, x, i, axis, old, new, source, dims)
        if axis == "tokens":
            return self._tokens(pair, x, i, axis, old, new, source, dims)
        if axis == "length":
            return self._first(pair, x, i, min(old, new))
        why = "'resize' carries other sizes of patch, patch_out, tokens and length alone"
        raise cannot(pair, axis, old, new, f"{why} (init.transform='grow' carries a model to one of more width or depth)")

    @staticmethod
    def _patch(pair: Pair, x: np.ndarray, i: int, axis: str, old: int, new: int, source: Dims, dims: Dims) -> np.ndarray:
        before, after = source["patch_side"], dims["patch_side"]
        channels = old // before**2
        if channels != new // after**2:
            raise cannot(pair, axis, old, new, f"their channels differ, {channels} and {new // after**2}, and cannot be resized")
        side = matrix(before, after)
        pixels = np.kron(np.kron(side, side), np.eye(channels))  # as patches are laid out: row, column, channel
        # what reads a patch must give the resized one the old answer; what writes one writes it resized
        return _along(x, i, np.linalg.pinv(pixels).T if axis in pair.arrow.ins else pixels)

    @staticmethod
    def _tokens(pair: Pair, x: np.ndarray, i: int, axis: str, old: int, new: int, source: Dims, dims: Dims) -> np.ndarray:
        grids = [d.get("patches", n) for d, n in ((source, old), (dims, new))]  # what else stands in the sequence comes before the image
        sides = [math.isqrt(n) for n in grids]
        if [s * s for s in sides] != grids:
            raise cannot(pair, axis, old, new, f"tokens of an image that is no square, {grids[0]} and {grids[1]}, have no grid")
        lead, image = np.split(np.moveaxis(x, i, 0), [old - grids[0]])
        others = np.moveaxis(pair.fresh, i, 0)[: new - grids[1]].copy()
        kept = min(len(lead), len(others))
        others[:kept] = lead[:kept]
        side = matrix(*sides)
        image = np.tensordot(np.kron(side, side), image, axes=(1, 0))
        return np.moveaxis(np.concatenate([others, image]), 0, i)

    @staticmethod
    def _first(pair: Pair, x: np.ndarray, i: int, kept: int) -> np.ndarray:
        out, head = pair.fresh.copy(), (slice(None),) * i + (slice(kept),)
        out[head] = x[head]
        return out
