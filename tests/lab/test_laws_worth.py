"""The next run: how much it shrinks a forecast's interval is told before it is run, and is what refits with that run find."""

import numpy as np
import published
import pytest

from lab.laws import fits, points, worth
from lab.laws.forecast import at_best

TRUTH, NOISE = published.BESIROGLU, 3e-3
DESIGN = published.isoflop(TRUTH)


def fitted(rows, draws=2, seed=0):
    return fits.fit(points.points(rows), draws=draws, seed=seed)


def width(f, here):
    """Of the 90% interval of log loss."""
    return np.ptp(fits.span(np.log(f.losses(**here)[:, 0])))


def joined(rows, r, level, rng):
    """A table with one more run of every seed, whose own level is kept."""
    n = len(level)
    more = {"flops": np.full(n, r.flops), "params": np.full(n, r.params), "examples": np.full(n, r.examples), "seed": np.arange(n)}
    more["loss"] = TRUTH(params=r.params, examples=r.examples) * np.exp(level + NOISE * rng.normal(size=n))
    return {k: np.concatenate([rows[k], more[k]]) for k in rows}


def levelled(level, rng):
    rows = published.table(TRUTH, DESIGN, NOISE, rng, seeds=len(level))
    rows["loss"] = rows["loss"] * np.exp(np.repeat(level, len(DESIGN["flops"])))
    return rows


def held(sims, seeds, offset):
    """Mean share of the interval that is left by refits with each run, and as told: (cheap, most, random)."""
    got, told, each = [], [], []
    for s in range(sims):
        rng = np.random.default_rng(s)
        level = offset * rng.normal(size=seeds)
        rows = levelled(level, rng)
        f = fitted(rows, 1000, s)
        here, tried = at_best(f, 10 * f.points.flops.max()), worth.candidates(f)
        i = rng.integers(len(tried["flops"]))
        share = worth.shrinking(f, here, {k: v[[i]] for k, v in tried.items()})[0]
        runs = (*worth.suggest(f, here), worth.Run(tried["flops"][i], tried["params"][i], tried["examples"][i], share))
        got.append([width(fitted(joined(rows, r, level, rng), 1000, 1000 + s), here) / width(f, here) for r in runs])
        told.append([1 - r.shrinks for r in runs])
        each.append([r.flops for r in runs])
    return np.mean(got, 0), np.mean(told, 0), np.mean(each, 0)


def checked(got, told, flops, within):
    np.testing.assert_allclose(got, told, atol=within)
    assert (1 - told[0]) / flops[0] > (1 - told[1]) / flops[1]
    assert told[1] < told[0] < told[2]  # the best of all, the cheap one, one at random


def test_the_shrinking_told_is_that_of_refits():
    found = held(30, 1, 0.0)
    print(*found)
    checked(*found, 0.035)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "offset"), [(1, 0.0), (3, 3e-3)])
def test_the_shrinking_told_is_that_of_many_refits(seeds, offset):
    found = held(200, seeds, offset)
    print(*found)
    checked(*found, 0.025)


def test_the_linear_law_of_errors_is_exact():
    """Sherman and Morrison's update is the covariance with one more row; a point that all are repeats of shrinks as 1/sqrt(n)."""
    f = fitted(published.table(TRUTH, DESIGN, NOISE, np.random.default_rng(0)))
    here, tried = at_best(f, 1e23), worth.candidates(f)
    own = worth.derivatives(f, f.at(params=f.points.params, examples=f.points.examples))
    (goal,) = worth.derivatives(f, f.at(**here))
    for i in (0, len(tried["flops"]) // 2, -1):
        one = {k: v[[i]] for k, v in tried.items()}
        more = np.concatenate([own, worth.derivatives(f, f.at(params=one["params"], examples=one["examples"]))])
        before, after = (goal @ np.linalg.inv(j.T @ j) @ goal for j in (own, more))
        tails = [worth.student.ppf(0.95, n) for n in (20, 21)]
        assert worth.shrinking(f, here, one)[0] == pytest.approx(1 - tails[1] / tails[0] * np.sqrt(after / before), rel=1e-6)


def test_derivatives_are_those_of_the_law():
    f = fitted(published.table(TRUTH, DESIGN, NOISE, np.random.default_rng(0)))
    x = f.at(params=f.points.params[:4], examples=f.points.examples[:4])
    for i in range(5):
        step = np.zeros(5)
        step[i] = 1e-6 * abs(f.value[i])
        up, down = (np.log(worth.terms((f.value + s)[None], x)[0].sum(-1) + (f.value + s)[0]) for s in (step, -step))
        np.testing.assert_allclose(worth.derivatives(f, x)[:, i], (up - down) / (2 * step[i]), rtol=1e-4)


def test_suggestions_beat_what_is_drawn_at_random_per_flop():
    """Of runs that do as much as half of the best, none does more a FLOP; and the cheapest thing of all, which does next to nothing, is none."""
    f = fitted(published.table(TRUTH, DESIGN, NOISE, np.random.default_rng(1)))
    here, tried = at_best(f, 1e23), worth.candidates(f)
    share, (cheap, most) = worth.shrinking(f, here, tried), worth.suggest(f, here)
    assert most.shrinks == share.max()
    assert cheap.shrinks >= most.shrinks / 2
    random = np.random.default_rng(0).permutation(np.flatnonzero(share >= most.shrinks / 2))[:50]
    assert (cheap.shrinks / cheap.flops >= share[random] / tried["flops"][random]).all()
    assert np.median(share) < cheap.shrinks
    assert tried["flops"].max() <= 4 * f.points.flops.max()


def test_what_is_known_is_worth_nothing_to_learn():
    """Above a known floor the floor's own error is none, and a law of compute alone has candidates of its own."""
    truth = published.COMPUTE["GIDD masked"]
    p = points.points(published.table(truth, published.ladder(truth), NOISE, np.random.default_rng(0)))
    given, found = (fits.fit(p, "L(C)", floor, draws=2) for floor in (truth.floor, None))
    assert worth.derivatives(given, given.at(flops=p.flops)).shape == (8, 2)
    assert worth.derivatives(found, found.at(flops=p.flops)).shape == (8, 3)
    cheap, most = worth.suggest(given, {"flops": 1e22})
    assert 0 < cheap.shrinks <= most.shrinks < 1
    assert np.isnan(cheap.params)
