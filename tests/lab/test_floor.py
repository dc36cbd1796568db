"""A trained model nears the exact best loss of a world and never beats it, where excess is measured pair by pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from lab.data.field import Source as Field
from lab.data.mixture import Source as Mixture
from lab.objectives import flow
from lab.population import Population

STEPS, BATCH, RATES = 200, 64, (2.0**-7, 2.0**-6)


class Fresh:
    """New examples of a world at every step, drawn on the device."""

    def __init__(self, world):
        self.world, self.dims = world, world.dims
        self.draw = jax.jit(world.generate, static_argnums=1)

    def __call__(self, seed, n):
        return jax.device_get(self.draw(jax.random.key(seed), n))


def excess(world, model, batch):
    """(mean, standard error) over examples of a model's loss less that of the exact velocity, at the same times and noise."""
    objective, key = flow.Objective("logit_normal", 0.1), jax.random.key(5)

    def exact(inputs):
        return world.velocity(inputs["x"], inputs["t"], inputs["label"])

    gap = np.asarray(objective.loss(model, key, batch) - objective.loss(exact, key, batch))
    return gap.mean(), gap.std() / np.sqrt(len(gap))


FIELD = Field("train", "", size=8)
MIXTURE = Mixture("train", "", size=4, channels=1, classes=4, components=2, rank=2)


@pytest.mark.parametrize("world, patch", [pytest.param(FIELD, 2, marks=pytest.mark.slow), (MIXTURE, 4)], ids=["field", "mixture"])
def test_training_nears_the_floor_and_stays_above_it(world, patch):
    fresh = Fresh(world)
    changes = {"train.steps": STEPS, "train.batch": BATCH, "optim.schedule": "cosine", "optim.warmup": 10}
    group = small.trials([{"optim.lr": r} for r in RATES], **changes)
    for t, r in zip(group, RATES, strict=True):
        t.config["model"].update(patch=patch, depth=2)
        t.config["optim"]["lr"] = r
    pop = Population(group, world, {k: v[None] for k, v in fresh(1, 64).items()})
    carry = pop.init()
    pop.compile(carry)
    held = jax.tree.map(jnp.asarray, fresh(2, 1024))

    def trial(i):
        return jax.tree.map(lambda x: x[i], pop.state(carry).params)

    start = excess(world, trial(0), held)[0]
    for step in range(STEPS):
        carry, _ = pop.step(carry, pop.hyper, pop.put({k: v[None] for k, v in fresh(100 + step, BATCH).items()}))
    found = [excess(world, trial(i), held) for i in range(len(RATES))]
    assert all(mean > 4 * error for mean, error in found)
    assert min(mean for mean, _ in found) < 0.35 * start
    # the control: the exact velocity of other times is far above the floor
    wrong = excess(world, lambda z: world.velocity(z["x"], 1.0 - z["t"], z["label"]), held)
    assert wrong[0] > 4 * wrong[1]
