"""Conditions are hidden together, and guidance moves away from what is said without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.objectives import conditions

BATCH = {"image": jnp.ones((64, 2, 2, 1)), "label": jnp.arange(64), "text": jnp.ones((64, 5), jnp.int32)}


def test_one_draw_hides_all_conditions_of_an_example():
    few = conditions.drop(jax.random.key(0), BATCH, 0.2)
    assert 4 <= np.sum(few["label"] == -1) <= 24
    out = conditions.drop(jax.random.key(0), BATCH, 0.5)
    assert set(out) == {"label", "text"}
    gone = np.asarray(out["label"] == -1)
    assert 16 < gone.sum() < 48
    np.testing.assert_array_equal(gone, np.asarray(out["text"] == 0).all(1))
    np.testing.assert_array_equal(out["label"][~gone], BATCH["label"][~gone])
    assert conditions.drop(jax.random.key(0), {"image": BATCH["image"]}, 0.5) == {}


@pytest.mark.parametrize("features", [False, True])
def test_guidance_is_linear_between_with_and_without(features):
    text = jnp.ones((3, 5, 2)) if features else jnp.ones((3, 5), jnp.int32)

    def model(inputs):
        return inputs["x"] * (inputs["label"] + 2) + inputs["text"].reshape(3 if len(inputs["x"]) == 3 else 6, -1).sum(1)

    cond, x = {"label": jnp.array([0, 1, 2]), "text": text}, {"x": jnp.arange(3.0)}
    plain, none = (conditions.guided(model, c, 1.0)(x) for c in (cond, conditions.hidden(cond)))
    for scale in (0.0, 0.5, 3.0):
        np.testing.assert_allclose(conditions.guided(model, cond, scale)(x), none + scale * (plain - none), rtol=1e-6)
    np.testing.assert_allclose(conditions.guided(model, cond, 3.0)(x, 1.0), plain, rtol=1e-6)  # switched off at a call
