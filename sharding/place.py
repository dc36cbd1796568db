"""Names and rules -> shardings: knows tuples of dim names, no model and no Flax."""

import math
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sharding.mesh import AXES

Rules = dict[str, tuple[str, ...]]  # dim name -> the mesh axes that it is divided over, in order

# what each mesh axis divides: dims of weights, and of the residual stream `batch` and `tokens`
DIVIDES = {
    "trials": ("trials",),
    "data": ("batch",),
    "fsdp": ("batch", "embed", "condition", "text_embed"),
    "sequence": ("tokens",),
    "expert": ("experts",),
    "tensor": ("heads", "kv_heads", "mlp", "time", "vocabulary"),
}
# the ready sets; any other axes may be joined by '+' too. `data` and `trials` are in all of them, where the mesh has them
SETS = ("replicated", "fsdp", "fsdp+tensor", "sequence", "trials")


class Missed(NamedTuple):
    """An array of which a dim could not be divided as a rule asks, and is replicated instead."""

    name: str
    dim: str
    size: int
    axes: tuple[str, ...]
    parts: int

    def __str__(self) -> str:
        return f"{self.name}: {self.dim}={self.size} is not divided by {'*'.join(self.axes)}={self.parts}"


def axes(sharding: str) -> tuple[str, ...]:
    """The mesh axes of a set's name, its main axis first.

    Raises:
      ValueError: a name that is neither 'replicated' nor axes joined by '+'.
    """
    named = ("data",) if sharding == "replicated" else tuple(sharding.split("+"))
    if set(named) - set(AXES) or len(set(named)) < len(named):
        raise ValueError(
            f"run.sharding={sharding!r} is no set of rules; expected one of: {', '.join(SETS)}, or of {', '.join(AXES)} joined by '+'"
        )
    return named


def sizes(sharding: str, mesh: dict[str, int]) -> dict[str, int]:
    """run.mesh, or where it names no axis a mesh of all devices on the main axis of the set `sharding`; {} where neither is named."""
    given = {a: n for a, n in mesh.items() if n}
    if given or not sharding:
        return given
    main, *rest = axes(sharding)
    return {main: -1, **dict.fromkeys(rest, 1)}


def rules(sharding: str, mesh: Mesh, more: dict[str, Any] | None = None) -> Rules:
    """The rules of a set (without a name: of all axes of the mesh), with `more` in place of them or beside them.

    An entry of `more` is a mesh axis, a tuple of them, or '' for a dim that is not to be divided.

    Raises:
      ValueError: the mesh lacks an axis that is named, or has one that no rule uses.
    """
    named = axes(sharding) if sharding else mesh.axis_names
    lacking = [a for a in named if a not in mesh.axis_names and sharding != "replicated"]
    if lacking:
        raise ValueError(
            f"run.sharding={sharding!r} divides over the axis {lacking[0]!r}, which run.mesh lacks; its axes: {', '.join(mesh.axis_names)}"
        )
    found: dict[str, tuple[str, ...]] = {}
    for a in mesh.axis_names:
        for dim in DIVIDES[a] if a in (*named, "data", "trials") else ():
            found[dim] = (*found.get(dim, ()), a)
    for dim, asked in (more or {}).items():
        found[dim] = (asked,) * bool(asked) if isinstance(asked, str) else asked
        if not isinstance(found[dim], tuple) or [a for a in found[dim] if a not in mesh.axis_names]:
            raise ValueError(f"run.rules.{dim}={asked!r} is not an axis of run.mesh; its axes: {', '.join(mesh.axis_names)}")
    used = {a for over in found.values() for a in over}
    if idle := [a for a in mesh.axis_names if a not in used and mesh.shape[a] > 1]:
        raise ValueError(
            f"the axis {idle[0]!r} of run.mesh is used by no rule of run.sharding={sharding!r}; its devices would all compute the same"
        )
    return {dim: over for dim, over in found.items() if over}


def spec(names: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> PartitionSpec:
    """The partition of one array: each named dim goes to the mesh axes its rule says, the first use of a mesh axis wins.

    Dims without a rule, or that its axes do not divide, are replicated.
    """
    return _placed(names, shape, mesh, rules)[0]


def _placed(names: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh, rules: Rules, what: str = "") -> tuple[PartitionSpec, list[Missed]]:
    taken, out, missed = set(), [], []
    for name, size in zip(names, shape, strict=True):
        free = tuple(a for a in rules.get(name, ()) if a not in taken)
        parts = math.prod(mesh.shape[a] for a in free)
        if size % parts:
            missed.append(Missed(what, name, size, free, parts))
            free = ()
        out.append(free[0] if len(free) == 1 else free or None)
        taken |= set(free)
    return PartitionSpec(*out), missed


def missed(names: dict[str, tuple[str, ...]], shapes: dict[str, tuple[int, ...]], mesh: Mesh, rules: Rules) -> list[Missed]:
    """What of arrays by name, of which `names` are the dims, lies otherwise than the rules ask, and so takes more memory than it need."""
    return [m for what, dims in names.items() for m in _placed(dims, shapes[what], mesh, rules, what)[1]]


def shardings(names: Any, shapes: Any, mesh: Mesh, rules: Rules) -> Any:
    """NamedShardings for a tree of dim-name tuples and the tree of arrays (or ShapeDtypeStructs) they describe."""
    leaves, treedef = jax.tree.flatten(shapes)
    # a plain tuple: the empty states of an optimizer are named tuples and hold no array
    flat = jax.tree.leaves(names, is_leaf=lambda x: type(x) is tuple and all(isinstance(n, str) for n in x))
    placed = [NamedSharding(mesh, spec(n, x.shape, mesh, rules)) for n, x in zip(flat, leaves, strict=True)]
    return jax.tree.unflatten(treedef, placed)
