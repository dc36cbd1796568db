"""L(N, D, U) on simulated runs that repeat examples: R* recovered and covered, repeats that count as new not refuted, and forecasts freed of their bias."""

import isoflops
import numpy as np
import published
import pytest

from lab.errors import UserError
from lab.laws import epochs, fits, forecast, points

LAW, MOST = isoflops.LAW, 20.0  # epochs
NOISE, DATA = 3e-3, 1e5


def table(repeats, noise=0.0, seed=0, times=(1.0, 4.0, MOST), sizes=4):
    """Columns of runs of `sizes` sizes and as many horizons, whose examples are each seen `times`, under R* = repeats (infinite: as new)."""
    rng = np.random.default_rng(seed)
    n, d, e = (v.ravel() for v in np.meshgrid(np.geomspace(1e5, 3e6, sizes), np.geomspace(2e5, 2e7, sizes), times, indexing="ij"))
    loss = truth(n, d, d / e, repeats) * np.exp(noise * rng.normal(size=len(n)))
    return {"flops": 6 * n * d, "params": n, "examples": d, "unique": d / e, "loss": loss}


def truth(params, examples, unique, repeats):
    """The planted law, by the paper's own equation."""
    more = examples / unique - 1
    worth = unique * (1 + (more if np.isinf(repeats) else repeats * (1 - np.exp(-more / repeats))))
    return LAW(params=params, examples=worth)


@pytest.mark.parametrize("repeats", [0.5, 3.0, 15.4, 60.0])
def test_planted_repeats_are_recovered(repeats):
    found = epochs.fit(points.points(table(repeats, 1e-9)), draws=2)
    assert found.repeats == pytest.approx(repeats, rel=1e-4)
    assert found.value[0] == pytest.approx(LAW.floor, rel=1e-5)
    np.testing.assert_allclose(found.value[3:5], LAW.exponents, rtol=1e-4)
    np.testing.assert_allclose(found.scales, LAW.scales, rtol=1e-3)
    assert found.less


def test_repeats_that_count_as_new_are_the_law_of_size_and_data():
    p = points.points(table(np.inf, 1e-9))
    found, plain = epochs.fit(p, draws=2), fits.fit(p, draws=2)
    assert found.repeats > 1e5
    np.testing.assert_allclose(found.value[3:5], plain.exponents, rtol=1e-5)
    given = epochs.fit(points.points(table(np.inf, NOISE)), repeats=1e12, draws=2)
    np.testing.assert_allclose(given.value[:5], fits.fit(given.points, draws=2).value, rtol=1e-6)


def test_derivatives_are_those_of_the_losses():
    p = np.array([[0.4, 0.2, 0.3, 0.35, 0.3, fade] for fade in (1e-5, 5e-4, 0.06, 1.0)])
    columns = np.array([-1.0, 0.5, 2.0]), np.array([0.3, -0.7, 1.0]), np.array([0.0, 3.0, 19.0])
    slopes = epochs._law(*columns, p)[1]
    for j in range(6):
        step = np.zeros(6)
        step[j] = 1e-6
        near = [epochs._law(*columns, p + side * step)[0] for side in (1, -1)]
        np.testing.assert_allclose(slopes[:, j], (near[0] - near[1]) / 2e-6, rtol=1e-4, atol=1e-7)


def test_a_given_number_is_kept_and_a_floor_too():
    found = epochs.fit(points.points(table(3.0, NOISE)), floor=LAW.floor, repeats=15.4, draws=20)
    assert found.draws[:, 0] == pytest.approx(LAW.floor)
    assert found.interval(5) == pytest.approx((15.4, 15.4))
    assert np.isnan(found.chance)
    assert not found.less
    with pytest.raises(UserError, match="R\\* of -1"):
        epochs.fit(found.points, repeats=-1.0)


def test_points_of_other_unique_examples_are_not_pooled():
    assert len(points.points(table(3.0)).loss) == 48
    plain = {k: v for k, v in table(3.0).items() if k != "unique"}
    assert len(points.points(plain).loss) == 16


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (table(3.0, times=(1.0,)), "needs 4 points in which examples repeat, and there are 0"),
        (table(3.0, times=(4.0,)), "all see them 4 times"),
        ({k: v for k, v in table(3.0).items() if k != "unique"}, "needs the column 'unique'"),
        ({k: v[[0, 2, 4, 21, 23, 44, 47]] for k, v in table(3.0).items()}, "has 6 parameters, and there are 7 points"),
    ],
)
def test_points_that_tell_nothing_of_repeats_are_refused(made, why):
    with pytest.raises(UserError, match=why):
        epochs.fit(points.points(made))


def ahead(repeats, noise, seed):
    """How far L(N, D) and L(N, D, U) are off in the loss of four times the size and data, all new, and all seen 20 times."""
    p = points.points(table(repeats, noise, seed))
    n, d = 4 * p.params.max(), 4 * p.examples.max()
    plain, law = fits.fit(p, draws=2).loss(params=n, examples=d)[0], epochs.fit(p, draws=2)
    wanted = [truth(n, d, d / e, repeats) for e in (1.0, MOST)]
    return [plain / w - 1 for w in wanted], [law.loss(n, d, d / e)[0] / w - 1 for e, w in zip((1.0, MOST), wanted, strict=True)]


def test_repeats_that_soon_stop_counting_bias_the_plain_law_alone():
    off = np.array([ahead(3.0, NOISE, s) for s in range(8)])
    plain, law = off.mean(0)
    print("L(N, D) off by {:+.1%}, {:+.1%}; L(N, D, U) by {:+.2%}, {:+.2%}".format(*plain, *law))
    assert abs(plain).min() > 0.015
    assert abs(law).max() < 0.004


def covered(repeats, sims, noise=NOISE):
    """Shares of simulations whose 90% interval has R*, floor and exponents; and whose test refutes that repeats count as new."""
    hits, less = [], []
    for s in range(sims):
        found = epochs.fit(points.points(table(repeats, noise, s)), draws=400)
        spans = [found.interval(5), found.interval(0), found.interval(3), found.interval(4)]
        hits.append([low <= w <= high for (low, high), w in zip(spans, (repeats, LAW.floor, *LAW.exponents), strict=True)])
        less.append(found.less)
    return np.mean(hits, 0), float(np.mean(less))


def test_intervals_cover_in_a_few_simulations():
    at, less = covered(15.4, 25)
    assert at.min() > 0.7
    assert less == 1
    assert covered(np.inf, 25)[1] < 0.2


@pytest.mark.slow
@pytest.mark.parametrize(("repeats", "noise"), [(3.0, NOISE), (15.4, NOISE), (15.4, 1e-2)])
def test_intervals_cover(repeats, noise):
    at, less = covered(repeats, 400, noise)
    print(f"R* {repeats}, noise {noise}: R*, floor, exponents: " + ", ".join(f"{v:.1%}" for v in at) + f"; less in {less:.1%}")
    assert all(0.835 <= v <= 0.965 for v in at)


@pytest.mark.slow
def test_repeats_that_count_as_new_are_not_refuted():
    at, less = covered(np.inf, 400)
    print("as new: floor, exponents: " + ", ".join(f"{v:.1%}" for v in at[1:]) + f"; refuted in {less:.1%}")
    assert less < 0.085


def studied(repeats, seed):
    """Points of isoFLOP profiles of five budgets of five sizes over one set of DATA examples, the longest runs of which see it some ten times."""
    design, rng = published.isoflop(LAW._replace(high=10 * LAW.high)), np.random.default_rng(seed)
    unique = np.minimum(design["examples"], DATA)
    loss = truth(design["params"], design["examples"], unique, repeats) * np.exp(NOISE * rng.normal(size=len(unique)))
    return points.points(design | {"unique": unique, "loss": loss})


def foretold(sims):
    """Shares of simulations in which the law of a forecast, and L(N, D), have within their 90% interval the best run of 10 times the largest budget: of the same
    data, and of a hundred times as many."""
    hits = []
    for s in range(sims):
        p, row = studied(3.0, s), []
        repeats, plain = epochs.fit(p, draws=400), fits.fit(p, draws=400)
        assert repeats.less
        for unique in (DATA, 100 * DATA):
            for law in (epochs.Limited(repeats, unique), plain):
                at = forecast.at_best(law, 10 * LAW.high)
                low, high = fits.span(law.losses(**at)[:, 0])
                row.append(low <= truth(at["params"], at["examples"], min(unique, at["examples"]), 3.0) <= high)
        hits.append(row)
    return np.mean(hits, 0)


def test_forecasts_by_the_law_of_repeats_cover_in_a_few_simulations():
    same, _, more, plain = foretold(8)
    assert min(same, more) > 0.6
    assert plain < 0.2


@pytest.mark.slow
def test_forecasts_by_the_law_of_repeats_cover():
    same, plain_same, more, plain = foretold(300)
    print(
        f"foretold, of the same data: {same:.1%}, by L(N, D) {plain_same:.1%}; of a hundred times as many: {more:.1%}, by L(N, D) {plain:.1%}"
    )
    assert 0.85 <= same <= 0.95
    assert 0.85 <= more <= 0.95
    assert plain < 0.3


@pytest.mark.parametrize("unique", [1e4, 1e6, 1e9])
def test_the_best_size_is_the_lowest_of_all_sizes_of_a_budget(unique):
    told = forecast.laws(studied(3.0, 0))
    law, flops = told.limited(unique), 10 * LAW.high
    f = forecast.forecast(told, flops, unique)
    sizes = f.params * np.geomspace(1 / 3, 3, 2001)
    tried = law.loss(params=sizes, examples=flops / 6 / sizes)
    assert sizes[np.argmin(tried)] == pytest.approx(f.params, rel=0.02)
    assert f.loss == pytest.approx(tried.min(), rel=1e-6)
    assert f.examples == pytest.approx(flops / 6 / f.params)
    (price, (_, (low, high))) = f.wrong[4.0]
    assert low < price < high
    assert price == pytest.approx(law.loss(params=4 * f.params, examples=f.examples / 4)[0] / f.loss - 1)


def test_repeats_that_count_as_new_leave_forecasts_to_the_law_of_size_and_data():
    p = studied(np.inf, 0)
    told = forecast.laws(p)
    assert told.repeats is not None
    assert told.limited(1e9) is None
    assert forecast.forecast(told, 1e14, 1e9) == forecast.forecast(told, 1e14)
