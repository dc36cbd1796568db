"""Names and rules -> shardings: knows tuples of dim names, no model and no Flax."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def spec(names: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh, rules: dict[str, str]) -> PartitionSpec:
    """The partition of one array: each named dim goes to the mesh axis its rule says, the first use of a mesh axis wins.

    Dims without a rule, or that the mesh axis does not divide, are replicated.
    """
    taken, out = set(), []
    for name, size in zip(names, shape, strict=True):
        axis = rules.get(name)
        if axis is not None and axis not in mesh.shape:
            raise ValueError(f"run.rules.{name}={axis!r} is not an axis of run.mesh; its axes: {', '.join(mesh.shape)}")
        free = axis is not None and axis not in taken and size % mesh.shape[axis] == 0
        out.append(axis if free else None)
        taken |= {axis} if free else set()
    return PartitionSpec(*out)


def shardings(names: Any, shapes: Any, mesh: Mesh, rules: dict[str, str]) -> Any:
    """NamedShardings for a tree of dim-name tuples and the tree of arrays (or ShapeDtypeStructs) they describe."""
    leaves, treedef = jax.tree.flatten(shapes)
    # a plain tuple: the empty states of an optimizer are named tuples and hold no array
    flat = jax.tree.leaves(names, is_leaf=lambda x: type(x) is tuple and all(isinstance(n, str) for n in x))
    placed = [NamedSharding(mesh, spec(n, x.shape, mesh, rules)) for n, x in zip(flat, leaves, strict=True)]
    return jax.tree.unflatten(treedef, placed)
