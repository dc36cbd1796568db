"""Successive halving and rounds by `lab run`: survivors are what they would have been, resumed as well; what is stopped is never done."""

import math
import re
import shutil
import signal

import jax
import pyarrow.compute as pc
import pytest
from test_study import LINEAR, TESTS, mistake, process, reached, run

from lab import cli, halving, population, record, study
from lab.experiment import load
from lab.population import Interrupt, Preempted

TEXT = '''"""Which learning rate is best?"""
from ml_collections import ConfigDict
def get_config():
    c = ConfigDict()
    c.model = dict({model})
    c.base = dict(width=32)
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    c.data = dict(name={source!r}, n=128)
    c.train = dict(steps={steps}, batch=16, log_every=1)
    c.eval = dict(examples=32, batch=16, every=10)
    c.sample = dict(n=2, options=dict(steps=2, guidance=2.0, method="euler"))
    c.run = dict(checkpoint_seconds={seconds}, chunk=5, halving=dict(at=(0.25, 0.5), keep=0.5))
    return c
{sweep}
'''
EIGHT = """def sweep():
    for k in {rates}:
        for seed in {seeds}:
            yield {{"optim.lr": 2.0**k, "seed": seed}}
"""
RATES = (-12, -11, -10, -9, -8, -6, -5, 12)  # the last one diverges


def experiment(folder, sweep=None, steps=24, seconds=60.0, rates=RATES, seeds=(0,), model=LINEAR):
    path = folder / "tiny.py"
    sweep = sweep or EIGHT.format(rates=rates, seeds=seeds)
    path.write_text(TEXT.format(source=str(TESTS / "waves.py"), model=model, steps=steps, seconds=seconds, sweep=sweep))
    return path


WHOLE = "--config.run.halving.at=()"


def train(path, workdir, *overrides):
    """The folder of the study, trained as by `lab run`, without a report."""
    with Interrupt() as interrupt:
        return study.Study(load(str(path), overrides), workdir / "tiny").run(interrupt)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folders of one study, halved and whole."""
    folder = tmp_path_factory.mktemp("pair")
    assert run(experiment(folder), folder / "halved") == 0
    return folder / "halved" / "tiny", train(experiment(folder), folder / "whole", WHOLE, "--config.run.chunk=8")


def states(folder):
    """{log2 of the learning rate: state}."""
    told = record.read_study(folder)["trials"]
    return {round(math.log2(told[i]["point"]["optim.lr"])): s for i, s in record.status(folder).items()}


def rows(folder, metric, step):
    """{log2 of the learning rate: value} at a step."""
    found = [r for r in record.table(folder).to_pylist() if r["step"] == step]
    return {round(math.log2(r["optim.lr"])): r[metric] for r in found}


def test_what_is_kept_is_the_best_at_each_mark_and_the_rest_is_stopped(pair):
    halved, _ = pair
    first = rows(halved, "eval_loss", 6)
    assert len(first) == 8
    assert first.pop(12) is None  # diverged before the mark
    kept = sorted(first, key=first.get)[:4]
    second = {k: v for k, v in rows(halved, "eval_loss", 12).items() if k in kept}
    best = sorted(second, key=second.get)[:2]
    assert states(halved) == {k: "diverged" if k == 12 else "done" if k in best else "stopped" for k in RATES}
    told = record.read_study(halved)
    assert sorted(t["stopped"] for t in told["trials"].values() if "stopped" in t) == [6] * 3 + [12] * 2
    assert not list(halved.glob("*/checkpoints"))


def test_a_survivor_is_bitwise_what_it_would_have_been(pair):
    """Where each core has several trials to take in turn, whichever and however many; XLA makes another program of one alone, which rounds otherwise.

    All that is added is the evaluation at a mark.
    """
    halved, whole = (record.results(f).to_pylist() for f in pair)
    there = {(r["trial"], r["step"]): r for r in whole}
    assert len({(r["trial"], r["step"]) for r in halved}) == len(halved)
    compared = {True: 0, False: 0}
    for r in halved:
        other, alone = there[r["trial"], r["step"]], r["population"].endswith("rung2")  # two trials on two cores
        for k in ("loss", "grad_norm", "eval_loss", "eval_ema", "flops", "examples", "diverged"):
            assert (r[k] is None) == (other[k] is None) or r["step"] in (6, 12), (k, r, other)
            if r[k] is not None and other[k] is not None:
                assert r[k] == (pytest.approx(other[k], rel=1e-5) if alone else other[k]), (k, r, other)
                compared[alone] += 1
    assert min(compared.values()) > 100
    assert record.finals(pair[0]).num_rows == 2


def test_flops_are_those_of_the_formula(pair):
    halved, whole = (record.ends(f) for f in pair)
    each = pc.max(whole["flops"]).as_py() / 24
    assert pc.sum(halved["flops"]).as_py() == pytest.approx(each * (8 * 6 + 4 * 6 + 2 * 12), rel=1e-9)
    loaded = load(str(experiment(pair[0].parent)))
    config = loaded.config.to_dict()
    assert study.Study(loaded).left() == pytest.approx(0.5)
    assert halving.halved(8, config) == pytest.approx((8 * 6 + 4 * 6 + 2 * 12) / (8 * 24))
    assert halving.halved(8, {**config, "run": {"halving": {"at": (), "keep": 0.5}}}) == 1.0


class Soon(Interrupt):
    """An interrupt that is asked for after five steps."""

    def __enter__(self):
        self.left = 5
        return self

    @property
    def asked(self):
        self.left -= 1
        return self.left <= 0

    def __exit__(self, *exc):
        pass


def in_parts(path, folder, *overrides):
    """Train a study, interrupted every five steps; how often."""
    for attempts in range(20):
        try:
            with Soon() as soon:
                study.Study(load(str(path), overrides), folder).run(soon)
            return attempts
        except Preempted:
            continue
    raise AssertionError("it never ends")


@pytest.mark.slow
def test_a_stopped_study_goes_on_with_the_same_records(pair, tmp_path):
    """Interrupted within every population and at a mark."""
    folder = tmp_path / "parts" / "tiny"
    assert in_parts(experiment(tmp_path), folder) >= 5
    assert record.results(folder).equals(record.results(pair[0]))
    assert record.status(folder) == record.status(pair[0])


def test_a_study_cut_off_at_a_mark_goes_on_with_the_same_records(pair, tmp_path, monkeypatch):
    """Dead before the best are told, then after they have trained and before that is saved: they begin again from the mark."""

    class Cut(Exception):
        pass

    def cut(*_, **__):
        raise Cut

    path, folder = experiment(tmp_path), tmp_path / "tiny"
    with monkeypatch.context() as m:
        m.setattr(study.Study, "_promote", cut)
        with pytest.raises(Cut):
            train(path, tmp_path)
    assert set(record.status(folder).values()) == {"interrupted", "diverged"}
    with monkeypatch.context() as m:
        m.setattr(population.Checkpoints, "save", cut)
        with pytest.raises(Cut):
            train(path, tmp_path)
    assert sorted(record.status(folder).values()) == ["diverged"] + ["interrupted"] * 4 + ["stopped"] * 3
    assert record.results(train(path, tmp_path)).equals(record.results(pair[0]))


@pytest.mark.slow
def test_a_killed_study_goes_on_with_the_same_records(tmp_path):
    """SIGKILL in the first rung and in the second, SIGTERM in the third; compiled as for a user."""
    path, folder = experiment(tmp_path, steps=240, seconds=0.2, rates=RATES[:4]), tmp_path / "parts" / "tiny"
    assert process(path, tmp_path / "whole").wait() == 0
    for step, how, code in ((30, signal.SIGKILL, -9), (80, signal.SIGKILL, -9), (150, signal.SIGTERM, 75)):
        going = process(path, tmp_path / "parts")
        reached(folder, step, going)
        going.send_signal(how)
        assert going.wait() == code
    assert process(path, tmp_path / "parts").wait() == 0
    assert record.results(tmp_path / "whole" / "tiny").equals(record.results(folder))
    assert record.status(folder) == record.status(tmp_path / "whole" / "tiny")


def test_seeds_of_a_point_stand_or_fall_together_and_arms_apart(tmp_path):
    sweep = """def sweep():
    for rule in ("mup", "standard"):
        for k in (-11, -8, -6, 12):
            for seed in (0, 1):
                yield {"parametrization.name": rule, "optim.lr": 2.0**k, "seed": seed}
"""
    folder = train(experiment(tmp_path, sweep), tmp_path, "--config.run.halving.at=(0.25,)")
    told = record.read_study(folder)["trials"]
    fate: dict = {}
    for i, s in record.status(folder).items():
        fate.setdefault((told[i]["arm"], told[i]["point"]["optim.lr"]), []).append(s)
    assert all(len(set(v)) == 1 for v in fate.values())
    for arm in ("mup", "standard"):
        assert sorted(v[0] for (a, _), v in fate.items() if a == arm) == ["diverged", "done", "done", "stopped"]


def test_added_points_have_a_bracket_of_their_own_and_more_seeds_of_what_came_through_train_whole(pair, tmp_path):
    shutil.copytree(pair[0], tmp_path / "runs" / "tiny")
    folder, before = tmp_path / "runs" / "tiny", states(pair[0])
    best = [k for k, s in before.items() if s == "done"]
    old = {p: p.stat().st_mtime_ns for p in folder.glob("*/rows.parquet")}
    train(experiment(tmp_path, rates=(*RATES, -7, -13, -14)), tmp_path / "runs")
    after = states(folder)
    assert {k: after[k] for k in before} == before
    assert sorted(after[k] for k in (-7, -13, -14)) == ["done", "stopped", "stopped"]
    assert all(p.stat().st_mtime_ns == t for p, t in old.items())
    train(experiment(tmp_path, rates=best, seeds=(0, 1, 2)), tmp_path / "runs")
    told = record.read_study(folder)["trials"]
    assert [s for i, s in record.status(folder).items() if told[i]["seed"]] == ["done"] * 4


def test_what_cannot_be_halved_is_one_line(tmp_path, capsys):
    path = str(experiment(tmp_path))
    for override, named in (
        ("at=(0.5, 0.25)", "rising shares"),
        ("at=(0.5, 1.0)", "between 0 and 1"),
        ("at=(0.5, 1)", "between 0 and 1"),
        ("at=(0.001,)", r"gives steps [0]"),
        ("at=(0.5, 0.501)", "gives steps [12, 12]"),
        ("keep=0.0", "run.halving.keep=0.0"),
        ("keep=1.0", "run.halving.keep=1.0"),
        ("kept=0.5", "'run.halving.keep'"),
    ):
        assert named in mistake(capsys, "run", path, "--workdir", str(tmp_path), f"--config.run.halving.{override}"), override


ROUNDS = """def sweep(history):
    rates = [2.0**k for k in (-12, -10, -8, -6)]
    yield from ({"optim.lr": r} for r in rates)
    losses = {h["point"]["optim.lr"]: h["loss"] for h in history if h["state"] == "done" and h["point"]["optim.lr"] in rates}
    if losses:
        best = min(losses, key=losses.get)
        yield from ({"optim.lr": best * f} for f in (1 / 1.5, 1 / 1.25, 1.25, 1.5))
"""


@pytest.mark.slow
def test_a_round_is_asked_for_what_was_tried_and_resumes(tmp_path, capfd):
    """Without halving: eight trials in two rounds of four, of one program; interrupted the same come out."""
    path, folder, built = experiment(tmp_path, ROUNDS), tmp_path / "whole" / "tiny", []

    def listen(event, **_):
        if event == "/jax/compilation_cache/cache_misses" and len(list(folder.glob("*/done.json"))) == 1:
            built.append(event)

    jax.monitoring.register_event_listener(listen)
    train(path, tmp_path / "whole", WHOLE)
    jax.monitoring.unregister_event_listener(listen)
    assert not built  # the second round's program is the first's
    told = record.read_study(folder)
    assert [len(p["trials"]) for p in told["populations"].values()] == [4, 4]
    ends = [r for r in record.table(folder).to_pylist() if r["step"] == 24]
    first = {r["optim.lr"]: r["eval_loss"] for r in ends if math.log2(r["optim.lr"]) in (-12, -10, -8, -6)}
    best = min(first, key=first.get)
    second = [told["trials"][i]["point"]["optim.lr"] for i in list(told["populations"].values())[1]["trials"]]
    assert sorted(second) == [best / 1.5, best / 1.25, best * 1.25, best * 1.5]
    parts = tmp_path / "parts" / "tiny"
    assert in_parts(path, parts, WHOLE) >= 6
    assert record.results(parts).equals(record.results(folder))
    assert cli.main(["plan", str(path)]) == 0
    said = capfd.readouterr().out
    assert all(x in said for x in ("4 trials in 1 populations", "run.halving leaves 50% of that", "the first round alone")), said


def test_rounds_and_halving_together(tmp_path):
    told = record.read_study(train(experiment(tmp_path, ROUNDS), tmp_path, "--config.run.halving.at=(0.25,)"))
    brackets = {}
    for p in told["populations"].values():
        brackets.setdefault(p["halving"]["bracket"], []).append((p["halving"]["rung"], len(p["trials"])))
    assert list(brackets.values()) == [[(0, 4), (1, 2)]] * len(brackets)
    assert len(brackets) == 2
    assert sorted(record.status(tmp_path / "tiny").values()) == ["done"] * 4 + ["stopped"] * 4


def test_a_sweep_that_fails_on_its_history_is_one_line(tmp_path, capsys):
    path = str(experiment(tmp_path, 'def sweep(history):\n    yield {"optim.lr": 1 / (1 - bool(history)) / 256}\n'))
    assert "ZeroDivisionError" in mistake(capsys, "run", path, "--workdir", str(tmp_path), WHOLE, "--config.train.steps=2")
    path = str(experiment(tmp_path, 'def sweep(history):\n    yield {"optim.lrr" if history else "optim.lr": 0.01}\n'))
    line = mistake(capsys, "run", path, "--workdir", str(tmp_path / "b"), WHOLE, "--config.train.steps=2")
    assert "optim.lrr" in line


def test_the_best_of_one_size_is_carried_to_a_big_run(pair, tmp_path, capsys):
    """By the command, with the big run's program counted; stopped trials count by what they took."""
    out = tmp_path / "big.py"
    assert cli.main(["transfer", str(pair[0]), "--to", "model.width=64", "--to", "train.steps=100", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    best = min(record.finals(pair[0]).to_pylist(), key=lambda r: r["eval_loss"])
    loaded = load(str(out))
    assert (loaded.config.model.width, loaded.config.train.steps, loaded.config.optim.lr) == (64, 100, best["optim.lr"])
    assert loaded.config.run.halving.at == ()
    assert "base (width 32)" in out.read_text()
    big = study.Study(loaded).work()
    took = sum(record.ends(pair[0])["flops"].to_pylist())
    assert float(re.search(r"all 8 trials, 5 of them stopped early: ([.\d]+)%", said)[1]) == pytest.approx(
        100 * took / sum(big.values()), abs=0.01
    )
    assert "It is the lowest of 2 single losses" in said
