"""A third walk over the jaxpr: which weights close a residual branch, and over how many numbers a scale's product runs.

A branch is what is added to a stream that it was made of: x + f(x). A weight closes it if f(x) is linear in what the weight makes of
x, and no other weight follows; the depth rule of the parametrization is about these alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.extend import core as jex

from lab.axes import Arrow, weights
from lab.probe import MOVES, calls

LINEAR = MOVES | {"add_any", "reduce_sum", "cumsum", "concatenate", "pad", "split", "gather", "dynamic_update_slice"}
CONTRACTIONS = {"dot_general", "conv_general_dilated", "gather", "ragged_dot", "ragged_dot_general"}


@dataclass(frozen=True)
class Value:
    """What is known of an array: `made` is a bit for each array that it is made of, with one of its own.

    `ends` holds, for each weight that it is linear in and that none follows, its output's own bit and what that was made of;
    `scales` are the untrained scales that were multiplied in since the last product.
    """

    made: int
    own: int
    ends: dict[str, tuple[int, int]]
    scales: tuple[str, ...] = ()
    weight: str = ""


def closers(f: Callable, tree: Any, *args: Any) -> tuple[set[str], dict[str, int]]:
    """Names of the weights that close a residual branch of f(tree, *args), and {scale: numbers that its product runs over}."""
    closed = jax.make_jaxpr(f)(tree, *args)
    names, n = weights(tree), len(closed.jaxpr.invars)
    walk = _Walk({name: w.arrow for name, w in names.items()})
    walk.run(
        closed.jaxpr,
        [walk.new(weight="" if w.arrow.state else name) for name, w in names.items()] + [walk.new() for _ in range(n - len(names))],
    )
    return walk.closers, walk.products


def audit(f: Callable, tree: Any, *args: Any) -> dict[str, list[str]]:
    """{weight name: complaints} where an arrow inside a stack is wrong about closing a branch, or a scale about what it contracts."""
    ends, products = closers(f, tree, *args)
    said = {}
    for name, w in weights(tree).items():
        a = w.arrow
        if a.fixed and name in products and products[name] != (size := round(a.fan_in)):
            said[name] = [
                f"scales a product over {products[name]} numbers, but its arrow contracts {' '.join(a.ins) or 'nothing'} ({size})"
            ]
        elif a.inside and a.trained and a.closes != (name in ends):
            said[name] = [
                "its arrow closes a branch ('=>'), but a normalisation, another function or another weight follows it in the branch and undoes its depth multiplier"
                if a.closes
                else "closes a branch: it is the last before the sum with the stream, but its arrow says '->', so it gets no depth multiplier"
            ]
    return said


class _Walk:
    def __init__(self, arrows: dict[str, Arrow]):
        self.arrows, self.bits, self.closers, self.products = arrows, 0, set(), {}

    def new(self, given: tuple[Value, ...] = (), ends: dict | None = None, scales: tuple = (), weight: str = "") -> Value:
        """A value made of those given."""
        own, self.bits = 1 << self.bits, self.bits + 1
        made = own
        for v in given:
            made |= v.made
        return Value(made, own, ends or {}, scales, weight)

    def run(self, jaxpr: jex.Jaxpr, given: list[Value]) -> list[Value]:
        env = dict(zip(jaxpr.invars, given, strict=True)) | {v: self.new() for v in jaxpr.constvars}
        for e in jaxpr.eqns:
            xs = [self.new() if isinstance(v, jex.Literal) else env[v] for v in e.invars]
            if (call := calls(e)) is not None:
                ys = self.run(call[0], xs)
            elif e.primitive.name == "scan":
                inside = [self.new(weight=x.weight) for x in xs]  # a layer's stream is its own
                self.run(e.params["jaxpr"].jaxpr, inside)
                ys = [self.new(tuple(xs)) for _ in e.outvars]
            else:
                y = self.one(e, xs)
                ys = [y, *(replace(self.new(tuple(xs)), ends=y.ends) for _ in e.outvars[1:])]
            env.update(zip(e.outvars, ys, strict=True))
        return [self.new() if isinstance(v, jex.Literal) else env[v] for v in jaxpr.outvars]

    def one(self, e: jex.JaxprEqn, xs: list[Value]) -> Value:
        """What comes out of one operation."""
        kind = e.primitive.name
        by = next((x.weight for x in xs if x.weight), "")
        others = [x for x in xs if not x.weight]
        scales = tuple(s for x in others for s in x.scales)
        scalar = (
            kind in ("mul", "div")
            and len(xs) == 2
            and any(math.prod(v.aval.shape) == 1 for v, x in zip(e.invars, xs, strict=True) if not x.weight)
        )
        if by and self.arrows[by].fixed:
            return (
                self.new(tuple(xs), _kept(others), (*scales, by)) if others and kind in ("mul", "div") else self.new(tuple(xs), weight=by)
            )
        if kind == "dot_general":
            self._product(e, xs)
            scales = ()
        if by and (kind in MOVES or scalar):
            return self.new(tuple(xs), weight=by)
        if by and kind in ("add", "sub"):
            y = self.new(tuple(xs), _kept(others), scales)
            return replace(y, ends={**y.ends, by: (y.own, y.made)})
        if by and (kind in CONTRACTIONS or kind in ("mul", "div")):
            y = self.new(tuple(xs), scales=scales)
            return replace(y, ends={by: (y.own, y.made)})
        if kind in ("add", "sub") and len(xs) == 2:
            self._sum(*xs)
        return self.new(tuple(xs), self._linear(kind, xs), scales)

    def _linear(self, kind: str, xs: list[Value]) -> dict:
        if kind in LINEAR or kind in ("add", "sub"):
            return _kept(xs)
        if kind in ("mul", "div", "dot_general"):
            # z / rms(z) is not linear in the weight that made z
            pairs = [(xs[0], xs[1])] + [(xs[1], xs[0])] * (kind != "div")
            return {n: end for x, other in pairs for n, end in x.ends.items() if not other.made & end[0]}
        return {}

    def _sum(self, a: Value, b: Value) -> None:
        for stream, branch in ((a, b), (b, a)):
            if branch.made & stream.own:
                self.closers |= {n for n, (own, made) in branch.ends.items() if made & stream.own and own != stream.own}

    def _product(self, e: jex.JaxprEqn, xs: list[Value]) -> None:
        for v, x, dims in zip(e.invars, xs, e.params["dimension_numbers"][0], strict=True):
            for scale in x.scales:
                self.products[scale] = math.prod(v.aval.shape[d] for d in dims)


def _kept(xs: list[Value]) -> dict:
    return {n: end for x in xs for n, end in x.ends.items()}
