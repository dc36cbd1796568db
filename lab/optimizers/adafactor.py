"""Adafactor: factored second moments, and updates as large as the weight they move (Shazeer & Stern, arXiv 1804.04235).

It sees weights over their expected size, so the step of Adam becomes step / init, the exponents of Everett et al. (arXiv 2407.05872),
and what it holds against a size (updates to 1, weights to at least 0.001) is the same at every width.
"""

import math
from typing import Any

import jax
import optax

from lab.axes import Arrow, is_weight, values


def _matrices(arrow: Arrow, x: jax.Array) -> jax.Array:
    """[n, in, out] of a weight that contracts and produces, else [n, size]; n runs over layers and what is indexed."""
    lead = len(arrow.stack if arrow.fixed else arrow.stack + arrow.index)
    n, ins = math.prod(x.shape[:lead]), 0 if arrow.fixed else len(arrow.ins)
    return x.reshape(n, math.prod(x.shape[lead : lead + ins]), -1) if ins and arrow.outs else x.reshape(n, -1)


class Optimizer:
    """g / sqrt(v), v of rank one a matrix, cut to an rms of 1 and times the rms of the weight; no momentum.

    What is a matrix is told by the arrow, whatever its size: '3 | embed -> heads head_dim' is three, each with an rms of its own.
    """

    def __init__(self):
        self._one = optax.chain(
            optax.scale_by_factored_rms(min_dim_size_to_factor=1),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(1e-3),
        )

    def init(self, params: Any) -> list:
        """A state a weight, over its matrices."""
        leaves = jax.tree.leaves(params, is_leaf=is_weight)
        return [jax.vmap(self._one.init)(_matrices(w.arrow, w.get_value())) for w in leaves]

    def update(self, updates: Any, state: list, params: Any) -> tuple[Any, list]:
        """Updates like the weights, and the states after them."""
        leaves, tree = jax.tree.flatten(updates, is_leaf=is_weight)
        moved, kept = [], []
        for g, s, w in zip(leaves, state, values(params), strict=True):
            u, s = jax.vmap(self._one.update)(_matrices(g.arrow, g.get_value()), s, _matrices(g.arrow, w))
            moved.append(g.replace(u.reshape(w.shape)))
            kept.append(s)
        return jax.tree.unflatten(tree, moved), kept
