"""Fits and transfer statistics on planted truths."""

import numpy as np
import pytest

from lab.laws import fits
from lab.laws.optimum import loss_at, optimum
from lab.laws.points import points
from lab.laws.transfer import transfer

COMPUTE = 10.0 ** np.arange(12, 20)
LOSS = 0.3 + 1.0e4 * COMPUTE**-0.32


def test_the_fit_is_blind_to_the_units_of_compute_and_scales_with_the_loss():
    y = LOSS * np.exp(0.01 * np.random.default_rng(0).normal(size=8))
    plain, other = (fits.fit(points({"flops": u * COMPUTE, "loss": v * y}), "L(C)", draws=2) for u, v in ((1.0, 1.0), (1e-12, 5.0)))
    np.testing.assert_allclose(other.loss(flops=COMPUTE * 1e-12), 5 * plain.loss(flops=COMPUTE), rtol=1e-4)
    assert other.exponents == pytest.approx(plain.exponents, rel=1e-4)


def test_larger_budgets_are_foretold_of_a_law_and_not_of_a_break_in_it():
    order = np.random.default_rng(0).permutation(8)  # whatever the order
    y = LOSS.copy()
    assert fits.foretell(points({"flops": COMPUTE[order], "loss": y[order]}), "L(C)", over=[7]).error < 2e-3
    y[-1] *= 1.25  # the largest rung is worse than the law
    broken = fits.foretell(points({"flops": COMPUTE[order], "loss": y[order]}), "L(C)", over=[7])
    assert broken.error == pytest.approx(np.log(1.25), abs=5e-3)
    assert broken.covered == 0


def parabola(x, at, height=0.5, curve=0.02):
    """Loss of a learning rate 2^x with its optimum at `at`."""
    return height + curve * (x - at) ** 2


def test_the_optimum_of_a_parabola_is_exact_in_any_order():
    x = np.arange(-9.0, -2)
    for at in (-6.0, -5.6, -4.51):
        order = np.random.default_rng(0).permutation(len(x))
        best = optimum(x[order], parabola(x, at)[order])
        assert best.log2 == pytest.approx(at)
        assert best.loss == pytest.approx(0.5)
        assert best.edge is None


def test_an_optimum_at_an_edge_or_beside_a_diverged_trial_is_flagged():
    x = np.arange(-9.0, -2)
    y = parabola(x, -1.0)
    assert optimum(x, y)[::2] == (-3.0, "high")
    assert optimum(x, parabola(x, -12.0))[::2] == (-9.0, "low")
    cut = parabola(x, -4.6)
    cut[x > -5] = np.nan  # the edge of stability lies before the optimum
    assert optimum(x, cut)[::2] == (-5.0, "high")
    far = parabola(x, -6.3)
    far[x > -5] = np.nan  # divergence beyond a neighbour bounds nothing
    assert optimum(x, far).edge is None
    assert optimum(x, far).log2 == pytest.approx(-6.3)
    none = optimum(x, np.full(7, np.inf))
    assert np.isnan(none.log2)
    assert np.isnan(none.loss)


def test_the_loss_between_points_follows_the_curve_and_is_infinite_where_it_diverged():
    x = np.arange(-9.0, -2)
    y = parabola(x, -6.0)
    assert loss_at(x, y, -7.0) == pytest.approx(y[2])
    assert loss_at(x, y, -7.5) == pytest.approx(parabola(-7.5, -6.0), abs=0.01)
    assert loss_at(x, y, 5.0) == pytest.approx(y[-1])
    y[-2:] = np.nan
    assert loss_at(x, y, -4.5) == np.inf
    assert loss_at(x, y, -3.0) == np.inf
    assert loss_at(x, y, -5.0) == pytest.approx(y[4])
    several = np.stack([parabola(x, -6.0), parabola(x, -5.0)], 1)  # a curve and a place each
    np.testing.assert_allclose(loss_at(x, several, np.array([-6.5, -6.5])), parabola(-6.5, np.array([-6.0, -5.0])), atol=1e-6)
    assert loss_at(x[:2], y[:2], -8.25) == pytest.approx(0.25 * y[0] + 0.75 * y[1])  # a line through two


def ladder(drift, limit=None):
    """Trials of four rungs and one seed, the optimum moving `drift` octaves from first to last."""
    rows = []
    for i, width in enumerate((32, 64, 128, 256)):
        for x in np.arange(-12.0, 1):
            loss = parabola(x, -6 + drift * i / 3, height=0.5 / (i + 1))
            rows.append((width, x, np.nan if limit is not None and x > limit - i else loss, 0))
    return map(np.array, zip(*rows, strict=True))


@pytest.mark.parametrize("drift", [0.0, -3.0, 2.4, -0.3])
def test_a_planted_drift_is_measured_in_octaves(drift):
    t = transfer(*ladder(drift))
    assert t.rungs == [32, 64, 128, 256]
    assert t.drift == pytest.approx(drift, abs=1e-6)
    assert t.slope == pytest.approx(drift / 3, abs=1e-6)
    # the smallest rung's optimum used at the largest costs the parabola's height there
    assert t.penalty == pytest.approx(0.02 * drift**2 / 0.125, abs=0.01)
    assert t.stays == (abs(drift) <= 0.5)
    assert not t.bounded
    assert t.drift_interval is t.verdict is None  # one seed gives no interval


def test_a_ladder_cut_by_divergence_is_marked_as_bounded():
    t = transfer(*ladder(0.0, limit=-4.5))  # the stability edge falls an octave a rung, below the optimum at the end
    assert t.bounded
    assert t.optima[-1].edge == "high"
    assert t.penalty == np.inf
    assert not transfer(*ladder(0.0, limit=-1.0)).bounded
