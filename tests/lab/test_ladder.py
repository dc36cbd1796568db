"""A ladder of trained models shows the exponent that the teacher world plants."""

import jax
import numpy as np
import rank
import small

from lab.data.teacher import Source
from lab.population import Population, Trial

WORLD = Source("train", "", size=4, classes=24, exponent=0.5, noise=0.1)
WIDTHS, STEPS, BATCH, POOL = (1, 3, 8), 500, 128, 1 << 15


def trained(width, pool, held):
    """Loss of the model whose dependence on the label has rank `width`."""
    c = small.config(**{"train.steps": STEPS, "train.batch": BATCH, "optim.schedule": "cosine", "optim.warmup": 20, "base": {}})
    c["model"], c["objective"] = dict(name=rank.__file__, width=width), dict(name="flow", time="uniform", label_drop=0.0)
    c["optim"]["lr"] = 2.0**-5
    pop = Population([Trial("t", "mup", c, {})], WORLD, held)
    carry = pop.init()
    pop.compile(carry)
    for rows in np.random.default_rng(0).integers(0, POOL, (STEPS, BATCH)):
        carry, _ = pop.step(carry, pop.hyper, pop.put({k: v[rows][None] for k, v in pool.items()}))
    return float(pop.evaluate(carry)["eval_loss"][0])


def test_the_planted_exponent_shows_in_a_width_ladder():
    pool = jax.device_get(WORLD.generate(jax.random.key(1), POOL))
    held = {k: v[None] for k, v in jax.device_get(WORLD.generate(jax.random.key(2), 1 << 15)).items()}
    law, found = WORLD.law(), [trained(w, pool, held) for w in WIDTHS]
    best = [law["floor"] + law["scale"] * (w + 1) ** -law["exponent"] for w in WIDTHS]
    for got, least in zip(found, best, strict=True):
        assert -0.006 < got - least < 0.03  # the held-out set's own error, and what training leaves
    x, y = np.log(np.array(WIDTHS) + 1), np.log(np.array(found) - law["floor"])
    assert abs(-np.polyfit(x, y, 1)[0] - law["exponent"]) < 0.04
    # the control: the ladder of another teacher is not this law
    other = Source("train", "", size=4, classes=24, exponent=1.0, noise=0.1).law()
    assert abs(other["exponent"] + np.polyfit(x, y, 1)[0]) > 0.3
