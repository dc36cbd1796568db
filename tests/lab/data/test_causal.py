"""Causal token grids against enumeration; and what both worlds of tokens promise: streams, likelihoods, draws on the device."""

import itertools
import pickle

import jax
import numpy as np
import pytest
from scipy.stats import chi2
from tokens import grids, read

from lab.data import causal, tree
from lab.data.loader import Loader, decode, held_out, open_source
from lab.errors import UserError

TINY = dict(side=2, vocabulary=3, classes=2, temperature=1.0)
WORLDS = [(causal, {}), (tree, dict(kind="comb")), (tree, dict(kind="random", own_edges=True))]
worlds = pytest.mark.parametrize("world, more", WORLDS, ids=lambda x: x.__name__ if hasattr(x, "__name__") else x.get("kind", ""))


def make(world=causal, split="train", **options):
    return world.Source(split, "", **options)


def by_hand(source, grid, label):
    """log p(grid | label), cell by cell as it was drawn."""
    total = 0.0
    for r, c in itertools.product(range(source.side), repeat=2):
        up = grid[r - 1, c] if r else source.vocabulary
        left = grid[r, c - 1] if c else source.vocabulary
        total += np.log(source.tables[label, up, left, grid[r, c]])
    return total


def fits(tokens, labels, source):
    """Pearson's test of how often every (class, grid) was drawn; cells that expect fewer than 5 are one. Passes at 1e-4."""
    every = grids(source)
    p = np.concatenate([np.exp(source.log_likelihood(every, np.full(len(every), c))) for c in range(source.classes)]) / source.classes
    place = source.vocabulary ** np.arange(source.cells)[::-1]
    drawn = np.bincount(np.asarray(labels) * len(every) + np.asarray(tokens).reshape(len(tokens), -1) @ place, minlength=len(p))
    expected = p * len(tokens)
    rare = expected < 5
    have, want = np.append(drawn[~rare], drawn[rare].sum()), np.append(expected[~rare], expected[rare].sum())
    return np.sum((have - want) ** 2 / want) < chi2.ppf(1 - 1e-4, len(want) - 1)


@pytest.mark.parametrize("side, vocabulary", [(2, 3), (3, 2)])
def test_likelihood_is_that_of_the_tables_and_sums_to_one(side, vocabulary):
    source = make(**TINY | dict(side=side, vocabulary=vocabulary))
    every = grids(source)
    both = []
    for c in range(2):
        log_p = source.log_likelihood(every, np.full(len(every), c))
        np.testing.assert_allclose(log_p, [by_hand(source, g, c) for g in every], rtol=1e-12)
        np.testing.assert_allclose(source.nll(every, np.full(len(every), c)), -log_p / side**2)
        assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-12)
        both.append(np.exp(log_p))
    np.testing.assert_allclose(np.exp(source.log_likelihood(every)), np.mean(both, 0), rtol=1e-12)


@pytest.mark.parametrize("side, vocabulary", [(2, 3), (3, 2)])
@pytest.mark.parametrize("label", [0, 1, None])
def test_next_token_is_what_enumeration_gives_for_every_prefix(side, vocabulary, label):
    source = make(**TINY | dict(side=side, vocabulary=vocabulary))
    every = grids(source)
    given = None if label is None else np.full(len(every), label)
    p, flat = np.exp(source.log_likelihood(every, given)), every.reshape(len(every), -1)
    found = source.conditionals(every, given)
    for t in range(source.cells):
        same = (flat[:, None, :t] == flat[None, :, :t]).all(-1)
        joint = np.stack([(same * (flat[:, t] == v)) @ p for v in range(vocabulary)], -1)
        np.testing.assert_allclose(found[:, t], joint / joint.sum(-1, keepdims=True), rtol=1e-10)


def test_next_token_knows_nothing_of_later_tokens():
    source = make(side=4, vocabulary=5)
    tokens, label = read(source, 8)
    for t in (0, 5, 15):
        other = tokens.reshape(8, -1).copy()
        other[:, t:] = (other[:, t:] + 1) % 5
        for given in (label, None):
            a, b = source.conditionals(tokens, given), source.conditionals(other.reshape(tokens.shape), given)
            np.testing.assert_array_equal(a[:, : t + 1], b[:, : t + 1])


def test_conditionals_of_a_grid_multiply_to_its_likelihood():
    source = make(side=5, vocabulary=6, classes=3)
    tokens, label = read(source, 16)
    for given in (label, None):
        picked = np.take_along_axis(source.conditionals(tokens, given), tokens.reshape(16, -1, 1), -1)
        np.testing.assert_allclose(np.log(picked).sum((1, 2)), source.log_likelihood(tokens, given), rtol=1e-12)


@pytest.mark.parametrize("labelled", [True, False])
def test_entropy_rate_is_the_enumerated_one(labelled):
    source = make(**TINY | dict(side=3, vocabulary=2))
    every = grids(source)
    labels = [np.full(len(every), c) for c in range(2)] if labelled else [None]
    exact = np.mean([np.sum(np.exp(source.log_likelihood(every, c)) * source.nll(every, c)) for c in labels])
    found = source.entropy_rate(4096, labelled)
    assert abs(found.value - exact) < 4 * found.error
    assert 0 < found.error < 0.01


@worlds
def test_best_loss_is_the_mean_nll_of_fresh_grids_and_below_the_uniform_one(world, more):
    source = make(world, side=6, vocabulary=8, **more)
    tokens, label = read(source, 3000)
    nll = source.nll(tokens, label)
    error = np.hypot(nll.std(ddof=1) / len(nll) ** 0.5, source.info["best_loss_error"])
    assert abs(nll.mean() - source.info["best_loss"]) < 4 * error
    assert source.info["best_loss"] < np.log(8) - 0.1
    assert source.nll(tokens).mean() > nll.mean()


@worlds
def test_a_wrong_model_loses(world, more):
    source = make(world, side=6, vocabulary=8, **more)
    tokens, label = read(source, 400)
    right = source.nll(tokens, label)
    other = make(world, side=6, vocabulary=8, seed=1, **more)
    shuffled = make(world, side=6, vocabulary=8, **more)
    shuffled.tables = np.random.default_rng(0).permuted(shuffled.tables, axis=-1)
    for wrong in (
        other.nll(tokens, label),
        shuffled.nll(tokens, label),
        source.nll(tokens, (label + 1) % 4),
        source.nll(tokens[..., ::-1]),
    ):
        excess = wrong - right
        assert excess.mean() > 4 * excess.std() / 20


def test_the_loss_of_a_wrong_model_is_higher_by_its_divergence():
    right, wrong = make(**TINY), make(**TINY, seed=1)
    every = grids(right)
    labels = [np.full(len(every), c) for c in range(2)]
    divergence = np.mean([np.sum(np.exp(right.log_likelihood(every, c)) * (wrong.nll(every, c) - right.nll(every, c))) for c in labels])
    tokens, label = read(right, 2000)
    excess = wrong.nll(tokens, label) - right.nll(tokens, label)
    assert divergence > 0.01
    assert abs(excess.mean() - divergence) < 4 * excess.std() / 2000**0.5


@worlds
def test_grids_are_drawn_as_often_as_the_likelihood_says(world, more):
    source = make(world, **TINY, **more)
    tokens, label = read(source, 4000)
    assert fits(tokens, label, source)
    assert not fits(tokens, label, make(world, **TINY, **more, seed=1))
    fresh = [np.concatenate(x) for x in zip(*source.fresh(2000), strict=True)]
    assert fits(*fresh, source)


@worlds
def test_the_device_draws_from_the_same_distribution(world, more):
    source = make(world, **TINY, **more)
    draw = jax.jit(source.generate, static_argnums=1)
    out = draw(jax.random.key(0), 20000)
    assert out["tokens"].shape == (20000, 2, 2)
    assert out["tokens"].dtype == out["label"].dtype == np.int32
    assert fits(out["tokens"], out["label"], source)
    assert not fits(out["tokens"], out["label"], make(world, **TINY, **more, seed=1))
    np.testing.assert_array_equal(out["tokens"], draw(jax.random.key(0), 20000)["tokens"])
    assert (out["tokens"] != draw(jax.random.key(1), 20000)["tokens"]).any()


@worlds
def test_the_device_draws_large_grids_with_the_best_loss(world, more):
    source = make(world, side=6, vocabulary=8, **more)
    out = jax.jit(source.generate, static_argnums=1)(jax.random.key(2), 4000)
    nll = source.nll(np.asarray(out["tokens"]), np.asarray(out["label"]))
    error = np.hypot(nll.std(ddof=1) / len(nll) ** 0.5, source.info["best_loss_error"])
    assert abs(nll.mean() - source.info["best_loss"]) < 4 * error


@worlds
def test_an_item_depends_on_seed_split_and_number_alone(world, more):
    source = make(world, **more)
    alone = source[1234567]
    assert alone["tokens"].shape == (8, 8)
    assert alone["tokens"].dtype == alone["label"].dtype == np.int32
    again = make(world, **more)
    read(again, 3)
    for copy in (again, pickle.loads(pickle.dumps(source)), make(world, **more, examples=2_000_000)):
        item = copy[np.int64(1234567)]
        np.testing.assert_array_equal(item["tokens"], alone["tokens"])
        assert item["label"] == alone["label"]


@worlds
def test_splits_seeds_and_numbers_share_no_grid(world, more):
    sources = [make(world, **more), make(world, "eval", **more), make(world, **more, seed=1)]
    drawn = [g.tobytes() for s in sources for g in read(s, 200)[0]] + [g.tobytes() for x, _ in sources[0].fresh(200) for g in x]
    assert len(set(drawn)) == 800


@worlds
def test_examples_bounds_training_and_nothing_else(world, more):
    endless, few = make(world, **TINY, **more), make(world, **TINY, **more, examples=5)
    assert len(endless) == 1 << 27
    assert endless.info["examples"] == len(endless)
    assert len(few) == few.info["examples"] == 5
    np.testing.assert_array_equal(read(few, 5)[0], read(endless, 5)[0])
    with pytest.raises(IndexError, match="example 5 of 5"):
        few[5]
    held = make(world, "eval", **TINY, **more, examples=5)
    assert len(held) > 1e6
    np.testing.assert_array_equal(read(held, 9)[0], read(make(world, "eval", **TINY, **more), 9)[0])


@worlds
def test_fingerprint_tells_every_option_and_not_the_split(world, more):
    tiny = dict(side=2, vocabulary=2, classes=1, temperature=1.0, seed=0, examples=0)
    other = [{k: v} for k, v in dict(side=3, vocabulary=3, classes=2, temperature=2.0, seed=1, examples=9).items()]
    other += [dict(kind="chain"), dict(own_edges=True, kind="comb")] if more.get("kind") == "comb" else []
    prints = [make(world, **tiny | more | change).info["fingerprint"] for change in ({}, *other)]
    assert len(set(prints)) == len(prints)
    assert make(world, "eval", **tiny | more).info["fingerprint"] == prints[0]


@worlds
def test_opened_by_name_it_streams_and_is_held_out(world, more):
    config = {"name": world.__name__.rpartition(".")[2], "side": 2, "vocabulary": 4, **more}
    source = open_source(config, "train", "")
    assert source.dims == {"side": 2, "tokens": 4, "vocabulary": 4, "classes": 4}
    assert decode(source) is None
    loader = Loader(source, batch=3, seeds=[0, 1])
    batch = next(loader)
    loader.close()
    assert batch["tokens"].shape == (2, 3, 2, 2)
    assert batch["label"].shape == (2, 3)
    assert len(decode(open_source({**config, "examples": 7}, "train", ""))["label"]) == 7
    held = held_out({"eval": {"examples": 10, "batch": 4}}, open_source(config, "eval", ""))
    assert held["tokens"].shape == (2, 4, 2, 2)


@worlds
@pytest.mark.parametrize(
    "options, message",
    [
        (dict(side=1), r"data\.side=1 must be a whole number from 2 to 64"),
        (dict(side=8.0), r"data\.side=8\.0 must be a whole number"),
        (dict(vocabulary=True), r"data\.vocabulary=True must be a whole number from 2 to 256"),
        (dict(classes=0), r"data\.classes=0 must be a whole number from 1 to 1024"),
        (dict(seed=-1), r"data\.seed=-1 must be a whole number"),
        (dict(examples=-2), r"data\.examples=-2 must be a whole number from 0"),
        (dict(temperature=0), r"data\.temperature=0 must be a number from 0\.1 to 10"),
        (dict(temperature="hot"), r"data\.temperature='hot' must be a number"),
        (dict(vocabulary=256, classes=1024), r"data\.vocabulary=256 with data\.classes=1024 needs tables of .*at most 16,777,216"),
        (dict(split="test"), r"split 'test' is unknown; expected one of: eval, train"),
    ],
)
def test_a_bad_option_is_named_with_what_was_expected(world, more, options, message):
    with pytest.raises(UserError, match=message):
        make(world, **more | options)


@worlds
def test_a_hidden_label_is_not_taken_for_the_last_class(world, more):
    source = make(world, **TINY, **more)
    tokens, _ = read(source, 2)
    with pytest.raises(ValueError, match="a hidden label is None"):
        source.nll(tokens, np.array([0, -1]))
