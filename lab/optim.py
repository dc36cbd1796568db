"""Optimizer and schedules: AdamW whose every update is scaled, weight by weight, by what its arrow says.

    g / grad -> clip -> Adam -> -lr(t) (step u + weight_decay decay w)

The core sees gradients of width-free size, so epsilon and clipping need no rule of their own. All hyperparameters are traced:
one compiled program serves every learning rate, decay, beta and parametrization.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lab.axes import Weight, is_weight
from lab.errors import UserError, unknown
from lab.parametrization import Scales

SCHEDULES = ("constant", "linear", "cosine", "wsd")
TRACED = ("lr", "weight_decay", "b1", "b2", "eps", "clip", "ema")


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


def schedule(name: str, steps: int, warmup: int, decay: float) -> optax.Schedule:
    """Multiplier of the peak learning rate at each step: linear warm-up, then `name`.

    constant: 1. linear, cosine: to 0 at `steps`. wsd: 1, then linear to 0 over the last `decay` share of the steps
    (arXiv 2404.06395).
    """
    if name not in SCHEDULES:
        raise unknown("optim.schedule", name, SCHEDULES)
    if not 0 <= warmup < steps:
        raise UserError(f"optim.warmup={warmup} must be at least 0 and below train.steps={steps}")
    rest = steps - warmup
    last = max(1, round(decay * rest))
    after = {
        "constant": optax.constant_schedule(1.0),
        "linear": optax.linear_schedule(1.0, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(1.0, rest),
        "wsd": optax.join_schedules([optax.constant_schedule(1.0), optax.linear_schedule(1.0, 0.0, last)], [rest - last]),
    }[name]
    # the first step already moves: (1 / warmup), not 0
    up = optax.linear_schedule(1.0 / max(warmup, 1), 1.0, max(warmup - 1, 1))
    return optax.join_schedules([up, after], [warmup]) if warmup else after


def _each(f, scales: list[Scales], tree: Any, *rest: Any) -> Any:
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_weight)
    others = [jax.tree.leaves(t, is_leaf=is_weight) for t in rest]
    out = []
    for s, w, *o in zip(scales, leaves, *others, strict=True):
        x = f(s, w.get_value(), *(v.get_value() for v in o))
        out.append(Weight(x, arrow=w.arrow))
    return jax.tree.unflatten(treedef, out)


def optimizer(hyper: Hyper, rate: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer of one trial; `rate` multiplies hyper.lr. Its state is optax's own."""

    def before(grads, params):
        return _each(lambda s, g: g / s.grad, hyper.scales, grads)

    def clipped(updates, params):
        norm = optax.tree.norm(updates)
        factor = jnp.minimum(1.0, hyper.clip / jnp.maximum(norm, 1e-20))
        return jax.tree.map(lambda g: g * factor, updates)

    def decayed(updates, params):
        return _each(lambda s, u, w: s.step * u + hyper.weight_decay * s.decay * w, hyper.scales, updates, params)

    return optax.chain(
        optax.stateless(before),
        optax.stateless(clipped),
        optax.scale_by_adam(hyper.b1, hyper.b2, hyper.eps),
        optax.stateless(decayed),
        optax.scale_by_schedule(lambda count: -hyper.lr * rate(count)),
    )
