"""Judges beside the training: what fails costs a verdict and no more, dead trials are not judged, one judging at a time."""

import threading

import mistakes
import numpy as np
import pytest

from lab.data.shapes import Source as Shapes
from lab.errors import UserError
from lab.evals.subject import open_judges
from lab.judging import Judging


class Painter:
    """Draws what it is told, and counts how often."""

    objective = None

    def __init__(self):
        self.drawn = 0

    def samples(self, params, cond):
        self.drawn += 1
        return {"image": np.stack([np.full((len(cond["label"]), 2, 2, 1), p) for p in np.asarray(params)])}

    def errors(self, params, key, batches):
        raise UserError("no errors here")


class Labels:
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return {"label": i}


def judging(judges, trials=3, **more):
    return Judging(judges, {"every": 2, "n": 6}, Painter(), Labels(), (None, None), trials, **more)


def mean(subject):
    return {"mean": float(subject.samples["image"].mean()), "mean_labels": float(len(subject.samples["label"]))}


def broken(subject):
    return {"broken": 1 / 0}


def rows(j, alive=(True, True, True)):
    j.judge(2, np.array([1.0, 2.0, 3.0, 3.0]), np.array([*alive, True]))  # the last is the padding of a round
    ((step, values),) = j.rows(wait=True)
    j.close()
    assert step == 2
    return values


def test_every_trial_alive_is_judged_on_one_drawing():
    j = judging({"mean": mean})
    values = rows(j, alive=(True, False, True))
    np.testing.assert_equal(values["mean"], [1.0, np.nan, 3.0])
    np.testing.assert_equal(values["mean_labels"], [6.0, np.nan, 6.0])
    np.testing.assert_equal(values["diverged"], [False, True, False])
    assert j._painter.drawn == 1


def test_what_a_judge_asks_for_is_drawn_once_for_all_trials():
    mine, other = {"label": np.zeros(5, np.int32)}, {"label": np.zeros(2, np.int32)}

    def asks(subject):
        return {"asks": float(subject.draw(mine)["image"].mean()), "asks_n": float(len(subject.draw(other)["image"]))}

    j = judging({"asks": asks})
    values = rows(j)
    np.testing.assert_equal(values["asks"], [1.0, 2.0, 3.0])
    np.testing.assert_equal(values["asks_n"], [2.0, 2.0, 2.0])
    assert j._painter.drawn == 2


@pytest.mark.parametrize("judge, said", [(broken, "ZeroDivisionError"), (lambda s: {"loss": 1.0}, "'loss' does not begin with 'other'")])
def test_a_judge_that_fails_leaves_the_others_and_says_so_once(capsys, judge, said):
    values = rows(judging({"other": judge, "mean": mean}))
    assert set(values) == {"mean", "mean_labels", "diverged"}
    assert capsys.readouterr().err.count(said) == 1
    with pytest.raises(UserError, match="judge other: "):
        rows(judging({"other": judge}, strict=True))


def test_an_objective_without_errors_is_told(capsys):
    values = rows(judging({"spectrum": lambda s: {"spectrum": s.errors["t"]}}))
    assert set(values) == {"diverged"}
    assert "no errors here" in capsys.readouterr().err


def test_a_second_judging_waits_for_the_first():
    begun, go = threading.Event(), threading.Event()

    def slow(subject):
        begun.set()
        assert go.wait(30)
        return {"slow": 1.0}

    j = judging({"slow": slow}, trials=1)
    j.judge(2, np.array([1.0]), np.array([True]))
    assert begun.wait(30)
    assert j.rows() == []
    second = threading.Thread(target=j.judge, args=(4, np.array([1.0]), np.array([True])))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    go.set()
    second.join(30)
    assert [step for step, _ in j.rows(wait=True)] == [2, 4]
    j.close()


@pytest.mark.parametrize("step, due", [(0, False), (1, False), (2, True), (4, True), (5, True)])
def test_when_trials_are_judged(step, due):
    assert judging({"mean": mean}).due(step, 5) == due
    assert not judging({}).due(step, 5)


@pytest.mark.parametrize(
    "names, options, said",
    [
        (("orcle",), {}, "judge name 'orcle' is unknown (nearest: 'oracle')"),
        (("distances",), {}, "judge name 'distances' is unknown (nearest: 'distance')"),
        (("oracle",), {"orcle": {}}, "judge.options 'orcle' is unknown (nearest: 'oracle')"),
        (("oracle",), {"oracle": 4}, "judge.options.oracle=4 must be a section"),
        (("oracle",), {"oracle": {"ceilin": 4}}, "judge.options.oracle 'ceilin' is unknown (nearest: 'ceiling')"),
        (("oracle",), {"oracle": {"ceiling": 0}}, "judge.options.oracle.ceiling=0"),
    ],
)
def test_bad_judges_are_one_line(names, options, said):
    assert said in mistakes.said(open_judges, {"names": names, "options": options}, Shapes("eval", ""), None)
