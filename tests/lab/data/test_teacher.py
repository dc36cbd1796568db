"""The planted power law: losses of k modes against samples and rivals, and its constants by the lab's own fit."""

import json
import pickle

import jax
import numpy as np
import pytest
from worlds import within

from lab.data import mixture, teacher
from lab.data.loader import Loader, open_source
from lab.data.teacher import Source
from lab.data.world import DENSITIES, TIMES
from lab.errors import UserError
from lab.laws import fits
from lab.laws.points import points
from lab.objectives import flow

OPTIONS = dict(size=4, channels=1, classes=12, exponent=0.7, noise=0.2)


def source(split="train", **options):
    """12 templates in 16 dimensions."""
    return Source(split, "", **{**OPTIONS, **options})


@pytest.mark.parametrize("classes, size, modes", [(12, 4, 11), (40, 4, 16)])
def test_templates_have_the_planted_spectrum(classes, size, modes):
    s = source(classes=classes, size=size)
    m = s.mixture.mean
    assert s.modes == modes
    np.testing.assert_allclose(m.mean(0), 0, atol=1e-12)
    assert np.mean(m**2) == pytest.approx(0.8)
    u = np.linalg.svd(m, compute_uv=False)[:modes] ** 2 / classes
    np.testing.assert_allclose(u, s.variances, rtol=1e-9)
    beyond = np.cumsum((np.sqrt(0.2 + u) - np.sqrt(0.2))[::-1])[::-1]
    i = np.arange(1.0, modes + 1)
    law = i**-0.7 - (modes + 1) ** -0.7
    np.testing.assert_allclose(beyond / beyond[0], law / law[0], rtol=1e-9)


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_loss_of_k_modes_is_the_error_of_the_student(t):
    s, rng = source(), np.random.default_rng(0)
    x0, label = mixture.sample(s.mixture, rng, 20_000)
    noise = rng.standard_normal(x0.shape)
    x = (1 - t) * x0 + t * noise
    for k in (0, 1, 4, s.modes):
        assert within(np.mean((noise - x0 - s.student(k, x, t, label)) ** 2, -1), s.loss_of(k, t))
    np.testing.assert_allclose(s.student(s.modes, x, t, label), mixture.velocity(s.mixture, x, t, label), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(s.loss_of(s.modes, t), teacher.error(0.2, t))


@pytest.mark.parametrize("k", [0, 1, 3])
def test_no_linear_model_of_k_modes_does_better(k):
    s, rng = source(), np.random.default_rng(1)
    m = s.mixture.mean
    for t in (0.1, 0.5, 0.9):
        # the best linear model given x_t and any k numbers of the label has the error of what they leave of the covariance
        for blend in (0.0, 0.1, 1.0):
            codes = s._left[:, :k] / np.sqrt(s.variances[:k]) + blend * rng.standard_normal((12, k))
            q = np.linalg.qr(codes)[0] if k else codes
            left = np.linalg.eigvalsh((m - q @ (q.T @ m)).T @ m / 12).clip(0)
            loss = teacher.error(0.2 + left, t).mean()
            assert loss == pytest.approx(s.loss_of(k, t)) if blend == 0 or k == 0 else loss > s.loss_of(k, t)
    # and least squares on samples finds nothing below it, but for what its 16 (16 + 12) weights fit of the noise
    t, n = 0.5, 20_000
    x0, label = mixture.sample(s.mixture, rng, n)
    noise = rng.standard_normal(x0.shape)
    x = (1 - t) * x0 + t * noise
    seen = np.concatenate([x, (s._left[:, :k] / np.sqrt(s.variances[:k]))[label]], 1)
    weights = np.linalg.lstsq(seen, noise - x0, rcond=None)[0]
    losses = np.mean((noise - x0 - seen @ weights) ** 2, -1)
    assert abs(losses.mean() - s.loss_of(k, t)) < 4 * losses.std() / np.sqrt(n) + 2 * seen.shape[1] / n


@pytest.mark.parametrize("exponent, noise", [(0.5, 0.1), (1.2, 0.4)])
def test_loss_over_uniform_times_is_the_planted_law_and_a_fit_finds_it(exponent, noise):
    s = source(classes=100, size=8, exponent=exponent, noise=noise)
    k, law = np.arange(s.modes + 1), s.law()
    losses = np.array([s.loss_of(int(i), TIMES) @ DENSITIES["uniform"] for i in k])
    np.testing.assert_allclose(losses, law["floor"] + law["scale"] * (k + 1.0) ** -exponent, rtol=1e-4)
    assert losses[-1] == pytest.approx(s.info["best_loss"]["uniform"]["conditional"])
    exact = law["floor"] + law["scale"] * (k + 1.0) ** -exponent
    found = fits.fit(points({"flops": k + 1.0, "loss": exact}), "L(C)", draws=2)
    np.testing.assert_allclose((found.value[0], *found.scales, *found.exponents), (law["floor"], law["scale"], exponent), rtol=1e-3)


def test_best_loss_with_labels_over_uniform_times_is_half_pi_sigma():
    assert source().info["best_loss"]["uniform"]["conditional"] == pytest.approx(np.pi / 2 * np.sqrt(0.2), rel=1e-4)


def test_the_objective_reaches_the_best_loss_with_the_exact_velocity():
    s = source()
    objective, best = flow.Objective("logit_normal", 0.25), s.info["best_loss"]["logit_normal"]
    step = jax.jit(lambda key: objective.loss(lambda i: s.velocity(**i), key, s.generate(jax.random.fold_in(key, 1), 256)).mean())
    losses = np.array([step(jax.random.key(i)) for i in range(60)])
    truth = 0.75 * best["conditional"] + 0.25 * best["marginal"]
    assert abs(losses.mean() - truth) < 4 * np.hypot(losses.std() / np.sqrt(60), best["error"])


def test_items_and_generated_images_lie_around_their_templates():
    s, n = source(), 4000
    made = jax.tree.map(np.asarray, jax.jit(s.generate, static_argnums=1)(jax.random.key(0), n))
    items = [s[i] for i in range(n)]
    for image, label in (
        (made["image"], made["label"]),
        (np.stack([i["image"] for i in items]), np.array([i["label"] for i in items])),
    ):
        assert image.shape == (n, 4, 4, 1)
        assert within(label[:, None] == np.arange(12), 1 / 12)
        residual = image.reshape(n, -1) - s.mixture.mean[label]
        assert within(residual, 0)
        assert within(residual**2, 0.2)
        assert np.mean(image**2) == pytest.approx(1, abs=0.02)


def test_items_are_a_function_of_seed_split_and_index_alone():
    s = source()
    first = {i: s[i]["image"] for i in (5, 2**31 - 1, 0)}
    again = pickle.loads(pickle.dumps(source()))
    for i in (0, 5, 2**31 - 1):
        np.testing.assert_array_equal(again[i]["image"], first[i])
    assert not any(np.allclose(o["image"], first[5]) for o in (s[1], source("eval")[5], source(seed=1)[5]))
    held = source("eval")
    np.testing.assert_array_equal(held.mixture.mean, s.mixture.mean)
    assert not {s[i]["image"].tobytes() for i in range(300)} & {held[i]["image"].tobytes() for i in range(300)}


def test_info_tells_what_a_study_needs():
    s = source()
    assert s.dims == {"image": 4, "channels": 1, "classes": 12}
    info = json.loads(json.dumps(s.info))
    assert info["law"] == s.law()
    assert info["law"]["exponent"] == 0.7
    assert len({source(**o).info["fingerprint"] for o in ({}, {"seed": 1}, {"exponent": 0.5}, {"noise": 0.1})}) == 4
    loader = Loader(open_source({"name": "teacher", "size": 4}, "train", ""), batch=4, seeds=[0])
    assert next(loader)["image"].shape == (1, 4, 4, 4, 1)
    loader.close()


@pytest.mark.parametrize(
    "options, said",
    [
        ({"classes": 1}, "data.classes=1 must be a whole number from 2"),
        ({"exponent": 0}, "data.exponent=0 must be a number from 0.01 to 8.0"),
        ({"noise": 1.0}, "data.noise=1.0 must be a number from 0.0001 to 0.9999"),
        ({"size": "4"}, "data.size='4' must be a whole number"),
        ({"split": "test"}, "split 'test' is unknown"),
    ],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(UserError) as e:
        source(**options)
    assert said in str(e.value)
    with pytest.raises(UserError, match=r"data 'exponents' is unknown \(nearest: 'exponent'\)"):
        open_source({"name": "teacher", "exponents": 2.0}, "train", "")
