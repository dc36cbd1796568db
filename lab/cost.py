"""What a model costs, read from arrows and from the traced program: parameters by role, FLOPs."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core as jex

from lab.axes import is_weight, weights

CONVENTION = (
    "2 x multiply-adds of every dot, convolution and ragged dot in the jaxpr of the loss gradient, loop bodies times their "
    "length, reference attention, no rematerialisation, elementwise work left out"
)


def parameters(tree: Any) -> dict[str, int]:
    """Parameters by role that a gradient moves; untrained scales and states are left out."""
    count = Counter()
    for w in jax.tree.leaves(tree, is_leaf=is_weight):
        if w.arrow.trained:
            count[w.arrow.role] += math.prod(w.get_value().shape)
    return dict(count)


def card(tree: Any) -> list[dict]:
    """One JSON-able row a weight: name, arrow, role, shape, parameters."""
    return [{"name": n, "arrow": str(w.arrow), "role": w.arrow.role, "shape": list(w.get_value().shape)} for n, w in weights(tree).items()]


def inner(eqn: jex.JaxprEqn) -> Iterator[tuple[jex.Jaxpr, list]]:
    """The jaxprs inside an equation (of jit, scan, cond, remat, custom rules), each with its constants."""
    for value in eqn.params.values():
        for sub in value if isinstance(value, tuple | list) else (value,):
            if isinstance(sub, jex.ClosedJaxpr):
                yield sub.jaxpr, sub.consts
            elif isinstance(sub, jex.Jaxpr):
                yield sub, []


def flops(f: Callable, *args: Any) -> int:
    """FLOPs of f(*args) (arrays or ShapeDtypeStructs), by CONVENTION.

    Raises:
      ValueError: a matmul inside a while loop, whose length the program does not tell.
    """
    return _count(jax.make_jaxpr(f)(*args).jaxpr)


def _count(jaxpr: jex.Jaxpr) -> int:
    return sum(_count_eqn(e) for e in jaxpr.eqns)


def _count_eqn(e: jex.JaxprEqn) -> int:
    kind = e.primitive.name
    if kind == "dot_general":
        (contracted, _), _ = e.params["dimension_numbers"]
        return 2 * e.outvars[0].aval.size * math.prod(e.invars[0].aval.shape[i] for i in contracted)
    if kind == "ragged_dot_general":
        numbers = e.params["ragged_dot_dimension_numbers"]
        (contracted, _), _ = numbers.dot_dimension_numbers
        # where the ragged dim is contracted (a weight's gradient) the groups share it: each row meets one group of the output
        groups = e.invars[2].aval.shape[-1] if numbers.lhs_ragged_dimensions[0] in contracted else 1
        return 2 * e.outvars[0].aval.size // groups * math.prod(e.invars[0].aval.shape[i] for i in contracted)
    if kind == "conv_general_dilated":
        kernel, spec = e.invars[1].aval, e.params["dimension_numbers"].rhs_spec
        taps = kernel.size // kernel.shape[spec[0]]
        # zeros that dilation puts into the input are not multiplied; batch groups are in the output's size already
        return 2 * e.outvars[0].aval.size * taps // math.prod(e.params["lhs_dilation"])
    bodies = [_count(sub) for sub, _ in inner(e)]
    if kind == "scan":
        return e.params["length"] * sum(bodies)
    if kind == "cond":
        return max(bodies)
    if kind == "while" and sum(bodies):
        raise ValueError("a matmul inside a while loop of unknown length cannot be counted; use lax.scan")
    if kind == "custom_jvp_call" or kind == "custom_vjp_call":
        return bodies[0]  # the rule is counted where differentiation put it
    return sum(bodies)
