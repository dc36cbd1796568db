"""Laws of a bounded score: planted ones are recovered, covered, told apart by what they follow, and no trend is no law."""

import numpy as np
import pytest

from lab.errors import UserError
from lab.laws import skill
from lab.laws.fits import span
from lab.laws.skill import Table

HALF, STEEP, CHANCE, SAMPLES = np.log(1e13), 0.9, 1 / 36, 512
WIDE = 0.08  # relative loss of a size e times off the best


def loss(flops, off=0.0):
    return (0.3 + (flops / 1e11) ** -0.15) * (1 + WIDE * off**2)


def truth(x, half=HALF, steep=STEEP, tail=1.0):
    u = steep * (x - half) + np.log(np.expm1(np.log(2) / tail))
    return 1 - (1 - CHANCE) * (1 + np.exp(u)) ** -tail


def planted(seed, rungs=10, sizes=1, follows="compute", samples=SAMPLES, noise=1e-3, **law):
    """A table of budgets from 1e11 to 1e14, each of sizes about its best, whose score follows compute or loss."""
    rng = np.random.default_rng(seed)
    flops = np.repeat(np.geomspace(1e11, 1e14, rungs), sizes)
    off = np.tile(np.linspace(-1, 1, sizes) if sizes > 1 else [0.0], rungs)
    if follows == "loss":
        law = {"half": -loss(1e13), "steep": 12.0} | law
    score = truth(np.log(flops) if follows == "compute" else -loss(flops, off), **law)
    if samples:
        score = rng.binomial(samples, score) / samples
    return Table(flops, loss(flops, off) * np.exp(noise * rng.normal(size=len(flops))), score, np.ones(len(flops)), CHANCE, 1.0)


def steepness(law, value):
    return np.exp(value[:, 1]) / law.scale


@pytest.mark.parametrize(("form", "tail"), [("logistic", 1.0), ("broken", 0.4), ("broken", 3.0)])
def test_a_planted_law_is_recovered(form, tail):
    law = skill.fit(planted(0, samples=0, tail=tail), "compute", form, draws=2)
    assert law.half[0] == pytest.approx(HALF, abs=1e-6)
    assert steepness(law, law.value[None])[0] == pytest.approx(STEEP, rel=1e-5)
    np.testing.assert_allclose(law.score(np.log([1e12, 1e16])), truth(np.log([1e12, 1e16]), tail=tail), rtol=1e-6)
    against = skill.fit(planted(0, samples=0, noise=0.0, follows="loss", tail=tail), "loss", form, draws=2)
    assert -against.half[0] == pytest.approx(loss(1e13), rel=1e-6)


def test_a_broken_law_is_a_power_law_beyond_its_break():
    """What is missing falls as FLOPs^-(k g), as BNSL's last segment does, and is all before the break."""
    law = skill.fit(planted(0, samples=0, tail=0.4), "compute", "broken", draws=2)
    missing = 1 - law.score(np.log([1e20, 1e21]))
    assert np.log10(missing[0] / missing[1]) == pytest.approx(STEEP * 0.4, rel=1e-3)
    assert law.score(np.log(1e4))[0] == pytest.approx(CHANCE, abs=1e-6)


def covered(sims, form="logistic", **case):
    """Shares of simulations whose 90% interval has the half, the steepness and the score at ten times the largest budget."""
    hits, x = [], np.log(1e15)
    tail = {k: v for k, v in case.items() if k in ("half", "tail")}
    for s in range(sims):
        try:
            law = skill.fit(planted(s, **case), "compute", form, draws=500)
        except UserError:
            continue
        spans = span(law.half[1:]), span(steepness(law, law.draws)), span(law.scores(x)[:, 0])
        wanted = case.get("half", HALF), STEEP, truth(x, **tail)
        hits.append([low <= w <= high for (low, high), w in zip(spans, wanted, strict=True)])
    assert len(hits) > 0.9 * sims
    return dict(zip(("half", "steepness", "score at 10x"), np.mean(hits, 0), strict=True))


CASES = {
    "10 budgets": {},
    "6 budgets": {"rungs": 6},
    "half lies beyond them": {"half": np.log(1e15)},
    "broken, 12 budgets": {"form": "broken", "tail": 0.3, "rungs": 12},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_intervals_cover(case):
    found = covered(400, **CASES[case])
    print(f"{case}: " + ", ".join(f"{k} {v:.1%}" for k, v in found.items()))
    assert all(0.835 <= v <= 0.965 for v in found.values())  # 85-95%, and what 400 simulations leave unknown


def test_intervals_cover_in_three_hundred_simulations():
    found = covered(300)
    print(found)
    assert all(0.85 <= v <= 0.95 for v in found.values())


@pytest.mark.parametrize(("follows", "other"), [("compute", "loss"), ("loss", "compute")])
def test_what_a_skill_follows_is_told(follows, other):
    """Sizes about the best of each budget have the same FLOPs and another loss: the predictor that a score does not follow foretells worse."""
    found = [skill.laws(planted(s, rungs=9, sizes=3, follows=follows, samples=4096)) for s in range(6)]
    assert sum(t.better == follows for t in found) >= 4
    assert not any(t.better == other for t in found)
    errors = [{t.predictor: t.error for t in f.told if t.form == f.fits[t.predictor][0].form} for f in found]
    assert np.mean([e[follows] for e in errors]) < 0.7 * np.mean([e[other] for e in errors])
    assert all(set(f.fits) == {"compute", "loss"} for f in found)  # both are shown


def has_law(table):
    try:
        return bool(skill.laws(table).fits)
    except UserError:
        return False


def test_a_score_without_a_trend_has_no_law():
    flat = [planted(s)._replace(score=np.random.default_rng(s).binomial(SAMPLES, 0.3, 10) / SAMPLES) for s in range(200)]
    assert sum(map(has_law, flat)) <= 8  # of one in a hundred of each predictor, 4 are expected at most
    assert all(has_law(planted(s)) for s in range(10))
    for score in (planted(0).score[::-1], np.full(10, 0.4)):
        with pytest.raises(UserError, match="does not rise"):
            skill.laws(planted(0)._replace(score=score))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (planted(0, rungs=3), "needs 4 budgets, and there are 3; .* needs 4 sizes and horizons, and there are 3"),
        (planted(0, rungs=1), "there is 1"),
        (planted(0)._replace(score=np.full(10, 1.2)), "1.2 is not within 0 and 1"),
        (planted(0)._replace(chance=1.0), "chance 1 and top 1"),
    ],
)
def test_what_tells_no_law_is_refused_in_a_line(table, said):
    with pytest.raises(UserError, match=said) as e:
        skill.laws(table)
    assert "\n" not in str(e.value)


def test_few_budgets_have_a_logistic_law_and_say_why_no_broken_one():
    told = skill.laws(planted(0, rungs=4))
    assert [law.form for law in told.fits["compute"]] == ["logistic"]
    assert any("broken law against compute needs 5 budgets" in why for why in told.refused)
    assert told.better == ""
    with pytest.raises(UserError, match=r"'brokn' is unknown \(nearest: 'broken'\)"):
        skill.fit(planted(0), "compute", "brokn")


def test_a_forecast_by_loss_is_less_sure_than_by_a_known_loss():
    told, x = skill.laws(planted(0, samples=4096)), loss(1e15)
    rng = np.random.default_rng(0)
    sure, unsure = (skill.ahead(told, 1e15, np.concatenate([[x], x * np.exp(s * rng.normal(size=1000))])) for s in (0.0, 0.05))
    form = told.fits["loss"][0].form
    assert np.ptp(unsure["loss"][form][2]) > 1.2 * np.ptp(sure["loss"][form][2])
    assert unsure["compute"] == sure["compute"]
    low, high = sure["compute"][told.fits["compute"][0].form][2]
    assert low <= truth(np.log(1e15)) <= high
    assert "loss" not in skill.ahead(told, 1e15, None)


def test_derivatives_are_those_of_the_curve():
    p, x = np.array([[0.3, 0.5, -0.4]]), np.linspace(-2, 3, 7)
    found = skill._angles(p, x, CHANCE, 0.98)[1][0]
    for i, step in enumerate(1e-6 * np.eye(3)):
        up, down = (skill.angles(p + s, x, CHANCE, 0.98)[0] for s in (step, -step))
        np.testing.assert_allclose(found[i], (up - down) / 2e-6, atol=1e-8)
