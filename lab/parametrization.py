"""Pure tables: an arrow -> how large its weight starts, how far it moves, which gradient to expect, how it decays.

Everything is relative to the base model, whose hyperparameters were tuned, but for the published inits, which are absolute.
`r_in`, `r_out` and `r_index` are the products of size / base size over the infinite axes that the arrow contracts, produces and
indexes. There are no forward multipliers: the stored weight is the one the network sees. A published rule with multipliers is turned into its equal without: a weight w behind
a multiplier a, of init std b and Adam learning rate c, is the weight a w of init std a b and step a c.

A rule is one function of an arrow. Each takes the branch exponent `alpha`; those without a depth rule ignore it.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

from lab.errors import unknown


class Scales(NamedTuple):
    """Factors of one weight: on its base init std, its step, its expected gradient, its decoupled weight decay and Adam's epsilon.

    Epsilon stands beside the gradient over its expected size, so a factor of 1 lets it shrink as the gradient does. `unit` is 1 where
    `step` is that of updates whose entries are of size one, as Adam's are, and 0 where it is that of the optimizer's own updates, of
    whatever size.
    """

    init: float
    step: float
    grad: float
    decay: float
    eps: float = 1.0
    unit: float = 1.0


class ArrowLike(Protocol):
    """What a table reads of an arrow."""

    r_in: float
    r_out: float
    r_index: float
    inf_in: bool
    inf_out: bool
    depth: float
    inside: bool
    closes: bool
    fixed: bool
    is_matrix: bool
    is_lookup: bool
    std: float
    fan_in: float
    fan_out: float


Table = Callable[[ArrowLike], Scales]


def _scales(arrow: ArrowLike, init: float, step: float, grad: float) -> Scales:
    # biases, gains and look-up tables are not decayed; matrices keep the product of learning rate and decay constant
    return Scales(init, 0.0 if arrow.fixed else step, grad, 1.0 if arrow.is_matrix and not arrow.fixed else 0.0)


def _narrowing(arrow: ArrowLike) -> float:
    """min(1, (r_out/r_in)^1/2), which bounds the spectral norm of what narrows; 1 for a constant, which is no random matrix."""
    return min(1.0, (arrow.r_out / arrow.r_in) ** 0.5) if arrow.is_matrix or arrow.std else 1.0


def standard(arrow: ArrowLike, alpha: float = 1.0) -> Scales:
    """The standard parametrization: init std 1/sqrt(fan-in), one learning rate of any optimizer for every weight. Equal to muP at the base.

    The gradient is expected as large as at the base, so epsilon and clipping see what they see in other libraries.
    """
    return _scales(arrow, arrow.r_in**-0.5, 1.0, 1.0)._replace(unit=0.0)


def standard_embed(arrow: ArrowLike, alpha: float = 1.0) -> Scales:
    """`standard` with the embeddings' learning rate times the width: the baseline of Kalra & Barkeshli (arXiv 2605.21486).

    The one learning rate of the standard parametrization is bounded by hidden weights, whose best falls as 1/width; embeddings want a constant
    one and starve. Step r_out for them, so that relative to a hidden weight's theirs is muP's; 1 for all others, biases and gains too.
    `optim.lr` stays the standard one, to be tuned anew at each width. Embeddings are the weights that read data: look-up tables
    (a bias indexed by a named axis cannot be told from one) and matrices that contract nothing infinite and produce something
    infinite, as patches -> width.
    """
    reads = arrow.is_lookup or (arrow.is_matrix and not arrow.inf_in and arrow.inf_out)
    return _scales(arrow, arrow.r_in**-0.5, arrow.r_out if reads else 1.0, 1.0)._replace(unit=0.0)


def standard_layerwise(arrow: ArrowLike, alpha: float = 1.0) -> Scales:
    """Standard init with a learning rate a layer: Everett et al. (arXiv 2407.05872), full alignment, Adam: step 1/r_in.

    Gradient 1/(r_out^1/2 r_index): what an initial readout of std width^-1/2 sends back. The NTK parametrization with its learning
    rates a layer is the same model.
    """
    return _scales(arrow, arrow.r_in**-0.5, 1.0 / arrow.r_in, 1.0 / (arrow.r_out**0.5 * arrow.r_index))


def _published(arrow: ArrowLike, std: float) -> Scales:
    """`standard`, with matrices and look-ups of an init std of its own at every size, the base too; what starts at zero stays there."""
    s = standard(arrow)
    return s if arrow.fixed or not arrow.std else s._replace(init=std / arrow.std)


def published_normal(arrow: ArrowLike, alpha: float = 1.0) -> Scales:
    """One std, 0.02, for every matrix and look-up at every width, and one learning rate: GPT-2, MaskGIT, U-ViT, LlamaGen.

    GPT-2's factor (2 depth)^-1/2 on what closes a branch is not in it.
    """
    return _published(arrow, 0.02)


def published_xavier(arrow: ArrowLike, alpha: float = 1.0) -> Scales:
    """Xavier's std (2 / (fan-in + fan-out))^1/2 for matrices, 0.02 for look-ups, and one learning rate: DiT, PixArt-alpha.

    Fused matrices count as the one that they are stored as there. Theirs of the time's MLP, normal of std 0.02, are Xavier's here.
    """
    return _published(arrow, (2.0 / (arrow.fan_in + arrow.fan_out)) ** 0.5 if arrow.is_matrix else 0.02)


def ntk(arrow: ArrowLike, alpha: float = 1.0) -> Scales:
    """The NTK parametrization (arXiv 1806.07572): unit weights behind fan-in^-1/2, one learning rate.

    Folded: init and step r_in^-1/2. Everett et al.'s exponents for no alignment, and the standard parametrization with those, are this.
    """
    return _scales(arrow, arrow.r_in**-0.5, arrow.r_in**-0.5, 1.0 / (arrow.r_out**0.5 * arrow.r_index))


def mean_field(arrow: ArrowLike, alpha: float = 1.0) -> Scales:
    """The mean-field parametrization with a learning rate a layer (arXiv 2407.05872, full alignment, Adam).

    Unit weights behind fan-in^-1/2, and behind 1/fan-in in the readout; learning rate width^-1/2 in hidden layers. Folded it is muP,
    but for the init of hidden weights whose two sides grow unequally, which only muP bounds.
    """
    init = 1.0 / arrow.r_in if arrow.inf_in and not arrow.inf_out else arrow.r_in**-0.5
    return _scales(arrow, init, 1.0 / arrow.r_in, 1.0 / (arrow.r_out * arrow.r_index))


def mup(arrow: ArrowLike, alpha: float = 1.0) -> Scales:
    """muP in width, and its depth rule with branch exponent `alpha` (1: CompleteP, arXiv 2505.01618; 1/2: Depth-muP).

    Width (Tensor Programs V, arXiv 2203.03466, table 3; forms with multipliers are the same model): init
    r_in^-1/2 min(1, (r_out/r_in)^1/2), step 1/r_in, gradient 1/(r_out r_index).
    Depth, inside a residual stack of depth ratio L: gradient L^-alpha and step L^(alpha-1); for the weight that closes a
    branch init L^-alpha and step 1/L instead.
    """
    init = arrow.r_in**-0.5 * _narrowing(arrow)
    step, grad = 1.0 / arrow.r_in, 1.0 / (arrow.r_out * arrow.r_index)
    if arrow.inside and arrow.closes:
        init, step = init * arrow.depth**-alpha, step / arrow.depth
    elif arrow.inside:
        step, grad = step * arrow.depth ** (alpha - 1.0), grad * arrow.depth**-alpha
    return _scales(arrow, init, step, grad)


def depth_mup(arrow: ArrowLike, alpha: float = 0.5) -> Scales:
    """`mup` with alpha = 1/2, whatever `alpha` is: Depth-muP (Tensor Programs VI, arXiv 2310.02244)."""
    return mup(arrow, 0.5)


def completep(arrow: ArrowLike, alpha: float = 1.0) -> Scales:
    """`mup` with alpha = 1, whatever `alpha` is: CompleteP (arXiv 2505.01618)."""
    return mup(arrow, 1.0)


def mup_simple(arrow: ArrowLike, alpha: float = 1.0) -> Scales:
    """muP's learning rates alone, step 1/r_in (Wortsman et al., arXiv 2309.14322): standard init, and a gradient expected as at the base.

    It differs from `standard_layerwise` by what epsilon and clipping see.
    """
    return _scales(arrow, arrow.r_in**-0.5, 1.0 / arrow.r_in, 1.0)


def umup_weights(arrow: ArrowLike, alpha: float = 0.5) -> Scales:
    """The weights' part of u-muP (arXiv 2407.17465), whatever `alpha` is; its unit-scaled operations are no part of it.

    Unit weights behind fan-in^-1/2 (readout 1/fan-in, a branch depth^-1/2 too), learning rate fan-in^-1/2 (readout, biases and
    gains 1; in a branch depth^-1/2 too). Folded it is `mup` with alpha = 1/2, but for look-up tables: step r_out^-1/2.
    """
    scales = mup(arrow, 0.5)
    return scales._replace(step=scales.step * arrow.r_out**-0.5) if arrow.is_lookup else scales


def spectral(arrow: ArrowLike, alpha: float = 1.0) -> Scales:
    """Weights and updates of spectral norm (fan-out/fan-in)^1/2 (Yang, Simon & Bernstein, arXiv 2310.17813). In width it is muP.

    A random matrix of std 1 has norm max(fan-in, fan-out)^1/2 up to a factor below 2; Adam's update, whose entries are of size 1, is
    nearly of rank one, with norm (fan-in fan-out)^1/2. A look-up counts as of fan-in 1.
    """
    norm = (arrow.r_out / arrow.r_in) ** 0.5
    step = norm / (arrow.r_in * arrow.r_out) ** 0.5
    init = norm / max(arrow.r_in, arrow.r_out) ** 0.5 if arrow.is_matrix or arrow.std else 1.0
    return _scales(arrow, init, step, 1.0 / (arrow.r_out * arrow.r_index))


RULES = (
    *(standard, standard_embed, standard_layerwise, published_normal, published_xavier),
    *(ntk, mean_field, mup, depth_mup, completep, mup_simple, umup_weights, spectral),
)
TABLES: dict[str, Callable[..., Scales]] = {rule.__name__: rule for rule in RULES}

# epsilon's factor (Scales.eps), of an arrow and what its rule says
EPS: dict[str, Callable[[ArrowLike, Scales], float]] = {
    "scaled": lambda arrow, s: 1.0,
    "fixed": lambda arrow, s: 1.0 / s.grad,  # the same for every raw gradient, as elsewhere
    # scaled in residual blocks alone (arXiv 2505.01618, table 1). Its readout keeps a multiplier 1/width, behind which a fixed epsilon is
    # one that grows as the width here: that is left out
    "completep": lambda arrow, s: 1.0 if arrow.inside else 1.0 / s.grad,
}

# factor on optim.lr times optim.weight_decay, by which a weight shrinks at each step; where INDEPENDENT, on optim.weight_decay alone. In
# torch's and optax's AdamW the product is LR WD, with LR a weight's own learning rate
DECAY: dict[str, Callable[[ArrowLike], float]] = {
    # LR WD constant, as LR ~ 1/width and WD ~ width (arXiv 2203.03466's MuAdamW; 2505.01618 at alpha = 1)
    "constant": lambda arrow: 1.0,
    # w -= schedule (LR u + WD w): no learning rate multiplies WD (arXiv 2309.14322)
    "independent": lambda arrow: 1.0,
    # hidden: LR ~ 1/width and WD ~ width^1/2, so LR WD ~ width^-1/2; all others: WD 0 (arXiv 2510.15262)
    "sqrt": lambda arrow: arrow.r_in**-0.5 if arrow.inf_in and arrow.inf_out else 0.0,
    # independent, WD ~ 1/width for every matrix (arXiv 2512.05620)
    "inverse_width": lambda arrow: 1.0 / max(arrow.r_in, arrow.r_out),
}
INDEPENDENT = ("independent", "inverse_width")  # their weight decay is not multiplied by the learning rate


def table(name: str, alpha: float = 1.0, eps: str = "scaled", decay: str = "constant") -> Table:
    """The rule called `name` with branch exponent `alpha`, a rule for epsilon and one for weight decay.

    Of an INDEPENDENT decay it gives the part that depends on the arrow; the division by the learning rate is the trial's.

    Raises:
      UserError: an unknown rule, with the nearest.
    """
    for key, value, known in (("name", name, TABLES), ("eps", eps, EPS), ("decay", decay, DECAY)):
        if value not in known:
            raise unknown(f"parametrization.{key}", value, known)
    return partial(_row, rule=TABLES[name], alpha=alpha, eps=EPS[eps], decay=DECAY[decay])


def _row(arrow: ArrowLike, rule: Callable[..., Scales], alpha: float, eps: Callable, decay: Callable) -> Scales:
    s = rule(arrow, alpha)
    return s._replace(decay=s.decay * decay(arrow), eps=eps(arrow, s))
