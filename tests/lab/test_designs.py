"""Designs of runs for a law: what they spend, what they refuse, and whether the intervals that they tell beforehand are those that come."""

import itertools

import numpy as np
import pytest

from lab import designs, fit, study
from lab.cli import main
from lab.designs import Asked, Size, Sizes
from lab.errors import UserError
from lab.experiment import load
from lab.laws.points import points
from lab.laws.solve import solve

POSITIONS = 16
OWN = Size(32, 24 * 32**2, 6.0 * POSITIONS * 24 * 32**2)
ASKED = Asked(1e14, 12, 1, epochs=4.0, steps=100, batch=32, examples=10**9)


def sizes():
    """Two layers of 12 width^2 weights, of 16 positions."""
    return Sizes(lambda width: (24 * width**2, 6.0 * POSITIONS * 24 * width**2), 16)


def prior(flops):
    return designs.published(OWN, flops)


def made(kind="isoflop", **change):
    a = ASKED._replace(**change)
    return a, *designs.design(kind, a, sizes(), prior)


def width(told, name):
    low, high = told[name][1]
    return high - low


@pytest.mark.parametrize("kind", designs.DESIGNS)
@pytest.mark.parametrize("budget", [1e13, 1e14, 1e17])
@pytest.mark.parametrize("points", [6, 12, 25])
def test_a_design_spends_its_budget_and_no_more(kind, budget, points):
    a, cells, _ = made(kind, budget=budget, points=points, seeds=2)
    assert 0.8 * budget <= designs.spent(a, cells) <= budget
    assert min(c.steps for c in cells) >= a.steps
    assert len(cells) <= points


@pytest.mark.parametrize("points", [12, 25])
def test_sizes_of_a_budget_take_the_same_flops(points):
    a, cells, _ = made(points=points)
    by = [[c.size.flops * a.batch * c.steps for c in cells if c.group == g] for g in range(max(c.group for c in cells) + 1)]
    assert all(max(flops) / min(flops) < 1.02 and len(flops) >= 3 for flops in by)
    assert all(np.mean(b) / np.mean(a) == pytest.approx(4, rel=0.02) for a, b in itertools.pairwise(by))


def test_sizes_stand_about_the_best():
    a, cells, law = made()
    for g in range(4):
        mine = [c for c in cells if c.group == g]
        losses = law.loss([c.size.params for c in mine], [a.batch * c.steps for c in mine])
        assert np.argmin(losses) == 1


def test_no_run_sees_its_data_too_often():
    a, cells, _ = made(examples=100_000)
    assert max(c.steps * a.batch / a.examples for c in cells) <= a.epochs
    free = made()[1]
    assert max(c.steps for c in free) * a.batch > a.epochs * a.examples  # it would have without the limit


def test_the_least_budget_is_named_and_does():
    with pytest.raises(UserError, match=r"too small for 3 sizes .* expected .* or more") as e:
        made(budget=1e9)
    least = float(str(e.value).split("expected ")[1].split()[0])
    assert made(budget=least)[1]
    with pytest.raises(UserError):
        made(budget=0.8 * least)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"points": 5}, "6 points"),
        ({"examples": 1000}, "raise --epochs"),
        ({"kind": "isoflops"}, "nearest: 'isoflop'"),
    ],
)
def test_what_cannot_be_designed_is_refused(change, said):
    with pytest.raises(UserError, match=said):
        made(**change)


def test_one_budget_tells_no_interval():
    a, cells, law = made()
    with pytest.raises(UserError, match="no interval can be told"):
        designs.expected(a, [c for c in cells if c.group == 0], law, 0.005)


@pytest.mark.parametrize("kind", designs.DESIGNS)
def test_estimates_of_simulated_studies_lie_within_the_interval_told(kind):
    a, cells, law = made(kind, points=25)
    e = designs.expected(a, cells, law, 0.003)
    p, rng = e.fit.points, np.random.default_rng(0)
    x = e.fit.at(params=p.params, examples=p.examples)
    found = solve(x, p.loss * np.exp(0.003 * rng.normal(size=(400, len(p.loss)))), np.ones(len(p.loss)))
    estimates = {"floor": found[:, 0], "exponent of N": found[:, 3], "exponent of D": found[:, 4], "exponent of C": e.grows(found)}
    for name, values in estimates.items():
        low, high = e.told()[name][1]
        assert 0.85 <= np.mean((low <= values) & (values <= high)) <= 0.95, name


def test_an_interval_is_as_wide_as_the_noise():
    a, cells, law = made(points=25)
    one, two = (designs.expected(a, cells, law, noise).told() for noise in (0.001, 0.002))
    for name in one:
        assert width(two, name) / width(one, name) == pytest.approx(2, rel=0.15), name
    four = designs.expected(a._replace(seeds=4), cells, law, 0.002).told()
    assert width(four, "exponent of N") == pytest.approx(width(one, "exponent of N"), rel=1e-6)


@pytest.mark.slow
def test_the_interval_told_is_that_of_fits_to_simulated_studies():
    from lab.laws import fits

    a, cells, law = made(points=25)
    e, rng, hits, wide = designs.expected(a, cells, law, 0.003), np.random.default_rng(1), [], []
    table = designs.table(a, cells, law)
    for _ in range(300):
        f = fits.fit(points(table | {"loss": table["loss"] * np.exp(0.003 * rng.normal(size=len(cells)))}), draws=400)
        hits.append([low <= t <= high for t, (low, high) in zip(law.law[3:], (f.interval(3), f.interval(4)), strict=True)])
        wide.append(np.ptp(f.interval(3)))
    assert ((np.mean(hits, 0) >= 0.85) & (np.mean(hits, 0) <= 0.95)).all(), np.mean(hits, 0)
    assert np.median(wide) == pytest.approx(width(e.told(), "exponent of N"), rel=0.15)


def test_a_study_with_a_law_is_the_prior(tmp_path):
    import isoflops

    folder = isoflops.study(tmp_path / "isoflops", rates=(-6,))
    found = designs.of_study(folder, "mup")
    np.testing.assert_allclose(found.law[3:], isoflops.LAW.exponents, rtol=0.1)
    told = fit.read(folder).arms["all"].laws.fits[0]
    np.testing.assert_allclose(found.loss(1e5, 1e6), told.loss(params=1e5, examples=1e6))


EXPERIMENT = '''"""A tiny decoder."""

from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.model = dict(name="decoder", width=16, depth=1, head_dim=8, mlp_ratio=2, kv_group=1, qk_norm=True, rope="grid")
    c.base = dict(width=16)
    c.objective = dict(name="next_token", label_drop=0.1)
    c.data = dict(name="causal", side=2, vocabulary=8, classes=2)
    c.optim = dict(warmup=4)
    c.train = dict(batch=8, steps=50)
    c.eval = dict(examples=16, batch=8)
    return c
'''


def test_a_design_is_written_and_is_a_study_of_its_budget(tmp_path, capsys):
    base, out = tmp_path / "base.py", tmp_path / "ladder.py"
    base.write_text(EXPERIMENT)
    asked = ["--budget", "3e9", "--points", "6", "--steps", "50", "--lr", "0.03125", "--seeds", "2"]
    assert main(["ladder", str(base), *asked, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "exponent of C" in said
    assert f"experiment: {out}" in said
    s = study.Study(load(str(out)))
    work = sorted(s.work().values())  # what `lab plan` tells
    assert 0.8 * 3e9 <= sum(work) <= 3e9
    assert len(work) == 6
    assert len(s.trials) == 12
    assert {t.config["optim"]["lr"] for t in s.trials.values()} == {0.03125}
    assert work[2] / work[0] < 1.02
    assert work[5] / work[3] < 1.02
    assert work[3] / work[2] > 1.9
