"""Collapse of training curves, planted and broken."""

import numpy as np
import pytest

from lab.laws.collapse import COLLAPSE, SCATTER, Run, band, binned, collapse, leaves

RUNGS, FLOOR = (32, 64, 128, 256), 0.5


def run(rung, seed, steps=400, bend=0.0, noise=0.01, own=0.002, floor=FLOOR, spike=None, shift=0.0):
    """Losses of a run: reducible loss falls as a power of progress, by less at larger rungs; all rungs of a seed share their batches' noise."""
    x = np.arange(0, steps, 4)
    progress = (x + 1) / steps
    size = np.log2(rung / 32)
    shape = (progress + 0.02) ** -(0.4 + bend * size) * (1 + shift * (progress > 0.6))
    shared = np.random.default_rng(seed).normal(size=len(x)) * noise + 0.05 * np.random.default_rng(100 + seed).normal()
    alone = own * np.random.default_rng([rung, seed]).normal(size=len(x))
    loss = floor + 0.4 * 2 ** (-0.3 * size) * shape * (1 + shared + alone)
    if spike is not None:
        loss[x >= spike] = np.nan
    return Run(rung, seed, x, loss, steps)


def runs(seeds=3, **more):
    return [run(r, s, steps=100 * r // 8, **more) for r in RUNGS for s in range(seeds)]


def test_curves_of_one_shape_collapse_whatever_their_length_and_level():
    found = collapse(runs(), floor=FLOOR)
    assert found.verdict == COLLAPSE
    assert found.spread < 0.01 < found.noise  # batches' noise cancels between rungs and not between seeds
    assert found.lasting < 0.3 * found.noise
    assert found.seeds == 3
    assert collapse(runs()).verdict == COLLAPSE  # with the floor looked for
    assert collapse(runs()).floor == pytest.approx(FLOOR, abs=0.1)


def test_curves_that_bend_differently_do_not_collapse_whatever_the_floor():
    broken = runs(bend=0.1)
    assert collapse(broken, floor=FLOOR).verdict == SCATTER
    assert collapse(broken).verdict == SCATTER
    assert collapse(broken).spread > 5 * collapse(runs()).spread


def test_a_wrong_floor_spoils_a_collapse():
    assert collapse(runs(), floor=0.0).spread > 5 * collapse(runs(), floor=FLOOR).spread


def test_one_seed_gives_a_spread_and_no_verdict_and_too_little_gives_nothing():
    one = collapse(runs(seeds=1), floor=FLOOR)
    assert one.verdict is None
    assert one.spread == pytest.approx(collapse(runs(), floor=FLOOR).spread, rel=0.5)
    assert collapse([run(32, s) for s in range(3)]) is None
    assert collapse([run(32, 0), run(64, 1)]) is None  # no seed at both
    assert collapse([run(r, 0, steps=16) for r in RUNGS]) is None


def test_losses_are_averaged_over_equal_parts_of_a_run():
    r = Run(1, 0, np.arange(0, 100, 5), np.arange(20.0), 100)
    np.testing.assert_allclose(binned(r, 4), [2, 7, 12, 17])
    np.testing.assert_allclose(binned(r._replace(last=200), 4), [4.5, 14.5, np.nan, np.nan])


def test_an_alarm_tells_from_which_step_a_run_leaves_the_band():
    within = band([r for r in runs() if r.rung < 256], FLOOR)
    for seed in range(10, 40):  # seeds the band has not seen
        assert leaves(within, run(256, seed, steps=3200)) is None
    for shift in (0.15, -0.15):
        at = leaves(within, run(256, 50, steps=3200, shift=shift))
        assert 0.55 * 3200 <= at <= 0.75 * 3200
    assert leaves(within, run(256, 50, steps=3200, bend=0.1)) is not None
    assert leaves(within, run(256, 50, steps=3200, spike=2000)) == pytest.approx(2000, abs=320)
    assert leaves(within, run(256, 50, steps=3200, spike=100)) == 100  # diverged while young


def test_an_alarm_needs_no_end_of_the_run():
    within = band([r for r in runs() if r.rung < 256], FLOOR)
    whole = run(256, 50, steps=3200, shift=0.2)
    early, late = (whole._replace(steps=whole.steps[:n], loss=whole.loss[:n]) for n in (400, 700))
    assert leaves(within, early) is None  # it had not left yet
    assert leaves(within, late) == leaves(within, whole)
    assert leaves(within, whole._replace(steps=whole.steps[:20], loss=whole.loss[:20])) is None  # too young to tell
