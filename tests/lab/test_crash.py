"""A study that is killed, whose steps err or whose files are damaged comes out as undisturbed. All moments: lab bench crash."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from test_study import experiment, run

from lab import cli, goodput, population, record, study
from lab.errors import UserError
from lab.experiment import load
from lab.population import Interrupt

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def train(path, folder, *overrides):
    """The study trained as by `lab run`, without a report."""
    with Interrupt() as interrupt:
        return study.Study(load(str(path), ["--config.run.checkpoint_steps=4", *overrides]), folder).run(interrupt)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The rows of the undisturbed study."""
    folder = tmp_path_factory.mktemp("whole")
    return record.results(train(experiment(folder, steps=12), folder / "tiny"))


class Killed(BaseException):
    """In the place of a kill: nothing is caught and no file is finished."""


@pytest.fixture
def cut(tmp_path, monkeypatch):
    """A study that ended at its tenth step, with checkpoints of the fourth and the eighth."""
    path, folder = experiment(tmp_path, steps=12), tmp_path / "tiny"
    step, calls = goodput.Events.step, []

    def ended(self, to, seconds):
        calls.append(to)
        if to == 10:
            raise Killed
        step(self, to, seconds)

    monkeypatch.setattr(goodput.Events, "step", ended)
    with pytest.raises(Killed):
        train(path, folder)
    monkeypatch.undo()
    (pop,) = [p.parent for p in folder.glob("*/checkpoints")]
    assert sorted(p.name for p in (pop / "checkpoints").iterdir()) == ["4", "8"]
    return path, folder, pop


def resumed_at(pop):
    """The step at which the last attempt began."""
    return next(e["step"] for e in goodput.read(pop)[-1] if e["what"] == "restore")


def test_rows_past_the_checkpoint_are_dropped_and_trained_again(cut, whole):
    path, folder, pop = cut
    assert max(record.read_rows(pop)["step"].to_pylist()) == 8  # the checkpoint goes with those before
    train(path, folder)
    assert resumed_at(pop) == 8
    assert record.results(folder).equals(whole)
    assert not (pop / "checkpoints").exists()
    told = goodput.account(pop)
    assert told["redone"] > 0
    assert told["steps"] > 0


def flipped(file, at):
    """One bit of a file, the lowest of a digit where it hits one."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("step, begins", [(6, 4), (1, 0)])
def test_a_flipped_digit_of_a_row_goes_back_to_the_checkpoint_before_it(cut, whole, step, begins):
    """The line is as good a JSON as before; the checkpoints after it do not answer for it any more."""
    path, folder, pop = cut
    (file,) = pop.glob("rows-*.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    n = next(i for i, x in enumerate(lines) if json.loads(x)["step"] == step)
    at = sum(map(len, lines[:n])) + lines[n].index(b'"loss": ') + 10
    flipped(file, at)
    assert json.loads(file.read_bytes().splitlines()[n])["step"] == step
    assert not record.read_rows(pop).equals(whole)
    train(path, folder)
    assert resumed_at(pop) == begins
    assert record.results(folder).equals(whole)


def test_a_lost_segment_begins_anew(cut, whole):
    path, folder, pop = cut
    next(pop.glob("rows-*.jsonl")).unlink()
    train(path, folder)
    assert resumed_at(pop) == 0
    assert record.results(folder).equals(whole)


def test_a_flipped_bit_of_packed_rows_is_named(cut):
    path, folder, pop = cut
    train(path, folder)
    file = pop / "rows.parquet"
    before, rows, named = file.read_bytes(), record.read_rows(pop), 0
    for at in range(8, len(before) // 2, 151):
        flipped(file, at)
        try:
            assert record.read_rows(pop).equals(rows), at  # statistics that nobody reads
        except UserError:
            named += 1
        file.write_bytes(before)
    assert named > 5


def test_every_k_th_checkpoint_stays(tmp_path):
    path, folder = experiment(tmp_path, steps=12), tmp_path / "tiny"
    train(path, folder, "--config.run.checkpoint_steps=2", "--config.run.keep_every=6", "--config.run.keep=1")
    assert sorted(int(p.name) for p in folder.glob("*/checkpoints/*")) == [6, 12]


def test_a_step_computed_twice_tells_a_corrupted_one(tmp_path, monkeypatch, whole, capsys):
    """One bit of one leaf of the second computation: exit 75, nothing saved of it, and the rerun is as undisturbed."""
    path = experiment(tmp_path, steps=12)
    folder = tmp_path / "runs" / "tiny"
    more = ["--config.run.checkpoint_steps=4", "--config.run.replay_every=3"]
    compile_, calls = population.Population.compile, []

    def compiled(self, carry):
        compile_(self, carry)
        step = self.step

        def erring(*args):
            carry, values = step(*args)
            calls.append(len(calls))
            if len(calls) == 9:  # steps 0 1 2 3 4 5 6, and again 0, 3 and 6: the ninth is a first computation of step 6
                bad = np.array(carry[0])
                bad.reshape(-1).view(np.uint32)[0] ^= 1
                carry = [jax.device_put(bad, carry[0].sharding), *carry[1:]]
            return carry, values

        self.step = erring

    monkeypatch.setattr(population.Population, "compile", compiled)
    assert cli.main(["run", str(path), "--workdir", str(tmp_path / "runs"), *more]) == 75
    assert "step 7 computed twice from the same state differs in 1 arrays" in capsys.readouterr().err
    (pop,) = [p.parent for p in folder.glob("*/checkpoints")]
    assert [p.name for p in (pop / "checkpoints").iterdir()] == ["4"]
    assert [e["step"] for e in goodput.read(pop)[-1] if e["what"] == "corruption"] == [7]
    monkeypatch.undo()
    assert run(path, tmp_path / "runs", *more) == 0
    assert record.results(folder).equals(whole)


def test_failed_updates_are_columns_of_the_rows(tmp_path):
    path, folder = experiment(tmp_path, steps=12, rates=(-8, 12)), tmp_path / "tiny"
    train(path, folder, "--config.train.failure=skip", "--config.train.retries=20")
    skipped = {r["optim.lr"]: r["skipped"] for r in record.table(folder).to_pylist() if r["step"] == 11}
    assert skipped[2.0**-8] == 0
    assert skipped[2.0**12] > 5
    assert set(record.status(folder).values()) == {"done"}


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    def full(self, rows):
        raise OSError(28, os.strerror(28), str(tmp_path / "rows"))

    path = experiment(tmp_path)
    monkeypatch.setattr(record.Writer, "append", full)
    assert run(path, tmp_path / "runs") == 2
    assert "lab: No space left on device: " in capsys.readouterr().err
    monkeypatch.undo()
    assert run(path, tmp_path / "runs") == 0


def test_real_kills_in_the_midst_of_things_change_nothing(tmp_path):
    """A few moments of `lab bench crash`, in its own processes."""
    code = f"""
import sys, signal, json
sys.path.insert(0, {str(BENCHMARKS)!r})
import crash
from pathlib import Path
base = Path({str(tmp_path)!r})
crash.ready(base / "xla")
whole = crash.fresh(base)
assert crash.attempt(whole) == 0
truth = crash.outcome(whole)
assert truth["rows"] == 30 and not truth["twice"], truth
for moment in (("save", 2, 0.0, signal.SIGKILL), ("compaction", 1, 0.0, signal.SIGKILL), ("step", 25, 0.0, signal.SIGTERM)):
    row = crash.tried(base, ("kill", moment, None), "")
    assert row["landed"] and row["found"] == truth, row
row = crash.tried(base, ("kill", ("step", 25, 0.0, signal.SIGKILL), None), "step")
assert row["found"] != truth, "a run that resumes on other batches is told from the undisturbed one"
print("held")
"""
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | {"PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["held"], done.stderr[-2000:]
