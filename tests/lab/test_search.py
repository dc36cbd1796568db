"""Spaces, draws and proposals: even, growing, deterministic; TPE beats chance on a planted objective, and not once losses are shuffled."""

import math

import numpy as np
import pytest

from lab import search
from lab.errors import UserError

SPACE = {"optim.lr": search.log(2**-10, 2**-2), "optim.b2": search.linear(0.8, 0.999), "optim.weight_decay": search.log(1e-4, 1.0)}


def planted(point):
    """A bowl in log space, best at lr 2^-7 and weight decay 2^-4; b2 says little."""
    high = 0.1 * (math.log2(point["optim.lr"]) + 7) ** 2 + 0.05 * (math.log2(point["optim.weight_decay"]) + 4) ** 2
    return 1 + high + 5 * (point["optim.b2"] - 0.95) ** 2


def told(point, loss, seed=0, state="done", step=100):
    """An entry of a history."""
    return {"point": {**point, "seed": seed}, "seed": seed, "arm": "mup", "state": state, "loss": loss, "step": step}


def test_a_larger_draw_begins_with_the_smaller_and_covers_each_key_evenly():
    points = search.random(SPACE, 64)
    assert search.random(SPACE, 10) == points[:10]
    assert search.random(SPACE, 64, seed=1) != points
    assert search.random(dict(reversed(SPACE.items())), 64) == points
    for key, (low, high) in {"optim.lr": (-10, -2), "optim.weight_decay": (math.log2(1e-4), 0)}.items():
        x = (np.log2([p[key] for p in points]) - low) / (high - low)
        assert (np.histogram(x, 16, (0, 1))[0] == 4).all()  # a Sobol sequence: as many in every sixteenth
    assert all(p == {k: float(f"{v:.6g}") for k, v in p.items()} for p in points)


def test_choices_are_drawn_alike_and_keep_their_type():
    found = [p["optim.schedule"] for p in search.random({"optim.schedule": search.choice("cosine", "wsd")}, 16)]
    assert found.count("cosine") == found.count("wsd") == 8


def test_mistakes_are_named():
    for call, named in (
        (lambda: search.log(0, 1), "0 < low < high"),
        (lambda: search.linear(2, 1), "low < high"),
        (lambda: search.choice(1, 1), "each once"),
        (lambda: search.random(SPACE, 0), "n=0"),
        (lambda: search.propose(SPACE, [], each=0), "each=0"),
        (lambda: search.propose(SPACE, [], sampler="tpee"), "nearest: 'tpe'"),
    ):
        with pytest.raises(UserError, match=named):
            call()


def test_a_point_s_seeds_are_averaged_and_the_worst_of_their_fates_is_its_own():
    a, b, c = search.random(SPACE, 3)
    history = [told(a, 1.0), told(a, 3.0, 1), told(b, 1.0), told(b, None, 1, "diverged", 40), told(c, 2.0, 0, "stopped", 50)]
    found = search.tried(history)
    assert [(t.values, t.state, t.loss, t.step) for t in found] == [
        (a, "done", 2.0, 100),
        (b, "diverged", None, 40),
        (c, "stopped", 2.0, 50),
    ]


def test_the_best_are_trained_again_on_further_seeds_and_stay_the_best():
    points = search.random(SPACE, 8)
    history = [told(p, planted(p)) for p in points]
    best = sorted(points, key=planted)[:2]
    asked = search.again(history, 2, seeds=(1, 2))
    assert asked == [p | {"seed": s} for p in best for s in (1, 2)]
    worse = [told({k: v for k, v in p.items() if k != "seed"}, 9.0, p["seed"]) for p in asked]
    assert search.again(history + worse, 2, seeds=(1, 2)) == asked


def rounds(sampler, seed, loss=planted, each=16, n=3):
    """The losses of all points of a search by `propose`."""
    history = []
    while new := search.propose(SPACE, history, each, n, sampler, seed):
        history += [told(p, loss(p)) for p in new]
    return [planted(h["point"]) for h in history]


def test_the_first_round_needs_no_sampler():
    assert search.propose(SPACE, [], each=8, seed=3) == search.random(SPACE, 8, seed=3)


def test_tpe_finds_more_than_chance_and_no_more_once_losses_are_shuffled():
    pytest.importorskip("optuna")
    seeds = range(4)
    tpe, chance = ([rounds(s, seed) for seed in seeds] for s in ("tpe", "random"))
    rng = np.random.default_rng(0)
    blind = [rounds("tpe", seed, lambda p: float(rng.normal())) for seed in seeds]
    assert all(len(x) == 48 for x in (*tpe, *chance, *blind))
    best = [np.mean([min(x) - 1 for x in found]) for found in (tpe, chance, blind)]
    last = [np.median([x[32:] for x in found]) - 1 for found in (tpe, chance, blind)]
    print(f"best {np.round(best, 4)}, last round {np.round(last, 3)}")
    assert best[0] < 0.7 * best[1]
    assert best[0] < 0.7 * best[2]
    assert last[0] < 0.5 * last[1]
    assert last[2] > 0.6 * last[1]


def test_a_proposal_is_a_function_of_the_history_and_keeps_away_from_what_diverged():
    pytest.importorskip("optuna")
    first = search.random(SPACE, 24)
    history = [told(p, None, state="diverged", step=9) if p["optim.lr"] > 2**-6 else told(p, 1.0 + i % 3) for i, p in enumerate(first)]
    asked = search.propose(SPACE, history, each=24)
    assert asked == search.propose(SPACE, history, each=24)
    assert np.mean([p["optim.lr"] > 2**-6 for p in asked]) < np.mean([p["optim.lr"] > 2**-6 for p in first]) / 1.5
    assert all(s.low <= p[k] <= s.high for p in asked for k, s in SPACE.items())
    elsewhere = [h | {"point": h["point"] | {"optim.lr": 5.0}} for h in history]
    assert search.propose(SPACE, elsewhere, each=24) == first  # of another space nothing is known here


def test_the_last_round_may_be_small_and_choices_do_not_come_twice():
    pytest.importorskip("optuna")
    space = {"optim.schedule": search.choice("cosine", "wsd", "linear"), "optim.clip": search.choice(0.5, 1.0)}
    assert len(search.propose(SPACE, [told(p, planted(p)) for p in search.random(SPACE, 6)], each=4, rounds=2)) == 2
    seen = [{"optim.schedule": a, "optim.clip": 1.0} for a in ("cosine", "wsd")]
    asked = search.propose(space, [told(p, 1.0) for p in seen], each=8, rounds=4)
    rows = [tuple(p.items()) for p in seen + asked]
    assert len(set(rows)) == len(rows)


def test_arms_are_told_apart_and_the_best_of_each_go_on():
    history = [
        {"point": {"x": x, "arm": a}, "seed": 0, "arm": a, "state": "done", "loss": sign * x, "step": 9}
        for a, sign in (("up", 1), ("down", -1))
        for x in (1.0, 2.0)
    ]
    assert [t.seeds for t in search.tried(history)] == [(0,)] * 4
    assert search.again(history, 1, (1,)) == [{"x": 2.0, "arm": "down", "seed": 1}, {"x": 1.0, "arm": "up", "seed": 1}]
    with pytest.raises(UserError, match="arms up, down"):
        search.propose({"x": search.linear(0, 3)}, history, each=2, rounds=4)
