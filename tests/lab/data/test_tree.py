"""Tree-structured token grids: the trees, and belief propagation and best losses against enumeration."""

import itertools
from collections import Counter

import numpy as np
import pytest
from tokens import grids, read

from lab.data.tree import KINDS, Source, spanning_tree
from lab.errors import UserError

TINY = dict(side=2, vocabulary=3, classes=2, temperature=1.0)
SMALL = dict(side=3, vocabulary=2, classes=2, temperature=1.0)


def make(split="train", **options):
    return Source(split, "", **options)


def subsets(source):
    """Every set of revealed cells, [2^N, side, side]."""
    return np.array(list(itertools.product([False, True], repeat=source.cells))).reshape(-1, source.side, source.side)


def enumerated(source, grid, revealed, label):
    """p(x_i | revealed cells of grid) by summing over all grids that agree with them, [N, V]."""
    every = grids(source)
    p = np.exp(source.log_likelihood(every, None if label is None else np.full(len(every), label)))
    p = p * ((every == grid) | ~revealed).all((1, 2))
    one_hot = np.eye(source.vocabulary)[every.reshape(len(every), -1)]
    return np.einsum("g,gnv->nv", p, one_hot) / p.sum()


def picked(p, tokens):
    """Each cell's probability of its token, [B, N]."""
    return np.take_along_axis(p, tokens.reshape(len(tokens), -1, 1), -1)[..., 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [2, 3, 8])
def test_every_kind_spans_the_grid_by_its_edges(kind, side):
    parent, order = spanning_tree(kind, side, np.random.default_rng(0))
    assert parent[0] == -1
    assert sorted(order) == list(range(side * side))
    met = set()
    for i in order:
        if i:
            assert parent[i] in met
            (r, c), (pr, pc) = divmod(i, side), divmod(parent[i], side)
            assert abs(r - pr) + abs(c - pc) == 1
        met.add(i)


def test_comb_and_chain_are_what_they_are_called():
    comb, chain = (spanning_tree(k, 3, np.random.default_rng(0))[0] for k in ("comb", "chain"))
    assert comb.tolist() == [-1, 0, 1, 0, 3, 4, 3, 6, 7]
    assert chain.tolist() == [-1, 0, 1, 4, 5, 2, 3, 6, 7]


def test_random_trees_are_uniform():
    # of the square of four cells every tree leaves out one of four edges
    rng = np.random.default_rng(0)
    seen = Counter(tuple(spanning_tree("random", 2, rng)[0]) for _ in range(1200))
    assert len(seen) == 4
    assert max(abs(n - 300) for n in seen.values()) < 4 * (1200 * 3 / 16) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own_edges", [False, True])
def test_likelihood_is_that_of_the_edges_and_sums_to_one(kind, own_edges):
    source = make(kind=kind, own_edges=own_edges, **SMALL)
    every = grids(source)
    for c in range(2):
        log_p = source.log_likelihood(every, np.full(len(every), c))
        assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-12)
        for g, found in zip(every[::37], log_p[::37], strict=True):
            x, p = g.ravel(), 1.0
            for i, parent in enumerate(source.parent):
                p *= source.tables[c, i if own_edges else 0, x[parent] if i else source.vocabulary, x[i]]
            assert found == pytest.approx(np.log(p), rel=1e-12)
    both = [np.exp(source.log_likelihood(every, np.full(len(every), c))) for c in range(2)]
    np.testing.assert_allclose(np.exp(source.log_likelihood(every)), np.mean(both, 0), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own_edges", [False, True])
@pytest.mark.parametrize("label", [0, 1, None])
def test_beliefs_are_what_enumeration_gives_for_every_revealed_subset(kind, own_edges, label):
    source = make(kind=kind, own_edges=own_edges, **TINY)
    shown = subsets(source)
    for grid in read(source, 4)[0]:
        tokens = np.broadcast_to(grid, shown.shape)
        found = source.conditionals(tokens, shown, None if label is None else np.full(len(shown), label))
        expected = [enumerated(source, grid, r, label) for r in shown]
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("label", [1, None])
def test_beliefs_in_a_branching_tree(label):
    source = make(kind="random", seed=2, **SMALL)
    assert max(Counter(source.parent.tolist()).values()) > 1
    shown, grid = subsets(source), source[0]["tokens"]
    found = source.conditionals(np.broadcast_to(grid, shown.shape), shown, None if label is None else np.full(len(shown), label))
    for r, p in list(zip(shown, found, strict=True))[::5]:
        np.testing.assert_allclose(p, enumerated(source, grid, r, label), rtol=1e-10, atol=1e-12)


def test_a_batch_is_as_its_examples_one_by_one():
    source = make(side=4, vocabulary=5, classes=3)
    tokens, label = read(source, 12)
    shown = np.random.default_rng(0).random(tokens.shape) < 0.5
    for given in (label, None):
        whole = source.conditionals(tokens, shown, given)
        for b in range(12):
            one = source.conditionals(tokens[b : b + 1], shown[b : b + 1], None if given is None else given[b : b + 1])
            np.testing.assert_allclose(whole[b], one[0], rtol=1e-12)


def test_hidden_tokens_are_not_read():
    source = make(side=4, vocabulary=5)
    tokens, label = read(source, 8)
    shown = np.random.default_rng(0).random(tokens.shape) < 0.5
    for given in (label, None):
        a, b = (source.conditionals(x, shown, given) for x in (tokens, np.where(shown, tokens, (tokens + 1) % 5)))
        np.testing.assert_array_equal(a, b)


def test_a_long_chain_of_sharp_tables_does_not_underflow():
    source = make(kind="chain", side=32, vocabulary=6, temperature=0.1)
    tokens, label = read(source, 2)
    for given in (label, None):
        p = source.conditionals(tokens, np.random.default_rng(0).random(tokens.shape) < 0.2, given)
        np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own_edges", [False, True])
def test_entropy_rate_is_the_enumerated_one(kind, own_edges):
    source = make(kind=kind, own_edges=own_edges, **SMALL)
    every = grids(source)
    labels = [np.full(len(every), c) for c in range(2)]
    exact = [np.sum(np.exp(source.log_likelihood(every, c)) * source.nll(every, c)) for c in labels]
    np.testing.assert_allclose(source.entropy_rates(), exact, rtol=1e-12)
    assert source.info["best_loss"] == pytest.approx(np.mean(exact))
    assert source.info["best_loss_error"] == 0


@pytest.mark.parametrize("labelled", [True, False])
def test_best_masked_loss_is_the_enumerated_one(labelled):
    source = make(**TINY)
    every = grids(source)
    for count in (1, 2, 4):
        exact = []
        masks = [m for m in subsets(source) if (~m).sum() == count]
        for c, shown in itertools.product(range(2), masks):
            label = np.full(len(every), c)
            log_p = np.log(picked(source.conditionals(every, np.broadcast_to(shown, every.shape), label if labelled else None), every))
            exact.append(-np.exp(source.log_likelihood(every, label)) @ log_p[:, ~shown.ravel()].mean(-1))
        found = source.best_masked_loss(count / 4, 4000, labelled)
        assert abs(found.value - np.mean(exact)) < 4 * found.error + 1e-12
        assert found.error < 0.02


def test_masked_losses_of_all_counts_average_to_the_entropy_rate():
    # the chain rule in a random order: H(x) = sum_k E H(x_i | the others revealed but k - 1)
    source = make(side=4, vocabulary=5)
    losses = [source.best_masked_loss(k / 16, 512, seed=k) for k in range(1, 17)]
    error = np.mean([e.error**2 for e in losses]) ** 0.5  # all use the same grids, so errors may add up
    assert abs(np.mean([e.value for e in losses]) - source.info["best_loss"]) < 4 * error
    assert losses[0].value < losses[7].value < losses[15].value < np.log(5)
    assert source.best_masked_loss(0.001, 512, seed=1) == losses[0]


def test_a_wrong_model_loses_at_masked_tokens():
    source = make(kind="comb", side=6, vocabulary=8)
    tokens, label = read(source, 400)
    shown = np.random.default_rng(0).random(tokens.shape) < 0.5
    hidden = ~shown.reshape(400, -1)

    def loss(model, given):
        return -(np.log(np.where(hidden, picked(model.conditionals(tokens, shown, given), tokens), 1)).sum(-1)) / hidden.sum(-1)

    right, other_tree = loss(source, label), make(kind="chain", side=6, vocabulary=8)
    np.testing.assert_array_equal(other_tree.tables, source.tables)
    shuffled = make(kind="comb", side=6, vocabulary=8)
    shuffled.tables = np.random.default_rng(0).permuted(shuffled.tables, axis=-1)
    for wrong in (loss(other_tree, label), loss(shuffled, label), loss(source, (label + 1) % 4)):
        excess = wrong - right
        assert excess.mean() > 4 * excess.std() / 20


def test_a_label_is_worth_most_where_little_is_revealed():
    source = make(side=6, vocabulary=8)
    gaps = []
    for rate in (0.5, 0.95):
        known, hidden = (source.best_masked_loss(rate, 512, labelled) for labelled in (True, False))
        gaps.append(hidden.value - known.value)
        assert gaps[-1] > -1e-3
    assert gaps[1] > 4 * np.hypot(known.error, hidden.error)
    assert gaps[1] > 2 * gaps[0]


def test_a_bad_kind_is_named():
    with pytest.raises(UserError, match=r"data\.kind 'comp' is unknown \(nearest: 'comb'\); expected one of: comb, random, chain"):
        make(kind="comp")
    with pytest.raises(UserError, match=r"data\.own_edges=1 must be True or False"):
        make(own_edges=1)
