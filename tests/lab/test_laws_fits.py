"""Laws of loss on simulated runs of published laws: recovered, covered by their intervals, refused where the runs do not tell them."""

import time

import numpy as np
import published
import pytest

from lab.errors import UserError
from lab.laws import fits, points, solve
from lab.laws.points import Points

JOINT = {"Besiroglu": published.BESIROGLU, "Hoffmann": published.HOFFMANN}


def pooled(truth, design, noise=0.0, seed=0, **more) -> Points:
    return points.points(published.table(truth, design, noise, np.random.default_rng(seed), **more))


@pytest.mark.parametrize("method", ["squares", "huber"])
@pytest.mark.parametrize("name", JOINT)
def test_a_law_of_size_and_data_is_recovered(name, method):
    truth = JOINT[name]
    found = fits.fit(pooled(truth, published.isoflop(truth), 1e-9), method=method, draws=2)
    np.testing.assert_allclose(found.exponents, truth.exponents, rtol=1e-4)
    np.testing.assert_allclose(found.scales, truth.scales, rtol=1e-3)
    assert found.value[0] == pytest.approx(truth.floor, rel=1e-4)


@pytest.mark.parametrize("name", published.COMPUTE)
def test_a_law_of_compute_is_recovered(name):
    truth = published.COMPUTE[name]
    form = "L(C)" if truth.floor else "L(C) without a floor"
    found = fits.fit(pooled(truth, published.ladder(truth), 1e-9), form, draws=2)
    assert found.exponents[0] == pytest.approx(truth.exponents[0], rel=1e-4)
    assert found.value[0] == pytest.approx(truth.floor, abs=1e-4)


def covered(truth, form, design, noise, sims, floor=None, **more):
    """Shares of simulations in which the 90% interval has each exponent, the floor, and the loss ten times beyond; and how far estimates are off."""
    k, hits = len(truth.exponents), []
    most = design["flops"].max()
    where = {"flops": 10 * most}
    if k == 2:
        size = published.best(truth, 10 * most)
        where |= {"params": size, "examples": 10 * most / 6 / size}
    for s in range(sims):
        f = fits.fit(pooled(truth, design, noise, 1000 + s, **more), form, floor, draws=400)
        spans = [*(f.interval(1 + k + i) for i in range(k)), f.interval(0), fits.span(f.losses(**where)[:, 0])]
        wanted = [*truth.exponents, truth.floor, truth(**where)]
        hits.append([low <= w <= high for (low, high), w in zip(spans, wanted, strict=True)])
    return dict(zip([*(f"{v} exponent" for v in truth.variables), "floor", "loss at 10x"], np.mean(hits, 0), strict=True))


# name -> law, form, design, noise a run, further options of a table
CASES = {
    "Chinchilla, 25 runs": (published.BESIROGLU, "L(N, D)", published.isoflop(published.BESIROGLU), 3e-3, {}),
    "Chinchilla, 25 noisy runs": (published.BESIROGLU, "L(N, D)", published.isoflop(published.BESIROGLU), 1e-2, {}),
    "Chinchilla, 25 sizes of 3 seeds": (
        published.BESIROGLU,
        "L(N, D)",
        published.isoflop(published.BESIROGLU),
        5e-3,
        {"seeds": 3, "offset": 3e-3},
    ),
    "Hoffmann, 49 runs": (published.HOFFMANN, "L(N, D)", published.isoflop(published.HOFFMANN, 7, 7), 5e-3, {}),
    **{
        f"{n}, 8 rungs": (t, "L(C)" if t.floor else "L(C) without a floor", published.ladder(t), 2e-3, {})
        for n, t in published.COMPUTE.items()
    },
    "GIDD masked, 6 noisy rungs": (
        published.COMPUTE["GIDD masked"],
        "L(C)",
        published.ladder(published.COMPUTE["GIDD masked"], 6),
        5e-3,
        {},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_intervals_cover(case):
    truth, form, design, noise, more = CASES[case]
    found = covered(truth, form, design, noise, 400, **more)
    if not truth.floor:
        del found["floor"]
    print(f"{case}: " + ", ".join(f"{k} {v:.1%}" for k, v in found.items()))
    assert all(0.835 <= v <= 0.965 for v in found.values())  # 85-95%, and what 400 simulations leave unknown


@pytest.mark.parametrize("case", ["Chinchilla, 25 noisy runs", "Liang DiT, 8 rungs"])
def test_intervals_cover_in_a_few_simulations(case):
    truth, form, design, noise, more = CASES[case]
    found = covered(truth, form, design, noise, 40, **more)
    assert all(v >= 0.75 for k, v in found.items() if truth.floor or k != "floor")
    wrong = covered(truth._replace(exponents=tuple(1.3 * e for e in truth.exponents)), form, design, noise, 1)
    assert set(wrong) == set(found)


def profiled(name, sims):
    """Shares of simulations whose 90% profile of the floor and of each exponent has the truth."""
    truth, form, design, noise, more = CASES[name]
    k, hits = len(truth.exponents), []
    for s in range(sims):
        f = fits.fit(pooled(truth, design, noise, s, **more), form, draws=100)
        spans = [*([fits.profile(f, 0)] if truth.floor else []), *(fits.profile(f, 1 + k + i) for i in range(k))]
        wanted = [*([truth.floor] if truth.floor else []), *truth.exponents]
        hits.append([low <= w <= high for (low, high), w in zip(spans, wanted, strict=True)])
    return np.mean(hits, 0)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["Chinchilla, 25 runs", "GIDD masked, 8 rungs", "GIDD masked, 6 noisy rungs", "Liang DiT, 8 rungs"])
def test_profiles_cover(case):
    found = profiled(case, 400)
    print(f"{case}: " + ", ".join(f"{v:.1%}" for v in found))
    assert all(0.835 <= v <= 0.965 for v in found)


def test_profiles_cover_in_a_few_simulations():
    assert profiled("Chinchilla, 25 noisy runs", 30).min() > 0.73


@pytest.mark.parametrize("case", ["Chinchilla, 25 runs", "GIDD uniform, 8 rungs", "Liang DiT, 8 rungs"])
def test_a_profile_is_the_bootstrap_s_interval_where_estimates_are_normal(case):
    truth, form, design, noise, _ = CASES[case]
    f = fits.fit(pooled(truth, design, noise / 10), form)
    for i in (*([0] if truth.floor else []), *range(1 + len(truth.exponents), 1 + 2 * len(truth.exponents))):
        (a, b), (c, d) = fits.profile(f, i), f.interval(i)
        assert [a, b] == pytest.approx([c, d], abs=0.12 * (d - c))
        inner = fits.profile(f, i, 0.5)
        assert a < inner[0] < f.value[i] < inner[1] < b


def test_a_profile_ends_at_a_bound_that_nothing_refutes():
    """Four noisy rungs do not tell a floor of zero from a high one."""
    truth = published.COMPUTE["GIDD masked"]
    f = fits.fit(pooled(truth, published.ladder(truth, 4), 3e-2), "L(C)", draws=200)
    low, high = fits.profile(f, 0)
    assert low == 0
    assert high < f.points.loss.min()
    with pytest.raises(UserError, match="was not fitted"):
        fits.profile(fits.fit(f.points, "L(C)", truth.floor, draws=2), 0)


def test_an_interval_is_not_of_another_law():
    """The same interval misses exponents a third larger: it is not merely wide."""
    truth = published.COMPUTE["Liang DiT"]
    found = fits.fit(pooled(truth, published.ladder(truth), 2e-3), "L(C) without a floor")
    low, high = found.interval(2)
    assert low < truth.exponents[0] < high < truth.exponents[0] * 4 / 3


def test_a_floor_that_is_known_narrows_what_it_would_have_cost_to_fit():
    truth = published.COMPUTE["GIDD masked"]
    p = pooled(truth, published.ladder(truth), 2e-3)
    given = fits.fit(p, "L(C)", truth.floor)
    assert (given.draws[:, 0] == truth.floor).all()
    assert given.exponents[0] == pytest.approx(truth.exponents[0], rel=0.1)
    assert fits.cost_of_floor(p, "L(C)", truth.floor) > 3
    few = p.take(np.arange(8) < 3)
    assert fits.cost_of_floor(few, "L(C)", truth.floor) == np.inf  # three rungs tell an exponent above a known floor, and no floor


def test_one_bad_run_moves_a_huber_fit_little():
    truth = published.HOFFMANN
    rows = published.table(truth, published.isoflop(truth, 7, 7), 1e-4, np.random.default_rng(0))
    rows["loss"][24] *= 1.1
    off = {m: abs(fits.fit(points.points(rows), method=m, draws=2).exponents / truth.exponents - 1).max() for m in ("squares", "huber")}
    assert off["huber"] < 0.02 < off["squares"]


def test_seeds_of_their_own_level_widen_the_floor_and_not_the_exponent():
    truth = published.BESIROGLU
    design = published.isoflop(truth)
    plain, level = (fits.fit(pooled(truth, design, 1e-3, seeds=4, offset=o)) for o in (0.0, 2e-2))
    assert level.points.offset > 5 * plain.points.offset
    assert np.ptp(level.interval(0)) > 2 * np.ptp(plain.interval(0))
    assert np.ptp(level.interval(3)) < 2 * np.ptp(plain.interval(3))


def test_more_seeds_of_a_cell_count_for_more():
    truth = published.COMPUTE["GIDD uniform"]
    rng, design = np.random.default_rng(0), published.ladder(truth)
    off = {"weighted": [], "one each": []}
    for _ in range(40):
        rows = published.table(truth, design, 1e-2, rng, seeds=16)
        keep = (np.tile(np.arange(8), 16) % 2 == 0) | (rows["seed"] == 0)
        p = points.points({k: v[keep] for k, v in rows.items()})
        for name, q in (("weighted", p), ("one each", p._replace(noise=np.nan))):
            off[name].append(fits.fit(q, "L(C)", truth.floor, draws=2).exponents[0] - truth.exponents[0])
    assert np.std(off["weighted"]) < 0.8 * np.std(off["one each"])


def test_diverged_runs_are_censored_with_their_cell_and_said_so():
    truth = published.HOFFMANN
    rows = published.table(truth, published.isoflop(truth), 1e-3, np.random.default_rng(0), seeds=2)
    clean = fits.fit(points.points({k: v[rows["flops"] < rows["flops"].max()] for k, v in rows.items()}), draws=2)
    rows["loss"] = np.where((rows["seed"] == 1) & (rows["flops"] == rows["flops"].max()), np.nan, rows["loss"])
    p = points.points(rows)
    assert len(p.loss) == 20
    assert "5 of 25" in p.left_out[0]
    np.testing.assert_allclose(fits.fit(p, draws=2).value, clean.value, rtol=1e-6)


def test_the_form_that_foretells_larger_budgets_is_chosen():
    forms = ("L(C) without a floor", "L(C)")
    for name in ("Liang DiT", "GIDD masked"):
        truth = published.COMPUTE[name]
        chosen, told = fits.choose(pooled(truth, published.ladder(truth, 10), 1e-4), forms)
        assert chosen == ("L(C)" if truth.floor else "L(C) without a floor")
        assert {t.form for t in told} == set(forms)
        assert len({t.splits for t in told}) == 1  # forms are held against the same rungs
    bent = published.COMPUTE["GIDD masked"]
    _, told = fits.choose(pooled(bent, published.ladder(bent, 10), 1e-4), forms)
    wrong, right = told
    assert right.error < 0.1 * wrong.error
    assert wrong.covered < 0.5 < right.covered


def test_what_runs_do_not_tell_is_refused_in_a_line():
    truth = published.BESIROGLU
    rows = published.table(truth, published.isoflop(truth), 1e-3, np.random.default_rng(0))
    flops, loss = rows["flops"], rows["loss"]
    for table, form, wanted in (
        ({"flops": flops}, "L(C)", "no column 'loss'"),
        ({"flops": flops, "loss": loss, "flop": flops}, "L(C)", r"'flop' is unknown \(nearest: 'flops'\)"),
        ({"flops": flops[:1], "loss": loss}, "L(C)", "has 1 entries"),
        ({"flops": -flops, "loss": loss}, "L(C)", "values above 0"),
        ({"flops": flops, "loss": np.full(25, np.nan)}, "L(C)", "no run of the table has a finite loss"),
        ({**rows, "convention": ["6ND", *["counted"] * 24]}, "L(C)", "mixes conventions"),
        ({**rows, "precision": ["float32", *["bfloat16"] * 24]}, "L(C)", "mixes precisions"),
        ({**rows, "device": ["cpu", *["tpu"] * 24]}, "L(C)", "mixes kinds of device"),
        ({**rows, "data": ["a", *["b"] * 24]}, "L(C)", "mixes sets of data"),
        ({**rows, "arm": ["a", *["b"] * 24]}, "L(C)", "2 arms"),
        ({"flops": flops, "loss": loss}, "L(N, D)", "needs the column 'params'"),
        ({k: v[:5] for k, v in rows.items()}, "L(C)", r"several values of flops, and there is one \(1e\+18\)"),
        ({k: v[:15] for k, v in rows.items()}, "L(C)", "needs 4 values of flops, and there are 3"),
        ({k: v[10:15] for k, v in rows.items()}, "L(N, D)", "5 parameters, and there are 5 points"),
        (
            {k: v[2::5] for k, v in published.table(truth, published.isoflop(truth, 9), 1e-3, np.random.default_rng(0)).items()},
            "L(N, D)",
            "not told apart",
        ),
    ):
        with pytest.raises(UserError, match=wanted) as told:
            fits.fit(points.points(table), form)
        assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="not below the least loss"):
        fits.fit(points.points(rows), "L(N, D)", 9.0)
    with pytest.raises(UserError, match="arm 'c' is unknown"):
        points.points({**rows, "arm": ["a"] * 25}, "c")


def test_a_fit_knows_its_data_and_code():
    truth = published.HOFFMANN
    rows = {**published.table(truth, published.isoflop(truth), 1e-3, np.random.default_rng(0)), "convention": ["6ND"] * 25}
    order = np.random.default_rng(1).permutation(25)
    a, b = (points.points({k: np.asarray(v)[o] for k, v in rows.items()}) for o in (np.arange(25), order))
    rows["loss"][3] *= 1 + 1e-12
    c = points.points(rows)
    assert a.data == b.data != c.data
    assert fits.fit(a, draws=2).points.convention == "6ND"
    assert len(fits.fit(a, draws=2).code.split()) == 2


def test_refits_start_from_a_grid_where_no_law_is_known():
    """From the grid alone, bootstrap weights of zero and all, every replicate ends where one from the truth does."""
    truth, rng = published.BESIROGLU, np.random.default_rng(0)
    p = pooled(truth, published.isoflop(truth), 1e-2)
    f = fits.fit(p, draws=2)
    x = np.stack([np.log(p.params), np.log(p.examples)], 1) - f.centre
    weight = rng.multinomial(25, np.full(25, 1 / 25), size=50).astype(float)
    cold, warm = solve.solve(x, p.loss, weight), solve.solve(x, p.loss, weight, f.value[None])
    cost = [(weight * np.log(p.loss / solve.losses(q, x)) ** 2).sum(1) for q in (cold, warm)]
    np.testing.assert_allclose(*cost, rtol=1e-4)


def test_nonnegative_least_squares_is_scipy_s():
    from scipy.optimize import nnls

    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = rng.normal(size=(8, 3)), rng.normal(size=8)
        ours, gain = solve.nonnegative(a.T @ a, a.T @ b, [0, 1, 2])
        wanted, rest = nnls(a, b)
        np.testing.assert_allclose(ours, wanted, atol=1e-8)
        assert b @ b - gain == pytest.approx(rest**2, abs=1e-8) or not wanted.any()


def test_a_thousand_refits_of_240_points_take_seconds():
    truth, rng = published.BESIROGLU, np.random.default_rng(0)
    flops, size = 10 ** rng.uniform(18, 21.8, 240), 10 ** rng.uniform(7.7, 10, 240)
    f = fits.fit(pooled(truth, {"flops": flops, "params": size, "examples": flops / 6 / size}, 1e-2), draws=2)
    began = time.process_time()
    again = fits.bootstrap(f, 1000)
    assert time.process_time() - began < 5
    assert again.shape == (1000, 5)
    assert abs(np.median(again[:, 3:], 0) / truth.exponents - 1).max() < 0.1


def test_budgets_are_bins_where_flops_are_all_over_and_one_where_they_are_rounded():
    flops = np.array([1e18, 1.02e18, 1e20, 0.99e18, 1.05e20])
    assert points.budgets(flops).tolist() == [0, 0, 1, 0, 1]
    spread = np.geomspace(1, 100, 200)
    at = points.budgets(spread)
    assert 15 < at.max() < 25
    assert all(np.ptp(np.log(spread[at == b])) < np.log(1.25) for b in range(at.max() + 1))
