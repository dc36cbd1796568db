"""Several `lab run` of one study: each population is trained once, by one of them, and what depends on others' results waits for them."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest
from test_halving import experiment as halved
from test_halving import train
from test_study import LINEAR, TESTS, experiment, mistake, reached

from lab import claims, cli, record, study
from lab.experiment import load


def start(path, workdir, *more):
    """`lab run` in a process of its own."""
    command = [sys.executable, "-m", "lab.cli", "run", str(path), "--workdir", str(workdir), *more]
    env = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}"}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ends(processes):
    """[(exit code, what it printed)]."""
    out = [p.communicate(timeout=400) for p in processes]
    return [(p.returncode, a + b) for p, (a, b) in zip(processes, out, strict=True)]


def once(folder):
    """Whether every population was trained in one attempt."""
    names = record.read_study(folder)["populations"]
    return all(set(record.read_rows(folder / n)["attempt"].to_pylist()) == {1} for n in names)


def owners(folder):
    return {record.read_json(p)["owner"] for p in folder.glob("*/card.json")}


def test_two_share_a_study_and_train_nothing_twice(tmp_path):
    path = experiment(tmp_path, steps=60, widths=(32, 48, 64), rates=(-8,))
    whole = train(path, tmp_path / "whole")
    pair = [start(path, tmp_path / "runs") for _ in range(2)]
    (a, said_a), (b, said_b) = ends(pair)
    folder = tmp_path / "runs" / "tiny"
    assert (a, b) == (0, 0), said_a + said_b
    assert once(folder)
    assert {int(o.rpartition(":")[2]) for o in owners(folder)} == {p.pid for p in pair}
    assert record.results(folder).equals(record.results(whole))
    assert record.read_study(folder)["populations"] == record.read_study(whole)["populations"]
    assert (said_a + said_b).count("report: ") >= 1  # by the last, or by both where they end together
    assert (folder / "report.html").exists()


@pytest.mark.parametrize("broken", [False, True])
def test_a_population_in_training_is_left_alone_and_without_claims_it_would_not_be(tmp_path, monkeypatch, broken):
    path, folder = experiment(tmp_path, steps=150, rates=(-8,)), tmp_path / "runs" / "tiny"
    first = start(path, tmp_path / "runs")
    reached(folder, 5, first)
    first.send_signal(signal.SIGSTOP)
    if broken:
        monkeypatch.setattr(claims, "take", lambda *given: contextlib.ExitStack())
    assert cli.main(["run", str(path), "--workdir", str(tmp_path / "runs")]) == 0
    assert record.finished(next(folder.glob("*/card.json")).parent) == broken
    first.send_signal(signal.SIGKILL if broken else signal.SIGCONT)
    ends([first])
    assert once(folder) == (not broken)


def test_who_finds_nothing_to_do_says_who_holds_it_and_goes(tmp_path, capsys):
    path, folder = experiment(tmp_path, steps=20), tmp_path / "runs" / "tiny"
    study.Study(load(str(path)), folder).plan()
    (name,) = record.read_study(folder)["populations"]
    with claims.take(folder, name):
        assert cli.main(["run", str(path), "--workdir", str(tmp_path / "runs")]) == 0
        assert f"{name}: not done, held by {claims.owner()}" in capsys.readouterr().out
        assert set(record.status(folder).values()) == {"running"}
    assert set(record.status(folder).values()) == {"missing"}


def test_one_population_by_name_or_number_and_the_last_makes_the_report(tmp_path, capsys):
    path, folder = experiment(tmp_path, steps=12, widths=(32, 64), rates=(-8,)), tmp_path / "runs" / "tiny"
    command = ["run", str(path), "--workdir", str(tmp_path / "runs")]
    assert cli.main([*command, "--task", "0"]) == 0  # the longest
    small, large = sorted(record.read_study(folder)["populations"])
    assert (record.finished(folder / large), record.finished(folder / small)) == (True, False)
    assert f"{small}: not done, held by nobody" in capsys.readouterr().out
    assert not (folder / "report.html").exists()
    assert small in mistake(capsys, *command, "--only", small[:-1])
    assert cli.main([*command, "--task", "2"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert cli.main([*command, "--only", small]) == 0
    assert (folder / "report.html").exists()
    assert len(list(folder.glob("*/samples.npz"))) == 1


@pytest.mark.slow
def test_halving_waits_for_the_results_of_others(tmp_path):
    """Two processes, five trials a population: the second rung is made of both's, as one process makes it."""
    path = halved(tmp_path)
    whole = train(path, tmp_path / "whole")
    assert [code for code, _ in ends([start(path, tmp_path / "runs") for _ in range(2)])] == [0, 0]
    folder = tmp_path / "runs" / "tiny"
    assert once(folder)
    assert len(owners(folder)) == 2
    assert record.status(folder) == record.status(whole)
    assert record.results(folder).equals(record.results(whole))


@pytest.mark.parametrize("how", ["kill", pytest.param("terminate", marks=pytest.mark.slow)])
def test_what_a_dead_process_left_is_taken_over(tmp_path, how):
    path, folder = experiment(tmp_path, LINEAR, steps=300, rates=(-8,), seconds=0.2), tmp_path / "runs" / "tiny"
    first = start(path, tmp_path / "runs")
    reached(folder, 10, first)
    getattr(first, how)()
    ends([first])
    assert cli.main(["run", str(path), "--workdir", str(tmp_path / "runs")]) == 0
    rows = record.results(folder)
    assert rows.num_rows == 301
    (name,) = record.read_study(folder)["populations"]
    assert max(record.read_rows(folder / name)["attempt"].to_pylist()) == 2
