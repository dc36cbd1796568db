"""A wider or deeper model that computes what the smaller one did (Net2Net, arXiv 1511.05641; bert2BERT, arXiv 2110.07143).

Width: each feature becomes k equal ones side by side, so what produces them is repeated, and what contracts them is repeated and divided by k. The
trained part of a hidden weight then keeps its spectral norm, as muP wants it, and those of inputs, biases, gains and tables the size
of their entries. To it comes the new model's own draw, of the std that its parametrization gives it at its size, less its mean over the k
equal features: these add up to nothing, so that the output stays, and are no longer equal after a step.

Depth: a block is followed by new ones, copies of it but for the weights that close its branches ('=>'), which are zero.
"""

import math
from collections.abc import Mapping

import numpy as np

from lab.axes import Dims, Weight
from lab.errors import UserError, unknown
from lab.transforms._pairs import Pair, cannot, pairs

DEPTHS = ("zero", "share")


class Transform:
    """Axes that move with a knob of config.base grow by whole factors, stacks by any.

    `noise` times its std is what of a weight's own draw is added; with 0 equal features have equal gradients, and never part. `depth` 'zero'
    begins new blocks as the identity, at which old ones stay as large as their depth had them; 'share' makes a block and its
    copies one step of the residual stream in shares, closers over their number, the size that muP's alpha = 1 gives them at the new depth:
    the output is then near the old one, and not the same.
    """

    def __init__(self, noise: float = 1.0, depth: str = "zero"):
        if depth not in DEPTHS:
            raise unknown("init.options.depth", depth, DEPTHS)
        if noise < 0:
            raise UserError(f"config key init.options.noise={noise} must be 0 or more")
        self.noise, self.depth = noise, depth
        self.keeps = depth == "zero"  # what the model computes

    def __call__(self, trained: Mapping[str, Weight], fresh: Mapping[str, Weight], source: Dims, dims: Dims) -> dict[str, np.ndarray]:
        """Arrays by name in the shapes of `fresh`, whose numbers are those of the new model's init; `dims` are its sizes.

        Raises:
          UserError: a weight that has another size in an axis that no knob of config.base moves, or that is no multiple.
        """
        both = list(pairs(trained, fresh))
        closed = {axis for p in both if p.arrow.closes for axis in p.arrow.stack}
        return {p.name: np.asarray(self._wider(p, self._deeper(p, closed), dims), p.fresh.dtype) for p in both}

    def _wider(self, pair: Pair, x: np.ndarray, dims: Dims) -> np.ndarray:
        moved = [m for m in pair.moved() if m[0] >= len(pair.arrow.stack)]
        outs = pair.trained.ndim - len(pair.arrow.outs)
        ins = outs - len(pair.arrow.ins)
        contracted = {}
        for i, axis, old, new in moved:
            if axis not in dims.base or i < ins:
                known = ", ".join(dims.base) or "none"
                raise cannot(pair, axis, old, new, f"'grow' carries axes that move with a knob of config.base ({known})")
            if new % old:
                raise cannot(pair, axis, old, new, f"features are repeated a whole number of times; nearest: {max(1, new // old) * old}")
            if i < outs:
                contracted[i] = new // old
            x = np.repeat(x, new // old, axis=i)
        copies = math.prod(contracted.values())
        return x / copies + self._parted(pair, contracted, copies) if copies > 1 else x

    def _deeper(self, pair: Pair, closed: set[str]) -> np.ndarray:
        """Blocks of the new depth, each with its old one's numbers; closers of new ones zero, or all of them in shares."""
        x = pair.trained
        for i, axis, old, new in [m for m in pair.moved() if m[0] < len(pair.arrow.stack)]:
            if new < old:
                raise cannot(pair, axis, old, new, "'grow' makes no model smaller")
            if axis not in closed:
                raise cannot(
                    pair, axis, old, new, "no weight of its stack closes a residual branch, so that a new layer is never the identity"
                )
            block = np.arange(new) * old // new
            x = np.take(x, block, axis=i)
            if pair.arrow.closes:
                share = 1.0 / np.bincount(block)[block] if self.depth == "share" else np.diff(block, prepend=-1) > 0
                x = x * share.reshape([-1 if j == i else 1 for j in range(x.ndim)])
        return x

    def _parted(self, pair: Pair, contracted: dict[int, int], copies: int) -> np.ndarray:
        """The new model's own draw less its mean over equal features, which contribute nothing together; as large as before that."""
        draw = (pair.fresh - pair.arrow.fill) * self.noise
        shape, over = [], []
        for i, n in enumerate(draw.shape):
            k = contracted.get(i, 1)
            shape += [n // k, k]
            over += [2 * i + 1] * (k > 1)
        split = draw.reshape(shape)
        split = split - split.mean(axis=tuple(over), keepdims=True)
        return split.reshape(draw.shape) * math.sqrt(copies / (copies - 1))
