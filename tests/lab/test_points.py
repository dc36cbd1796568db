"""The points of a search, from planted records: the best, its ties, what matters, what is stopped; carried to a big run."""

import re

import numpy as np
import planted
import pytest

from lab import cli, points, record, report, search, target, transfer
from lab.errors import UserError
from lab.experiment import load
from lab.laws.transfer import DRIFTS

SPACE = {"optim.lr": search.log(2**-10, 2**-2), "optim.b2": search.linear(0.8, 0.999)}


def height(point):
    """Loss of a point without noise: only the learning rate matters."""
    return 1 + 0.02 * (np.log2(point["optim.lr"]) + 6) ** 2


def study(folder, n=24, seeds=(0,), noise=0.0, stopped=lambda p: False, diverged=lambda p: False):
    """A planted search of `n` points at one size, of which some were stopped at step 12 of 40 or diverged."""
    trials, rows, rng = {}, {0: [], 1: []}, np.random.default_rng(0)
    level = {s: noise * rng.normal() for s in seeds}
    members, gone = {0: [], 1: []}, []
    for j, point in enumerate(search.random(SPACE, n)):
        for seed in seeds:
            i = f"{j}-{seed}"
            trials[i] = {"arm": "mup", "seed": seed, "steps": 40, "point": point | {"seed": seed}, "population": "rung1"}
            every = planted._rows(i, "mup", seed, 1e9, None if diverged(point) else height(point) + level[seed] + noise * rng.normal())
            early = [dict(r) for r in every if r["step"] <= 12]
            early[-1] |= {"eval_loss": height(point) + 1, "eval_ema": height(point) + 1, "diverged": diverged(point)}
            early[-1].pop("loss")  # a rung ends with an evaluation
            if diverged(point):
                early[-1] |= {"eval_loss": None, "eval_ema": None}
            members[0].append(i)
            rows[0] += early
            if diverged(point) or stopped(point):
                gone += [i] * diverged(point)
                trials[i] |= {"population": "rung0"} | ({} if diverged(point) else {"stopped": 12})
            else:
                members[1].append(i)
                rows[1] += [r for r in every if r["step"] >= 12]
    pops = {}
    for r in (0, 1):
        about = {"bracket": "b", "marks": [12], "keep": 0.5, "rung": r}
        pops[f"rung{r}"] = {"trials": members[r], "chunk": len(members[r]), "halving": about}
        planted._population(folder / f"rung{r}", rows[r], members[r], gone if r == 0 else [], 1000)
    about = {"schema": record.SCHEMA, "name": "planted", "question": "Which is best?", "experiment": "", "config": planted.CONFIG}
    about |= {"trials": trials, "populations": pops, "swept": [*SPACE, "seed"], "versions": {}, "data": planted.DATA}
    record.write_json(folder / "study.json", about)
    return folder


STOPPED, GONE = (lambda p: p["optim.lr"] < 2**-8), (lambda p: p["optim.lr"] > 2**-3)


@pytest.fixture(scope="module")
def halved(tmp_path_factory):
    """A planted search in which small learning rates were stopped and large ones diverged."""
    return study(tmp_path_factory.mktemp("halved"), 32, (0, 1), 1e-3, STOPPED, GONE)


def test_stopped_is_a_state_of_its_own(halved, capsys):
    drawn = search.random(SPACE, 32)
    n = {"stopped": 2 * sum(map(STOPPED, drawn)), "diverged": 2 * sum(map(GONE, drawn))}
    states = list(record.status(halved).values())
    assert {s: states.count(s) for s in n} == n
    assert states.count("done") == 64 - sum(n.values())
    assert record.finals(halved).num_rows == states.count("done")
    assert record.ends(halved).num_rows == 64
    keys = [(r["trial"], r["step"]) for r in record.table(halved).to_pylist()]
    assert len(keys) == len(set(keys))
    assert cli.main(["status", str(halved)]) == 0
    assert re.search(rf"stopped.*all.*{n['stopped']}", capsys.readouterr().out, re.DOTALL)


def test_a_row_that_two_rungs_wrote_holds_what_both_say(halved):
    done = next(i for i, s in record.status(halved).items() if s == "done")
    row = next(r for r in record.table(halved).to_pylist() if (r["trial"], r["step"]) == (done, 12))
    assert row["eval_loss"] > 2
    assert row["loss"] == pytest.approx(2.0 - 0.02 * 12)
    assert row["population"] == "rung1"


def test_the_best_is_the_planted_one_and_never_a_stopped_one(halved):
    found = points.read(halved)
    best = points.best(found, "mup")
    assert best.point.values == min(search.random(SPACE, 32), key=height)
    assert best.interval[0] < best.point.loss < best.interval[1]
    assert all(p.state == "done" for p in best.tied)
    order = [("done", "stopped", "diverged").index(p.state) for p in found.points]
    assert order == sorted(order)
    assert all(r["state"] == "done" for r in found.trials if np.isfinite(r["loss"]))


def test_only_the_key_that_matters_explains_the_ranks(halved):
    told = points.importance(points.read(halved), "mup")
    assert told["optim.lr"][0] > 0.7
    assert told["optim.b2"][0] < 0.2
    assert all(low <= share <= high or share == 0 for share, low, high in told.values())


def drawn(rng, true, seeds, noise):
    """A Search of points whose true losses are known, all finished, with levels of seeds and noise."""
    level = rng.normal(size=seeds) * 5 * noise
    made = [
        points.Point("mup", {"k": i}, "done", 40, {s: m + level[s] + noise * rng.normal() for s in range(seeds)})
        for i, m in enumerate(true)
    ]
    return points.Search({}, "loss", ("k",), [], made)


@pytest.mark.parametrize("seeds", [2, 4])
def test_what_cannot_be_told_apart_holds_the_truly_best(seeds):
    rng, held, apart = np.random.default_rng(seeds), 0, []
    for _ in range(200):
        true = np.array([1.0, *(1.0 + rng.exponential(0.02, 15))])
        best = points.best(drawn(rng, true, seeds, 0.004), "mup")
        held += 0 in [best.point.values["k"], *(p.values["k"] for p in best.tied)]
        apart.append(15 - len(best.tied))
    assert held >= 180  # at LEVEL of 90%
    assert np.mean(apart) > 5  # and not by calling everything a tie


def test_without_noise_nothing_ties_and_one_seed_has_no_interval():
    rng = np.random.default_rng(0)
    assert points.best(drawn(rng, [1.0, 1.1, 1.2], 3, 1e-9), "mup").tied == []
    alone = points.best(drawn(rng, [1.0, 1.1, 1.2], 1, 1e-3), "mup")
    assert (alone.interval, alone.tied) == (None, None)
    assert points.best(drawn(rng, [], 1, 1e-3), "mup") is None


def test_more_seeds_of_the_best_are_compared_among_themselves():
    made = [points.Point("mup", {"k": i}, "done", 40, {0: 1 + i / 100}) for i in range(9)]
    made[1] = made[1]._replace(losses={0: 1.01, 1: 1.50, 2: 1.49})  # levels of seeds differ, and would hide it beside those of one
    made[2] = made[2]._replace(losses={0: 1.02, 1: 1.58, 2: 1.62})
    best = points.best(points.Search({}, "loss", ("k",), [], made), "mup")
    assert best.point.values == {"k": 1}
    assert best.compared == 2


def test_the_report_of_a_search(halved, tmp_path):
    page = report.report(halved, tmp_path).read_text()
    assert "<h2>The best 10 points" in page
    assert (tmp_path / "figures" / "search.png").stat().st_size > 5000
    first = (tmp_path / "tables" / "search.csv").read_text().splitlines()[1]
    assert first.endswith(",2,best")
    assert "Halving stopped" in report.headline(report.find(halved))
    assert "loss_against_rate" not in page


def test_a_grid_is_no_search(tmp_path):
    about = record.read_study(planted.study(tmp_path, widths=(32,), drift={"mup": 0.0}, seeds=(0, 1)))
    assert points.searched(about) == ("optim.lr",)
    assert not points.is_search(about)


def test_the_best_is_carried_by_rule_and_its_cost_is_what_was_taken(halved, tmp_path):
    found, asked = points.read(halved), []

    def size(config):
        asked.append(config)
        return 5e6, 8000

    said = target.carry(found, {"model.width": 64, "train.steps": 100}, "", tmp_path / "big.py", size)
    best = points.best(found, "mup").point.values
    assert asked[0]["optim"]["lr"] == best["optim.lr"]
    assert asked[0]["optim"]["b2"] == best["optim.b2"]
    states = record.status(halved)
    took = sum(1e9 if s == "done" else 1e9 * 12 / 40 for s in states.values())
    assert float(re.search(r"([\d.]+)% of the big run's FLOPs", said)[1]) == pytest.approx(100 * took / (5e6 * 1600), abs=0.01)
    for told in (
        "optim.lr = ",
        "optim.b2 = ",
        "no rule moves it with size",
        "cannot be told apart",
        "no rule of `transfer` moves it with train.steps",
    ):
        assert told in said, told
    text = (tmp_path / "big.py").read_text()
    assert f"lr={best['optim.lr']!r}" in text
    assert "halving" not in text
    with pytest.raises(UserError, match="--arm"):
        target.carry(found, {"model.width": 64}, "standard", tmp_path / "big.py", size)


def test_where_the_data_is_not_at_hand_the_cost_says_so(halved, tmp_path):
    def size(config):
        raise UserError("no data")

    said = target.carry(points.read(halved), {"model.width": 64}, "", tmp_path / "big.py", size)
    assert "is not known here (no data)" in said


def test_an_experiment_of_a_search_loads_and_grows(tmp_path):
    path = tmp_path / "tuning.py"
    text = (planted.Path(__file__).resolve().parents[2] / "experiments" / "tuning.py").read_text()
    path.write_text(text)
    experiment = load(str(path))
    assert len(experiment.points) >= 64
    assert experiment.config.run.halving["at"]


def test_stopped_values_are_in_no_curve_of_a_ladder_and_hold_nothing_up(tmp_path):
    folder = planted.study(tmp_path, {"mup": -3.0}, seeds=(0, 1), noise=0.05)
    about = record.read_study(folder)
    stopped = [t for t in about["trials"].values() if t["point"]["optim.lr"] in (2.0**-11, 2.0**-4)]
    for t in stopped:
        t["stopped"] = 12
    record.write_json(folder / "study.json", about)
    told = transfer.read(folder)
    curve = told.ladder.curves["mup"]
    assert sorted(set(curve["log2"])) == list(range(-10, -4))
    assert np.isfinite(curve["loss"]).all()  # and they are not taken for diverged
    assert told.transfers["mup"][0].verdict == DRIFTS
    rows = [r for r in told.ladder.trials if r["state"] == "stopped"]
    assert len(rows) == len(stopped) == 16
    assert sum(r["flops"] for r in rows) == pytest.approx(4 * sum(planted.flops(w) for w in planted.WIDTHS) * 12 / 40)
    assert np.isnan([r["loss"] for r in rows]).all()
    assert "Halving stopped 16 of 64 trials" in report.headline(report.find(folder))
