"""A study as an array of a real SLURM: a task that is requeued in mid-run goes on, and the table is that of the undisturbed run."""

import os
import re
import shutil
import subprocess
import time

import pytest
from test_halving import train
from test_study import TESTS, experiment, reached

from lab import cli, record
from lab.launch import submit
from lab.launch.job import Job
from lab.launch.slurm import Backend

if not shutil.which("sbatch") or not shutil.which("munged", path=f"{os.environ['PATH']}:/usr/sbin") or os.getuid():
    pytest.skip("needs root and a SLURM: apt-get install slurm-wlm munge", allow_module_level=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of one node, on this machine."""
    folder, patch = tmp_path_factory.mktemp("slurm"), pytest.MonkeyPatch()
    try:
        subprocess.run([TESTS / "slurm.sh", "start", folder], check=True, timeout=90)
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PYTHONPATH", f"{TESTS}:{TESTS.parent}")
        yield folder
        subprocess.run(["scancel", "--user=root"], check=True)
    finally:
        patch.undo()
        subprocess.run([TESTS / "slurm.sh", "stop", folder], check=True, timeout=90)


def said(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def state(job):
    """The words of scontrol on a job: {key: value}."""
    return dict(word.split("=", 1) for word in said("scontrol", "show", "job", job).split() if "=" in word)


def until(condition, what, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)


class Alive:
    """Stands for a process where `reached` asks whether one still runs."""

    @staticmethod
    def poll():
        return None


def test_a_requeued_task_goes_on_and_nothing_is_lost(cluster, tmp_path, capsys):
    path, folder = experiment(tmp_path, steps=250, widths=(32, 64), rates=(-8,)), tmp_path / "runs" / "tiny"
    whole = train(path, tmp_path / "whole")
    command = ["submit", str(path), "--to", "slurm", "--workdir", str(tmp_path / "runs"), "--env", "JAX_PLATFORMS"]
    assert cli.main(command) == 0
    names = list(record.read_study(folder)["populations"])
    reached(folder, 5, Alive)
    asked = next(n for n in names if list((folder / n).glob("rows-*.jsonl")))
    job = submit.read(folder).handles[0 if "width64" in asked else 1]  # the longest is the first task
    subprocess.run(["scontrol", "requeue", job], check=True)
    assert cli.main(command) == 0
    assert "nothing to submit; 2 tasks are pending or running" in capsys.readouterr().out
    until(lambda: state(job)["JobState"] == "PENDING" and state(job)["Reason"] == "BeginTime", "the task is not requeued")
    subprocess.run(["scontrol", "update", f"jobid={job}", "starttime=now"], check=True)  # in place of two minutes from then
    until(lambda: not said("squeue", "--noheader"), "the array does not end")
    assert state(job)["Restarts"] == "1"
    assert set(record.status(folder).values()) == {"done"}
    assert cli.main(["status", str(folder)]) == 0
    assert "2 done" in capsys.readouterr().out
    attempts = {n: set(record.read_rows(folder / n)["attempt"].to_pylist()) for n in names}
    assert attempts == {n: {1, 2} if n == asked else {1} for n in names}  # it was in mid-run, and it alone was begun again
    assert record.results(folder).equals(record.results(whole))
    assert (folder / "report.html").exists()  # by whichever task was the last
    assert cli.main(command) == 0
    assert "nothing is left to train" in capsys.readouterr().out


CHILD = """#!/bin/bash
trap 'exit 75' TERM
echo on
for i in {1..600}; do sleep 0.1; done
"""


def test_an_interrupted_task_requeues_itself_alone_and_a_cancelled_one_does_not(cluster, tmp_path):
    """The script around a run that saves its state on SIGTERM, which comes as a time limit's does."""
    child, logs = tmp_path / "child.sh", tmp_path / "tiny" / "logs"
    child.write_text(CHILD)
    child.chmod(0o755)
    logs.mkdir(parents=True)
    job = Job("tiny-0", "tiny", "x.py", (), str(tmp_path), str(tmp_path), ("a", "b"), (), 0)
    script = tmp_path / "script"
    script.write_text(re.sub(r"(?m)^(srun .*?) \S+ -m lab.cli run .*$", rf"\1 {child}", Backend().script(job)))
    array = said("sbatch", "--parsable", str(script)).strip()
    until(lambda: sum(p.read_text().startswith("on") for p in logs.glob("*")) == 2, "the tasks do not begin")
    last = f"{array}_1"  # whose number as a job is that of the array
    subprocess.run(["scancel", "--signal=TERM", last], check=True)
    until(lambda: state(last)["Restarts"] == "1", "the task is not requeued")
    assert (state(f"{array}_0")["Restarts"], state(f"{array}_0")["JobState"]) == ("0", "RUNNING")
    subprocess.run(["scancel", array], check=True)
    until(lambda: not said("squeue", "--noheader", f"--jobs={array}"), "the array does not end")
    assert state(f"{array}_0")["Restarts"] == "0"
