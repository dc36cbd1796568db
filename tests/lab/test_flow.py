"""Rectified flow against a distribution for which everything is known: one Gaussian, whose velocity has a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from jax.scipy.special import ndtri
from scipy.stats import norm

from lab import axes, parametrization
from lab.errors import UserError
from lab.ladder import floor
from lab.objectives import times
from lab.objectives.flow import Objective

MU, S = 0.15, 0.12  # far enough inside [-1, 1] that clipping the samples never acts
SHAPE = (4, 4, 1)


def spread(t):
    """Variance of x_t = (1 - t) x_0 + t noise for x_0 ~ N(MU, S^2)."""
    return (1 - t) ** 2 * S**2 + t**2


def velocity(inputs):
    """E[noise - x_0 | x_t]: the regression of one Gaussian on another, and the least-squares optimum of the loss."""
    t = inputs["t"].reshape(-1, 1, 1, 1)
    slope = (t - (1 - t) * S**2) / spread(t)
    return slope * (inputs["x"] - (1 - t) * MU) - MU


def bayes(t):
    """Var[noise - x_0 | x_t]: what no model can get below."""
    return 1 + S**2 - (t - (1 - t) * S**2) ** 2 / spread(t)


def gaussian(n, seed=0):
    """A batch of n pictures of independent N(MU, S^2) pixels."""
    x = MU + S * np.random.default_rng(seed).normal(size=(n, *SHAPE))
    return {"image": jnp.asarray(x, jnp.float32), "label": jnp.zeros(n, jnp.int32)}


@pytest.mark.parametrize("time", ["uniform", "logit_normal"])
def test_the_exact_velocity_has_the_bayes_loss_and_any_other_has_more(time):
    n, objective, key = 16384, Objective(time, 0.0), jax.random.key(0)
    u = (np.arange(200_000) + 0.5) / 200_000
    t = u if time == "uniform" else 1 / (1 + np.exp(-norm.ppf(u)))
    want = bayes(t).mean()
    loss = objective.loss(velocity, key, gaussian(n))
    assert loss.shape == (n,)
    error = 4 * float(loss.std()) / np.sqrt(n)
    assert error < 0.05 * want
    assert abs(float(loss.mean()) - want) < error
    # the loss of the exact velocity plus a constant is larger by its square
    off = objective.loss(lambda given: velocity(given) + 0.5, key, gaussian(n)).mean()
    assert abs(float(off) - want - 0.25) < 2 * error


def errors_of_samples(method):
    """Greatest distance of samples from the exact transport of their own noise, at 8, 16, .. steps."""
    key, n = jax.random.key(1), 64
    noise = jax.random.normal(key, (n, *SHAPE))
    exact = MU + S * noise  # x_t = (1 - t) MU + sd(t) z, with the same z at every t
    found = []
    for steps in (32, 64, 128, 256):
        x = Objective("uniform", 0.0).sample(velocity, key, {"label": jnp.zeros(n, jnp.int32)}, SHAPE, steps, 1.0, method)
        found.append(float(jnp.abs(x - exact).max()))
    return np.array(found)


@pytest.mark.parametrize("method, order", [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_sampling_transports_noise_to_data_with_the_order_of_the_method(method, order):
    found = errors_of_samples(method)
    assert found[-1] < (0.02 if order == 1 else 1e-3)
    rates = np.log2(found[:-1] / found[1:])
    assert abs(rates[-1] - order) < 0.25, rates


def test_samples_have_the_mean_and_spread_of_the_data():
    n = 512
    x = Objective("uniform", 0.0).sample(velocity, jax.random.key(2), {"label": jnp.zeros(n, jnp.int32)}, SHAPE, 40)
    assert abs(float(x.mean()) - MU) < 4 * S / np.sqrt(x.size)
    assert abs(float(x.std()) / S - 1) < 4 / np.sqrt(2 * x.size) + 0.01


def labelled(inputs):
    """A velocity that moves each label its own way: -1 none, 0, 1."""
    return jnp.broadcast_to((inputs["label"].astype(jnp.float32) * 0.01).reshape(-1, 1, 1, 1), inputs["x"].shape) + 0.9 * inputs["x"]


def test_guidance_extrapolates_from_no_label_and_one_is_plain():
    objective, key, label = Objective("uniform", 0.1), jax.random.key(3), jnp.array([0, 1, 1])

    def sample(guidance, model=labelled):
        return objective.sample(model, key, {"label": label}, SHAPE, 8, guidance)

    plain = sample(1.0)
    np.testing.assert_allclose(sample(1.0 + 1e-6), plain, atol=1e-5)
    np.testing.assert_allclose(sample(0.0), sample(1.0, lambda i: labelled({**i, "label": -jnp.ones(3, int)})), atol=1e-6)
    np.testing.assert_allclose(sample(3.0) - plain, 2 * (plain - sample(0.0)), atol=1e-5)  # linear in the label's pull
    assert float(jnp.abs(sample(3.0) - plain).max()) > 1e-3


def test_the_loss_of_an_example_depends_on_it_alone():
    prog = small.program(depth=1)
    params = axes.draw(key := jax.random.key(0), prog.model, axes.scales(prog.model, parametrization.standard))
    params = jax.tree.map(lambda x: x + 0.05, params)  # a readout of zero would see nothing
    batch = small.batch(6)
    loss_of = jax.jit(prog.loss)
    loss = loss_of(params, key, batch)
    assert loss.shape == (6,)
    changed = {"image": batch["image"].at[2].set(255 - batch["image"][2]), "label": batch["label"].at[4].add(1)}
    other = loss_of(params, key, changed)
    same = np.array([0, 1, 3, 5])
    np.testing.assert_allclose(other[same], loss[same], rtol=1e-6)
    assert float(jnp.abs(other - loss)[jnp.array([2, 4])].min()) > 1e-5


def test_bytes_and_floats_of_the_same_picture_have_the_same_loss():
    batch, key = small.batch(4), jax.random.key(0)
    given = [Objective("uniform", 0.0).inputs(key, {**batch, "image": x}) for x in (batch["image"], batch["image"] / 127.5 - 1.0)]
    np.testing.assert_allclose(given[0]["x"], given[1]["x"], atol=1e-6)
    a = given[0]
    # x_t = x_0 + t (noise - x_0)
    np.testing.assert_allclose(a["x"] - a["t"].reshape(-1, 1, 1, 1) * a["target"], batch["image"] / 127.5 - 1.0, atol=2e-6)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_asked_share_of_labels_is_hidden_and_the_rest_untouched(share):
    n = 4000
    batch = {"image": jnp.zeros((n, 1, 1, 1)), "label": jnp.arange(n) % 7}
    label = np.asarray(Objective("uniform", share).inputs(jax.random.key(5), batch)["label"])
    hidden = label == -1
    assert abs(hidden.mean() - share) <= 4 * np.sqrt(share * (1 - share) / n)
    assert np.all(label[~hidden] == np.asarray(batch["label"])[~hidden])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_one_draw_hides_label_and_text_together(share):
    n, key = 4000, jax.random.key(5)
    batch = {"image": jnp.zeros((n, 1, 1, 1)), "label": jnp.arange(n) % 7, "text": 1 + jnp.arange(n * 3).reshape(n, 3)}
    given = Objective("uniform", share).inputs(key, batch)
    hidden = np.asarray(given["label"]) == -1
    assert abs(hidden.mean() - share) <= 4 * np.sqrt(share * (1 - share) / n)
    np.testing.assert_array_equal(given["text"], np.where(hidden[:, None], 0, batch["text"]))
    assert given["text"].dtype == batch["text"].dtype
    del batch["text"]
    plain = Objective("uniform", share).inputs(key, batch)
    assert plain.keys() == given.keys() - {"text"}
    for k, v in plain.items():
        np.testing.assert_array_equal(v, given[k])


def test_random_numbers_are_those_of_every_study_so_far():
    """Recorded before text was known: the same key hides the same labels and gives the same loss."""
    batch, objective, key = small.batch(8), Objective("logit_normal", 0.3), jax.random.key(7)

    def linear(given):
        t, label = (given[k].reshape(-1, 1, 1, 1) for k in ("t", "label"))
        return 0.5 * given["x"] - t + 0.1 * label

    assert objective.inputs(key, batch)["label"].tolist() == [-1, -1, -1, 3, -1, 0, -1, 3]
    want = [1.52615225, 1.77683985, 1.77927089, 1.45122039, 1.40528238, 1.61123013, 1.37960195, 1.22161758]
    np.testing.assert_allclose(objective.loss(linear, key, batch), want, rtol=1e-6)


def worded(inputs):
    """A velocity that the text moves, and the label."""
    pull = inputs["text"].sum(-1) * 0.001 + inputs["label"] * 0.01
    return jnp.broadcast_to(pull.reshape(-1, 1, 1, 1), inputs["x"].shape) + 0.9 * inputs["x"]


def test_guidance_hides_label_and_text_and_loss_shows_both_to_the_model():
    objective, key = Objective("uniform", 0.0), jax.random.key(3)
    cond = {"label": jnp.array([0, 1, 1]), "text": jnp.arange(12).reshape(3, 4)}

    def sample(cond, guidance):
        return objective.sample(worded, key, cond, SHAPE, 8, guidance)

    hidden = {"label": -jnp.ones(3, int), "text": jnp.zeros((3, 4), int)}
    np.testing.assert_allclose(sample(cond, 0.0), sample(hidden, 1.0), atol=1e-6)
    np.testing.assert_allclose(sample(cond, 3.0) - sample(cond, 1.0), 2 * (sample(cond, 1.0) - sample(hidden, 1.0)), atol=1e-5)
    assert float(jnp.abs(sample({**cond, "text": cond["text"] + 9}, 1.0) - sample(cond, 1.0)).max()) > 1e-3
    batch = gaussian(3) | cond
    assert (
        float(jnp.abs(objective.loss(worded, key, batch) - objective.loss(worded, key, {**batch, "text": cond["text"] * 50})).min()) > 1e-4
    )


@pytest.mark.parametrize("time, quantile", [("uniform", lambda q: q), ("logit_normal", lambda q: 1 / (1 + np.exp(-norm.ppf(q))))])
def test_times_have_the_asked_density_in_the_batch_and_in_each_place(time, quantile):
    objective = Objective(time, 0.0)
    n = 512
    batch = {"image": jnp.zeros((n, 1, 1, 1)), "label": jnp.zeros(n, jnp.int32)}
    at = np.array([0.1, 0.25, 0.5, 0.75, 0.9])
    t = np.asarray(objective.inputs(jax.random.key(0), batch)["t"])
    np.testing.assert_allclose(np.quantile(t, at), quantile(at), atol=2 / n)  # stratified: far closer than n^-1/2
    few = {k: v[:4] for k, v in batch.items()}
    keys = jax.random.split(jax.random.key(1), 2000)
    first = np.asarray(jax.vmap(lambda k: objective.inputs(k, few)["t"])(keys))[:, 0]
    np.testing.assert_allclose(np.quantile(first, at), quantile(at), atol=4 * np.sqrt(0.25 / 2000))


def sd3_mode(u, s):
    return 1 - u - s * (np.cos(np.pi * u / 2) ** 2 - 1 + u)


DENSITIES = {
    "uniform": ({}, lambda t: np.ones_like(t)),
    "logit_normal": ({}, lambda t: norm.pdf(np.log(t / (1 - t))) / (t * (1 - t))),
    "located": ({"location": 0.5, "scale": 0.6}, lambda t: norm.pdf(np.log(t / (1 - t)), 0.5, 0.6) / (t * (1 - t))),
    "cosmap": ({}, lambda t: 2 / (np.pi - 2 * np.pi * t + 2 * np.pi * t**2)),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_have_the_papers_formula_and_mass_one(name):
    options, density = DENSITIES[name]
    quantile = times.DENSITIES["logit_normal" if name == "located" else name](**options)
    t = (np.arange(20000) + 0.5) / 20000
    assert abs(density(t).mean() - 1) < 1e-4
    below = np.cumsum(density(t)) / 20000
    at = np.array([0.02, 0.2, 0.5, 0.7, 0.98])
    np.testing.assert_allclose(quantile(jnp.asarray(at)), np.interp(at, below, t + 0.5 / 20000), atol=2e-4)


@pytest.mark.parametrize("s", [-1.0, 0.5, 1.29, 1.75])
def test_mode_is_the_papers_map_and_falls_in_the_middle(s):
    u = np.linspace(0, 1, 1001)
    t = np.asarray(times.mode(s)(jnp.asarray(u)))
    np.testing.assert_allclose(t, sd3_mode(1 - u, s), atol=1e-6)  # theirs falls in u
    assert np.all(np.diff(t) > -1e-6)
    middle = 0.1 / (np.searchsorted(t, 0.55) - np.searchsorted(t, 0.45)) * 1000
    assert (middle < 1) == (s > 0)
    beyond = sd3_mode(u, 1.0 + 2 / (np.pi - 2))
    assert np.any(np.diff(beyond) > 0)  # why there is a bound


def test_shift_makes_larger_pictures_as_uncertain_as_small_ones():
    t = jnp.linspace(0.05, 0.95, 19)
    shifted = times.shifted(2.0)(t)
    # a constant picture is told from its mean over n pixels with standard error t / (1 - t) / sqrt(n)
    np.testing.assert_allclose(shifted / (1 - shifted) / 2, t / (1 - t), rtol=1e-5)
    np.testing.assert_allclose(times.shifted(0.5)(shifted), t, rtol=1e-5)
    batch, key = gaussian(64), jax.random.key(0)
    plain, moved = (Objective("cosmap", 0.0, shift=a).inputs(key, batch)["t"] for a in (1.0, 3.0))
    np.testing.assert_allclose(moved, times.shifted(3.0)(plain), rtol=1e-6)
    assert float(moved.mean()) > float(plain.mean()) + 0.1


@pytest.mark.parametrize("time, old", [("uniform", lambda u: u), ("logit_normal", lambda u: jax.nn.sigmoid(ndtri(u)))])
def test_options_left_out_change_no_bit_of_the_training_loss(time, old):
    """Against the loss as it was before there were any, written out."""
    batch = small.batch(8)

    def before(key):
        k_offset, k_noise, k_drop = jax.random.split(key, 3)
        x0 = batch["image"].astype(jnp.float32) / 127.5 - 1.0
        u = jnp.mod(jax.random.uniform(k_offset) + (jnp.arange(8) + 0.5) / 8, 1.0)
        t = old(jnp.clip(u, 1e-4, 1 - 1e-4))
        noise, s = jax.random.normal(k_noise, x0.shape), t.reshape(-1, 1, 1, 1)
        label = jnp.where(jax.random.bernoulli(k_drop, 0.3, (8,)), -1, batch["label"])
        error = labelled({"x": (1 - s) * x0 + s * noise, "t": t, "label": label}) - (noise - x0)
        return jnp.mean(jnp.square(error), axis=(1, 2, 3))

    def now(**options):
        return jax.jit(lambda k: Objective(time, 0.3, **options).loss(labelled, k, batch))

    before, same, other = jax.jit(before), now(), now(shift=1.01)
    for seed in range(8):
        key = jax.random.key(seed)
        np.testing.assert_array_equal(same(key), before(key))
        assert np.any(other(key) != before(key))


def test_grids_run_from_noise_to_data_and_bend_as_asked():
    even = jnp.linspace(1.0, 0.0, 11)
    for bend in (times.uniform(), times.sigmoid(), times.sigmoid(1.0), times.shifted(3.0)):
        nodes = np.asarray(bend(even))
        assert abs(nodes[0] - 1) < 1e-6
        assert abs(nodes[-1]) < 1e-6
        assert np.all(np.diff(nodes) < 0)
    step = -np.diff(times.sigmoid(6.0)(even))
    np.testing.assert_allclose(step, step[::-1], atol=1e-6)
    assert step[0] < step[4] / 2
    late = -np.diff(times.shifted(3.0)(even))
    assert np.all(np.diff(late) > 0)  # small steps where there is most noise


@pytest.mark.parametrize("options", [{"grid": "sigmoid", "steepness": 4.0}, {"grid": "shifted", "shift": 2.0}], ids=lambda o: o["grid"])
def test_every_grid_leads_to_the_same_transport(options):
    key, n = jax.random.key(1), 64
    exact = MU + S * jax.random.normal(key, (n, *SHAPE))
    x = Objective("uniform", 0.0).sample(velocity, key, {"label": jnp.zeros(n, jnp.int32)}, SHAPE, 128, **options)
    assert float(jnp.abs(x - exact).max()) < 0.01


def test_guidance_acts_inside_its_interval_alone():
    objective, key, cond = Objective("uniform", 0.1), jax.random.key(3), {"label": jnp.array([0, 1, 1])}

    def sample(guidance, interval, steps=8):
        return objective.sample(labelled, key, cond, SHAPE, steps, guidance, "euler", interval=interval)

    plain, everywhere = sample(1.0, (0.0, 1.0)), sample(3.0, (0.0, 1.0))
    np.testing.assert_array_equal(sample(3.0, (0.26, 0.37)), plain)  # no node lies within
    np.testing.assert_array_equal(sample(3.0, (0.0, 0.1)), plain)
    parts = [sample(3.0, i) - plain for i in ((0.0, 0.45), (0.45, 1.0))]
    # the model is linear, so what both halves add is what the whole adds
    np.testing.assert_allclose(parts[0] + parts[1], everywhere - plain, atol=1e-5)
    assert min(float(jnp.abs(p).max()) for p in parts) > 1e-3


def test_a_world_tells_the_floor_of_its_own_densities_alone():
    study = {"data": {"best_loss": {"logit_normal": {"conditional": 1.0, "marginal": 2.0, "error": 0.1}}}}
    objective = {"name": "flow", "time": "logit_normal", "label_drop": 0.5}
    assert floor({**study, "config": {"objective": objective}}) == (1.5, 0.1)
    for option in ({"location": 0.5}, {"scale": 0.7}, {"shift": 3.0}, {"time": "mode"}):
        assert floor({**study, "config": {"objective": objective | option}}) is None


def test_options_are_read_by_what_they_are_given_to():
    for arguments, said in (
        (dict(time="uniform", location=0.5), r"config key objective 'location'"),
        (dict(time="cosmap", scale=1.0), r"config key objective 'scale'"),
        (dict(time="logit_normal", scale=0.0), r"objective.scale=0.0"),
        (dict(time="mode", scale=2.0), r"objective.scale=2.0 must be from -1 to 1.75"),
        (dict(time="uniform", shift=0.0), r"shift=0.0"),
    ):
        with pytest.raises(UserError, match=said):
            Objective(label_drop=0.1, **arguments)
    for options, said in (
        ({"grid": "sigmiod"}, r"sample.options.grid 'sigmiod'.*nearest: 'sigmoid'"),
        ({"grid": "shifted"}, r"sample.options.shift is missing"),
        ({"grid": "uniform", "shift": 3.0}, r"sample.options 'shift'"),
        ({"interval": (0.7, 0.1)}, r"interval=\(0.7, 0.1\)"),
    ):
        with pytest.raises(UserError, match=said):
            Objective("uniform", 0.1).sample(velocity, jax.random.key(0), {"label": jnp.zeros(1, int)}, SHAPE, **options)


def test_unknown_names_are_the_users_errors():
    with pytest.raises(UserError, match=r"objective.time 'logit-normal'.*nearest: 'logit_normal'"):
        Objective("logit-normal", 0.1)
    with pytest.raises(UserError, match=r"sampler 'huen'.*nearest: 'heun'"):
        Objective("uniform", 0.1).sample(velocity, jax.random.key(0), {"label": jnp.zeros(1, int)}, SHAPE, method="huen")
