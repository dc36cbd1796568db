"""What the coordinate check measures: a few steps of training of one size, and what every weight then adds to the network.

An entry is a weight at one place of use: "qkv'" is the second slice of "qkv". All numbers are rms over what is not a layer.
"""

import math
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lab.axes import Weight, is_weight, weights
from lab.models import shared
from lab.optim import Hyper
from lab.parametrization import Table
from lab.population import build, hyper, stacked, turns
from lab.probe import probe
from lab.train import Program, over_trials

# programs that run for seconds: these options compile them in a third of the time, and they run as fast; later jaxlibs lack the second
QUICK = {"xla_backend_optimization_level": 0}
if version("jaxlib").startswith("0.10."):
    QUICK["xla_cpu_use_fusion_emitters"] = False
NEXT_TO_NONE = 1e-4  # by which epsilon is multiplied to see what it takes of an update
FIRST = 4  # steps in which a weight should get its first gradient: behind zero gates, and a zero readout, it does in the third
Found = dict[str, dict[str, np.ndarray]]


class Setting(NamedTuple):
    """Seeds, steps and learning rate of a check."""

    seeds: int = 4
    steps: int = 12
    lr: float = 2.0**-9  # far below the best one, where a step is linear: at 2^-7 slopes of up to 0.5 are effects of small widths


def measured(config: dict, source_dims: dict[str, int], batches: dict, rules: dict[str, Table], setting: Setting) -> tuple[Program, Found]:
    """The program of a config, and {measure: {entry: [rule, seed, layer]}} of it after the setting's steps.

    `batches` [steps, batch, ...] are the same for all trials; rules are data, so that one program has them all. Measures:
      own: (W_t - W_0) x_t. activation: W_t x_t, and products of two activations such as attention's logits.
      start: W_0. gradient: the last one, over its expected size. relative: the last update, over W_t.
      update: the largest of the first FIRST ones and the last, over the learning rate; Adam's first is as large as the step.
      decay: what a weight loses in a step, over learning rate times weight decay. epsilon: share of the last update that it takes.
      wakes: the first step (from 1) at which the weight has a gradient; steps + 1 where none.
    """
    mine = {**config, "optim": {**config["optim"], "lr": setting.lr, "schedule": "constant", "warmup": 0}}
    mine["transfer"] = {**config["transfer"], "batch_rule": "none", "horizon_rule": "none"}  # the rate is the setting's
    with shared.rolled():  # a scanned stack compiles faster
        program = build(mine, source_dims)
        trials = [hyper(program, {**mine, "seed": seed}, table) for table in rules.values() for seed in range(setting.seeds)]
        rows = _rows(program.model)
        places = turns(len(trials))
        spare = -len(trials) % places.size if places is not None else 0  # the last once more where a round of turns is not full
        run = over_trials(
            lambda trial, batches, row: _trial(program, trial, batches, row, rows.size, setting.steps), (0, None, None), places
        )
        options = QUICK if jax.default_backend() == "cpu" else None
        given = (stacked([*trials, *[trials[-1]] * spare]), batches, jnp.asarray(rows.at))
        used, own = jax.tree.map(lambda x: x[: len(trials)], jax.device_get(jax.jit(run, compiler_options=options)(*given)))
    shape = (len(rules), setting.seeds, -1)
    found: Found = {
        m: {n: np.reshape(v[i], shape) for n, v in used.items() if i == 0 or v[1].any()} for i, m in enumerate(("activation", "own"))
    }
    expected = np.array([[s.grad for s in t.scales] for t in trials])
    own["gradient"] = own["gradient"] / expected[:, rows.leaf]
    for m, x in own.items():
        found[m] = {n: x[:, at].reshape(shape) for n, at in rows.entries.items()}
    if hasattr(program.core, "size"):
        found["update"] = {}  # entries of such an update are of no size that tells how large it acts
    return program, found


class Rows(NamedTuple):
    """A row is one layer, and of fused projections ('3 |') one slice, of one weight."""

    at: np.ndarray  # [all trained numbers, weight after weight] their row
    size: np.ndarray  # [row] how many numbers
    leaf: np.ndarray  # [row] which weight it is of
    entries: dict[str, np.ndarray]  # entry -> rows, one a layer


def _rows(model: Any) -> Rows:
    at, leaf, entries, n = [], [], {}, 0
    for i, (name, w) in enumerate(weights(model).items()):
        if not w.arrow.trained:
            continue
        dims, layers, lead = w.get_value().shape, len(w.arrow.stack), len(w.arrow.stack + w.arrow.index)
        kept = [d if k < layers or (k < lead and w.arrow.names[k].isdigit()) else 1 for k, d in enumerate(dims)]
        mine = n + np.arange(math.prod(kept)).reshape(kept)
        at.append(np.broadcast_to(mine, dims).ravel())
        leaf += [i] * mine.size
        entries |= {name + "'" * k: x for k, x in enumerate(mine.reshape(math.prod(dims[:layers]), -1).T)}
        n += mine.size
    flat = np.concatenate(at).astype(np.int32)
    return Rows(flat, np.bincount(flat).astype(np.float32), np.array(leaf), entries)


def _trial(program: Program, trial: Hyper, batches: dict, row: jax.Array, size: np.ndarray, steps: int) -> tuple[dict, dict]:
    """{entry: (rms of W x, rms of own change)} and {measure: [row]} of one trial."""
    start = program.init(trial)

    def mean(*trees):
        """Mean over each row of the product of like trees."""
        flat = [jnp.concatenate([w.get_value().ravel() for w in _trained(t)]) for t in trees]
        return jax.ops.segment_sum(math.prod(flat), row, len(size)) / size

    # before the last step two more are taken from the same state, which are not kept: without epsilon, and with decay
    at = jnp.array([*range(steps - 1), *[steps - 1] * 3])
    eps = jnp.full(steps + 2, trial.eps).at[steps - 1].multiply(NEXT_TO_NONE)
    decay = jnp.full(steps + 2, trial.weight_decay).at[steps].add(1.0)
    kept = jnp.ones(steps + 2, bool).at[steps - 1 : steps + 1].set(False)
    told = (at < FIRST) | (at == steps - 1)

    def step(state, x):
        i, eps, decay, kept, told = x
        params, opt = state
        hyper = trial._replace(eps=eps, weight_decay=decay)
        _, grads, updates, new = program.update(params, opt, i, hyper, jax.tree.map(lambda b: b[i], batches))
        after = (optax.apply_updates(params, updates), new)
        pairs = ((grads, grads), (updates, updates), (updates, params))
        said = jax.lax.cond(told, lambda: [mean(*p) for p in pairs], lambda: [jnp.zeros(len(size))] * 3)
        return jax.tree.map(lambda a, b: jnp.where(kept, a, b), after, state), said

    (params, _), (gradient, update, along) = jax.lax.scan(step, (start.params, start.opt), (at, eps, decay, kept, told))
    last = jax.tree.map(lambda x: x[-1], batches)
    used = probe(lambda p: jnp.mean(program.loss(p, jax.random.key(7), last)), params, start.params, pairs=True)[1]
    square, there = jnp.maximum(mean(params, params), 1e-30), gradient > 0
    return used, {
        "start": jnp.sqrt(mean(start.params, start.params)),
        "gradient": jnp.sqrt(gradient[-1]),
        "update": jnp.sqrt(jnp.max(jnp.where(kept[:, None], update, 0.0), 0)) / trial.lr,
        "relative": jnp.sqrt(update[-1] / square),
        "decay": (along[-1] - along[-2]) / square / trial.lr,
        "epsilon": 1 - jnp.sqrt(update[-1] / jnp.maximum(update[-3], 1e-30)),
        "wakes": jnp.where(jnp.any(there, 0), 1 + at[jnp.argmax(there, 0)], steps + 1),
    }


def _trained(tree: Any) -> list[Weight]:
    return [w for w in jax.tree.leaves(tree, is_leaf=is_weight) if w.arrow.trained]
