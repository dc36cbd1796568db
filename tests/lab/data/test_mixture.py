"""Gaussian mixtures: every exact truth against a numerical estimate, and the contract of a source."""

import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from worlds import within

from lab.data import mixture
from lab.data.loader import Loader, open_source
from lab.data.mixture import Source
from lab.errors import UserError
from lab.objectives import flow

OPTIONS = dict(size=2, channels=2, classes=3, components=2, rank=2, noise=0.15)


def source(split="train", **options):
    """Six components, two a class, in 8 dimensions."""
    return Source(split, "", **{**OPTIONS, **options})


def noisy(m, t, n, seed=0):
    """(x_t, x0, noise, label) of n examples at time t, in float64."""
    rng = np.random.default_rng(seed)
    x0, label = mixture.sample(m, rng, n)
    noise = rng.standard_normal(x0.shape)
    return (1 - t) * x0 + t * noise, x0, noise, label


def dense(m, t):
    """(weight, mean, covariance) of every component of x_t."""
    d = m.mean.shape[-1]
    s = np.einsum("krd,kr,kre->kde", m.basis, m.value, m.basis) + m.noise * np.eye(d)
    return np.exp(m.log_weight), (1 - t) * m.mean, (1 - t) ** 2 * s + t**2 * np.eye(d)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.8, 1.0])
def test_density_is_that_of_the_mixture(t):
    m = source().mixture
    x, _, _, label = noisy(m, t, 20)
    by_k = np.stack([w * scipy.stats.multivariate_normal(c, s).pdf(x) for w, c, s in zip(*dense(m, t), strict=True)], 1)
    np.testing.assert_allclose(mixture.log_density(m, x, t), np.log(by_k.sum(1)), rtol=1e-8)
    mine = by_k * (m.label == label[:, None])
    # classes are equally likely, so p(x | label) is three times the joint
    np.testing.assert_allclose(mixture.log_density(m, x, t, label), np.log(3 * mine.sum(1)), rtol=1e-8)
    np.testing.assert_allclose(mixture.log_density(m, x, t, -np.ones_like(label)), mixture.log_density(m, x, t), rtol=1e-12)


@pytest.mark.parametrize("labelled", [False, True])
def test_score_is_the_gradient_of_the_log_density(labelled):
    m = source().mixture
    for t in (0.05, 0.5, 0.95):
        x, _, _, label = noisy(m, t, 16)
        x, label = jnp.asarray(x, jnp.float32), label if labelled else None
        gradient = jax.grad(lambda y, t=t, label=label: mixture.log_density(m, y, t, label).sum())(x)
        np.testing.assert_allclose(mixture.score(m, x, t, label), gradient, rtol=1e-3, atol=2e-3)


def test_posterior_mean_by_importance_sampling():
    m, t = source().mixture, 0.7
    x, _, _, label = noisy(m, t, 6, seed=1)
    x0, labels = mixture.sample(m, np.random.default_rng(2), 200_000)
    for known in (None, label):
        log_w = -0.5 * np.sum((x[:, None] - (1 - t) * x0) ** 2, -1) / t**2
        if known is not None:
            log_w = np.where(labels == known[:, None], log_w, -np.inf)
        w = np.exp(log_w - log_w.max(1, keepdims=True))
        w /= w.sum(1, keepdims=True)
        for row, truth in zip(w, mixture.denoise(m, x, t, known), strict=True):
            estimate = row @ x0
            error = np.sqrt(row**2 @ (x0 - estimate) ** 2)
            assert 1 / np.sum(row**2) > 200  # effective draws
            assert (np.abs(estimate - truth) < 4.5 * error).all()


@pytest.mark.parametrize("t", [0.1, 0.6, 0.9])
def test_the_velocity_is_a_regression_on_samples(t):
    m = source().mixture
    x, x0, noise, label = noisy(m, t, 20_000)
    for known in (None, label):
        v = mixture.velocity(m, x, t, known)
        np.testing.assert_allclose(v, (x - mixture.denoise(m, x, t, known)) / t, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(mixture.score(m, x, t, known), -(x + (1 - t) * v) / t, rtol=1e-9, atol=1e-9)
        # a conditional mean leaves a residual that no function of x_t explains
        for function in (np.ones_like(x), x, np.tanh(x), np.abs(x), v):
            assert within((noise - x0 - v) * function, 0, sigmas=4.5)


@pytest.mark.parametrize("conditional", [True, False])
def test_best_loss_is_the_error_of_the_exact_velocity(conditional):
    m, times = source().mixture, np.array([0.02, 0.4, 0.7, 0.98])
    best, error = mixture.best_loss(m, np.random.default_rng(0), times, 2000, conditional)
    for t, b, e in zip(times, best, error, strict=True):
        x, x0, noise, label = noisy(m, t, 20_000, seed=5)
        losses = np.mean((noise - x0 - mixture.velocity(m, x, t, label if conditional else None)) ** 2, -1)
        assert abs(losses.mean() - b) < 4 * np.hypot(e, losses.std() / np.sqrt(len(losses)))
        assert e < losses.std() / np.sqrt(2000)  # and is less noisy at as many draws


def test_best_loss_of_one_gaussian_is_closed():
    m = source(classes=1, components=2).mixture
    alone = mixture.Mixture(*(a[:1] for a in m[:-1]), m.noise)._replace(log_weight=np.zeros(1))
    times = np.array([0.0, 0.3, 1.0])
    best, error = mixture.best_loss(alone, np.random.default_rng(0), times, 10, True)
    spectrum = np.concatenate([m.value[0] + m.noise, np.full(6, m.noise)])
    truth = [(spectrum / ((1 - t) ** 2 * spectrum + t**2)).mean() for t in times]
    np.testing.assert_allclose(best, truth, rtol=1e-9)
    assert (error < 1e-9).all()


@pytest.mark.parametrize("time", ["uniform", "logit_normal"])
def test_the_objective_reaches_the_best_loss_with_the_exact_velocity(time):
    s = source(size=4, rank=3)
    objective, best = flow.Objective(time, 0.25), s.info["best_loss"][time]
    step = jax.jit(lambda key: objective.loss(lambda i: s.velocity(**i), key, s.generate(jax.random.fold_in(key, 1), 256)).mean())
    losses = np.array([step(jax.random.key(i)) for i in range(60)])
    truth = 0.75 * best["conditional"] + 0.25 * best["marginal"]
    assert abs(losses.mean() - truth) < 4 * np.hypot(losses.std() / np.sqrt(60), best["error"])
    assert best["marginal"] > best["conditional"] + 4 * best["error"]


def test_device_and_host_agree():
    m = Source("train", "").mixture
    for t in (1e-3, 0.5, 1.0):
        x, _, _, label = noisy(m, t, 8)
        for f in (mixture.denoise, mixture.velocity, mixture.score):
            images = jnp.asarray(x.reshape(8, 8, 8, 4), jnp.float32)
            device = jax.jit(f)(m, images, jnp.full(8, t, jnp.float32), label)
            host = f(m, x, t, label)
            np.testing.assert_allclose(device.reshape(host.shape), host, rtol=2e-3, atol=2e-3)


def test_mean_is_0_variance_1_and_classes_are_equally_likely():
    m = source(means=0.3, noise=0.2).mixture
    w, mean, cov = dense(m, 0.0)
    np.testing.assert_allclose(w @ mean, 0, atol=1e-12)
    assert w @ np.mean(mean**2, -1) == pytest.approx(0.3)
    assert w @ np.trace(cov, axis1=1, axis2=2) / 8 == pytest.approx(0.7)
    np.testing.assert_allclose(np.bincount(m.label, w), 1 / 3)
    np.testing.assert_allclose(m.basis @ m.basis.swapaxes(1, 2), np.broadcast_to(np.eye(2), (6, 2, 2)), atol=1e-12)


@pytest.mark.parametrize("where", ["items", "generate"])
def test_items_and_generated_images_have_the_moments_of_each_class(where):
    s, n = source(), 6000
    if where == "items":
        items = [s[i] for i in range(n)]
        x, label = np.stack([i["image"] for i in items]).reshape(n, -1), np.array([i["label"] for i in items])
    else:
        made = jax.jit(s.generate, static_argnums=1)(jax.random.key(0), n)
        assert made["image"].shape == (n, *s.shape)
        assert made["label"].dtype == jnp.int32
        x, label = np.asarray(made["image"]).reshape(n, -1), np.asarray(made["label"])
    w, mean, cov = dense(s.mixture, 0.0)
    for c in range(3):
        k = s.mixture.label == c
        v, mine = 3 * w[k], x[label == c]
        assert within(label == c, 1 / 3)
        assert within(mine, v @ mean[k])
        second = np.einsum("k,kde->de", v, cov[k] + mean[k][:, :, None] * mean[k][:, None])
        assert within(mine[:, :, None] * mine[:, None], second, sigmas=4.5)


def test_items_are_a_function_of_seed_split_and_index_alone():
    s = source()
    first = {i: s[i] for i in (5, 2**31 - 1, 0)}
    again = pickle.loads(pickle.dumps(source()))
    for i in (0, 5, 2**31 - 1):
        np.testing.assert_array_equal(again[i]["image"], first[i]["image"])
        assert again[i]["label"] == first[i]["label"]
    others = [s[1], source("eval")[5], source(seed=1)[5]]
    assert not any(np.allclose(o["image"], first[5]["image"]) for o in others)
    assert first[5]["image"].dtype == np.float32
    assert first[5]["image"].shape == (2, 2, 2)
    assert first[5]["label"].dtype == np.int32


def test_train_and_eval_share_the_mixture_and_no_item():
    train, held = source(examples=300), source("eval")
    jax.tree.map(np.testing.assert_array_equal, train.mixture, held.mixture)
    seen = {train[i]["image"].tobytes() for i in range(300)}
    assert len(seen) == len(train) == 300
    assert not seen & {held[i]["image"].tobytes() for i in range(300)}


def test_info_tells_what_a_study_needs():
    s = source()
    assert s.dims == {"image": 2, "channels": 2, "classes": 3}
    info = json.loads(json.dumps(s.info))
    assert info["class_names"] == ["0", "1", "2"]
    assert info["best_loss"]["uniform"]["error"] < 0.01
    assert pickle.loads(pickle.dumps(s)).info == s.info
    prints = {source(**o).info["fingerprint"] for o in ({}, {"seed": 1}, {"rank": 1}, {"noise": 0.2}, {"classes": 2})}
    assert len(prints) == 5


def test_batches_stream():
    loader = Loader(open_source({"name": "mixture", "size": 4}, "train", ""), batch=4, seeds=[0, 1])
    batch = next(loader)
    loader.close()
    assert batch["image"].shape == (2, 4, 4, 4, 4)
    assert batch["label"].shape == (2, 4)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"classes": 0}, "data.classes=0 must be a whole number from 1 to 4096"),
        ({"components": 1.5}, "data.components=1.5 must be a whole number"),
        ({"rank": 9}, "data.rank=9 must be a whole number from 1 to 8"),
        ({"noise": 0}, "data.noise=0 must be a number from 0.0001"),
        ({"means": 0.9}, "data.means=0.9 and data.noise=0.15 are shares of the variance"),
        ({"classes": 1, "components": 1}, "data.components=1 must be at least 2"),
        ({"split": "test"}, "split 'test' is unknown"),
    ],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(UserError) as e:
        source(**options)
    assert said in str(e.value)
    with pytest.raises(UserError, match=r"data 'component' is unknown \(nearest: 'components'\)"):
        open_source({"name": "mixture", "component": 2}, "train", "")
