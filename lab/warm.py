"""Trials that begin from trained weights, a study's or those of the stage before, carried to their own model by a transform (lab/transforms)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lab import axes, find
from lab.errors import UserError, unknown
from lab.population import EVAL_KEY, Population
from lab.train import Program, State

# study: the folder of one, or the name of the stage before; trial: its best where not told
NONE = {"study": "", "trial": "", "transform": "resize", "options": {}}
KEPT = 1e-4  # by how much a loss may differ, relatively, where a transform keeps what a model computes: rounding of float32


class Found(NamedTuple):
    """What a trial begins from: the program that trained it, weights and their average, and whether it has not diverged."""

    program: Program
    params: Any
    ema: Any
    alive: bool = True


def transform(init: dict) -> Any:
    """The transform that a config's section `init` names; UserError for an unknown one or an option that it does not take."""
    found = find.module("lab.transforms", init["transform"])
    if not hasattr(found, "Transform"):
        raise unknown("config key init.transform", init["transform"], find.names("lab.transforms"))
    find.check(found.Transform, init["options"], "init.options")
    find.typed(found.Transform, init["options"], "config key init.options.")
    return found.Transform(**init["options"])


def check(config: dict) -> None:
    """UserError for a section `init` that says how to begin and not from what, or names no transform."""
    init = config["init"]
    if init["trial"] and not init["study"]:
        raise UserError(f"config key init.trial={init['trial']!r} is of a study; expected its folder as init.study")
    if init["study"]:
        transform(init)


def states(pop: Population, found: list[Found]) -> State:
    """The states [trials, ...] before the first step of a population whose trials begin from what is `found` for each, on the host.

    Raises:
      UserError: a weight that the transform cannot carry, or a model that does not compute what it did where the transform says so.
    """
    carry, fresh = transform(pop.config["init"]), jax.device_get(pop.state(pop.init()).params)
    params, averages = [], []
    for i, x in enumerate(found):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], fresh)
        params.append(_carried(carry, x, x.params, own, pop))
        averages.append(params[-1] if x.ema is x.params else _carried(carry, x, x.ema, own, pop))
    if carry.keeps:
        _same(found[0], params[0], pop)
    stacked = (jax.tree.map(lambda *leaves: np.stack(leaves), *trees) for trees in (params, averages))
    return pop.begun(*stacked, np.array([x.alive for x in found]))


def _carried(carry: Any, found: Found, trained: Any, fresh: Any, pop: Population) -> Any:
    arrays = carry(axes.weights(trained), axes.weights(fresh), found.program.dims, pop.program.dims)
    leaves = [w.replace(arrays[n]) for n, w in axes.weights(fresh).items()]
    return jax.tree.unflatten(jax.tree.structure(fresh, is_leaf=axes.is_weight), leaves)


def _same(found: Found, params: Any, pop: Population) -> None:
    """UserError unless the loss of held-out examples is what it was, with the same draws."""
    batch, key = jax.tree.map(lambda x: jnp.asarray(x[0]), pop.held), jax.random.key(EVAL_KEY)
    pairs = ((found.program, found.params), (pop.program, params))
    try:
        before, after = (float(jnp.mean(jax.jit(p.loss)(jax.tree.map(jnp.asarray, w), key, batch))) for p, w in pairs)
    except TypeError as e:
        raise UserError(f"init: the model begun from cannot read this data ({str(e).splitlines()[0]}); carry it by 'resize' first") from e
    if not abs(after - before) <= KEPT * abs(before) * (1 if pop.program.dtype == jnp.float32 else 100):
        name = pop.config["init"]["transform"]
        raise UserError(
            f"init.transform={name!r} is to keep what the model computes, and its loss goes from {before:.6g} to {after:.6g}: something in it "
            "depends on its width beside the weights; sine-cosine positions stay with model.position_width=WIDTH BEFORE"
        )
