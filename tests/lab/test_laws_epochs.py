"""What repeated examples are worth: planted, recovered with the interval that is told, and not found where repeats count as new."""

import numpy as np
import published
import pytest

from lab.errors import UserError
from lab.laws import epochs, fits, points

TRUTH, R = published.BESIROGLU, 3.0
DESIGN = published.isoflop(TRUTH, 5, 6, 4.0)
UNIQUE = np.full(len(DESIGN["params"]), np.quantile(DESIGN["examples"], 0.9) / 20)  # up to 20 epochs and more


def worth(examples, unique, s):
    return np.exp(epochs.worth(np.atleast_1d(examples), np.atleast_1d(unique), np.array([s]))[0][0])


def study(noise, seed=0, s=1 / R):
    unique = np.minimum(UNIQUE, DESIGN["examples"])
    loss = TRUTH(params=DESIGN["params"], examples=worth(DESIGN["examples"], unique, s))
    return points.points({**DESIGN, "unique": unique, "loss": loss * np.exp(noise * np.random.default_rng(seed).normal(size=len(loss)))})


def test_a_repeated_example_is_new_at_first_and_worth_nothing_at_last():
    assert worth(50.0, 100.0, 0.5) == pytest.approx(50)
    assert worth(300.0, 100.0, 0.0) == pytest.approx(300)
    assert worth(300.0, 100.0, 1 / 15.4) == pytest.approx(100 + 100 * 15.4 * (1 - np.exp(-2 / 15.4)))  # the paper's R
    assert worth(1e9, 100.0, 0.25) == pytest.approx(500)
    z, by_s = epochs.worth(np.array([300.0, 5000.0]), np.array([100.0, 100.0]), np.array([0.3]))
    up = epochs.worth(np.array([300.0, 5000.0]), np.array([100.0, 100.0]), np.array([0.3 + 1e-6]))[0]
    np.testing.assert_allclose(by_s, (up - z) / 1e-6, rtol=1e-4)


def test_what_is_planted_is_found_without_noise():
    found = epochs.fit(study(0.0), draws=2)
    assert 1 / found.value[5] == pytest.approx(R, rel=1e-3)
    np.testing.assert_allclose(found.value[3:5], TRUTH.exponents, rtol=1e-3)
    assert found.p < 1e-6


def covered(sims, noise=3e-3, s=1 / R):
    """Shares of simulations whose interval has R, and in which repeats that count as new are refuted."""
    told = [epochs.fit(study(noise, i, s), draws=200) for i in range(sims)]
    spans = [fits.span(t.draws[:, 5]) for t in told]
    return np.mean([low <= s <= high for low, high in spans]), np.mean([t.p < 0.05 for t in told])


def test_its_interval_has_the_truth_about_as_often_as_it_says():
    inside, refuted = covered(40)
    assert 0.75 <= inside <= 1
    assert refuted > 0.9


def test_repeats_that_count_as_new_are_not_refuted():
    assert covered(40, s=0.0)[1] <= 0.15


@pytest.mark.slow  # its smaller siblings are above
def test_intervals_cover_over_300_simulations():
    inside, refuted = covered(300)
    none = covered(300, s=0.0)[1]
    print(f"R in {inside:.1%}, refuted in {refuted:.1%}; of repeats that count as new refuted in {none:.1%}")
    assert 0.85 <= inside <= 0.95
    assert none <= 0.1


def test_it_removes_the_bias_of_repeats_that_count_as_new():
    """A forecast of a larger run on as much new data as it sees: the plain law takes repeats for evidence that data is worth little."""
    p, at = study(1e-3), {"params": 4e9, "examples": 1e11}
    want = float(TRUTH(**at))
    plain = float(fits.fit(p, draws=2).loss(**at)[0])
    ours = float(epochs.fit(p, draws=2).losses(**at, unique=1e11)[0])
    assert abs(ours / want - 1) < 0.01
    assert abs(plain / want - 1) > 3 * abs(ours / want - 1)


def test_points_that_hardly_repeat_are_refused():
    p = study(1e-3)
    with pytest.raises(UserError, match="examples repeat 2 times or more in 0 sizes"):
        epochs.fit(p._replace(unique=p.examples))
    with pytest.raises(UserError, match="repeats are worth needs 6"):
        epochs.fit(p._replace(unique=np.full(len(p.loss), np.nan)))
