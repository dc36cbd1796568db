"""Next-token prediction on a world whose every probability is known, and its sampler against exact small distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from scipy.special import softmax

from lab import axes, parametrization
from lab.axes import Dims
from lab.data.causal import Source
from lab.errors import UserError
from lab.models import decoder
from lab.objectives import conditions
from lab.objectives.next_token import Objective, likeliest
from lab.population import build

KEY = jax.random.key(0)
PLAIN = Objective(0.0)
WORLD = Source("train", "", side=4, vocabulary=4, classes=2)


def held_out(n):
    """Examples that were never trained on."""
    tokens, label = (np.concatenate(x) for x in zip(*WORLD.fresh(n), strict=True))
    return {"tokens": jnp.asarray(tokens), "label": jnp.asarray(label)}


def exact(batch):
    """p(token | tokens before, label) at every place, [B, 16, 4]."""
    return WORLD.conditionals(np.asarray(batch["tokens"]), np.asarray(batch["label"]))


class Tabular:
    """The world's own conditionals as a model that decodes; its cache holds the label and the tokens so far."""

    tables = jnp.asarray(WORLD.tables, jnp.float32)

    def init_cache(self, batch):
        return {"label": jnp.zeros(batch, jnp.int32), "tokens": jnp.full((batch, 16), 4), "position": jnp.int32(0)}

    def __call__(self, inputs, cache):
        if "label" in inputs:
            cache = cache | {"label": inputs["label"]}
        else:
            tokens = jax.lax.dynamic_update_slice(cache["tokens"], inputs["tokens"], (0, cache["position"]))
            cache = cache | {"tokens": tokens, "position": cache["position"] + 1}
        at = cache["position"]
        up = jnp.where(at < 4, 4, cache["tokens"][:, at - 4])
        left = jnp.where(at % 4 == 0, 4, cache["tokens"][:, at - 1])
        return jnp.log(self.tables[cache["label"], up, left])[:, None], cache


class Fixed:
    """Logits [labels, V] that no token moves; the last row is of hidden labels. The cache holds the rows asked for."""

    def __init__(self, logits):
        self.logits = jnp.asarray(logits, jnp.float32)

    def init_cache(self, batch):
        return jnp.zeros(batch, jnp.int32)

    def __call__(self, inputs, cache):
        cache = inputs.get("label", cache)
        return self.logits[cache][:, None], cache


def test_the_worlds_own_conditionals_reach_the_entropy_and_nothing_falls_below():
    batch, log = held_out(1024), jnp.log
    p = exact(batch)
    loss = np.asarray(PLAIN.loss(lambda given: log(p), KEY, batch))
    assert loss.shape == (1024,)
    np.testing.assert_allclose(loss, WORLD.nll(np.asarray(batch["tokens"]), np.asarray(batch["label"])), rtol=1e-5)
    error = np.hypot(loss.std() / np.sqrt(len(loss)), WORLD.info["best_loss_error"])
    assert error < 0.01
    assert abs(loss.mean() - WORLD.info["best_loss"]) < 3 * error
    # logits are known up to a constant; a distribution that is another has a larger loss by the divergence from it
    np.testing.assert_allclose(PLAIN.loss(lambda given: log(p) - 7, KEY, batch), loss, rtol=1e-5)
    q = 0.8 * p + 0.05
    gap = np.asarray(PLAIN.loss(lambda given: log(q), KEY, batch)) - loss
    divergence = (p * np.log(p / q)).sum(-1).mean(-1)
    assert abs(gap.mean() - divergence.mean()) < 3 * (gap - divergence).std() / np.sqrt(len(gap))
    assert gap.mean() > 4 * gap.std() / np.sqrt(len(gap))


def test_a_trained_decoder_nears_the_entropy_and_stays_above_it():
    steps, n = 250, 64
    changes = {"train.steps": steps, "optim.schedule": "cosine", "optim.warmup": 10}
    config = small.config(objective=dict(name="next_token", label_drop=0.0), **changes)
    config["model"] = dict(name="decoder", width=32, depth=1, head_dim=16, mlp_ratio=2, qk_norm=False, rope="grid")
    prog, batch = build(config, WORLD.dims), held_out(2048)
    best, hyper = WORLD.nll(np.asarray(batch["tokens"]), np.asarray(batch["label"])), small.hyper(prog, 2.0**-6)

    @jax.jit
    def run():
        def step(state, key):
            return prog.step(state, hyper, WORLD.generate(key, n))[0], None

        start = prog.init(hyper)
        end = jax.lax.scan(step, start, jax.random.split(jax.random.key(1), steps))[0]
        return [PLAIN.loss(state.params, KEY, batch) for state in (start, end)]

    start, end = (np.asarray(loss) - best for loss in run())
    np.testing.assert_allclose(start + best, np.log(4), rtol=1e-5)  # the readout starts at zero
    assert end.mean() > 2 * end.std() / np.sqrt(len(end))
    assert end.mean() < 0.25 * start.mean(), (end.mean(), start.mean())


def test_samples_of_the_worlds_own_conditionals_are_as_likely_as_its_examples():
    n = 2048
    label = jnp.arange(n) % 2
    draw = jax.jit(lambda key, temperature: PLAIN.sample(Tabular(), key, {"label": label}, (4, 4), temperature), static_argnums=1)

    def surprise(temperature):
        tokens = draw(KEY, temperature)
        assert tokens.shape == (n, 4, 4)
        assert tokens.dtype == jnp.int32
        return WORLD.nll(np.asarray(tokens), np.asarray(label))

    found = surprise(1.0)
    error = np.hypot(found.std() / np.sqrt(n), WORLD.info["best_loss_error"])
    assert abs(found.mean() - WORLD.info["best_loss"]) < 3 * error
    assert surprise(0.5).mean() < found.mean() - 10 * error
    assert surprise(2.0).mean() > found.mean() + 10 * error


LOGITS = np.array([[1.0, 2.0, 0.0, -1.0, 0.5], [0.0, -1.0, 1.5, 0.2, 0.1], [0.3, 0.1, -0.5, 0.4, 0.0]])


def cut(p, kept):
    """Shares p of the tokens `kept` alone."""
    return np.where(np.isin(np.arange(len(p)), kept), p, 0) / p[kept].sum()


@pytest.mark.parametrize(
    "options, want",
    [
        ({}, lambda row, none: softmax(row)),
        (dict(temperature=0.5), lambda row, none: softmax(2 * row)),
        (dict(top_k=2), lambda row, none: cut(softmax(row), np.argsort(-row)[:2])),
        (dict(top_k=1, temperature=3.0), lambda row, none: 1.0 * (row == row.max())),
        (dict(top_k=9), lambda row, none: softmax(row)),
        (dict(top_p=1e-6), lambda row, none: 1.0 * (row == row.max())),
        (dict(top_p=0.5, temperature=2.0), lambda row, none: cut(softmax(row / 2), np.argsort(-row)[:2])),
        # the likeliest token has less than 0.6 of all, and more of the three likeliest
        (dict(top_p=0.6), lambda row, none: cut(softmax(row), np.argsort(-row)[:2])),
        (dict(top_p=0.6, top_k=3), lambda row, none: 1.0 * (row == row.max())),
        (dict(guidance=3.0), lambda row, none: softmax(none + 3 * (row - none))),
        (dict(guidance=0.0), lambda row, none: softmax(none)),
        (dict(guidance=2.0, temperature=2.0, top_k=3), lambda row, none: cut(softmax(row - none / 2), np.argsort(none - 2 * row)[:3])),
    ],
)
def test_drawn_tokens_have_the_exact_shares(options, want):
    label = jnp.array([0, 1])
    tokens = np.asarray(PLAIN.sample(Fixed(LOGITS), KEY, {"label": label}, (4096,), **options))
    for row, drawn in zip(LOGITS, tokens, strict=False):
        p = want(row, LOGITS[2])
        found = np.bincount(drawn, minlength=5) / 4096
        assert np.all(np.abs(found - p) <= 4 * np.sqrt(p * (1 - p) / 4096)), (found, p)


def test_nucleus_keeps_the_fewest_tokens_that_reach_the_share():
    p = np.array([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]])
    for top_p, kept in ((0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.91, 4)):
        out = np.asarray(likeliest(jnp.log(jnp.asarray(p)), 0, top_p))
        assert np.flatnonzero(np.isfinite(out[0])).tolist() == sorted([1, 3, 2, 0][:kept])
        np.testing.assert_allclose(out[0][np.isfinite(out[0])], np.log(p[0])[np.isfinite(out[0])], rtol=1e-6)
    assert np.isfinite(out[1]).sum() == 4
    assert np.isfinite(likeliest(jnp.log(jnp.asarray(p)), 0, 0.49)[1]).sum() == 2  # of equal ones, as many as are needed
    assert np.isfinite(likeliest(jnp.zeros((1, 7)), 3, 1.0)).sum() == 3


@pytest.mark.parametrize("texts", [False, True])
def test_greedy_guided_decoding_draws_what_the_guided_logits_of_its_own_tokens_say(texts):
    knobs = dict(width=32, depth=1, head_dim=8, mlp_ratio=2, vocabulary=6, tokens=9, side=3, classes=4)
    described = decoder.Model(Dims.of(decoder.Model.axes, knobs | (dict(words=7, length=3) if texts else {}), {}), True, "grid")
    params = axes.draw(KEY, described, axes.scales(described, parametrization.standard))
    rng = np.random.default_rng(0)
    params.readout = params.readout.replace(jnp.asarray(rng.normal(size=(32, 6)), jnp.float32))
    cond = {"label": jnp.array([0, 1, 3])} | ({"text": jnp.asarray(rng.integers(1, 7, (3, 3)))} if texts else {})

    @jax.jit
    def run(m):
        tokens = PLAIN.sample(m, KEY, cond, (3, 3), top_k=1, guidance=2.5)
        return tokens, *(jnp.argmax(conditions.guided(m, cond, g)({"tokens": tokens}), -1) for g in (2.5, 1.0))

    tokens, guided, plain = (np.asarray(x).reshape(3, 9) for x in run(params))
    np.testing.assert_array_equal(guided, tokens)
    assert np.any(plain != tokens)


def test_z_loss_is_the_squared_log_normaliser():
    batch = held_out(8)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(8, 16, 4)), jnp.float32)
    for shift in (0.0, 3.0):
        plain, more = (Objective(0.0, z).loss(lambda given, s=shift: logits + s, KEY, batch) for z in (0.0, 0.1))
        total = np.log(np.exp(np.asarray(logits + shift, np.float64)).sum(-1))
        np.testing.assert_allclose(more - plain, 0.1 * (total**2).mean(1), rtol=1e-4)


def test_label_and_text_are_hidden_together_in_the_asked_share_and_tokens_stay():
    n, share = 4000, 0.3
    batch = {"tokens": jnp.arange(n * 2).reshape(n, 2), "label": jnp.arange(n), "text": 1 + jnp.arange(n * 2).reshape(n, 2)}
    given = Objective(share).inputs(KEY, batch)
    gone = np.asarray(given["label"]) == -1
    assert abs(gone.mean() - share) <= 4 * np.sqrt(share * (1 - share) / n)
    np.testing.assert_array_equal(given["text"], np.where(gone[:, None], 0, batch["text"]))
    np.testing.assert_array_equal(given["tokens"], batch["tokens"])


@pytest.mark.parametrize(
    "options, said", [(dict(temperature=0.0), "above 0"), (dict(top_k=-1), "whole number"), (dict(top_p=1.5), "at most 1")]
)
def test_options_that_say_nothing_are_the_users_errors(options, said):
    with pytest.raises(UserError, match=rf"sampler {next(iter(options))}=.*{said}"):
        PLAIN.sample(Fixed(LOGITS), KEY, {"label": jnp.array([0])}, (4,), **options)
