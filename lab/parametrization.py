"""Pure tables: an arrow -> how large its weight starts, how far it moves, which gradient to expect, how it decays.

Everything is relative to the base model, whose hyperparameters were tuned. `r_in`, `r_out` and `r_index` are the products of
size / base size over the infinite axes that the arrow contracts, produces and indexes. There are no forward multipliers: the
stored weight is the one the network sees (the multiplier-free form of Tensor Programs V, arXiv 2203.03466, table 3).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

from lab.errors import unknown


class Scales(NamedTuple):
    """Factors of one weight: on its base init std, its step, its expected gradient and its decoupled weight decay.

    `unit` is 1 where `step` is that of updates whose entries are of size one, as Adam's are, and 0 where it is that of the
    optimizer's own updates, of whatever size.
    """

    init: float
    step: float
    grad: float
    decay: float
    unit: float = 1.0


class ArrowLike(Protocol):
    """What a table reads of an arrow."""

    r_in: float
    r_out: float
    r_index: float
    depth: float
    inside: bool
    closes: bool
    fixed: bool
    is_matrix: bool


Table = Callable[[ArrowLike], Scales]


def _decay(arrow: ArrowLike) -> float:
    # biases, gains and look-up tables are not decayed; matrices keep the product of learning rate and decay constant
    return 1.0 if arrow.is_matrix and not arrow.fixed else 0.0


def standard(arrow: ArrowLike, alpha: float = 1.0) -> Scales:
    """The standard parametrization: init std 1/sqrt(fan-in), one learning rate of any optimizer for every weight. Equal to muP at the base.

    It has no depth rule: `alpha` is taken, as by every table, and changes nothing.
    """
    return Scales(arrow.r_in**-0.5, 0.0 if arrow.fixed else 1.0, 1.0, _decay(arrow), unit=0.0)


def mup(arrow: ArrowLike, alpha: float = 1.0) -> Scales:
    """muP in width, and its depth rule with branch exponent `alpha` (1: CompleteP, arXiv 2505.01618; 1/2: Depth-muP).

    Width: init r_in^-1/2 min(1, (r_out/r_in)^1/2), step 1/r_in, gradient 1/(r_out r_index).
    Depth, inside a residual stack of depth ratio L: gradient L^-alpha and step L^(alpha-1); for the weight that closes a
    branch init L^-alpha and step 1/L instead.
    """
    init = arrow.r_in**-0.5 * min(1.0, (arrow.r_out / arrow.r_in) ** 0.5)
    step, grad = 1.0 / arrow.r_in, 1.0 / (arrow.r_out * arrow.r_index)
    if arrow.inside and arrow.closes:
        init, step = init * arrow.depth**-alpha, step / arrow.depth
    elif arrow.inside:
        step, grad = step * arrow.depth ** (alpha - 1.0), grad * arrow.depth**-alpha
    return Scales(init, 0.0 if arrow.fixed else step, grad, _decay(arrow))


TABLES: dict[str, Callable[..., Scales]] = {"standard": standard, "mup": mup}


def table(name: str, alpha: float = 1.0) -> Table:
    """The table called `name` with branch exponent `alpha`; an unknown name raises UserError with the nearest."""
    if name not in TABLES:
        raise unknown("parametrization.name", name, TABLES)
    return partial(TABLES[name], alpha=alpha)
