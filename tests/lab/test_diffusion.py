"""Diffusion where everything is known: one Gaussian, whose denoiser, reverse chain, bound and transport have closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from lab import axes, parametrization
from lab.axes import Dims
from lab.errors import UserError
from lab.models import dit
from lab.objectives import gaussian
from lab.objectives.diffusion import Objective
from lab.population import build

MU, S = 0.15, 0.12
SHAPE = (4, 4, 1)


def levels_at(objective, t):
    """(alpha, sigma) at times t [B], also between two steps."""
    level = jnp.interp(t * objective.timesteps, jnp.arange(objective.timesteps, dtype=jnp.float32), jnp.asarray(objective.level))
    return (jnp.sqrt(jax.nn.sigmoid(2 * sign * level)).reshape(-1, 1, 1, 1) for sign in (1, -1))


def told(objective, x, x0, alpha, sigma):
    """What a model of this objective says at x where it holds the data to be x0."""
    noise = (x - alpha * x0) / sigma
    return {"eps": noise, "x0": x0, "v": alpha * noise - sigma * x0}[objective.prediction]


def exact(objective, variance=None):
    """The exact denoiser of N(MU, S^2) pixels; `variance(t)` [B] is its second channel."""

    def model(given):
        x = given["x"]
        alpha, sigma = levels_at(objective, given["t"])
        x0 = MU + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (x - alpha * MU)
        out = told(objective, x, x0, alpha, sigma)
        if variance is None:
            return out
        return jnp.concatenate([out, jnp.broadcast_to(2 * variance(given["t"]).reshape(-1, 1, 1, 1) - 1, x.shape)], -1)

    return model


def pixels(n, seed=0):
    """A batch of n pictures of independent N(MU, S^2) pixels."""
    x = MU + S * np.random.default_rng(seed).normal(size=(n, *SHAPE))
    return {"image": jnp.asarray(x, jnp.float32), "label": jnp.zeros(n, jnp.int32)}


def nobody(n):
    return {"label": jnp.zeros(n, jnp.int32)}


@pytest.mark.parametrize("name", gaussian.SCHEDULES)
def test_schedules_are_the_papers(name):
    n = 1000
    beta = np.linspace(1e-4, 0.02, n)
    if name == "cosine":

        def f(t):
            return np.cos((t / n + 0.008) / 1.008 * np.pi / 2) ** 2

        beta = np.array([min(1 - f(t + 1) / f(t), 0.999) for t in range(n)])
    bar = np.cumprod(1 - beta)
    alpha, sigma = gaussian.levels(gaussian.schedule(name, n))
    np.testing.assert_allclose(alpha**2, bar, rtol=1e-9)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-12)
    np.testing.assert_allclose(gaussian.schedule(name, 4000)[3999], gaussian.schedule(name, n)[-1], atol=0.03 if name == "linear" else 1.5)
    # q(x_next | x, x_0) by Bayes' rule from q(x | x_next) and q(x_next | x_0)
    q = gaussian.between(gaussian.schedule(name, n)[1:], gaussian.schedule(name, n)[:-1])
    precision = (1 - beta[1:]) / beta[1:] + 1 / (1 - bar[:-1])
    np.testing.assert_allclose(q["small"] ** 2, 1 / precision, rtol=1e-8)
    np.testing.assert_allclose(q["large"] ** 2, beta[1:], rtol=1e-8)
    np.testing.assert_allclose(q["a"], np.sqrt(1 - beta[1:]) / beta[1:] / precision, rtol=1e-8)
    np.testing.assert_allclose(q["b"], np.sqrt(bar[:-1]) / (1 - bar[:-1]) / precision, rtol=1e-7, atol=1e-12)


def test_inputs_are_told_their_step_and_batches_cover_all_steps():
    objective, batch = Objective("linear", "v", 0.0, timesteps=32), pixels(64)
    given = objective.inputs(jax.random.key(0), batch)
    assert sorted((np.asarray(given["t"]) * 32).tolist()) == sorted([*range(32)] * 2)
    alpha, sigma = levels_at(objective, given["t"])
    # v = alpha noise - sigma x_0 and x_t = alpha x_0 + sigma noise are a rotation
    np.testing.assert_allclose(alpha * given["x"] - sigma * given["target"], batch["image"], atol=1e-5)
    byte = {"image": jnp.full((4, *SHAPE), 255, jnp.uint8), **nobody(4)}
    same = Objective("linear", "x0", 0.0).inputs(jax.random.key(0), byte)["target"]
    np.testing.assert_array_equal(same, np.ones((4, *SHAPE)))


@pytest.mark.parametrize("prediction, per", [("eps", lambda snr: snr), ("x0", lambda snr: 1), ("v", lambda snr: snr + 1)])
def test_min_snr_weights_are_the_papers_and_make_predictions_alike(prediction, per):
    plain, weighted = (Objective("cosine", prediction, 0.0, min_snr=g) for g in (None, 5.0))
    snr = np.exp(2 * plain.level)
    batch, key = pixels(64), jax.random.key(1)

    def model(objective):
        def f(given):
            alpha, sigma = levels_at(objective, given["t"])
            return told(objective, given["x"], jnp.tanh(given["x"]), alpha, sigma)

        return f

    step = np.round(np.asarray(plain.inputs(key, batch)["t"]) * 1000).astype(int)
    losses = [np.asarray(o.loss(model(o), key, batch)) for o in (plain, weighted)]
    np.testing.assert_allclose(losses[1] / losses[0], (np.minimum(snr, 5) / per(snr))[step], rtol=1e-4)
    reference = Objective("cosine", "x0", 0.0, min_snr=5.0)
    seen = snr[step] > 1e-4  # below, noise told in float32 says too little of x_0
    np.testing.assert_allclose(losses[1][seen], reference.loss(model(reference), key, batch)[seen], rtol=0.01)


def share_of(objective):
    """The place of the exact reverse variance between its bounds, as a function of times [B]."""
    q = gaussian.between(objective.level, np.append(np.inf, objective.level[:-1]))
    alpha, sigma = gaussian.levels(objective.level)
    variance = q["small"] ** 2 + q["b"] ** 2 * S**2 * sigma**2 / (alpha**2 * S**2 + sigma**2)
    q["small"][0] = q["small"][1]
    low, high = 2 * np.log(q["small"]), 2 * np.log(q["large"])
    share = (np.log(variance) - low) / (high - low)
    assert share.min() >= 0
    assert share.max() <= 1
    return lambda t: jnp.asarray(share, jnp.float32)[jnp.round(t * objective.timesteps).astype(int)], variance


def bound(objective, model, key, batch):
    """The bound's term of every example in nats an element: what the learned variance adds to the loss."""
    added = objective.loss(model, key, batch) - jnp.mean(objective.errors(model, key, batch)[1] ** 2, (1, 2, 3))
    return np.asarray(added) * 1000 / objective.timesteps * np.log(2)


def test_the_bound_at_the_exact_chain_is_the_entropy_of_the_data_and_any_other_is_more():
    steps, each = 64, 1024
    objective = Objective("linear", "x0", 0.0, timesteps=steps, learned_variance=True)
    share, variance = share_of(objective)
    batch, key = pixels(steps * each), jax.random.key(2)
    found = bound(objective, exact(objective, share), key, batch)
    step = np.round(np.asarray(objective.inputs(key, batch)["t"]) * steps).astype(int)
    # of each step: the mean KL is half the log of exact over least variance
    q = gaussian.between(objective.level, np.append(np.inf, objective.level[:-1]))
    want = np.log(variance[1:] / q["small"][1:] ** 2) / 2
    mean = np.array([found[step == i].mean() for i in range(steps)])
    error = np.array([found[step == i].std() for i in range(steps)]) / np.sqrt(each)
    assert np.all(np.abs(mean[1:] - want) < 5 * error[1:] + 1e-5)
    # of all steps and the prior: -log p(x_0), where the chain starts from what noise ends in
    alpha, sigma = (v[-1] for v in gaussian.levels(objective.level))
    end = alpha**2 * S**2 + sigma**2
    prior = 0.5 * np.log(end / sigma**2)
    entropy = 0.5 * np.log(2 * np.pi * np.e * S**2)
    slack = 5 * np.sqrt(np.sum(error**2))
    assert slack < 0.05
    assert abs(mean.sum() + prior - entropy) < slack
    for other in (lambda t: share(t) + 0.5, lambda t: share(t) - 0.5):
        assert steps * (bound(objective, exact(objective, other), key, batch) - found).mean() > 0.1


def test_the_bound_moves_the_variance_alone():
    objective = Objective("cosine", "eps", 0.0, timesteps=50, learned_variance=True)
    batch, key = pixels(8), jax.random.key(0)

    def of(p):
        def model(given):
            return jnp.concatenate([p["mean"] * given["x"], jnp.broadcast_to(p["variance"], given["x"].shape)], -1)

        def plain(given):
            return model(given)[..., :1]

        return jnp.mean(objective.loss(model, key, batch)), jnp.mean(Objective("cosine", "eps", 0.0, 50).loss(plain, key, batch))

    p = {"mean": jnp.float32(0.3), "variance": jnp.float32(0.2)}
    both, simple = (jax.grad(lambda p, i=i: of(p)[i])(p) for i in (0, 1))
    np.testing.assert_allclose(both["mean"], simple["mean"], rtol=1e-5)
    assert abs(float(both["variance"])) > 1e-6
    assert simple["variance"] == 0


def test_masses_of_bytes_sum_to_one_and_near_the_density():
    x = jnp.arange(256) / 127.5 - 1
    for mean, std in ((0.0, 0.1), (0.93, 0.2), (-0.5, 1e-3), (0.2, 1e-2)):
        nats = gaussian.surprise(x, jnp.float32(mean), jnp.log(jnp.float32(std)), True)
        assert np.isfinite(nats).all()
        np.testing.assert_allclose(jnp.exp(-nats).sum(), 1, rtol=1e-5)
    wide = jnp.log(jnp.float32(0.3))
    mass, density = (gaussian.surprise(x[40:60], jnp.float32(0.1), wide, b) for b in (True, False))
    np.testing.assert_allclose(mass, density + np.log(127.5), rtol=1e-4)


def distances(objective, method, counts, n=32):
    """Greatest distance of samples from the exact probability-flow transport of their noise, up to the last node's denoising."""
    found = []
    noise = np.asarray(jax.random.normal(jax.random.split(jax.random.key(1))[0], (n, *SHAPE)))
    for steps in counts:
        x = objective.sample(exact(objective), jax.random.key(1), nobody(n), SHAPE, steps, method=method, spacing="logsnr")
        (alpha, alpha0), (sigma, sigma0) = gaussian.levels(objective.level[[-1, 0]])
        z = (noise - alpha * MU) / np.sqrt(alpha**2 * S**2 + sigma**2)  # each element keeps its quantile on the way
        found.append(np.abs(x - MU - z * alpha0 * S**2 / np.sqrt(alpha0**2 * S**2 + sigma0**2)).max())
    return np.array(found)


@pytest.mark.parametrize("method, order", [("ddim", 1), ("dpm++2m", 2)])
def test_sampling_follows_the_exact_transport_with_the_order_of_the_method(method, order):
    found = distances(Objective("linear", "v", 0.0), method, (32, 64, 128))
    rates = np.log2(found[:-1] / found[1:])
    assert found[-1] < (0.02 if order == 1 else 2e-3)
    assert abs(rates[-1] - order) < 0.3, (found, rates)


def test_a_learned_exact_variance_makes_a_short_chain_exact_and_a_fixed_one_does_not():
    n, steps = 1024, 6
    learned, fixed = (Objective("linear", "x0", 0.0, learned_variance=v) for v in (True, False))
    at, level = gaussian.nodes(learned.level, steps, "logsnr")
    q = gaussian.between(level[:-1], level[1:])
    alpha, sigma = gaussian.levels(level)
    spread = alpha**2 * S**2 + sigma**2
    variance = q["small"] ** 2 + q["b"] ** 2 * (S**2 * sigma**2 / spread)[:-1]
    share = np.append(np.log(variance / q["small"] ** 2) / np.log(q["large"] ** 2 / q["small"] ** 2), 0.5)

    def of(t):
        return jnp.interp(t * 1000, jnp.asarray(at[::-1]), jnp.asarray(share[::-1]))

    options = dict(steps=steps, method="ancestral", spacing="logsnr")
    x = learned.sample(exact(learned, of), jax.random.key(0), nobody(n), SHAPE, **options)
    want = alpha[-1] * S**2 / np.sqrt(spread[-1])  # the last step is the mean of what it sees
    slack = 4 / np.sqrt(2 * x.size)
    assert abs(want / S - 1) < 0.01
    assert abs(float(x.std()) / want - 1) < slack
    assert abs(float(x.mean()) - MU) < 4 * S / np.sqrt(x.size) + 1e-3  # the noise that ends the forward chain holds some of MU
    short = fixed.sample(exact(fixed), jax.random.key(0), nobody(n), SHAPE, **options)
    assert float(short.std()) < (1 - 5 * slack) * want


def test_ancestral_steps_are_ddim_with_all_its_noise_and_without_noise_are_not():
    objective = Objective("cosine", "v", 0.0)

    def sample(**options):
        return objective.sample(exact(objective), jax.random.key(3), nobody(16), SHAPE, 10, **options)

    np.testing.assert_allclose(sample(method="ancestral"), sample(eta=1.0), atol=1e-6)
    assert float(jnp.abs(sample(method="ancestral") - sample()).max()) > 0.01


@pytest.mark.parametrize("learned", [False, True])
def test_guidance_is_linear_in_the_label_inside_its_interval_and_leaves_the_variance(learned):
    objective, label = Objective("linear", "eps", 0.1, learned_variance=learned), jnp.array([0, 1, 1])

    def model(given):
        pull = given["label"].reshape(-1, 1, 1, 1)
        mean = 0.3 * given["x"] + 0.02 * pull
        return jnp.concatenate([mean, 0 * mean + 0.2 + (pull < 0)], -1) if learned else mean

    def sample(guidance, **options):
        return objective.sample(model, jax.random.key(4), {"label": label}, SHAPE, 8, guidance, "ancestral", **options)

    plain, twice = sample(1.0), sample(2.0)
    np.testing.assert_allclose(sample(3.0) - plain, 2 * (twice - plain), rtol=1e-3, atol=1e-3)
    assert float(jnp.abs(twice - plain).max()) > 0.05
    np.testing.assert_allclose(sample(3.0, interval=(0.0, 0.1)), plain, atol=2e-3)  # before the first node, 0.124
    some = sample(3.0, interval=(0.3, 0.6))
    assert 0.01 < float(jnp.abs(some - plain).max()) < float(jnp.abs(sample(3.0) - plain).max())


def test_clip_holds_what_the_model_predicts():
    objective = Objective("cosine", "x0", 0.0)
    x = objective.sample(lambda given: 3 * given["x"], jax.random.key(0), nobody(4), SHAPE, 5, clip=1.0)
    assert float(jnp.abs(x).max()) == 1.0
    assert float(jnp.abs(objective.sample(lambda given: 3 * given["x"], jax.random.key(0), nobody(4), SHAPE, 5)).max()) > 1.5


def test_a_dit_learns_the_variance_by_its_knob_outputs():
    changes = {"name": "diffusion", "schedule": "cosine", "prediction": "v", "label_drop": 0.1, "learned_variance": True}
    program = build(small.config(objective=changes), small.Source(8).dims)
    assert program.dims["patch_out"] == 2 * program.dims["patch"]
    params = axes.draw(jax.random.key(0), program.model, axes.scales(program.model, parametrization.standard))
    params = jax.tree.map(lambda x: x + 0.05, params)
    batch = small.batch(6)
    loss_of = jax.jit(program.loss)
    loss = loss_of(params, jax.random.key(0), batch)
    changed = {"image": batch["image"].at[2].set(255 - batch["image"][2]), "label": batch["label"].at[4].add(1)}
    other = loss_of(params, jax.random.key(0), changed)
    np.testing.assert_allclose(other[np.array([0, 1, 3, 5])], loss[np.array([0, 1, 3, 5])], rtol=1e-6)
    assert float(jnp.abs(other - loss)[jnp.array([2, 4])].min()) > 1e-5
    times, errors = jax.eval_shape(program.objective.errors, params, jax.random.key(0), batch)
    assert times.shape == (6,)
    assert errors.shape == batch["image"].shape
    narrow = dit.Model(Dims.of(dit.Model.axes, small.KNOBS, {"width": 32}), False, True)
    narrow = axes.draw(jax.random.key(0), narrow, axes.scales(narrow, parametrization.standard))
    with pytest.raises(UserError, match=r"shape \(6, 16, 16, 1\).*outputs"):
        jax.eval_shape(program.objective.loss, narrow, jax.random.key(0), batch)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_one_draw_hides_label_and_text_together(share):
    n = 2000
    batch = {"image": jnp.zeros((n, 1, 1, 1)), "label": jnp.arange(n) % 7, "text": 1 + jnp.arange(n * 3).reshape(n, 3)}
    given = Objective("linear", "eps", share).inputs(jax.random.key(5), batch)
    hidden = np.asarray(given["label"]) == -1
    assert abs(hidden.mean() - share) <= 4 * np.sqrt(share * (1 - share) / n)
    np.testing.assert_array_equal(given["text"], np.where(hidden[:, None], 0, batch["text"]))


def test_mistakes_are_the_users():
    for arguments, said in (
        (("linaer", "eps", 0.1), r"objective.schedule 'linaer'.*nearest: 'linear'"),
        (("linear", "epsilon", 0.1), r"objective.prediction 'epsilon'"),
        (("linear", "eps", 0.1, 20), r"objective.timesteps=20"),
        (("linear", "eps", 0.1, 1000, False, 0.0), r"objective.min_snr=0.0"),
    ):
        with pytest.raises(UserError, match=said):
            Objective(*arguments)
    objective = Objective("linear", "eps", 0.1)
    for options, said in (
        ({"method": "ddmi"}, r"sampler 'ddmi'.*nearest: 'ddim'"),
        ({"spacing": "trail"}, r"sample.options.spacing 'trail'.*nearest: 'trailing'"),
        ({"eta": 0.5, "method": "dpm++2m"}, r"eta=0.5"),
        ({"steps": 1001}, r"steps=1001"),
        ({"interval": (0.5, 0.2)}, r"interval=\(0.5, 0.2\)"),
    ):
        with pytest.raises(UserError, match=said):
            objective.sample(exact(objective), jax.random.key(0), nobody(1), SHAPE, **options)
