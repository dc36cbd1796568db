"""The arrow: one declaration per weight, from which everything else about the weight is read.

`weight('3 | embed -> heads head_dim', dims)` describes a weight that is indexed by a 3, contracts `embed` and produces
`heads head_dim`. Left of '|' is indexed and never contracted (fused projections, experts, look-ups). '=>' in place of '->' says
that the weight is linear and last in a residual branch. A weight is only described here; `draw` makes all numbers at once.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.random import threefry2x32_p

from lab.errors import UserError, nearest
from lab.parametrization import Scales, Table

HELD = Scales(1.0, 0.0, 1.0, 0.0)  # of a state, under every rule


class Dims(dict):
    """axis -> size; `base` maps each infinite axis to its size in the model whose hyperparameters were tuned."""

    def __init__(self, sizes: dict[str, int], base: dict[str, int] | None = None):
        super().__init__(sizes)
        self.base = dict(base or {})

    @classmethod
    def of(cls, axes: Callable[..., dict[str, int]], knobs: dict[str, int], base: dict[str, int]) -> "Dims":
        """Sizes at `knobs`; an axis is infinite exactly when it moves as a knob of `base` doubles, so none can be forgotten."""
        for knob in base:
            if knob not in knobs:
                raise UserError(f"base.{knob} is not a knob of the model{nearest(knob, knobs)}; its knobs: {', '.join(knobs)}")
        at_base = axes(**{**knobs, **base})
        moved = set()
        for knob, value in base.items():
            doubled = axes(**{**knobs, **base, knob: 2 * value})
            moved |= {a for a in at_base if doubled[a] != at_base[a]}
        return cls(axes(**knobs), {a: at_base[a] for a in sorted(moved)})

    def size(self, axis: str, spec: str) -> int:
        """The size of `axis`, a name or a literal number."""
        if axis.isdigit():
            return int(axis)
        if axis not in self:
            raise UserError(f"arrow {spec!r}: axis {axis!r} is unknown{nearest(axis, self)}; known axes: {', '.join(self)}")
        return self[axis]

    def ratio(self, axes: Iterable[str]) -> float:
        """Product of size / base size over the infinite axes among `axes`."""
        return math.prod(self[a] / self.base[a] for a in axes if a in self.base)


def split(what: str, whole: int, name: str, part: int) -> int:
    """whole / part, which must be a whole number (heads = width / head_dim, patches = image / patch)."""
    if part <= 0 or whole <= 0 or whole % part:
        low, high = (whole // part) * part if part > 0 else 0, (whole // part + 1) * part if part > 0 else 0
        hint = f"; nearest: {low} or {high}" if low else f"; nearest: {high}"
        raise UserError(f"{what}={whole} is not a multiple of {name}={part}{hint}")
    return whole // part


@dataclass(frozen=True)
class Arrow:
    """What a weight indexes, contracts and produces, with its ratios to the base model."""

    index: tuple[str, ...]
    ins: tuple[str, ...]
    outs: tuple[str, ...]
    closes: bool
    fan: float  # product of the contracted axes at their base size
    fan_out: int  # product of the produced axes, of each of fused weights
    r_in: float
    r_out: float
    r_index: float
    inf_in: bool
    inf_out: bool
    init: float = 1.0
    fill: float = 0.0
    depth: float = 1.0
    inside: bool = False
    stack: tuple[str, ...] = ()
    fixed: bool = False
    state: bool = False

    @property
    def trained(self) -> bool:
        """Whether a gradient moves it: it is no untrained scale, and no state, which the model sets itself."""
        return not (self.fixed or self.state)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of every dim of the stored array, in order."""
        return self.stack if self.fixed else self.stack + self.index + self.ins + self.outs

    @property
    def is_matrix(self) -> bool:
        """Whether the weight contracts something (a bias, a gain and a look-up table do not)."""
        return bool(self.ins)

    @property
    def is_lookup(self) -> bool:
        """Whether it is read row by row, as tables of words, labels and positions are: a named axis is indexed, nothing contracted."""
        return not self.ins and any(not axis.isdigit() for axis in self.index)

    @property
    def role(self) -> str:
        """input, hidden, output, vector or scalar: a label for reports, derived from the ratios' axes."""
        if not self.ins:
            return "vector" if self.inf_out else "scalar"
        return {(False, True): "input", (True, True): "hidden", (True, False): "output", (False, False): "scalar"}[
            self.inf_in, self.inf_out
        ]

    @property
    def fan_in(self) -> float:
        """Product of the contracted axes; 1 for a weight that contracts nothing."""
        return self.fan * self.r_in

    @property
    def std(self) -> float:
        """Init standard deviation at the base size."""
        return self.init * (self.fan**-0.5 if self.ins else 1.0)

    def __str__(self) -> str:
        left = " ".join(self.stack + self.index)
        arrow = "=>" if self.closes else "->"
        return " ".join(filter(None, [f"{left} |" if left else "", " ".join(self.ins), arrow, " ".join(self.outs)]))


def parse(spec: str, dims: Dims, **fields) -> Arrow:
    """Read an arrow such as '3 | embed -> heads head_dim' against `dims`; a malformed or unknown part raises UserError."""
    bar, body = spec.split("|") if spec.count("|") == 1 else ("", spec)
    arrow = "=>" if "=>" in body else "->"
    if body.count(arrow) != 1 or "|" in body:
        raise UserError(f"arrow {spec!r} is malformed; expected 'index | contracted -> produced', with '=>' for a branch's last weight")
    index, (ins, outs) = tuple(bar.split()), (tuple(side.split()) for side in body.split(arrow))
    for axis in index + ins + outs:
        dims.size(axis, spec)
    return Arrow(
        index=index,
        ins=ins,
        outs=outs,
        closes=arrow == "=>",
        fan=math.prod(dims.base.get(a, dims.size(a, spec)) for a in ins),
        fan_out=math.prod(dims.size(a, spec) for a in outs + tuple(a for a in index if a.isdigit())),
        r_in=dims.ratio(ins),
        r_out=dims.ratio(outs),
        r_index=dims.ratio(index),
        inf_in=any(a in dims.base for a in ins),
        inf_out=any(a in dims.base for a in outs),
        **fields,
    )


class Weight(nnx.Param):
    """A variable that carries its arrow as metadata, through jit, grad, vmap and the optimizer state."""

    arrow: Arrow


def is_weight(x: Any) -> bool:
    """Whether `x` is a leaf with an arrow."""
    return isinstance(x, Weight)


def weight(spec: str, dims: Dims, init: float = 1.0, fill: float | None = None) -> Weight:
    """Describe one weight: std init/sqrt(fan-in) at the base (init for look-ups), or constant `fill`."""
    arrow = parse(spec, dims, init=init if fill is None else 0.0, fill=fill or 0.0)
    return Weight(jax.ShapeDtypeStruct([dims.size(a, spec) for a in arrow.names], jnp.float32), arrow=arrow)


def scale(spec: str, dims: Dims, init: float = 1.0) -> Weight:
    """A contraction that owns no weight (attention logits over head_dim): an untrained number with an arrow."""
    return Weight(jax.ShapeDtypeStruct((), jnp.float32), arrow=parse(spec, dims, init=init, fixed=True))


def state(spec: str, dims: Dims, init: float = 1.0, fill: float | None = None) -> Weight:
    """Describe what a model carries from step to step without a gradient, such as running means; drawn as a look-up of std `init`, or `fill`.

    The model sets it while it is called in training, `self.means.set_value(new)`, outside of its stacks; the trainer keeps what it holds
    after the loss. It is float32 whatever the compute dtype, and no rule of a parametrization is about it.
    """
    arrow = parse(spec, dims, init=init if fill is None else 0.0, fill=fill or 0.0, state=True)
    return Weight(jax.ShapeDtypeStruct([dims.size(a, spec) for a in arrow.names], jnp.float32), arrow=arrow)


def _relabel(tree: Any, change: Callable[[Arrow], Arrow], lead: tuple[int, ...] = ()) -> Any:
    def one(w):
        if w.arrow.state:
            raise UserError(f"state {str(w.arrow)!r} stands in a stack of blocks, where what a model sets is lost; expected it outside")
        shape = jax.ShapeDtypeStruct((*lead, *w.get_value().shape), w.get_value().dtype)
        return Weight(shape, arrow=change(w.arrow))

    return jax.tree.map(one, tree, is_leaf=is_weight)


def inside(tree: Any, dims: Dims, axis: str = "layers") -> Any:
    """Mark a described tree as living in the residual stack `axis`, as an unscanned block does."""
    return _relabel(tree, lambda a: replace(a, depth=a.depth * dims.ratio([axis]), inside=True))


def stack(block: Any, n: int, dims: Dims, axis: str = "layers") -> Any:
    """`n` copies of a described block behind one new, named, leading dim, ready for lax.scan."""
    return _relabel(inside(block, dims, axis), lambda a: replace(a, stack=(axis,) + a.stack), (n,))


def weights(tree: Any) -> dict[str, Weight]:
    """Every weight of a tree by a readable name ('blocks.attention.qkv'); names are for people, never looked at by rules."""
    flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_weight)[0]
    return {".".join(str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", k)))) for k in path): w for path, w in flat}


def map_weights(f: Callable, tree: Any, *rest: Any) -> Any:
    """Map f(arrow, value, *values) over the weights of like trees; the result keeps the arrows."""
    return jax.tree.map(lambda w, *r: w.replace(f(w.arrow, w.get_value(), *(v.get_value() for v in r))), tree, *rest, is_leaf=is_weight)


def values(tree: Any) -> list[jax.Array]:
    """The plain arrays of a tree of weights."""
    return [w.get_value() for w in jax.tree.leaves(tree, is_leaf=is_weight)]


def states(tree: Any) -> list[jax.Array]:
    """What the states of a tree hold, in leaf order."""
    return [w.get_value() for w in jax.tree.leaves(tree, is_leaf=is_weight) if w.arrow.state]


def names(tree: Any, lead: tuple[str, ...] = ()) -> Any:
    """The dim names of every weight; `lead` names dims in front of them, such as ('trials',)."""
    return jax.tree.map(lambda w: lead + w.arrow.names, tree, is_leaf=is_weight)


def scales(tree: Any, table: Table) -> Any:
    """The table's Scales of every weight as a plain list of float tuples, in leaf order: data, so they can be traced."""
    rows = [HELD if w.arrow.state else table(w.arrow) for w in jax.tree.leaves(tree, is_leaf=is_weight)]
    return [Scales(*map(float, row)) for row in rows]


def draw(key: jax.Array, tree: Any, scales: list[Scales], apart: bool = False) -> Any:
    """Numbers for a described tree: the only randomness of a model and its only init.

    One flat normal draw serves all weights (it compiles in the time of one). Layout: leaf order of the tree, so arms that
    share a seed share every underlying normal number and differ by their scales alone. A constant is as it is said, but for one that
    closes a branch, as the gain of a norm after it does: that has the depth's factor. `apart` draws the very same numbers weight
    by weight, which takes longer to compile and no device the room for all of them.
    """
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_weight)
    sizes = [math.prod(w.get_value().shape) if w.arrow.init and not w.arrow.fixed else 0 for w in leaves]
    flat = None if apart else jax.random.normal(key, (sum(sizes),))
    start, drawn = 0, []
    for w, n, s in zip(leaves, sizes, scales, strict=True):
        shape = w.get_value().shape
        if w.arrow.fixed:
            x = jnp.ones(shape) * (w.arrow.std * s.init)
        elif n:
            normal = _normal(key, start, shape) if apart else flat[start : start + n].reshape(shape)
            x = normal * (w.arrow.std * s.init) + w.arrow.fill
        else:
            x = jnp.full(shape, w.arrow.fill * (s.init if w.arrow.closes else 1.0))
        drawn.append(w.replace(x.astype(jnp.float32)))
        start += n
    return jax.tree.unflatten(treedef, drawn)


def _normal(key: jax.Array, start: int, shape: tuple[int, ...]) -> jax.Array:
    """Numbers `start`, `start` + 1, ... of a flat jax.random.normal, in a shape: each is made of its own index alone, on the device where it lies."""
    stride = math.prod(shape[1:])
    rows = (np.arange(shape[0], dtype=np.uint64) * stride + start).reshape(-1, *[1] * (len(shape) - 1))
    high, low = (jnp.asarray(x.astype(np.uint32)) for x in (rows >> 32, rows & 0xFFFFFFFF))
    within = sum(jax.lax.broadcasted_iota(jnp.uint32, shape, i) * np.uint32(math.prod(shape[i + 1 :])) for i in range(1, len(shape)))
    low = low + jnp.uint32(within)
    words = threefry2x32_p.bind(*jax.random.key_data(key), jnp.broadcast_to(high, shape) + (low < within), low)
    # as jax.random does it: 23 bits of mantissa give a number in [1, 2), and it the quantile of a normal one
    unit = jax.lax.bitcast_convert_type((words[0] ^ words[1]) >> 9 | 0x3F800000, jnp.float32) - 1
    least = np.nextafter(np.float32(-1), np.float32(0))
    drawn = np.float32(np.sqrt(2)) * jax.lax.erf_inv(jnp.maximum(least, unit * (1 - least) + least))
    return jax.lax.optimization_barrier(drawn)  # or XLA multiplies the root into a weight's scale, and rounds otherwise


def view(tree: Any, dtype: jnp.dtype) -> Any:
    """What the network sees: the stored weights in the compute dtype, scales and states without a gradient, states in float32."""
    return map_weights(lambda a, x: (x if a.trained else jax.lax.stop_gradient(x)).astype(x.dtype if a.state else dtype), tree)
