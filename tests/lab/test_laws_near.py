"""Laws of few points whose exponents are drawn to published ones: less error in forecasts, intervals that cover, and no pull where points tell."""

import numpy as np
import published
import pytest

from lab.errors import UserError
from lab.laws import fits, forecast, points, solve
from lab.laws.fits import DRAWN, NEAR

TOP = 1e20  # FLOPs of the largest budget
# the exponents of a law of C of 0.1, as Henighan et al. have it for images of 32 x 32 pixels (arXiv 2010.14701), of terms as large as Chinchilla's
IMAGES = published.BESIROGLU._replace(
    exponents=(0.2, 0.2),
    scales=tuple(s * x ** (0.2 - e) for s, e, x in zip((482.0, 2085.4), (0.3478, 0.3658), (9.1e8, 1.8e10), strict=True)),
)
TRUTHS = {"Besiroglu": published.BESIROGLU, "Hoffmann": published.HOFFMANN, "images": IMAGES}


def few(truth, budgets, noise, seed, sizes=3):
    """Points of `budgets` doubling budgets of three sizes."""
    flops = np.repeat(TOP / 2.0 ** np.arange(budgets), sizes)
    params = published.best(truth, flops) * np.tile(np.geomspace(0.5, 2, sizes), budgets)
    design = {"flops": flops, "params": params, "examples": flops / 6 / params}
    return points.points(published.table(truth, design, noise, np.random.default_rng(seed)))


def outcome(truth, budgets, noise, sims, times=10, draws=200):
    """Root mean square error at `times` the largest budget, as a share of what the loss falls to there, of L(N, D) and of that near 0.3; and how often the latter's interval covers."""
    at, now = ({"params": published.best(truth, c), "examples": c / 6 / published.best(truth, c)} for c in (times * TOP, TOP))
    want, off, hits = truth(**at), [], []
    for s in range(sims):
        p = few(truth, budgets, noise, s)
        plain, near = fits.fit(p, draws=2), fits.fit(p, DRAWN, draws=draws)
        low, high = fits.span(near.losses(**at)[:, 0])
        off.append([f.loss(**at)[0] - want for f in (plain, near)])
        hits.append(low <= want <= high)
    return np.sqrt(np.mean(np.square(off), 0)) / (truth(**now) - want), float(np.mean(hits))


def test_forecasts_of_few_points_have_less_error_in_a_few_simulations():
    (plain, near), covered = outcome(published.BESIROGLU, 4, 0.01, 20)
    assert near < 0.85 * plain
    assert covered > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.003, 0.01])
@pytest.mark.parametrize("budgets", [3, 4, 5])
@pytest.mark.parametrize("name", TRUTHS)
def test_forecasts_of_few_points_have_less_error_and_cover(name, budgets, noise):
    for times in (10, 100):
        (plain, near), covered = outcome(TRUTHS[name], budgets, noise, 300, times)
        print(f"{name}, {budgets} budgets, {noise:.1%}, {times}x: L(N, D) {plain:.1%}, near 0.3 {near:.1%}, covered {covered:.1%}")
        assert near < (0.9 if noise == 0.01 else 1.0) * plain
        assert 0.82 <= covered <= 0.965


def test_points_without_noise_are_not_pulled():
    found = fits.fit(few(published.HOFFMANN, 4, 1e-9, 0), DRAWN, draws=2)
    np.testing.assert_allclose(found.exponents, published.HOFFMANN.exponents, rtol=1e-4)


def test_points_that_tell_nothing_leave_the_exponents_where_published_ones_are():
    found = fits.fit(few(published.HOFFMANN, 4, 0.3, 0), DRAWN)
    np.testing.assert_allclose(found.exponents, NEAR[0], atol=0.1)
    np.testing.assert_allclose(found.draws[:, 3:].std(0), NEAR[1], rtol=0.3)
    with pytest.raises(UserError, match="is fitted by squares"):
        fits.fit(found.points, DRAWN, method="huber")


def test_derivatives_of_what_is_drawn():
    p, x = np.array([[0.4, 0.2, 0.3, 0.35, 0.3]]), np.array([[-1.0, 0.3], [0.5, -0.7], [2.0, 1.0]])
    whole, slopes = solve._drawn(x, p)
    np.testing.assert_allclose(np.log(whole[0, 3:]), p[0, 3:])
    for j in range(5):
        step = np.zeros(5)
        step[j] = 1e-6
        near = [solve._drawn(x, p + side * step)[0] for side in (1, -1)]
        np.testing.assert_allclose(slopes[:, j], (near[0] - near[1]) / 2e-6, rtol=1e-4, atol=1e-9)


def test_few_points_are_foretold_so_and_many_are_not():
    told = forecast.laws(few(published.BESIROGLU, 4, 0.005, 1))
    assert told.sizes.form == "L(N, D)"
    assert told.first().form == told.of_sizes().form == DRAWN
    f = forecast.forecast(told, 1e21)
    assert f.loss == f.forms[DRAWN][0] != f.forms["L(N, D)"][0]
    assert forecast.laws(few(published.BESIROGLU, 6, 0.005, 1)).near is None
