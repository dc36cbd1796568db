"""A small model, its program and trials, shared by tests; the source is a real one in memory."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from lab import axes, parametrization
from lab.axes import Dims
from lab.experiment import DEFAULTS
from lab.models import dit
from lab.objectives import flow
from lab.optim import Hyper, schedule
from lab.population import Trial
from lab.train import Program

KNOBS = dict(width=32, depth=2, head_dim=16, mlp_ratio=4, patch=4, image=16, channels=1, classes=4)


class Source:
    """Smooth random pictures, one class a direction, in memory."""

    def __init__(self, n=256, side=16, seed=0):
        rng = np.random.default_rng(seed)
        label = rng.integers(0, 4, n)
        grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side)] * 2))
        angle = (label + 0.2 * rng.normal(size=n)) * np.pi / 4
        wave = np.cos(3 * (np.cos(angle)[:, None, None] * grid[0] + np.sin(angle)[:, None, None] * grid[1]))
        self.arrays = {"image": np.uint8(127.5 * (1 + wave))[..., None], "label": label.astype(np.int32)}
        self.dims = {"image": side, "channels": 1, "classes": 4}
        self.info = {
            "image": [side, side, 1],
            "classes": 4,
            "class_names": list("abcd"),
            "examples": n,
            "origin": "waves",
            "fingerprint": f"waves{n}-{side}-{seed}",
        }

    def __len__(self):
        return len(self.arrays["label"])

    def __getitem__(self, i):
        return {k: v[i] for k, v in self.arrays.items()}


def model(base=32, qk_norm=False, zero_gates=True, **knobs):
    """A described DiT."""
    return dit.Model(Dims.of(dit.Model.axes, {**KNOBS, **knobs}, {"width": base}), qk_norm, zero_gates)


def drawn(tree, more=0.3, seed=0, rule="standard"):
    """Numbers for a described tree, with nothing to compile; `more` times random ones are added, also to what starts constant."""
    rng, table = np.random.default_rng(seed), parametrization.table(rule)

    def one(a, like):
        start = a.fill + a.std * table(a).init * rng.normal(size=like.shape)
        return jnp.asarray(
            np.full(like.shape, a.std * table(a).init) if a.fixed else start + more * rng.normal(size=like.shape), jnp.float32
        )

    return axes.map_weights(one, tree)


def program(steps=20, dtype=jnp.float32, warmup=0, name="constant", **options):
    """The program of `model(**options)` under rectified flow."""
    m = model(**options)
    return Program(m, None, flow.Objective("logit_normal", 0.1), schedule(name, steps, warmup, 0.2), dtype)


def hyper(prog, lr=2.0**-6, rule="mup", seed=0, **more):
    """Traced hyperparameters of one trial."""
    scales = axes.scales(prog.model, parametrization.table(rule))
    values = dict(weight_decay=0.0, b1=0.9, b2=0.99, eps=1e-8, clip=float("inf"), ema=0.95) | more
    h = Hyper(lr=lr, seed=seed, slot=0, scales=scales, **values)
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.int32 if isinstance(x, int) else jnp.float32), h)


def stack(hypers):
    """Hyperparameters of several trials along a leading axis."""
    return jax.tree.map(lambda *x: jnp.stack(x), *hypers)


def batch(n=16, seed=0, source=None):
    """A batch of the source."""
    arrays = (source or Source()).arrays
    rows = np.random.default_rng(seed).permutation(len(arrays["label"]))[:n]
    return {k: jnp.asarray(v[rows]) for k, v in arrays.items()}


def config(**changes):
    """A complete config of a small study; keys are dotted."""
    c = json.loads(json.dumps(DEFAULTS))
    c["model"] = dict(name="dit", width=32, depth=1, head_dim=16, mlp_ratio=2, patch=4, qk_norm=False, zero_gates=True)
    c["base"], c["objective"] = dict(width=32), dict(name="flow", time="logit_normal", label_drop=0.1)
    c["train"].update(steps=20, batch=16, log_every=1)
    c["eval"].update(examples=32, batch=16, every=10)
    for key, value in changes.items():
        at, *rest = key.split(".")
        if rest:
            c[at][rest[0]] = value
        else:
            c[at] = value
    return c


def trials(points, **changes):
    """Trials of `points` (dicts of dotted keys)."""
    return [Trial(f"t{i}", p.get("parametrization.name", "mup"), config(**changes, **p), p) for i, p in enumerate(points)]
