"""Loss by time and frequency: Parseval, planted spectra and times, and the best loss of a field as the known answer."""

import jax
import numpy as np
import pytest

from lab.data import field
from lab.errors import UserError
from lab.evals import spectrum
from lab.evals.subject import Subject
from lab.objectives import flow


def test_bands_cover_every_mode_and_rise_with_frequency():
    band = spectrum.bands(16, 4)
    assert set(band.ravel()) == {0, 1, 2, 3}
    assert band[0, 0] == band[0, 1] == 0
    assert band[8, 8] == 3
    k = np.hypot(*np.meshgrid(*[np.fft.fftfreq(16, 1 / 16)] * 2))
    order = np.argsort(k.ravel(), kind="stable")
    assert (np.diff(band.ravel()[order]) >= 0).all()


def test_bands_weighted_by_their_modes_give_the_loss():
    error = np.random.default_rng(0).standard_normal((5, 12, 12, 3))
    found = spectrum.by_frequency(error, 4)
    share = np.bincount(spectrum.bands(12, 4).ravel()) / 144
    assert found @ share == pytest.approx(np.mean(error**2), rel=1e-12)


def test_an_error_at_one_frequency_lies_in_its_band_alone():
    wave = np.cos(2 * np.pi * 6 * np.arange(16) / 16)[None, None, :, None] * np.ones((1, 16, 1, 1))
    found = spectrum.by_frequency(wave, 4)
    here = spectrum.bands(16, 4)[0, 6]
    assert found[here] > 0.01
    assert np.delete(found, here).max() < 1e-20


def test_losses_are_averaged_within_their_times():
    found = spectrum.by_time(np.array([0.0, 0.1, 0.6, 1.0]), np.array([1.0, 3.0, 5.0, 7.0]), 4)
    np.testing.assert_equal(found, [2.0, np.nan, 5.0, 7.0])


def test_the_exact_velocity_of_a_field_errs_as_theory_says():
    """Mode of power s at time t: s / ((1 - t)^2 s + t^2), averaged over the times drawn."""
    world = field.Source("eval", "", size=8)
    objective = flow.Objective("uniform", 0.0)
    batch = world.generate(jax.random.key(1), 8192)
    t, error = objective.errors(lambda z: world.velocity(z["x"], z["t"]), jax.random.key(2), batch)
    t, error = np.asarray(t), np.asarray(error)
    judge = spectrum.Judge(world, world, times=4, frequencies=3)
    found = judge(Subject(dict, lambda: {"t": t, "error": error}))
    each = world.power / ((1 - t[:, None, None]) ** 2 * world.power + t[:, None, None] ** 2)  # [M, 8, 8]
    band = spectrum.bands(8, 3)
    for i in range(3):
        assert found[f"spectrum_band_{i}"] == pytest.approx(each.mean(0)[band == i].mean(), rel=0.04)
    for i in range(4):
        here = (t * 4).astype(int) == i
        assert found[f"spectrum_time_{i}"] == pytest.approx(each[here].mean(), rel=0.04)
    # the control: a model that says nothing errs by the velocity itself, of variance s + 1 in a mode
    t, error = objective.errors(lambda z: 0 * z["x"], jax.random.key(2), batch)
    silent = judge(Subject(dict, lambda: {"t": np.asarray(t), "error": np.asarray(error)}))
    for i in range(3):
        assert silent[f"spectrum_band_{i}"] == pytest.approx(1 + world.power[band == i].mean(), rel=0.04)
        assert silent[f"spectrum_band_{i}"] > 1.1 * found[f"spectrum_band_{i}"]


def test_bad_options_are_one_line():
    world = field.Source("eval", "", size=4)
    with pytest.raises(UserError, match=r"judge\.options\.spectrum\.times=0 must be a whole number"):
        spectrum.Judge(world, world, times=0)
