"""Gaussian fields: every closed form against a numerical estimate, and the contract of a source."""

import json
import pickle
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from lab.data import field
from lab.data.field import Source
from lab.data.loader import Loader, decode, open_source
from lab.errors import UserError
from lab.objectives import flow

SIZE = 6


def source(split="train", **options):
    """A field of 6 x 6 pixels."""
    return Source(split, "", **{"size": SIZE, **options})


def covariance(power):
    """Covariance of the pixels in row order, [H W, H W], from the transform's definition."""
    n = len(power) ** 2
    f = np.fft.fft2(np.eye(n).reshape(n, *power.shape), norm="ortho").reshape(n, n)
    return np.real(f.conj() @ np.diag(power.ravel()) @ f.T)


def noisy(s, t, n, seed=0):
    """(x_t, x0, noise) of n examples at time t."""
    key = jax.random.key(seed)
    x0 = s.generate(key, n)["image"]
    noise = jax.random.normal(jax.random.fold_in(key, 1), x0.shape)
    return (1 - t) * x0 + t * noise, x0, noise


def within(estimates, truth, sigmas=4.0):
    """Whether the mean of independent estimates lies within some standard errors of the truth."""
    e = np.asarray(estimates, float)
    return abs(e.mean() - truth) < sigmas * e.std(ddof=1) / np.sqrt(len(e))


def test_spectrum_is_a_power_law_of_unit_mean():
    p = field.spectrum(16, 2.0)
    assert p.mean() == pytest.approx(1)
    assert p[0, 2] / p[0, 4] == pytest.approx(4)
    assert p[3, 4] / p[0, 5] == pytest.approx(1)
    assert p[0, 0] == p[0, 1] == p[1, 0] == p[-1, 0]


@pytest.mark.parametrize("size", [6, 7])
def test_items_and_generated_images_have_the_planted_spectrum(size):
    s = source(size=size, channels=2, exponent=1.5)
    n = 4000
    items = np.stack([s[i]["image"] for i in range(n)])
    made = np.asarray(jax.jit(s.generate, static_argnums=1)(jax.random.key(0), n)["image"])
    for x in (items, made):
        assert x.shape == (n, size, size, 2)
        # a real mode's power has relative standard error (2 / (n channels))^1/2; 5 of them as some 40 modes are looked at
        np.testing.assert_allclose(field.periodogram(x), s.power, rtol=5 * (2 / (2 * n)) ** 0.5)
        assert within((x**2).mean((1, 2, 3)), 1)
        assert within((x[..., 0] * x[..., 1]).mean((1, 2)), 0)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_posterior_mean_velocity_and_score_are_those_of_the_joint_gaussian(t):
    s = source()
    cov = covariance(s.power)
    x = np.asarray(noisy(s, t, 5)[0]).reshape(5, -1)
    solved = np.linalg.solve((1 - t) ** 2 * cov + t**2 * np.eye(SIZE**2), x.T).T
    shape = (5, SIZE, SIZE, 1)
    for f, truth in (
        (field.denoise, (1 - t) * solved @ cov),
        (field.velocity, t * solved - (1 - t) * solved @ cov),
        (field.score, -solved),
    ):
        np.testing.assert_allclose(f(s.power, jnp.asarray(x).reshape(shape), t), truth.reshape(shape), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("t", [0.2, 0.7])
def test_the_velocity_is_a_regression_on_samples(t):
    s = source()
    x, x0, noise = noisy(s, t, 4000)
    v = field.velocity(s.power, x, t)
    residual = np.asarray(noise - x0 - v)
    # a conditional mean leaves a residual that no function of x_t explains
    for function in (x, jnp.roll(x, 1, 1), jnp.sin(x), v):
        assert within((residual * np.asarray(function)).mean((1, 2, 3)), 0)


@pytest.mark.parametrize("t", [0.02, 0.3, 0.6, 0.98])
def test_best_loss_is_the_error_of_the_exact_velocity(t):
    s = source(channels=2)
    x, x0, noise = noisy(s, t, 4000)
    error = np.mean(np.square(noise - x0 - field.velocity(s.power, x, t)), (1, 2, 3))
    assert within(error, field.best_loss(s.power, [t])[0])


def test_best_loss_over_uniform_times_is_half_pi_times_the_mean_amplitude():
    for exponent in (0.0, 1.0, 2.0, 3.0):
        s = source(exponent=exponent, size=16)
        given = s.info["best_loss"]["uniform"]
        assert given["conditional"] == given["marginal"] == pytest.approx(np.pi / 2 * np.sqrt(s.power).mean(), rel=1e-4)


@pytest.mark.parametrize("time", ["uniform", "logit_normal"])
def test_the_objective_reaches_the_best_loss_with_the_exact_velocity(time):
    s = source(size=8)
    batches = [s.generate(jax.random.key(i), 256) for i in range(24)]
    objective = flow.Objective(time, 0.1)
    losses = [objective.loss(lambda i: s.velocity(**i), jax.random.key(i), b).mean() for i, b in enumerate(batches)]
    assert within(losses, s.info["best_loss"][time]["conditional"])


@pytest.mark.parametrize("exponent", [1.0, 3.0])
def test_the_flow_map_is_the_integral_of_the_velocity(exponent):
    s = source(exponent=exponent)
    x = start = jax.random.normal(jax.random.key(3), (4, SIZE, SIZE, 1))
    # even steps of the angle arctan(t / (1 - t)) are short where the velocity turns fast
    angle = np.linspace(np.pi / 2, 0, 201)
    times = np.sin(angle) / (np.sin(angle) + np.cos(angle))
    for now, then in pairwise(times):
        h = then - now
        k1 = field.velocity(s.power, x, now)
        k2 = field.velocity(s.power, x + h / 2 * k1, now + h / 2)
        k3 = field.velocity(s.power, x + h / 2 * k2, now + h / 2)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + field.velocity(s.power, x + h * k3, then))
    np.testing.assert_allclose(x, field.transport(s.power, start, 1.0, 0.0), atol=2e-3)
    half = field.transport(s.power, start, 1.0, 0.4)
    np.testing.assert_allclose(field.transport(s.power, half, 0.4, 0.0), field.transport(s.power, start, 1.0, 0.0), atol=1e-5)


def test_the_flow_map_makes_data_of_noise():
    s = source()
    made = field.transport(s.power, jax.random.normal(jax.random.key(0), (8000, SIZE, SIZE, 1)), 1.0, 0.0)
    np.testing.assert_allclose(field.periodogram(made), s.power, rtol=5 * (2 / 8000) ** 0.5)


def test_w2_is_the_distance_of_gaussians():
    a, b = field.spectrum(SIZE, 1.0), field.spectrum(SIZE, 3.0)
    one, two = covariance(a), covariance(b)
    root = scipy.linalg.sqrtm(one)
    bures = np.trace(one + two - 2 * np.real(scipy.linalg.sqrtm(root @ two @ root)))
    assert field.wasserstein(a, b) == pytest.approx(np.sqrt(bures), rel=1e-6)
    assert field.wasserstein(a, b, channels=3) == pytest.approx(np.sqrt(3 * bures), rel=1e-6)
    assert field.wasserstein(a, a) == 0


def test_items_are_a_function_of_seed_split_and_index_alone():
    s = source()
    first = {i: s[i]["image"] for i in (5, 2**31 - 1, 0)}
    again = pickle.loads(pickle.dumps(source()))
    for i in (0, 5, 2**31 - 1):
        np.testing.assert_array_equal(again[i]["image"], first[i])
    others = [s[1], source("eval")[5], source(seed=1)[5]]
    assert not any(np.allclose(o["image"], first[5]) for o in others)
    assert first[5].dtype == np.float32
    assert first[5].shape == (SIZE, SIZE, 1)
    assert s[0]["label"].dtype == np.int32


def test_train_and_eval_share_no_item():
    train, held = source(examples=400), source("eval")
    assert [len(train), len(held), len(source())] == [400, 65536, 2**31]
    seen = {train[i]["image"].tobytes() for i in range(400)}
    assert len(seen) == 400
    assert not seen & {held[i]["image"].tobytes() for i in range(400)}
    with pytest.raises(IndexError, match="item 400 of 400"):
        train[400]


def test_info_tells_what_a_study_needs():
    s = source(channels=3)
    assert s.dims == {"image": SIZE, "channels": 3, "classes": 1}
    info = json.loads(json.dumps(s.info))
    assert info["image"] == [SIZE, SIZE, 3]
    assert info["class_names"] == ["0"]
    assert info["examples"] == 2**31
    prints = {source(**o).info["fingerprint"] for o in ({}, {"seed": 1}, {"exponent": 1.0}, {"size": 7}, {"examples": 9})}
    assert len(prints) == 5
    assert source("eval").info["fingerprint"] == source().info["fingerprint"]


def test_batches_stream_and_small_sets_are_held():
    for examples in (2**31, 64):
        world = open_source({"name": "field", "size": 8, "examples": examples}, "train", "")
        loader = Loader(world, batch=4, seeds=[0, 1])
        batch = next(loader)
        loader.close()
        assert batch["image"].shape == (2, 4, 8, 8, 1)
        assert batch["image"].dtype == np.float32
        assert (decode(world) is None) == (examples > 64)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"size": 1}, "data.size=1 must be a whole number from 2 to 1024"),
        ({"size": 8.0}, "data.size=8.0 must be a whole number"),
        ({"channels": True}, "data.channels=True must be a whole number"),
        ({"exponent": "2"}, "data.exponent='2' must be a number from 0.0 to 8.0"),
        ({"exponent": float("nan")}, "data.exponent=nan must be a number"),
        ({"seed": -1}, "data.seed=-1 must be"),
        ({"examples": 0}, "data.examples=0 must be"),
        ({"split": "trian"}, "split 'trian' is unknown (nearest: 'train')"),
    ],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(UserError) as e:
        source(**options)
    assert said in str(e.value)
    with pytest.raises(UserError, match=r"data 'exponents' is unknown \(nearest: 'exponent'\)"):
        open_source({"name": "field", "exponents": 2.0}, "train", "")
