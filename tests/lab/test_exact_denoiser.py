"""Every prediction and every sampler on a mixture of Gaussians, whose exact denoiser is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.data import mixture
from lab.objectives import flow, gaussian
from lab.objectives.diffusion import PREDICTIONS, Objective

WORLD = mixture.Source("train", "", size=4, channels=1, classes=4, components=2, rank=2)
M = WORLD.mixture


def batch(n, seed=0):
    image, label = mixture.sample(M, np.random.default_rng(seed), n)
    return {"image": jnp.asarray(image.reshape(n, *WORLD.shape), jnp.float32), "label": jnp.asarray(label)}


def levels_at(objective, t):
    """(alpha, sigma) at times t [B], also between two steps."""
    level = jnp.interp(t * objective.timesteps, jnp.arange(objective.timesteps, dtype=jnp.float32), jnp.asarray(objective.level))
    return (jnp.sqrt(jax.nn.sigmoid(2 * sign * level)) for sign in (1, -1))


def saying(objective, denoiser):
    """The model that says, in the objective's own prediction, what a denoiser (x, t, label) -> x_0 says."""

    def model(given):
        alpha, sigma = (v.reshape(-1, 1, 1, 1) for v in levels_at(objective, given["t"]))
        x0 = denoiser(objective, given)
        noise = (given["x"] - alpha * x0) / sigma
        return {"eps": noise, "x0": x0, "v": alpha * noise - sigma * x0}[objective.prediction]

    return model


def exact(objective, given):
    """E[x_0 | x_t, label]: x_t / (alpha + sigma) is the flow's at time sigma / (alpha + sigma)."""
    alpha, sigma = levels_at(objective, given["t"])
    return mixture.denoise(M, given["x"] / (alpha + sigma).reshape(-1, 1, 1, 1), sigma / (alpha + sigma), given["label"])


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", gaussian.SCHEDULES)
def test_the_exact_denoiser_has_the_bayes_loss_and_any_other_has_more(schedule, prediction):
    n, key = 4096, jax.random.key(0)
    objective = Objective(schedule, prediction, 0.2)
    given = objective.inputs(key, data := batch(n))
    x, t, label = (np.asarray(given[k], np.float64 if k != "label" else None) for k in ("x", "t", "label"))
    alpha, sigma = gaussian.levels(objective.level[np.round(t * 1000).astype(int)])
    s = sigma / (alpha + sigma)
    snr = (alpha / sigma) ** 2
    per = {"eps": snr, "x0": 1, "v": snr + 1}[prediction]
    bayes = per * s**2 * mixture.spread(M, x.reshape(n, -1) / (alpha + sigma)[:, None], s, label)
    loss = np.asarray(objective.loss(saying(objective, exact), key, data), np.float64)
    gap = loss - bayes  # of mean 0 whatever x_t, if the model is the mean of the posterior
    error = gap.std() / np.sqrt(n)
    assert error < 0.03 * bayes.mean()
    assert abs(gap.mean()) < 4 * error

    # a model that is off has more, by the square of how far off it is
    def off(given):
        return saying(objective, exact)(given) + 0.3 * jnp.cos(3 * given["x"])

    more = np.asarray(objective.loss(off, key, data)) - loss
    want = np.mean(np.square(0.3 * np.cos(3 * x)))
    assert abs(more.mean() - want) < 4 * more.std() / np.sqrt(n)
    assert more.mean() > 4 * more.std() / np.sqrt(n)


def test_predictions_agree_under_exact_conversion():
    """Three models that hold the data to be the same give the same samples, and errors in the ratio of their signals."""

    def guess(objective, given):
        return jnp.tanh(given["x"]) + 0.1 * given["label"].reshape(-1, 1, 1, 1)

    data, key = batch(256), jax.random.key(1)
    three = [Objective("linear", p, 0.1, timesteps=100) for p in PREDICTIONS]
    eps, x0, v = (np.asarray(o.loss(saying(o, guess), key, data)) for o in three)
    snr = np.exp(2 * three[0].level[np.round(np.asarray(three[0].inputs(key, data)["t"]) * 100).astype(int)])
    np.testing.assert_allclose(eps, snr * x0, rtol=2e-3)
    np.testing.assert_allclose(v, (snr + 1) * x0, rtol=2e-3)
    cond = {"label": data["label"][:8]}
    eps, x0, v = (o.sample(saying(o, guess), key, cond, WORLD.shape, 10, 2.0, "ancestral") for o in three)
    np.testing.assert_allclose(eps, x0, atol=2e-3)
    np.testing.assert_allclose(v, x0, atol=2e-3)
    wrong = three[2].sample(saying(three[0], guess), key, cond, WORLD.shape, 10, 2.0, "ancestral")
    assert float(jnp.abs(wrong - x0).max()) > 0.1


def deviations(x, label):
    """Standard errors by which mean, covariance (the greatest entry of each) and whole spread of one label leave the mixture's own.

    In coordinates in which the label's covariance is the identity.
    """
    n, mine = len(x), M.label == label
    weight = np.exp(M.log_weight[mine]) / np.exp(M.log_weight[mine]).sum()
    mean = weight @ M.mean[mine]
    within = np.einsum("krd,kr,kre->kde", M.basis[mine], M.value[mine], M.basis[mine]) + M.noise * np.eye(len(mean))
    between = M.mean[mine] - mean
    white = np.linalg.inv(np.linalg.cholesky(np.einsum("k,kde->de", weight, within + between[:, :, None] * between[:, None])))
    z = (np.asarray(x, np.float64).reshape(n, -1) - mean) @ white.T
    products = z[:, :, None] * z[:, None]
    off = (products.mean(0) - np.eye(z.shape[1])) / (products.std(0) / np.sqrt(n))
    square = np.mean(z**2, 1)
    return np.array([np.abs(z.mean(0)).max() * np.sqrt(n), np.abs(off).max(), abs(square.mean() - 1) / (square.std() / np.sqrt(n))])


LIMITS = (4.5, 5, 4)  # of the greatest of 16, of the greatest of 136, of one
SAMPLERS = {"euler": 300, "heun": 50, "midpoint": 50, "ddim": 200, "dpm++2m": 50, "ancestral": 1000}


@pytest.mark.parametrize("method, steps", SAMPLERS.items())
def test_samplers_reach_the_mean_and_covariance_of_the_data(method, steps):
    n, label = 1024, 1
    if method in gaussian.METHODS:
        objective, options = Objective("cosine", "v", 0.0), {"spacing": "trailing" if method == "ancestral" else "logsnr"}
        model = saying(objective, exact)
    else:
        objective, options = flow.Objective("uniform", 0.0), {}

        def model(given):
            return WORLD.velocity(given["x"], given["t"], given["label"])

    def draw(model):
        return objective.sample(model, jax.random.key(2), {"label": jnp.full(n, label)}, WORLD.shape, steps, method=method, **options)

    found = deviations(draw(model), label)
    assert np.all(found < LIMITS), found
    if method in ("heun", "dpm++2m"):  # the control: samples of another class, and true examples
        other = deviations(draw(lambda given: model({**given, "label": given["label"] + 1})), label)
        assert min(other) > 10, other
        true = batch(5 * n, seed=3)
        kept = np.asarray(true["image"])[np.asarray(true["label"]) == label][:n]
        assert np.all(deviations(kept, label) < LIMITS)
