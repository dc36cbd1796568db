"""Unmasking against a world whose exact conditionals are known: its losses have the known floors, its samples are the world's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from scipy.integrate import quad
from scipy.stats import chi2
from tokens import grids

from lab.data.tree import Source
from lab.errors import UserError
from lab.objectives import unmask
from lab.objectives.unmask import Objective
from lab.population import Population

WORLD = Source("train", "", side=3, vocabulary=4, classes=2)
TINY = Source("train", "", side=2, vocabulary=3, classes=2, temperature=1.0)
DENSITIES = {
    "linear": lambda r: 1.0,
    "cosine": lambda r: 2 / np.pi / np.sqrt(1 - r * r),
    "arccos": lambda r: np.pi / 2 * np.sin(np.pi / 2 * r),
}


def posterior(world, power=1.0):
    """The exact conditionals as a model, to be called or traced; `power` other than 1 makes it a wrong one."""

    def answer(tokens, label):
        p = world.conditionals(np.maximum(tokens, 0), np.asarray(tokens) >= 0, np.asarray(label))
        return np.log(np.maximum(p, 1e-30)).astype(np.float32)

    def model(given):
        shape = jax.ShapeDtypeStruct((len(given["label"]), world.cells, world.vocabulary), jnp.float32)
        return power * jax.pure_callback(answer, shape, given["tokens"], given["label"])

    return model


@functools.cache
def drawn(world, n, seed):
    return jax.device_get(jax.jit(world.generate, static_argnums=1)(jax.random.key(seed), n))


def batch(world, n, seed=0):
    """Grids of a world, the first of those that every test shares."""
    return {k: v[:n] for k, v in drawn(world, 4096, seed).items()}


def inputs(objective, key, data):
    """objective.inputs, compiled."""
    return jax.device_get(jax.jit(objective.inputs)(key, data))


def losses(asked, key, data):
    """The loss [B] of each (objective, model), in one program."""
    return jax.device_get(jax.jit(lambda k, b: [objective.loss(model, k, b) for objective, model in asked])(key, data))


def mean(x):
    """(mean, standard error)."""
    x = np.asarray(x, np.float64)
    return x.mean(), x.std(ddof=1) / np.sqrt(len(x))


def test_exact_conditionals_have_the_best_masked_loss_at_every_rate_and_others_more():
    data, key, objective = batch(WORLD, 4096), jax.random.key(1), Objective("linear", "plain", 0.0)
    given = inputs(objective, key, data)
    right, wrong = losses([(objective, posterior(WORLD, p)) for p in (1.0, 0.5)], key, data)
    count = np.round(given["t"] * 9)
    np.testing.assert_array_equal(count, given["masked"].sum((1, 2)))
    floors = {k: WORLD.best_masked_loss(k / 9, 512) for k in range(1, 10)}
    for k, best in floors.items():
        value, error = mean(right[count == k])
        assert error < 0.05
        assert abs(value - best.value) < 4 * np.hypot(error, best.error), k
        gap, error = mean(wrong[count == k] - right[count == k])
        assert gap > 4 * error, k
    assert floors[9].value > floors[1].value + 0.1  # so that the rates are not all one


@pytest.mark.parametrize("schedule", DENSITIES)
def test_the_elbo_of_exact_conditionals_is_the_entropy_and_of_others_is_above(schedule):
    data, key, objective = batch(WORLD, 4096), jax.random.key(2), Objective(schedule, "elbo", 0.0)
    entropy = WORLD.entropy_rates()
    np.testing.assert_allclose(entropy.mean(), WORLD.info["best_loss"], rtol=1e-6)
    plainly = Objective(schedule, "plain", 0.0)
    asked = [(objective, posterior(WORLD)), (objective, posterior(WORLD, 0.5)), (plainly, posterior(WORLD))]
    right, wrong, plain = losses(asked, key, data)
    value, error = mean(right - entropy[data["label"]])
    assert error < 0.025
    assert abs(value) < 4 * error
    value, error = mean(wrong - right)
    assert value > 4 * error
    # without the weights the loss is that of the schedule's rates, which is the entropy for one schedule only
    value, error = mean(plain - entropy[data["label"]])
    assert (abs(value) < 4 * error) == (schedule == "linear")


@pytest.mark.parametrize("schedule", DENSITIES)
def test_rates_have_the_density_of_their_schedule_in_the_batch_and_in_each_place(schedule):
    size, objective = 16, Objective(schedule, "plain", 0.0)
    want = np.array([quad(DENSITIES[schedule], k / size, (k + 1) / size)[0] for k in range(size)])
    assert want.sum() == pytest.approx(1)

    def counts(key, n):
        given = objective.inputs(key, {"tokens": jnp.zeros((n, 4, 4), jnp.int32)})
        return jnp.sum(given["masked"], (1, 2))

    n = 1000
    found = np.bincount(jax.jit(counts, static_argnums=1)(jax.random.key(0), n), minlength=size + 1)
    assert found[0] == 0
    np.testing.assert_allclose(found[1:] / n, want, atol=1.5 / n)  # stratified: far closer than n^-1/2
    first = np.asarray(jax.jit(jax.vmap(lambda k: counts(k, 4)))(jax.random.split(jax.random.key(1), 4000)))[:, 0]
    share = np.bincount(first, minlength=size + 1)[1:] / 4000
    assert np.all(np.abs(share - want) < 4.5 * np.sqrt(want / 4000) + 1e-3)


@pytest.mark.parametrize("schedule", DENSITIES)
def test_a_schedule_falls_from_one_to_zero_and_its_inverse_is_its_distribution(schedule):
    rate, below = unmask.SCHEDULES[schedule]
    u = np.linspace(0, 1, 101)
    np.testing.assert_allclose(below(rate(u)), 1 - u, atol=1e-7)
    for tokens, steps in ((16, 16), (16, 5), (64, 8), (7, 1)):
        left = unmask.counts_left(schedule, tokens, steps)
        assert left[0] == tokens
        assert left[-1] == 0
        assert np.all(np.diff(left) < 0)
    left = unmask.counts_left(schedule, 4096, 8)
    np.testing.assert_allclose(left / 4096, rate(np.arange(9) / 8), atol=1 / 4096)


def test_every_set_of_as_many_tokens_is_masked_equally_often():
    objective, n = Objective("linear", "plain", 0.0), 8000
    given = inputs(objective, jax.random.key(3), {"tokens": np.zeros((n, 2, 2), np.int32)})
    sets = given["masked"].reshape(n, 4) @ (1, 2, 4, 8)
    sizes = np.array([bin(s).count("1") for s in range(16)])
    want = n / 4 / np.array([0, 4, 6, 4, 1])[sizes[1:]]
    found = np.bincount(sets, minlength=16)
    assert found[0] == 0
    assert np.sum((found[1:] - want) ** 2 / want) < chi2.ppf(0.9999, 14)


def test_inputs_hide_what_is_masked_and_nothing_else_and_drop_conditions():
    data = batch(WORLD, 2000) | {"text": np.ones((2000, 3), np.int32)}
    given = inputs(Objective("cosine", "plain", 0.3), jax.random.key(4), data)
    np.testing.assert_array_equal(given["target"], data["tokens"])
    np.testing.assert_array_equal(given["tokens"], np.where(given["masked"], -1, data["tokens"]))
    gone = given["label"] == -1
    assert abs(gone.mean() - 0.3) < 4 * np.sqrt(0.21 / 2000)
    np.testing.assert_array_equal(given["label"][~gone], data["label"][~gone])
    np.testing.assert_array_equal(given["text"].any(1), ~gone)


def test_only_masked_tokens_are_scored_and_the_loss_of_an_example_depends_on_it_alone():
    data, key, objective = batch(WORLD, 64), jax.random.key(5), Objective("linear", "elbo", 0.0)
    masked = inputs(objective, key, data)["masked"].reshape(64, 9)
    run = jax.jit(lambda shift: objective.loss(lambda g: posterior(WORLD)(g) + shift[..., None] * jnp.arange(4.0), key, data))
    plain = np.asarray(run(np.zeros((64, 9), np.float32)))
    np.testing.assert_array_equal(run(np.where(masked, 0, 99).astype(np.float32)), plain)
    seventh = masked & (np.arange(64) == 7)[:, None]
    assert np.flatnonzero(run(np.where(seventh, 9, 0).astype(np.float32)) != plain).tolist() == [7]


def test_a_trained_model_nears_the_floor_and_never_beats_it():
    steps, objective, key = 150, Objective("cosine", "plain", 0.0), jax.random.key(6)
    group = small.trials([{}], **{"optim.lr": 2.0**-6, "optim.schedule": "cosine", "optim.warmup": 10})
    config = group[0].config
    config["model"] = dict(name="masked", width=32, depth=1, head_dim=16, mlp_ratio=2, qk_norm=False)
    config["objective"] = dict(name="unmask", schedule="cosine", weighting="plain", label_drop=0.0)
    config["train"].update(steps=steps, batch=64)
    data = drawn(WORLD, 64 * steps, 7)
    pop = Population(group, WORLD, {k: v[None, :64] for k, v in data.items()})
    carry = pop.init()
    pop.compile(carry)
    held = batch(WORLD, 2048)
    (floor,) = losses([(objective, posterior(WORLD))], key, held)
    run = jax.jit(lambda m: objective.loss(m, key, held))

    def excess():
        return mean(run(jax.tree.map(lambda x: x[0], pop.state(carry).params)) - floor)

    start = excess()
    for i in range(steps):
        carry, _ = pop.step(carry, pop.hyper, pop.put({k: v[None, 64 * i : 64 * (i + 1)] for k, v in data.items()}))
    end = excess()
    assert end[0] > 4 * end[1]  # masks are the same, so the gap of each is its divergence from the floor, and a little noise
    assert end[0] < 0.25 * start[0]


def draws(world, n, seed=0, **options):
    """Samples of the exact conditionals for every class in turn, and the classes."""
    label = np.arange(n, dtype=np.int32) % world.classes
    run = jax.jit(lambda k: Objective("cosine", "plain", 0.0).sample(posterior(world), k, {"label": label}, (world.side,) * 2, **options))
    return np.asarray(run(jax.random.key(seed))), label


def surprise(tokens, label):
    """(mean, standard error) of nats per token above the entropy rate."""
    return mean(WORLD.nll(tokens, label) - WORLD.entropy_rates()[label])


def test_one_token_at_a_time_in_a_random_order_draws_the_world():
    tokens, label = draws(TINY, 4000, steps=99, method="random")
    assert tokens.dtype == np.int32
    every = grids(TINY)
    for c in range(2):
        want = 2000 * np.exp(TINY.log_likelihood(every, np.full(len(every), c)))
        found = np.bincount(tokens[label == c].reshape(-1, 4) @ (27, 9, 3, 1), minlength=81)
        rare = want < 5  # pooled, as chi-squared asks
        want, found = (np.append(x[~rare], x[rare].sum()) for x in (want, found))
        assert np.sum((found - want) ** 2 / want) < chi2.ppf(0.9999, len(want) - 1)


def test_fewer_steps_are_worse_and_confidence_prefers_the_likely():
    found = {k: surprise(*draws(WORLD, 1024, steps=k, method="random")) for k in (1, 3, 9)}
    assert abs(found[9][0]) < 4 * found[9][1]
    assert found[1][0] > 4 * found[1][1]
    assert found[1][0] > found[3][0] + 4 * np.hypot(found[1][1], found[3][1])
    sure = surprise(*draws(WORLD, 1024, steps=9, temperature=0.0))
    warm = surprise(*draws(WORLD, 1024, steps=9, temperature=1e4))
    assert sure[0] < -4 * sure[1]  # what is likely is kept more often than it comes
    assert abs(warm[0]) < 4 * warm[1]  # all noise but at the last step, where one token is left: a random order


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_guidance_acts_on_logits(guidance):
    with_label, without = np.array([1.0, 0.0, -0.5]), np.array([0.2, 0.1, 0.0])

    def model(given):
        hidden = (given["label"] < 0)[:, None, None]
        return jnp.broadcast_to(jnp.where(hidden, without, with_label), (len(given["label"]), 2, 3))

    cond = {"label": jnp.zeros(4000, jnp.int32)}
    x = Objective("linear", "plain", 0.1).sample(model, jax.random.key(0), cond, (2,), 2, guidance, "random")
    p = np.exp(without + guidance * (with_label - without))
    p /= p.sum()
    for found in np.asarray(x).T:
        np.testing.assert_allclose(np.bincount(found, minlength=3) / 4000, p, atol=4 * np.sqrt(0.25 / 4000))


@pytest.mark.parametrize("options", [dict(temperature=0.0), dict(temperature=1.0), dict(temperature=6.0), dict(method="random")], ids=str)
def test_the_first_token_kept_is_chosen_with_the_probability_of_gumbel_noise(options):
    first = np.array([[0.9, 0.1], [0.4, 0.6]])  # what each of two places says while both are masked

    def model(given):
        # the second to be told says 2, so the answer shows the order
        last = jax.nn.one_hot(jnp.array([2, 2]), 3) * 100.0
        both = jnp.log(jnp.asarray(np.append(first, [[1e-30], [1e-30]], 1)))
        return jnp.where(jnp.all(given["tokens"] < 0, 1)[:, None, None], both, last)

    n = 8000
    x = np.asarray(Objective("linear", "plain", 0.0).sample(model, jax.random.key(1), {"label": jnp.zeros(n, int)}, (2,), 2, **options))
    kept_first = x[:, 1] == 2
    np.testing.assert_array_equal(x[:, 0] == 2, ~kept_first)
    gap = np.log(first[0])[:, None] - np.log(first[1])[None]
    heat = options.get("temperature", np.inf) / 2  # the first of two steps; a difference of Gumbel numbers is logistic
    wins = (gap > 0) if heat == 0 else 1 / (1 + np.exp(-gap / heat))
    want = (first[0][:, None] * first[1][None] * wins).sum()
    assert abs(kept_first.mean() - want) < 4 * np.sqrt(0.25 / n)


def test_the_model_is_told_the_share_that_is_masked_and_what_is_known_stays():
    seen = []

    def model(given):
        jax.debug.callback(lambda t, x: seen.append((float(t[0]), np.array(x))), given["t"], given["tokens"])
        return jnp.zeros((3, 8, 4))

    out = np.asarray(Objective("cosine", "plain", 0.0).sample(model, jax.random.key(2), {"label": jnp.zeros(3, int)}, (2, 4), 4))
    jax.effects_barrier()
    left = unmask.counts_left("cosine", 8, 4)
    seen.sort(key=lambda s: -s[0])
    assert [t for t, _ in seen] == [k / 8 for k in left[:-1]]
    for t, x in seen:
        assert np.all((x < 0).sum((1, 2)) == 8 * t)
        np.testing.assert_array_equal(x[x >= 0], out[x >= 0])
    assert out.min() >= 0


def test_mistakes_are_one_line():
    with pytest.raises(UserError, match=r"objective\.schedule 'cosin' is unknown \(nearest: 'cosine'\); expected one of: cosine, "):
        Objective("cosin", "plain", 0.1)
    with pytest.raises(UserError, match=r"objective\.weighting 'elbow' is unknown \(nearest: 'elbo'\)"):
        Objective("cosine", "elbow", 0.1)
    for options, said in (
        (dict(method="confident"), "sampler 'confident'"),
        (dict(schedule="line"), "schedule 'line'"),
        (dict(steps=0), "steps=0"),
    ):
        with pytest.raises(UserError, match=said):
            Objective("cosine", "plain", 0.1).sample(posterior(WORLD), jax.random.key(0), {"label": jnp.zeros(1, int)}, (3, 3), **options)
