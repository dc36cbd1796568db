"""Slopes over seeds: what is planted is found, intervals cover it, and of many right slopes hardly ever one is called wrong."""

import numpy as np
import pytest

from lab.laws.slope import holm, slope

X = np.log([1.0, 2.0, 4.0])


def lines(rng, slopes, seeds=4, spread=0.1, x=X):
    """Log sizes [size, seed] of one weight for each slope; narrow models are noisier, as they are."""
    noise = rng.normal(size=(len(slopes), len(x), seeds)) * spread * np.exp(-x / 2)[:, None]
    return np.array(slopes)[:, None, None] * x[:, None] + rng.normal(size=(len(slopes), 1, seeds)) + noise


def test_a_slope_is_the_planted_one_whatever_the_seeds_levels():
    found = slope(X, lines(np.random.default_rng(0), [0.7], spread=0.0)[0], promised=-0.1)
    assert found.value == pytest.approx(0.7)
    assert found.off == pytest.approx(0.8)
    assert found.p < 1e-6


def test_intervals_cover_the_truth_as_often_as_they_say():
    y = lines(np.random.default_rng(1), np.full(2000, 0.3))
    found = [slope(X, each) for each in y]
    covered = np.mean([abs(s.value - 0.3) <= s.half for s in found])
    assert covered == pytest.approx(0.95, abs=0.02)


def test_a_check_of_right_slopes_alarms_in_five_of_a_hundred_and_one_without_holm_in_more():
    """Sixty slopes at the very bound, where a test errs most: the family's error is what it says, and single tests' is not."""
    rng, alarms, single = np.random.default_rng(2), 0, 0
    for _ in range(250):
        p = [slope(X, y, bound=0.2).p for y in lines(rng, np.full(60, 0.2))]
        alarms, single = alarms + any(holm(p)), single + (min(p) < 0.05)
    assert alarms / 250 < 0.05 + 3 * (0.05 * 0.95 / 250) ** 0.5
    assert single / 250 > 0.5


def test_a_wrong_slope_among_right_ones_is_found():
    rng, found = np.random.default_rng(3), 0
    for _ in range(50):
        p = [slope(X, y).p for y in lines(rng, [1.0, *np.zeros(59)])]
        found += holm(p)[0]
    assert found >= 47


def test_holm_goes_on_with_a_weaker_demand_and_stops_at_the_first_that_fails():
    assert holm([0.02, 0.013, 0.5]) == [True, True, False]  # 0.013 < 0.05/3, then 0.02 < 0.05/2
    assert holm([0.03, 0.013, 0.5]) == [False, True, False]  # as one by Bonferroni
    assert holm([0.04, 0.018, 0.5]) == [False, False, False]  # 0.018 > 0.05/3 stops all
    assert holm([]) == []
