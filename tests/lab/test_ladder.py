"""The fit of laws recovers the exponent that the teacher world plants, from a ladder of trained models."""

import jax
import numpy as np
import rank
import small

from lab.data.teacher import Source
from lab.laws import fits
from lab.laws.points import points
from lab.population import Population, Trial

WORLD = Source("train", "", size=4, classes=24, exponent=0.5, noise=0.1)
WIDTHS, STEPS, BATCH, POOL = (1, 2, 4, 8, 14), 500, 128, 1 << 15


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


def test_the_planted_exponent_is_recovered_from_trained_models():
    pool = jax.device_get(WORLD.generate(jax.random.key(1), POOL))
    held = {k: v[None] for k, v in jax.device_get(WORLD.generate(jax.random.key(2), 1 << 15)).items()}
    law, found = WORLD.law(), [trained(w, pool, held) for w in WIDTHS]
    best = [law["floor"] + law["scale"] * (w + 1) ** -law["exponent"] for w in WIDTHS]
    for got, least in zip(found, best, strict=True):
        assert -0.006 < got - least < 0.03  # the held-out set's own error, and what training leaves
    fitted = fits.fit(points({"flops": np.array(WIDTHS) + 1.0, "loss": found}), "L(C)", law["floor"])  # the variable is the rank and one
    low, high = fitted.interval(2)
    assert abs(fitted.exponents[0] - law["exponent"]) < 0.04
    assert low - 0.01 < law["exponent"] < high + 0.01  # training leaves a little more at the larger ranks
    assert high - low < 0.1
    # the control: the ladder of another teacher is not this law
    other = Source("train", "", size=4, classes=24, exponent=1.0, noise=0.1).law()
    assert not low - 0.3 < other["exponent"] < high + 0.3
