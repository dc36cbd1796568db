"""Optimizer and schedules: a core from lab/optimizers, whose every update is scaled, weight by weight, by what its arrow says.

    g / grad -> clip -> core (Adam, ...) -> -lr(t) (step u + weight_decay decay w)

The core sees gradients and weights of width-free size, so clipping and what is relative to a weight need no rule of their own; epsilon
may have one (Scales.eps). All hyperparameters are traced: one compiled program serves every learning rate, decay, beta and parametrization.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lab import find
from lab.axes import Weight, is_weight
from lab.errors import UserError, nearest, unknown
from lab.optimizers import adamw
from lab.parametrization import Scales

SCHEDULES = ("constant", "linear", "cosine", "wsd")
TRACED = ("lr", "weight_decay", "b1", "b2", "eps", "clip", "ema")
CORE = ("b1", "b2", "eps")  # read by the optimizers that ask for them, as all other keys that every config has are by all
SHARED = ("name", "schedule", "warmup", "decay", *TRACED)


class Hyper(NamedTuple):
    """What is traced in a trial: hyperparameters, seed, slot (which seed's batch it reads) and the scales of every weight."""

    lr: Any
    weight_decay: Any
    b1: Any
    b2: Any
    eps: Any
    clip: Any  # threshold on the global norm of the scaled gradient; infinity for none
    ema: Any
    seed: Any
    slot: Any
    scales: list[Scales]
    own: dict[str, Any] = {}  # noqa: RUF012  numbers that the optimizer alone knows
    horizon: tuple = ()  # steps, warmup and last of the Schedule; (): the program's own


def kind(name: str) -> type:
    """The Optimizer of a part of lab/optimizers, or of one's own by dotted path or file."""
    module = find.module("lab.optimizers", name)
    if not hasattr(module, "Optimizer"):
        raise unknown("optimizer name", name, find.names("lab.optimizers"))
    return module.Optimizer


def check(config: dict[str, Any], defaults: dict[str, Any], eps: str) -> None:
    """UserError for a key of the section `optim` that its optimizer does not read, lacks, or that is of another type than it says.

    So it is for a rule `eps` of an epsilon that it has not.
    """
    name, reads = config["name"], find.arguments(kind(config["name"]))
    if eps != "scaled" and "eps" not in reads:
        raise UserError(
            f"config key parametrization.eps={eps!r} is not read by optimizer {name!r}, which has no epsilon; expected 'scaled'"
        )
    own = {k: v for k, v in config.items() if k not in SHARED}
    for key in [k for k in CORE if config[k] != defaults[k]] + list(own):
        if key not in reads:
            known = dict.fromkeys(k for k in (*SHARED, *reads) if k in reads or k not in CORE)
            raise UserError(
                f"config key optim.{key}={config[key]!r} is not read by optimizer {name!r}{nearest(key, known)}; it reads: {', '.join(known)}"
            )
    find.check(kind(name), own, "optim", ("self", *SHARED))
    find.typed(kind(name), own, "config key optim.")


def own(config: dict[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    """What the section `optim` gives its optimizer alone, defaults filled in: arguments that are `float`, which are traced, and others."""
    known = {n: p for n, p in inspect.signature(kind(config["name"])).parameters.items() if n not in SHARED}
    given = {n: config.get(n, p.default) for n, p in known.items()}
    numbers = {n: float(v) for n, v in given.items() if known[n].annotation is float}
    return numbers, {n: v for n, v in given.items() if n not in numbers}


def core(config: dict[str, Any]) -> Callable:
    """The optimizer of a config's section `optim`, which wants its traced arguments alone."""
    return partial(kind(config["name"]), **own(config)[1])


def traced(config: dict[str, Any]) -> set[str]:
    """The keys of the section `optim` in which trials of one program may differ."""
    return {*TRACED, *own(config)[0]}


def decays(steps: int, warmup: int, decay: float) -> int:
    """The step at which `wsd` begins to decay: before it, it is the same of any more steps."""
    return steps - max(1, round(decay * (steps - warmup)))


@dataclass(frozen=True)
class Schedule:
    """Multiplier of the peak learning rate at each step: linear warm-up, then constant, linear, cosine or wsd (arXiv 2404.06395).

    optax's schedules have these curves; these may have traced numbers, so that trials of several horizons share a compiled program.
    """

    name: str
    steps: Any
    warmup: Any
    last: Any  # steps over which `wsd` decays

    @property
    def horizon(self) -> tuple:
        """The numbers."""
        return self.steps, self.warmup, self.last

    def at(self, horizon: tuple) -> "Schedule":
        """The same with other numbers, if there are any."""
        return Schedule(self.name, *horizon) if horizon else self

    def __call__(self, count: Any) -> jax.Array:
        """The multiplier of step `count`, from 0; the first already moves (1 / warmup, not 0)."""
        done = jnp.clip((count - self.warmup) / (self.steps - self.warmup), 0.0, 1.0)
        after = {
            "constant": lambda: 1.0,
            "linear": lambda: 1.0 - done,
            "cosine": lambda: 0.5 * (1.0 + jnp.cos(jnp.pi * done)),
            "wsd": lambda: jnp.clip((self.steps - count) / self.last, 0.0, 1.0),
        }[self.name]()
        return jnp.where(count < self.warmup, (count + 1) / jnp.maximum(self.warmup, 1), after)


def schedule(name: str, steps: int, warmup: int, decay: float) -> Schedule:
    """The schedule of a config's keys; `wsd` goes linearly to 0 over the last `decay` share of the steps after the warm-up."""
    if name not in SCHEDULES:
        raise unknown("optim.schedule", name, SCHEDULES)
    if not 0 <= warmup < steps:
        raise UserError(f"optim.warmup={warmup} must be at least 0 and below train.steps={steps}")
    return Schedule(name, steps, warmup, steps - decays(steps, warmup, decay))


def _each(f, scales: list[Scales], tree: Any, *rest: Any) -> Any:
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_weight)
    others = [jax.tree.leaves(t, is_leaf=is_weight) for t in rest]
    out = []
    for s, w, *o in zip(scales, leaves, *others, strict=True):
        x = f(s, w.arrow, w.get_value(), *(v.get_value() for v in o))
        out.append(Weight(x, arrow=w.arrow))
    return jax.tree.unflatten(treedef, out)


def at_step(state: Any, step: jax.Array) -> Any:
    """An optimizer's state whose learning rate is that of a step, whatever updates were left out before it."""
    return (*state[:-1], state[-1]._replace(count=step))


def optimizer(hyper: Hyper, rate: Callable, core: Callable = adamw.Optimizer) -> optax.GradientTransformation:
    """The optimizer of one trial; `rate` multiplies hyper.lr. Its state is optax's own, with the core's in its midst.

    `core` is called with the hyperparameters that it takes and gives `init(params)` and `update(updates, state, params)`, and may give
    `size(arrow)`: how large its update acts beside one whose entries are of size one, relative to the base; 1 where it is not given.
    """
    known = {k: getattr(hyper, k) for k in TRACED} | hyper.own
    inner = core(**{k: known[k] for k in find.arguments(core) if k in known})

    def before(grads, params):
        return _each(lambda s, _, g: g / s.grad, hyper.scales, grads)

    def clipped(updates, params):
        norm = optax.tree.norm(updates)
        factor = jnp.minimum(1.0, hyper.clip / jnp.maximum(norm, 1e-20))
        # Adam of g / c with epsilon is Adam of g with c epsilon: it is blind to c but for that
        return _each(lambda s, _, g: g * (factor / (s.eps if "eps" in find.arguments(core) else 1.0)), hyper.scales, updates)

    def moved(updates, state, params):
        # the weight over its expected size; an optimizer's own step expects none
        return inner.update(updates, state, _each(lambda s, _, w: w / s.init**s.unit, hyper.scales, params))

    def decayed(updates, params):
        if hasattr(inner, "size"):
            updates = _each(lambda s, a, u: u / inner.size(a) ** s.unit, hyper.scales, updates)
        return _each(lambda s, _, u, w: s.step * u + hyper.weight_decay * s.decay * w, hyper.scales, updates, params)

    return optax.chain(
        optax.stateless(before),
        optax.stateless(clipped),
        optax.GradientTransformation(inner.init, moved),
        optax.stateless(decayed),
        optax.scale_by_schedule(lambda count: -hyper.lr * rate(count)),
    )
