"""Compute-optimal sizes: exact on published laws, the published bias of parabolas reproduced and removed, envelopes of curves."""

import numpy as np
import published
import pytest

from lab.errors import UserError
from lab.laws import allocation, fits, points, solve
from lab.laws.fits import span

TRUTH = published.HOFFMANN
WIDTHS = {2: -0.33, 4: -1.3, 8: -2.9, 16: -5.1}  # of a grid on either side of the best size -> % in D, 15 sizes (arXiv 2603.22339)


def pooled(design, noise=0.0, seed=0, truth=TRUTH):
    return points.points(published.table(truth, design, noise, np.random.default_rng(seed)))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_published_bias_of_parabolas_is_reproduced_and_removed(width):
    p = pooled(published.isoflop(TRUTH, 5, 15, width))
    wanted = published.best(TRUTH, np.unique(p.flops))
    raw, _ = allocation.vertices(np.log(p.params), p.loss[None], points.budgets(p.flops))
    off = 100 * np.expm1(np.log(wanted) - raw[0])  # of D: the budget is fixed
    np.testing.assert_allclose(off, WIDTHS[width], rtol=0.02, atol=0.005)
    found = allocation.profiles(p, fits.fit(p, draws=2))
    np.testing.assert_allclose(100 * np.expm1(-found.bias), WIDTHS[width], rtol=0.02, atol=0.005)
    np.testing.assert_allclose(found.params, wanted, rtol=1e-4)
    assert found.slope == pytest.approx(0.28 / 0.62, abs=1e-5)


def test_a_grid_that_drifts_off_centre_biases_the_exponent_and_is_put_right():
    design = published.isoflop(TRUTH, 5, 9, 8.0)
    design["params"] *= np.repeat(np.geomspace(1, 2.5, 5), 9)
    design["examples"] = design["flops"] / 6 / design["params"]
    p = pooled(design)
    raw, _ = allocation.vertices(np.log(p.params), p.loss[None], points.budgets(p.flops))
    found = allocation.profiles(p, fits.fit(p, draws=2))
    plain = np.polyfit(np.log(found.flops), raw[0], 1)[0]
    assert abs(plain - 0.28 / 0.62) > 0.002
    assert found.slope == pytest.approx(0.28 / 0.62, abs=1e-4)


def test_the_best_size_is_where_the_loss_is_least_whatever_an_example_costs():
    for power in (1.0, 0.8):
        cost = allocation.Price(np.log(50.0), power, 0.0)
        law = np.array([[TRUTH.floor, *TRUTH.scales, *TRUTH.exponents]])
        for flops in (1e18, 1e21):
            size = allocation.best(law, np.zeros(2), cost, flops)[0, 0]
            near = size + np.linspace(-0.5, 0.5, 1001)
            loss = allocation.along(np.repeat(law, 1001, 0), np.zeros(2), cost, flops, near)
            assert near[np.argmin(loss)] == pytest.approx(size, abs=1e-9)


def test_what_an_example_costs_is_read_from_the_points():
    design = published.isoflop(TRUTH)
    design["flops"] = 7.0 * design["params"] ** 0.9 * design["examples"]
    cost = allocation.price(pooled(design))
    assert cost.power == pytest.approx(0.9)
    assert np.exp(cost.log) == pytest.approx(7.0)
    assert cost.error < 1e-9
    with pytest.raises(UserError, match="needs the columns"):
        allocation.price(points.points({"flops": [1e3, 1e4], "loss": [1.0, 0.9]}))


def test_budgets_without_a_minimum_are_left_out_and_named():
    design = published.isoflop(TRUTH)
    design["params"] = design["params"] * np.where(design["flops"] == TRUTH.low, 40.0, 1.0)  # all far too large
    design["examples"] = design["flops"] / 6 / design["params"]
    found = allocation.profiles(pooled(design))
    assert len(found.flops) == 4
    assert found.left_out == ("budget 1e+18: no minimum among its sizes",)
    keep = design["flops"] < 1.1 * TRUTH.low
    few = pooled({k: np.concatenate([v[keep], v[~keep][2::5]]) for k, v in design.items()})
    with pytest.raises(UserError, match=r"and there are 0 of 5 \(1 with no minimum among its sizes, 4 with fewer than three sizes\)$"):
        allocation.profiles(few)


def covered(sims, noise, truth=TRUTH):
    """Shares of simulations in which the 90% interval has the slope, and the best size of the largest budget."""
    design, hits = published.isoflop(truth, 5, 7, 8.0), []
    most = design["flops"].max()
    for s in range(sims):
        p = pooled(design, noise, 500 + s, truth)
        law = fits.fit(p, draws=400)
        found = allocation.profiles(p, law)
        size = span(allocation.best(law.draws, law.centre, allocation.price(p), 10 * most)[:, 0])
        wanted = (truth.exponents[1] / sum(truth.exponents), np.log(published.best(truth, most)), np.log(published.best(truth, 10 * most)))
        spans = (found.interval(), span(found.draws[:, -1]), size)
        hits.append([low <= w <= high for (low, high), w in zip(spans, wanted, strict=True)])
    return np.mean(hits, 0)


@pytest.mark.slow
def test_intervals_of_sizes_cover():
    found = covered(300, 3e-3)
    print("isoFLOP slope, size, and the law's size at 10x: " + ", ".join(f"{v:.1%}" for v in found))
    assert (found >= 0.835).all()  # 85-95%, and what 300 simulations leave unknown
    assert (found <= 0.965).all()


def test_intervals_of_sizes_cover_in_a_few_simulations():
    assert (covered(20, 3e-3) >= 0.7).all()


def test_an_envelope_finds_the_slope_of_curves_that_are_laws():
    steps = np.geomspace(1e7, 1e12, 400)
    curves = []
    for size in np.geomspace(1e7, 1e10, 25):
        flops = 6 * size * steps
        curves.append((size, flops, TRUTH(params=size, examples=steps)))
    found = allocation.envelope(curves)
    assert found.slope == pytest.approx(0.28 / 0.62, abs=0.02)
    low, high = span(found.slopes)
    assert low < 0.28 / 0.62 < high
    assert (np.diff(found.loss) < 0).all()
    assert found.params.min() > 1e7  # the ends say nothing
    with pytest.raises(UserError, match="three sizes"):
        allocation.envelope(curves[:2])


def test_replicates_are_those_the_draws_were_fitted_to():
    p = pooled(published.isoflop(TRUTH), 1e-3)
    f = fits.fit(p, draws=20)
    again = solve.solve(f.at(params=p.params, examples=p.examples), fits.replicates(f, 20), f.weight, f.value[None])
    np.testing.assert_allclose(again, f.draws, rtol=1e-9)
