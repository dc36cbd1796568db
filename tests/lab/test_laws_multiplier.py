"""Compute multipliers: planted ones recovered, none found where there is none, trends told, floors that differ refused."""

import numpy as np
import published
import pytest

from lab.errors import UserError
from lab.laws import points
from lab.laws.multiplier import CROSSES, FADES, GROWS, HOLDS, Multiplier, common, multiplier

LAW = published.COMPUTE["GIDD masked"]


def pair(k=1.0, trend=0.0, noise=1e-3, seed=0, rungs=8, shared=0.0, floor=LAW.floor):
    """Points of a baseline and of an arm that needs k (C / middle)^trend times fewer FLOPs; `shared` is the correlation of their noise."""
    rng, flops = np.random.default_rng(seed), np.geomspace(LAW.low, LAW.high, rungs)
    a, b = rng.normal(size=(2, rungs))
    b = shared * a + np.sqrt(1 - shared**2) * b
    middle = np.sqrt(LAW.low * LAW.high)
    loss = LAW(flops=flops), LAW(flops=flops) - LAW.floor + floor
    own = flops / (k * (flops / middle) ** trend)  # where the arm has the baseline's losses
    tables = {"flops": flops, "loss": loss[0] * np.exp(noise * a)}, {"flops": own, "loss": loss[1] * np.exp(noise * b)}
    return [points.points(t) for t in tables]


@pytest.mark.parametrize("k", [0.25, 1.0, 1.5, 4.0])
def test_a_planted_multiplier_is_recovered(k):
    found = multiplier(*pair(k, noise=1e-9), draws=50)
    for flops in (found.low, found.high, 10 * found.high):
        assert found.at(flops)[0] == pytest.approx(k, rel=1e-4)
    assert found.trend[0] == pytest.approx(0, abs=1e-4)
    assert found.verdict == HOLDS


def test_a_trend_is_told_with_where_it_vanishes():
    middle = np.sqrt(LAW.low * LAW.high)
    for trend, verdict in ((-0.15, FADES), (0.15, GROWS)):
        found = multiplier(*pair(3.0, trend, noise=1e-5))
        assert found.verdict == verdict
        assert found.trend[0] == pytest.approx(trend, abs=0.02)
        assert found.at(middle)[0] == pytest.approx(3.0, rel=0.05)
        gone = middle * 3.0 ** (1 / 0.15)
        assert np.isnan(found.vanishes) if trend > 0 else np.log10(found.vanishes) == pytest.approx(np.log10(gone), abs=0.5)
    assert multiplier(*pair(1 / 3.0, -0.15, noise=1e-5)).verdict == GROWS  # further from 1 with scale, to the worse


@pytest.mark.parametrize("trend", [-0.06, 0.06, -0.2])
def test_one_that_crosses_1_is_none_that_holds(trend):
    found = multiplier(*pair(1.0, trend, noise=1e-4))
    assert found.verdict == CROSSES
    assert np.log10(found.crosses) == pytest.approx(np.log10(np.sqrt(LAW.low * LAW.high)), abs=0.3)
    assert multiplier(*pair(1.0, noise=1e-3)).verdict != CROSSES
    assert np.isnan(multiplier(*pair(3.0, trend, noise=1e-4)).crosses)


def test_one_that_hardly_moves_vanishes_nowhere():
    law = np.array([0.0, 1.0, 0.9, 0.3, 0.3 * (1 - 1e-5)])  # k falls as C^-1e-5
    found = Multiplier(law, law[None], 0.0, 1.0, 10.0, 1.0, 0.0, False)
    assert found.trend[0] * np.log(found.at(10.0)[0]) < 0
    assert found.vanishes == np.inf


def test_shared_noise_narrows_the_interval():
    one = pair(2.0, noise=2e-3, seed=1, shared=0.9)
    alone, paired = (multiplier(*one, shared=shared).at(LAW.high)[1] for shared in (0.0, 0.9))
    assert np.ptp(np.log(paired)) < 0.6 * np.ptp(np.log(alone))
    assert paired[0] < 2.0 < paired[1]


def test_floors_of_their_own_are_refused():
    with pytest.raises(UserError, match="floors of their own"):
        multiplier(*pair(2.0, noise=1e-5, floor=LAW.floor * 0.98))


def test_arms_that_tell_no_law_or_count_otherwise_are_refused():
    base, arm = pair()
    with pytest.raises(UserError, match="arm: L\\(C\\) needs 4 values"):
        multiplier(base, arm.take(np.arange(8) < 3))
    with pytest.raises(UserError, match="two conventions"):
        multiplier(base._replace(convention="6ND"), arm)


def test_noise_that_seeds_share_is_measured():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 200, 3))
    assert common(a, 0.8 * a + 0.6 * b) == pytest.approx(0.8, abs=0.06)
    assert common(a, b) < 0.1
    assert common(a[:, :2], a[:, :2]) == 0.0


def from_one_model(trend=0.06, noise=2e-3, seed=0, rungs=8):
    """A baseline and an arm that is the same model at the smallest rung, so the same runs, and needs (C / smallest)^trend times fewer FLOPs."""
    rng, flops = np.random.default_rng(seed), np.geomspace(LAW.low, LAW.high, rungs)
    loss = LAW(flops=flops) * np.exp(noise * rng.normal(size=rungs))
    own = LAW(flops=flops * (flops / LAW.low) ** trend) * np.exp(noise * rng.normal(size=rungs))  # what the arm has at the same FLOPs
    own[0] = loss[0]
    return [points.points({"flops": flops, "loss": v}) for v in (loss, own)]


def test_arms_that_are_one_model_at_the_base_have_k_of_one_there():
    base, arm = from_one_model()
    found = multiplier(base, arm)
    assert found.one
    assert found.at(LAW.low) == (1.0, (1.0, 1.0))
    assert found.at(LAW.high)[0] > 1
    other = multiplier(base, arm._replace(loss=arm.loss * (1 + 1e-9)))  # by chance alike, and not the same runs
    assert not other.one
    assert np.ptp(other.at(LAW.low)[1]) > 0.01
    alike = multiplier(base, base)
    assert alike.at(LAW.high)[0] == pytest.approx(1, abs=1e-6)


def covered_from_one_model(sims):
    """Share of simulations whose 90% interval at the largest budget has the planted k, where both arms are one model at the smallest."""
    hits = []
    for s in range(sims):
        base, arm = from_one_model(seed=s)
        found = multiplier(base, arm, LAW.floor, draws=400)
        # the arm has at C the baseline's loss at C (C / low)^trend; of the baseline's FLOPs k is that to the power trend / (1 + trend)
        wanted = (LAW.high / LAW.low) ** (0.06 / 1.06)
        low, high = found.at(LAW.high)[1]
        hits.append(low <= wanted <= high)
    return np.mean(hits)


def test_a_multiplier_from_one_model_covers_in_a_few_simulations():
    assert covered_from_one_model(40) > 0.75


@pytest.mark.slow
def test_a_multiplier_from_one_model_covers():
    found = covered_from_one_model(400)
    print(f"from one model: k {found:.1%}")
    assert 0.835 <= found <= 0.965


def covered(sims, k, **more):
    """Share of simulations whose 90% interval at the largest budget has the planted k, and whose trend's has zero."""
    hits = []
    shared = more.get("shared", 0.0)
    floor = more.pop("known", None)
    for s in range(sims):
        try:
            found = multiplier(*pair(k, seed=s, noise=2e-3, **more), floor=floor, shared=shared, draws=400)
        except UserError:  # floors told apart by chance, in one of twenty
            continue
        low, high = found.at(found.high)[1]
        hits.append([low <= k <= high, found.trend[1][0] <= 0 <= found.trend[1][1]])
    return [*np.mean(hits, 0), len(hits) / sims]


@pytest.mark.slow
@pytest.mark.parametrize("k, more", [(1.0, {}), (2.0, {}), (2.0, {"known": LAW.floor}), (1.0, {"known": LAW.floor, "shared": 0.8})])
def test_multipliers_cover_and_null_arms_give_one(k, more):
    at, trend, told = covered(400, k, **more)
    print(f"k {k:g} {more}: k {at:.1%}, trend {trend:.1%}, told {told:.1%}")
    assert 0.835 <= at <= 0.965
    assert 0.835 <= trend <= 0.965
    assert told > 0.92


def test_multipliers_cover_in_a_few_simulations():
    at, trend, told = covered(25, 1.0, known=LAW.floor)
    assert min(at, trend) > 0.7
    assert told == 1
