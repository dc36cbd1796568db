"""Image and text with a time each: on a Gaussian pair losses and draws of every kind are exact, and with wrong times they are not."""

import jax
import jax.numpy as jnp
import mistakes
import numpy as np
import pytest

from lab.data.loader import open_source
from lab.objectives import joint

SHAPE, TEXT = (2, 2, 1), (2, 2)  # four numbers each
X, Y = slice(0, 4), slice(4, 8)


def world(seed=0):
    """Mean and covariance of the eight numbers of a pair, the two halves far from independent."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(8, 8)) * 0.5
    a[Y] += a[X]
    return rng.normal(size=8), a @ a.T + 0.05 * np.eye(8)


MEAN, COV = world()


def flat(image, text):
    return jnp.concatenate([image.reshape(len(image), -1), text.reshape(len(text), -1)], 1)


def exact(inputs):
    """The best velocities given both noisy halves, of examples of equal times: noise less data is linear in them."""
    keep = jnp.repeat(jnp.stack([1 - inputs["t"][0], 1 - inputs["t_text"][0]]), 4)
    cov = jnp.asarray(COV, jnp.float32)
    noisy = keep[:, None] * cov * keep + jnp.diag((1 - keep) ** 2 + 1e-6)
    both = jnp.diag(1 - keep) - cov * keep
    v = (flat(inputs["x"], inputs["text"]) - keep * MEAN) @ jnp.linalg.solve(noisy, both.T) - MEAN
    return v[:, X].reshape(-1, *SHAPE), v[:, Y].reshape(-1, *TEXT)


def swapped(inputs):
    return exact(inputs | {"t": inputs["t_text"], "t_text": inputs["t"]})


def one_time(inputs):
    """Sees the image's time alone."""
    return exact(inputs | {"t_text": inputs["t"]})


def least(t, t_text):
    """The exact loss of image and text, mean squares, at a pair of times."""
    keep = np.repeat([1 - t, 1 - t_text], 4)
    noisy = keep[:, None] * COV * keep + np.diag((1 - keep) ** 2 + 1e-6)
    both = np.diag(1 - keep) - COV * keep
    left = np.eye(8) + COV - both @ np.linalg.solve(noisy, both.T)
    return np.diag(left)[X].mean(), np.diag(left)[Y].mean()


def batch(n, seed=0):
    drawn = np.float32(np.random.default_rng(seed).multivariate_normal(MEAN, COV, n))
    return {"image": jnp.asarray(drawn[:, X].reshape(n, *SHAPE)), "text": jnp.asarray(drawn[:, Y].reshape(n, *TEXT))}


def objective(**more):
    return joint.Objective(**dict(time="uniform", text_channels=2) | more)


class At(joint.Objective):
    """With both times given."""

    def __init__(self, t, t_text, **more):
        super().__init__("uniform", 2, edges=0.0, **more)
        self.at = iter((t, t_text))

    def _times(self, key, n):
        return jnp.full(n, next(self.at), jnp.float32)


PAIRS = [(0.5, 0.5), (0.2, 0.8), (0.9, 0.1), (0.5, 0.0), (0.5, 1.0), (0.0, 0.6), (1.0, 0.3), (1.0, 1.0)]


@pytest.mark.parametrize("t, t_text", PAIRS)
def test_the_best_loss_of_a_pair_of_times_is_exact_and_wrong_times_miss_it(t, t_text):
    n, (image, text) = 40_000, least(t, t_text)
    for weight in (1.0, 0.25):
        losses = At(t, t_text, text_weight=weight).loss(exact, jax.random.key(1), batch(n))
        want, slack = image + weight * text, 4 * float(jnp.std(losses)) / n**0.5
        assert abs(float(losses.mean()) - want) < slack + 1e-3
    if t != t_text:
        for wrong in (swapped, one_time):
            assert float(At(t, t_text).loss(wrong, jax.random.key(1), batch(n)).mean()) > (image + text) * 1.05


def test_knowing_the_other_lowers_the_loss_from_the_marginals_to_the_conditionals():
    """The whole way from nothing known of the text (time 1) to all (time 0)."""
    found = [least(0.5, t)[0] for t in (1.0, 0.7, 0.3, 0.0)]
    assert np.all(np.diff(found) < -0.01)
    keep = 0.5
    alone = COV[X, X]
    left = np.eye(4) + alone - (keep * (np.eye(4) - alone)) @ np.linalg.solve(keep**2 * (alone + np.eye(4)), (keep * (np.eye(4) - alone)).T)
    np.testing.assert_allclose(found[0], np.diag(left).mean(), rtol=1e-4)


def test_times_are_apart_and_edges_are_as_often_as_said():
    given = objective(edges=0.4).inputs(jax.random.key(0), batch(20_000))
    t, t_text = np.asarray(given["t"]), np.asarray(given["t_text"])
    for one in (t, t_text):
        for end in (0, 1):
            assert abs(np.mean(one == end) - 0.1) < 0.01
    assert not np.any(np.isin(t, (0, 1)) & np.isin(t_text, (0, 1)))
    assert abs(np.corrcoef(t, t_text)[0, 1]) < 0.03
    plain = objective(edges=0.0).inputs(jax.random.key(0), batch(1000))
    for one in (plain["t"], plain["t_text"]):
        assert not np.any(np.isin(one, (0, 1)))
        np.testing.assert_allclose(np.sort(one), (np.arange(1000) + 0.5) / 1000, atol=1e-3)
    assert abs(np.corrcoef(plain["t"], plain["t_text"])[0, 1]) < 0.1


def conditional(of, given, value):
    """Mean and covariance of one half given the other."""
    gain = COV[of, given] @ np.linalg.inv(COV[given, given])
    return MEAN[of] + gain @ (value - MEAN[given]), COV[of, of] - gain @ COV[given, of]


def near(drawn, mean, cov, most=0.05):
    """Whether mean and covariance are those, in units of the covariance."""
    root = np.linalg.cholesky(np.linalg.inv(cov))
    white = (np.asarray(drawn, np.float64).reshape(len(drawn), -1) - mean) @ root
    return np.abs(white.mean(0)).max() < most and np.abs(np.cov(white.T) - np.eye(len(mean))).max() < 2 * most


def draws(model, task, n=20_000, seed=3, **options):
    """What is drawn of one pair, and its two halves."""
    pair = {k: jnp.broadcast_to(v, (n, *v.shape[1:])) for k, v in batch(1, seed).items()}
    given = {"original": pair["image"], "text": pair["text"]}
    call = jax.jit(lambda k: objective().sample(model, k, given, SHAPE, task=task, steps=60, **options))
    return call(jax.random.key(0)), np.asarray(flat(pair["image"], pair["text"])[0], np.float64)


@pytest.mark.parametrize("model, right", [(exact, True), (swapped, False)])
def test_draws_of_one_given_the_other_have_the_exact_conditional(model, right):
    image, whole = draws(model, "image")
    assert near(image, *conditional(X, Y, whole[Y])) == right
    assert not near(image, MEAN[X], COV[X, X])
    text, _ = draws(model, "text")
    assert set(text) == {"words"}
    assert near(text["words"], *conditional(Y, X, whole[X])) == right


def test_draws_of_both_and_of_one_alone_have_their_exact_distributions():
    pair, _ = draws(exact, "pair")
    assert near(flat(pair["image"], pair["words"]), MEAN, COV)
    apart = flat(pair["image"], pair["words"][::-1])  # the control: halves of different pairs
    assert not near(apart, MEAN, COV)
    assert near(draws(exact, "image_alone")[0], MEAN[X], COV[X, X])
    assert near(draws(exact, "text_alone")[0]["words"], MEAN[Y], COV[Y, Y])
    assert not near(flat(*draws(one_time_text, "pair")[0].values())[:, ::-1], MEAN, COV)


def one_time_text(inputs):
    return exact(inputs | {"t": inputs["t"] * 0.5})


@pytest.mark.parametrize("method, steps", [("euler", 200), ("midpoint", 60)])
def test_other_methods_reach_the_same(method, steps):
    pair = {k: jnp.broadcast_to(v, (5000, *v.shape[1:])) for k, v in batch(1, 3).items()}
    image = jax.jit(lambda k: objective().sample(exact, k, pair, SHAPE, steps=steps, method=method))(jax.random.key(0))
    whole = np.asarray(flat(pair["image"], pair["text"])[0], np.float64)
    assert near(image, *conditional(X, Y, whole[Y]), most=0.12)


def test_guidance_moves_away_from_what_the_model_draws_without_the_other():
    plain, whole = draws(exact, "image", 4000)
    more, _ = draws(exact, "image", 4000, guidance=2.0)
    toward = conditional(X, Y, whole[Y])[0] - MEAN[X]
    moved = (np.asarray(more) - np.asarray(plain)).reshape(4000, 4).mean(0)
    assert moved @ toward > 0.1 * (toward @ toward)
    assert near(draws(exact, "image", guidance=0.0)[0], MEAN[X], COV[X, X])  # all that is left is the model without the other
    text, _ = draws(exact, "text", 2000, guidance=1.5)
    pair, _ = draws(exact, "pair", 2000, guidance=1.5)
    assert np.isfinite(text["words"]).all()
    assert np.isfinite(pair["image"]).all()


def test_words_have_vectors_that_are_read_back():
    source = open_source({"name": "shapes", "size": 8, "grid": 1, "density": "medium", "extras": ("text",)}, "train", "")
    mine = joint.Objective("uniform", 16, words=source.dims["words"])
    text = jnp.asarray(np.stack([source[i]["text"] for i in range(64)]))
    written = mine.written(text)
    assert written.shape == (64, source.dims["length"], 16)
    np.testing.assert_allclose(jnp.mean(written**2, -1), 1, rtol=1e-5)
    np.testing.assert_array_equal(mine.read(written), text)
    noise = jax.random.normal(jax.random.key(0), written.shape)
    assert float(jnp.mean(mine.read(written + 0.3 * noise) == text)) > 0.99
    assert float(jnp.mean(mine.read(written + 3 * noise) == text)) < 0.5
    np.testing.assert_array_equal(joint.vectors(5, 3), joint.vectors(9, 3)[:5])


def test_what_does_not_fit_is_told_in_one_line():
    for said, options in {
        "objective.time 'unifrom' is unknown (nearest: 'uniform')": dict(time="unifrom"),
        "objective.edges=2 is a share of examples": dict(edges=2),
        "objective.text_weight=0 must be above 0": dict(text_weight=0),
    }.items():
        assert said in mistakes.said(objective, **options)
    pair = batch(2)
    for said, options in {
        "sample.options.task 'pairs' is unknown (nearest: 'pair')": dict(task="pairs"),
        "sampler 'heum' is unknown (nearest: 'heun')": dict(method="heum"),
    }.items():
        assert said in mistakes.said(objective().sample, exact, jax.random.key(0), pair, SHAPE, **options)
    lacking = mistakes.said(objective().sample, exact, jax.random.key(0), {"text": pair["text"]}, SHAPE, task="text")
    assert "task='text' needs the condition 'original'; given: ['text']" in lacking
    assert "give objective.words" in mistakes.said(objective().loss, exact, jax.random.key(0), pair | {"text": jnp.zeros((2, 2), int)})
    assert "such as 'unidiffuser'" in mistakes.said(objective().loss, lambda x: x["x"], jax.random.key(0), pair)
