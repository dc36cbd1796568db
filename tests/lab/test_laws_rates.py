"""L(N, D, lr) on simulated grids that were partly swept: the best rate's drift recovered and covered, and wide where the grid does not tell it."""

import isoflops
import numpy as np
import pytest

from lab.errors import UserError
from lab.laws import fits, points, rates

LAW, BENT = isoflops.LAW, 0.02  # relative loss a squared octave from the best rate
BEST, BY_N, BY_D = -8.0, -0.5, 0.2  # log2 of the best rate at 1e6 parameters and examples, and octaves an e-fold
NOISE = 3e-3


def best(params, examples):
    """log2 of the planted best rate."""
    return BEST + BY_N * np.log(params / 1e6) + BY_D * np.log(examples / 1e6)


def table(noise=0.0, seed=0, share=0.4, tried=(-11, -10, -9, -8, -7, -6, -5), sizes=5, whole=None, shared=0.0):
    """Columns of runs of `sizes` sizes and as many horizons, each at a `share` of the rates drawn at random; where all N, D are `whole`, at all of them; `shared` is noise of a size and horizon."""
    rng = np.random.default_rng(seed)
    n, d, k = (v.ravel() for v in np.meshgrid(np.geomspace(1e5, 1e7, sizes), np.geomspace(2e5, 2e7, sizes), tried, indexing="ij"))
    keep = rng.uniform(size=len(n)) < share
    if whole is not None:  # one size and horizon at all rates, the others at one
        keep = np.isclose(k, tried[len(tried) // 2]) | (np.isclose(n, whole[0]) & np.isclose(d, whole[1]))
    shared = np.repeat(shared * rng.normal(size=sizes**2), len(tried))[keep]
    n, d, k = n[keep], d[keep], k[keep]
    loss = LAW(params=n, examples=d) * np.exp(BENT * (k - best(n, d)) ** 2 + shared + noise * rng.normal(size=len(n)))
    return {"flops": 6 * n * d, "params": n, "examples": d, "rate": 2.0**k, "loss": loss}


def test_the_planted_drift_and_law_are_recovered():
    found = rates.fit(points.points(table(1e-9)), draws=2)
    np.testing.assert_allclose(found.value[rates.BY_N :], [BY_N, BY_D], rtol=1e-5)
    assert found.value[rates.BENT] == pytest.approx(BENT, rel=1e-5)
    np.testing.assert_allclose(found.value[3:5], LAW.exponents, rtol=1e-4)
    np.testing.assert_allclose(found.scales, LAW.scales, rtol=1e-3)
    assert found.best(1e8, 1e9)[0] == pytest.approx(best(1e8, 1e9), abs=1e-4)
    assert found.loss(1e8, 1e9)[0] == pytest.approx(LAW(params=1e8, examples=1e9), rel=1e-5)


def test_derivatives_are_those_of_the_losses():
    p = np.array([[0.4, 0.2, 0.3, 0.35, 0.3, 0.02, -8.0, -0.5, 0.2]])
    x, log2 = np.array([[-1.0, 0.5], [0.3, -0.7], [2.0, 1.0]]), np.array([-9.0, -7.0, -10.0])
    slopes = rates._law(x, log2, p)[1]
    for j in range(rates.FREE):
        step = np.zeros(rates.FREE)
        step[j] = 1e-6
        near = [rates._law(x, log2, p + side * step)[0] for side in (1, -1)]
        np.testing.assert_allclose(slopes[:, j], (near[0] - near[1]) / 2e-6, rtol=1e-5, atol=1e-8)


def test_a_trial_that_diverged_leaves_out_its_own_rate_alone():
    made = table(NOISE)
    made["loss"][3] = np.nan
    p = points.points(made)
    assert len(p.loss) == len(made["loss"]) - 1
    assert "sizes, horizons and rates, in which 1 runs diverged" in p.left_out[0]
    assert rates.fit(p, draws=2).value[rates.BY_N] == pytest.approx(BY_N, abs=0.1)


def test_partly_swept_grids_tell_the_law_better_than_their_best_trials():
    """The best trial of a size that was tried at a few rates is not at its best."""
    made = table(NOISE, share=0.3)
    p = points.points(made)
    cells: dict[tuple, int] = {}
    for i in np.argsort(-made["loss"]):
        cells[made["params"][i], made["examples"][i]] = i
    rows = list(cells.values())
    alone = fits.fit(points.points({k: v[rows] for k, v in made.items() if k != "rate"}))
    both = rates.fit(p)
    assert np.ptp(both.interval(3)) < np.ptp(alone.interval(3)) / 2
    assert both.interval(3)[0] < LAW.exponents[0] < both.interval(3)[1]


def test_a_grid_that_tells_nothing_of_the_drift_has_a_wide_interval():
    """One size swept, all others at one rate: the drift is told by how losses deviate from the law alone, which the law's exponents take up."""
    one = np.geomspace(1e5, 1e7, 5)[2], np.geomspace(2e5, 2e7, 5)[2]
    narrow = rates.fit(points.points(table(NOISE)))
    wide = rates.fit(points.points(table(NOISE, whole=one)))
    assert np.ptp(wide.interval(rates.BY_N)) > 3 * np.ptp(narrow.interval(rates.BY_N))
    low, high = wide.best(1e9, 1e9)[1]
    assert high - low > 2


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ({k: v for k, v in table().items() if k != "rate"}, "needs the column 'rate'"),
        (table(tried=(-9, -8), share=1.0), "needs 3 learning rates, and there are 2"),
        ({k: v[::12] for k, v in table().items()}, "has 9 parameters, and there are"),
        (table() | {"loss": 4 - table()["loss"]}, "do not bend upwards"),
    ],
)
def test_points_that_tell_no_best_rate_are_refused(made, why):
    with pytest.raises(UserError, match=why):
        rates.fit(points.points(made))


def covered(sims, noise=NOISE, share=0.4, shared=0.0):
    """Shares of simulations whose 90% intervals have drift by N and by D, floor and exponents, and the best rate of a size and horizon ten times beyond."""
    hits = []
    for s in range(sims):
        found = rates.fit(points.points(table(noise, s, share, shared=shared)), draws=400)
        spans = [*(found.interval(i) for i in (rates.BY_N, rates.BY_D, 0, 3, 4)), found.best(1e8, 2e8)[1], found.loss(1e8, 2e8)[1]]
        wanted = [BY_N, BY_D, LAW.floor, *LAW.exponents, best(1e8, 2e8), LAW(params=1e8, examples=2e8)]
        hits.append([low <= w <= high for (low, high), w in zip(spans, wanted, strict=True)])
    return np.mean(hits, 0)


def test_intervals_cover_in_a_few_simulations():
    assert covered(40).min() > 0.72
    assert covered(40, 1e-3, shared=3e-3).min() > 0.72


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "share", "shared"), [(NOISE, 0.4, 0.0), (1e-2, 0.25, 0.0), (1e-3, 0.4, 3e-3)])
def test_intervals_cover(noise, share, shared):
    at = covered(300, noise, share, shared)
    print(
        f"noise {noise}, {share:.0%}, shared {shared}: drifts, floor, exponents, best rate and loss at 10x: "
        + ", ".join(f"{v:.1%}" for v in at)
    )
    assert all(0.825 <= v <= 0.97 for v in at)
