"""Muon: hidden matrices move by their orthogonalised momentum, all else by AdamW (Jordan et al. 2024; arXiv 2502.16982).

Under muP the update has spectral norm sqrt(r_out / r_in) times that at the base, which is the spectral condition (Yang, Simon and
Bernstein, arXiv 2310.17813).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from lab.axes import Arrow, is_weight, map_weights
from lab.errors import UserError


def _numbers(arrow: Arrow, x: jax.Array) -> MuonDimensionNumbers:
    """The dims that are contracted and produced; those before them hold matrices side by side."""
    lead, ins = len(arrow.stack + arrow.index), len(arrow.ins)
    return MuonDimensionNumbers(tuple(range(lead, lead + ins)), tuple(range(lead + ins, len(arrow.names))))


def _tall(arrow: Arrow, x: jax.Array) -> jax.Array:
    """x times Jordan's sqrt(max(1, out / in)) of the base model."""
    out = math.prod(x.shape[-len(arrow.outs) :]) / arrow.r_out
    return x * max(1.0, out / arrow.fan) ** 0.5


def _hidden(f: Callable) -> Callable:
    """f(arrow, x) over a tree in which the weights that AdamW moves are masked."""
    return lambda tree, _=None: map_weights(lambda a, x: f(a, x) if isinstance(x, jax.Array) else x, tree)


class Optimizer:
    """`momentum` is Muon's own; b1, b2 and eps are AdamW's, whose learning rate is `adam_ratio` times Muon's.

    Raises:
      UserError: no weight is hidden (contracts and produces what is infinite).
    """

    def __init__(self, b1: float, b2: float, eps: float, momentum: float = 0.95, adam_ratio: float = 1.0):
        muon = optax.chain(scale_by_muon(beta=momentum, weight_dimension_numbers=_hidden(_numbers)), optax.stateless(_hidden(_tall)))
        adam = optax.chain(optax.scale_by_adam(b1, b2, eps), optax.scale(adam_ratio))
        both = optax.partition({"muon": muon, "adam": adam}, lambda tree: map_weights(lambda a, _: self._kind(a), tree))
        self._init, self.update = both

    def init(self, params: Any) -> Any:
        """The states of both."""
        if not any(self._kind(w.arrow) == "muon" for w in jax.tree.leaves(params, is_leaf=is_weight)):
            raise UserError(
                "optim.name='muon' moves hidden weights, and the model has none; give the knob that widens it an entry in config.base"
            )
        return self._init(params)

    @staticmethod
    def _kind(arrow: Arrow) -> str:
        return "muon" if arrow.role == "hidden" and not arrow.fixed else "adam"

    def size(self, arrow: Arrow) -> float:
        """How large an update acts beside one with entries of size one, whose spectral norm is (r_in r_out)^1/2."""
        return (arrow.r_in * arrow.r_out) ** -0.5 if self._kind(arrow) == "muon" else 1.0
