"""Small tokenizers, worlds for them, and a loop that trains one without a study."""

import jax
import jax.numpy as jnp
import numpy as np
import small

from lab import axes, parametrization
from lab.optim import Hyper
from lab.population import build

SIZE = dict(width=32, depth=1, head_dim=16, mlp_ratio=2, patch=4, qk_norm=True)
MODELS = {
    "fsq": dict(name="fsq", levels=(4, 4), **SIZE),
    "vq": dict(name="vq", codes=16, code=4, **SIZE),
    "kl": dict(name="kl", code=4, **SIZE),
}
PICTURES = {"image": 16, "channels": 1, "classes": 4}


def config(model, weight=0.25, **changes):
    """A complete config that reconstructs by a tokenizer, named or told whole, at a constant learning rate."""
    section, changes = MODELS[model] if isinstance(model, str) else model, {"optim.schedule": "constant", **changes}
    return small.config(model=section, objective=dict(name="reconstruct", weight=weight), **changes)


def hyper(program, lr, seed=0, rule="mup", **more):
    """Traced hyperparameters of a program."""
    values = dict(weight_decay=0.0, b1=0.9, b2=0.99, eps=1e-8, clip=float("inf"), ema=0.9) | more
    scales = axes.scales(program.model, parametrization.table(rule))
    h = Hyper(lr=lr, seed=seed, slot=0, scales=scales, horizon=program.rate.horizon, **values)
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.int32 if isinstance(x, int) else jnp.float32), h)


def trained(config, dims, batches, steps, lr=2.0**-6, **more):
    """(program, last state, last loss) after `steps` over batches [N, B, ...], in turn."""
    program = build(config, dims)
    given = hyper(program, lr, **more)
    step = jax.jit(lambda state, i: program.step(state, given, jax.tree.map(lambda x: x[i], batches)))
    state, said = jax.jit(program.init)(given), None
    n = jax.tree.leaves(batches)[0].shape[0]
    for i in range(steps):
        state, said = step(state, i % n)
    return program, state, said


def patterns(k, n=64, side=8, seed=0):
    """(pictures uint8 [k, side, side, 1], a batch of n that shows each equally often): a world whose entropy is log2 k bits."""
    rng = np.random.default_rng(seed)
    every = np.uint8(255 * rng.integers(0, 2, (k, side, side, 1)))
    return every, {"image": jnp.asarray(every[np.arange(n) % k])[None], "label": jnp.zeros((1, n), jnp.int32)}
