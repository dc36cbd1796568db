"""Classification and contrast: their losses are the published formulas, with known least values, and what repeats is no wrong answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax
from small import drawn

from lab.axes import Dims, view
from lab.errors import UserError
from lab.models import two_tower
from lab.objectives import classify, contrast

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (6, 4, 4, 1), np.uint8)
TEXT = np.arange(12, dtype=np.int32).reshape(6, 2)


def told(objective, logits, **batch):
    """Loss [B] and whether wrong [B] of logits that a model gives whatever it sees."""
    given = {"image": PICTURES, "label": np.arange(6, dtype=np.int32) % 3, "text": TEXT, **batch}
    model = lambda inputs: jnp.asarray(logits, jnp.float32)  # noqa: E731
    key = jax.random.key(0)
    t, wrong = objective.errors(model, key, given)
    assert not np.any(t)
    return np.asarray(objective.loss(model, key, given)), np.asarray(wrong)


def test_classification_has_the_cross_entropy_of_the_label():
    logits = RNG.standard_normal((6, 3))
    label = np.arange(6) % 3
    loss, wrong = told(classify.Objective(), logits)
    np.testing.assert_allclose(loss, -log_softmax(logits, 1)[np.arange(6), label], rtol=1e-5)
    np.testing.assert_array_equal(wrong, logits.argmax(1) != label)
    np.testing.assert_allclose(told(classify.Objective(), np.zeros((6, 3)))[0], np.log(3), rtol=1e-6)
    smooth = 0.9 * np.eye(3)[label] + 0.1 / 3
    np.testing.assert_allclose(told(classify.Objective(0.1), logits)[0], -np.sum(smooth * log_softmax(logits, 1), 1), rtol=1e-5)
    with pytest.raises(UserError, match=r"objective\.smoothing=1 must lie in"):
        classify.Objective(1)


def test_classification_reaches_the_entropy_at_the_exact_posterior_and_no_less():
    posterior = RNG.dirichlet(np.ones(3), 6)
    expected = lambda logits: sum(  # noqa: E731
        posterior[:, c] * told(classify.Objective(), logits, label=np.full(6, c, np.int32))[0] for c in range(3)
    )
    entropy = -np.sum(posterior * np.log(posterior), 1)
    np.testing.assert_allclose(expected(np.log(posterior)), entropy, rtol=1e-5)
    assert (expected(2 * np.log(posterior)) > entropy).all()


def test_a_part_of_the_batch_has_its_own_loss():
    given = classify.Objective().inputs(jax.random.key(0), {"image": PICTURES, "label": np.arange(6) % 3})
    np.testing.assert_allclose(given["x"], PICTURES / 127.5 - 1, atol=1e-6)
    model = lambda inputs: jnp.stack([jnp.mean(inputs["x"], (1, 2, 3))] * 3, 1) * jnp.arange(3)  # noqa: E731
    whole = classify.Objective().losses(model, given)
    part = classify.Objective().losses(model, jax.tree.map(lambda x: x[::2], given))
    np.testing.assert_allclose(part, whole[::2], rtol=1e-6)


def test_contrast_is_the_mean_of_both_cross_entropies():
    logits = 3 * RNG.standard_normal((6, 6))
    loss, wrong = told(contrast.Objective(), logits)
    own = np.arange(6), np.arange(6)
    np.testing.assert_allclose(loss, -(log_softmax(logits, 1)[own] + log_softmax(logits, 0)[own]) / 2, rtol=1e-5)
    np.testing.assert_array_equal(wrong, logits.argmax(1) != np.arange(6))
    np.testing.assert_allclose(told(contrast.Objective(), np.ones((6, 6)))[0], np.log(6), rtol=1e-6)
    assert told(contrast.Objective(), np.ones((6, 6)))[1].all()  # a tie finds nothing


def test_captions_that_repeat_are_no_wrong_answers():
    text = TEXT[[0, 0, 0, 1, 1, 2]]
    same = (text[:, None] == text).all(-1)
    perfect = 100.0 * same
    loss, wrong = told(contrast.Objective(), perfect, text=text)
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    assert not wrong.any()
    # without that the best model would still have the entropy of its own caption among equal ones
    assert told(contrast.Objective(), perfect)[0].max() > np.log(2)
    others = 1 + (~same).sum(1)
    np.testing.assert_allclose(told(contrast.Objective(), np.zeros((6, 6)), text=text)[0], np.log(others), rtol=1e-6)
    with pytest.raises(UserError, match="needs a source with text"):
        contrast.Objective().inputs(jax.random.key(0), {"image": PICTURES})


def test_the_vectors_are_units_and_logits_their_cosines():
    knobs = dict(width=16, depth=1, head_dim=8, mlp_ratio=2, patch=2, image=4, channels=1, words=12, length=2)
    model = drawn(two_tower.Model(Dims.of(two_tower.Model.axes, knobs, {"width": 16}), qk_norm=True))
    seen = view(model, jnp.float32)
    x = jnp.asarray(PICTURES, jnp.float32) / 127.5 - 1
    a, b = np.asarray(seen.features(x)), np.asarray(seen.said(TEXT))
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(b, axis=1), 1, rtol=1e-5)
    sharp = np.exp(float(model.sharpness.get_value()))
    np.testing.assert_allclose(seen({"x": x, "text": TEXT}), sharp * a @ b.T, atol=1e-5)
    # a picture's vector knows nothing of the others
    np.testing.assert_allclose(seen.features(x[2:3]), a[2:3], atol=1e-5)
