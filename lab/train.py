"""One trial: its state, its step, its evaluation. Everything here is pure and traced; loops live in population.py."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from lab.axes import Dims, draw, map_weights, states, view
from lab.failure import STOP, Policy
from lab.optim import Hyper, Schedule, at_step, optimizer
from lab.optimizers import adamw

DIVERGED = 10.0  # a training loss this many times the first one counts as diverged, as a non-finite one does


@jax.tree_util.register_dataclass
@dataclass
class State:
    """All that a trial carries from step to step; a checkpoint holds this and the data's position."""

    params: Any
    opt: Any
    ema: Any
    step: jax.Array  # int32
    alive: jax.Array  # bool: False from the step at which the trial diverged
    first: jax.Array  # float32: loss of the first step
    kept: Any = None  # what the policy for failed updates remembers


@dataclass(frozen=True)
class Program:
    """What the trials of one population share: the described model, the objective, the schedule, the compute dtype, the optimizer, the
    policy for updates that fail.

    The batch of a step is computed in `parts`, one after the other, each of which needs that much less memory.
    """

    model: Any
    dims: Dims
    objective: Any
    rate: Schedule
    dtype: jnp.dtype
    core: Callable = adamw.Optimizer
    failure: Policy = STOP
    parts: int = 1

    def loss(self, params: Any, key: jax.Array, batch: dict) -> jax.Array:
        """Loss of each example, [B], in float32."""
        return self.objective.loss(view(params, self.dtype), key, batch).astype(jnp.float32)

    def init(self, hyper: Hyper, apart: bool = False) -> State:
        """State before the first step; every number comes from hyper.seed and hyper.scales, weight by weight if `apart`."""
        return self.begin(hyper, draw(jax.random.fold_in(jax.random.key(hyper.seed), 0), self.model, hyper.scales, apart))

    def begin(self, hyper: Hyper, params: Any, ema: Any = None) -> State:
        """State before the first step from weights, and their average where it is another."""
        opt = optimizer(hyper, self.rate.at(hyper.horizon), self.core).init(params)
        first, alive = jnp.float32(jnp.inf), jnp.array(True)
        # a buffer of its own: donated buffers must not be shared between params and their average
        ema = jax.tree.map(jnp.copy, params) if ema is None else ema
        return State(params, opt, ema, jnp.int32(0), alive, first, self.failure.begin((params, opt, ema)))

    def update(self, params: Any, opt: Any, step: jax.Array, hyper: Hyper, batch: dict) -> tuple[jax.Array, Any, Any, Any]:
        """Loss and gradient on the batch of a step, and what the optimizer makes of it: the update and its next state.

        The update of a state of the model is the difference to what the model has set it to.
        """
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(hyper.seed), 1), step)
        loss, grads, new = self.gradient(params, key, batch)
        updates, opt = optimizer(hyper, self.rate.at(hyper.horizon), self.core).update(grads, opt, params)
        held = iter(new)
        return loss, grads, map_weights(lambda a, u, w: next(held) - w if a.state else u, updates, params) if new else updates, opt

    def gradient(self, params: Any, key: jax.Array, batch: dict) -> tuple[jax.Array, Any, list[jax.Array]]:
        """Mean loss of a batch, its gradient, and what the model's states hold after it.

        In parts, of inputs that are drawn for the whole batch, so that they are the same; models with states see a batch whole.
        """
        if self.parts == 1:

            def mean(params):
                seen = view(params, self.dtype)
                return jnp.mean(self.objective.loss(seen, key, batch).astype(jnp.float32)), states(seen)

            (loss, new), grads = jax.value_and_grad(mean, has_aux=True)(params)
            return loss, grads, new
        # every `parts`-th example, so that a part of a batch that is divided over devices is divided over all of them
        drawn = self.objective.inputs(key, batch)
        split = jax.tree.map(lambda x: x.reshape(-1, self.parts, *x.shape[1:]).swapaxes(0, 1), drawn)

        def add(total, given):
            part = jax.value_and_grad(lambda p: jnp.mean(self.objective.losses(view(p, self.dtype), given).astype(jnp.float32)))(params)
            return jax.tree.map(jnp.add, total, part), None

        total, _ = jax.lax.scan(add, (jnp.float32(0.0), jax.tree.map(jnp.zeros_like, params)), split)
        return *jax.tree.map(lambda x: x / self.parts, total), []

    def step(self, state: State, hyper: Hyper, batch: dict) -> tuple[State, dict]:
        """One update on a batch, or what self.failure makes of one that fails; a trial that diverges keeps its last state from then on."""
        loss, grads, updates, opt = self.update(state.params, state.opt, state.step, hyper, batch)
        norm = optax.tree.norm(grads)
        first = jnp.where(jnp.isinf(state.first) & jnp.isfinite(loss), loss, state.first)
        sound = jnp.isfinite(loss) & jnp.isfinite(norm) & (loss <= DIVERGED * first)
        params = optax.apply_updates(state.params, updates)
        ema = optax.incremental_update(params, state.ema, 1.0 - hyper.ema)
        old = state.params, state.opt, state.ema
        (params, opt, ema), kept, alive, told = self.failure.after(state.kept, old, (params, opt, ema), state.alive, sound, norm)
        if told:  # the learning rate goes by steps, of which some were no updates
            opt = at_step(opt, state.step + 1)
        new = State(params, opt, ema, state.step + 1, alive, first, kept)
        return new, {"loss": loss, "grad_norm": norm, "diverged": ~alive, **told}

    def evaluate(self, state: State, key: jax.Array, batches: dict) -> dict:
        """Mean loss over fixed batches [N, B, ...] with fixed draws, for the weights and for their average."""
        keys = jax.random.split(key, jax.tree.leaves(batches)[0].shape[0])

        def mean(params):
            return jnp.mean(jax.lax.map(lambda kb: jnp.mean(self.loss(params, *kb)), (keys, batches)))

        return {"eval_loss": mean(state.params), "eval_ema": mean(state.ema)}

    def errors(self, params: Any, key: jax.Array, batches: dict) -> dict:
        """Times t [N * B] and errors [N * B, ...] behind `evaluate`'s loss, with the same draws."""
        keys = jax.random.split(key, jax.tree.leaves(batches)[0].shape[0])
        t, error = jax.lax.map(lambda kb: self.objective.errors(view(params, self.dtype), *kb), (keys, batches))
        return {"t": t.reshape(-1), "error": error.reshape(-1, *error.shape[2:])}

    def sample(self, params: Any, key: jax.Array, cond: dict, **options: Any) -> jax.Array:
        """Samples of one trial by the objective's sampler."""
        return self.objective.sample(view(params, self.dtype), key, cond, **options)


def over_trials(f: Callable, in_axes: tuple, apart: Mesh | None = None, beside: str | None = None) -> Callable:
    """f over a leading axis of trials: as one batch (vmap), or apart on each device of a mesh with the axis 'trials' alone.

    Apart, the trials of a CPU's core take turns, and those of another device are one batch. A population of one runs without either, as
    the plain program it is. `in_axes` holds 0 (a tree of trials) or None (shared). `beside` is the mesh axis that divides the batch of trials
    where other axes divide f: what f places on devices itself is placed along it too, and not gathered.
    """

    def pick(args):
        return [a for a, axis in zip(args, in_axes, strict=True) if axis == 0]

    def whole(trial, args):
        rest = iter(trial)
        return [next(rest) if axis == 0 else a for a, axis in zip(args, in_axes, strict=True)]

    def in_turn(*args):
        return jax.lax.map(lambda trial: f(*whole(trial, args)), pick(args))

    def run(*args):
        if jax.tree.leaves(pick(args))[0].shape[0] == 1:
            one = jax.tree.map(lambda x: x[0], pick(args))
            return jax.tree.map(lambda x: x[None], f(*whole(one, args)))
        if apart is None:
            return jax.vmap(f, in_axes, spmd_axis_name=beside)(*args)
        here = in_turn if apart.devices.flat[0].platform == "cpu" else jax.vmap(f, in_axes)
        specs = tuple(PartitionSpec("trials") if axis == 0 else PartitionSpec() for axis in in_axes)
        return jax.shard_map(here, mesh=apart, in_specs=specs, out_specs=PartitionSpec("trials"), check_vma=False)(*args)

    return run
