"""Arms fitted together: planted scales and exponents recovered and covered, and whether exponents may be shared told by an F-test."""

import numpy as np
import published
import pytest

from lab.errors import UserError
from lab.laws import fits, joint, points

BASE = published.HOFFMANN
WORTH = (1.5, 1.2)  # how many of the base's parameters, and of its examples, one of the arm's is worth


def pair(noise=3e-3, seed=0, exponents=BASE.exponents, floor=BASE.floor, sizes=5):
    """Points of a baseline and of an arm whose terms at x are the baseline's at worth x, or of exponents or a floor of its own."""
    middle = {k: np.exp(np.log(v).mean()) for k, v in published.isoflop(BASE).items()}
    scales = [
        s * (middle[v] * w) ** -e * middle[v] ** own
        for s, e, v, w, own in zip(BASE.scales, BASE.exponents, BASE.variables, WORTH, exponents, strict=True)
    ]
    arm = BASE._replace(scales=tuple(scales), exponents=tuple(exponents), floor=floor)
    rng, design = np.random.default_rng(seed), published.isoflop(BASE, 5, sizes)
    return [points.points(published.table(t, design, noise, rng)) for t in (BASE, arm)]


def test_planted_arms_are_recovered():
    found = joint.fit(pair(1e-9, seed=1), draws=20)
    assert found.one_floor
    assert found.one_exponents
    np.testing.assert_allclose(found.value[:, 0], BASE.floor, rtol=1e-4)
    np.testing.assert_allclose(found.value[:, 3:], [BASE.exponents] * 2, rtol=1e-4)
    assert [found.worth(1, i)[0] for i in (0, 1)] == pytest.approx(WORTH, rel=1e-3)
    assert found.worth(0, 0) == (1, (1, 1))


def test_arms_of_their_own_exponents_or_floor_are_told():
    other = (BASE.exponents[0] * 1.3, BASE.exponents[1])
    found = joint.fit(pair(1e-3, exponents=other))
    assert not found.one_exponents
    assert found.exponents < 1e-3
    assert found.interval(1, 3)[0] < other[0] < found.interval(1, 3)[1]
    apart = joint.fit(pair(1e-3, floor=BASE.floor * 0.8))
    assert not apart.one_floor
    assert apart.interval(1, 0)[1] < apart.interval(0, 0)[0]


def test_one_arm_alone_is_a_fit():
    """Nothing to share: the joint law of an arm and itself is that of the arm."""
    one = pair(3e-3)[0]
    alone, twice = fits.fit(one, draws=2), joint.fit([one, one], draws=20)
    np.testing.assert_allclose(twice.value, [alone.value] * 2, rtol=1e-5)
    assert twice.exponents == pytest.approx(1)


def test_sharing_narrows_what_an_arm_alone_tells():
    arms = pair(3e-3)
    alone, shared = fits.fit(arms[1]).interval(3), joint.fit(arms).interval(1, 3)
    assert np.ptp(shared) < 0.95 * np.ptp(alone)


def test_a_known_floor_is_kept():
    found = joint.fit(pair(), floor=BASE.floor)
    assert (found.draws[..., 0] == BASE.floor).all()
    assert found.floors == 1


def test_arms_that_tell_no_law_are_refused():
    base, arm = pair()
    with pytest.raises(UserError, match="from two on, and there is 1"):
        joint.fit([base])
    with pytest.raises(UserError, match="has 5 parameters, and there are 5 points"):
        joint.fit([base, arm.take(np.arange(25) % 6 == 0)])


def covered(sims, noise=3e-3):
    """Shares of simulations whose 90% intervals have the planted values, and of those that found sharing refuted, by chance."""
    hits, refuted = [], []
    for s in range(sims):
        found = joint.fit(pair(noise, s), draws=400)
        refuted.append([not found.one_floor, not found.one_exponents])
        if found.one_floor and found.one_exponents:
            spans = [found.interval(0, 0), *(found.interval(1, 3 + i) for i in (0, 1)), *(found.worth(1, i)[1] for i in (0, 1))]
            hits.append([low <= w <= high for (low, high), w in zip(spans, (BASE.floor, *BASE.exponents, *WORTH), strict=True)])
    return np.mean(hits, 0), np.mean(refuted, 0)


def test_joint_laws_cover_in_a_few_simulations():
    at, refuted = covered(25)
    assert at.min() > 0.7
    assert refuted.max() < 0.25


@pytest.mark.slow
def test_joint_laws_cover():
    at, refuted = covered(400)
    print("floor, exponents, worths: " + ", ".join(f"{v:.1%}" for v in at) + "; refuted " + ", ".join(f"{v:.1%}" for v in refuted))
    assert all(0.835 <= v <= 0.965 for v in at)
    assert all(v < 0.085 for v in refuted)
