"""Studies by the `lab` command: resume is bitwise, points are added, mistakes are one line and exit code 2."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from lab import cli, goodput, record, sampling, study
from lab.errors import UserError
from lab.experiment import DEFAULTS, load
from lab.population import Interrupt, Preempted

TESTS = Path(__file__).resolve().parents[1]
JUDGE = str(TESTS / "contrast.py")
DIT = dict(name="dit", width=32, depth=1, head_dim=16, mlp_ratio=2, patch=4, qk_norm=False, zero_gates=True)
LINEAR = dict(name=str(TESTS / "rank.py"), width=32)  # seven weights, which compile in a third of the time of a DiT's
TEXT = '''"""Does a tiny study work?"""
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
    c.judge = dict(names={judges}, every=4, n=5)
    c.run = dict(checkpoint_seconds={seconds})
    return c
def sweep():
    for width in {widths}:
        for k in {rates}:
            yield {{"model.width": width, "optim.lr": 2.0**k}}
'''


def experiment(folder, model=LINEAR, steps=12, widths=(32,), rates=(-8, -6), seconds=60.0, judges=()):
    path = folder / "tiny.py"
    about = dict(model=model, steps=steps, widths=widths, rates=rates, seconds=seconds, judges=judges)
    path.write_text(TEXT.format(source=str(TESTS / "waves.py"), **about))
    return path


def run(path, workdir, *more):
    return cli.main(["run", str(path), "--workdir", str(workdir), *more])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Where a study with a judge lies that went to its end."""
    folder = tmp_path_factory.mktemp("trained")
    assert run(experiment(folder, judges=(JUDGE,)), folder) == 0
    return folder / "tiny"


@pytest.fixture
def again(trained, tmp_path):
    """(experiment file, folder of runs) of that study for a test that writes."""
    shutil.copytree(trained, tmp_path / "runs" / "tiny")
    return experiment(tmp_path, judges=(JUDGE,)), tmp_path / "runs"


class Asked(Interrupt):
    """An interrupt that has been asked for before the first step."""

    def __enter__(self):
        self.asked = True
        return self

    def __exit__(self, *exc):
        pass


def test_a_stopped_study_goes_on_bitwise(trained, tmp_path):
    path, folder = experiment(tmp_path, judges=(JUDGE,)), tmp_path / "parts" / "tiny"
    for _ in range(3):  # one step an attempt
        with Asked() as asked, pytest.raises(Preempted):
            study.Study(load(str(path)), folder).run(asked)
    assert set(record.status(folder).values()) == {"interrupted"}
    assert run(path, tmp_path / "parts") == 0
    whole, parts = record.results(trained), record.results(folder)
    assert whole.num_rows == 2 * 13
    assert whole.equals(parts)


def process(path, workdir):
    """The `lab` command in a process of its own, compiled as for a user: optimised, as the tests' own programs are not."""
    env = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}", "XLA_FLAGS": os.environ["LAB_TESTS_USER_FLAGS"]}
    command = [sys.executable, "-m", "lab.cli", "run", str(path), "--workdir", str(workdir)]
    return subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def reached(folder, step, running):
    """Wait until some row of the study has reached `step`."""
    end = time.monotonic() + 240
    while time.monotonic() < end and running.poll() is None:
        seen = [json.loads(x)["step"] for p in folder.glob("*/rows-*.jsonl") for x in p.read_text().split("\n")[:-1]]
        if max(seen, default=0) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"the study ended ({running.poll()}) or hung before step {step}")


@pytest.mark.slow
def test_a_killed_study_goes_on_bitwise(tmp_path):
    """SIGKILL in mid-population, then SIGTERM in the second attempt, then to the end."""
    path, folder = experiment(tmp_path, DIT, steps=150, seconds=0.3, judges=(JUDGE,)), tmp_path / "parts" / "tiny"
    assert process(path, tmp_path / "whole").wait() == 0
    first = process(path, tmp_path / "parts")
    reached(folder, 60, first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = process(path, tmp_path / "parts")
    reached(folder, 100, second)
    second.send_signal(signal.SIGTERM)
    assert second.wait() == 75
    assert process(path, tmp_path / "parts").wait() == 0
    assert record.results(tmp_path / "whole" / "tiny").equals(record.results(folder))


SLOW = """import pathlib, time
class Source:
    def __init__(self, split, data_dir, n):
        pathlib.Path(__file__).with_suffix(".opened").touch()
        time.sleep(60)
"""


def test_a_study_that_is_stopped_before_it_trains_ends_at_once_without_a_dump(tmp_path):
    """Launchers take SIGTERM's own code as they take 75 where they sent it (tests/lab/test_launch.py)."""
    (tmp_path / "slow.py").write_text(SLOW)
    path = experiment(tmp_path)
    path.write_text(re.sub(r"name='.*?waves.py'", f"name={str(tmp_path / 'slow.py')!r}", path.read_text()))
    command = [sys.executable, "-m", "lab.cli", "run", str(path), "--workdir", str(tmp_path)]
    running = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(TESTS.parent)}, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not (tmp_path / "slow.opened").exists() and time.monotonic() < end and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    _, told = running.communicate(timeout=30)
    assert (running.returncode, told) == (-signal.SIGTERM, "tiny: opening data\n")


def test_where_the_time_of_a_study_went_is_named(trained):
    told = goodput.study(trained, list(record.read_study(trained)["populations"]))
    assert told["startup"] > 0
    assert told["init"] > 0
    assert told["other"] < 0.1 * told["wall"]
    assert "startup " in goodput.said(told)


def test_added_points_train_alone(again, tmp_path):
    _, runs = again
    folder = runs / "tiny"
    before = record.results(folder)
    old = {p: p.stat().st_mtime_ns for p in folder.glob("*/rows.parquet")}
    assert run(experiment(tmp_path, rates=(-8, -7, -6), judges=(JUDGE,)), runs) == 0
    assert all(p.stat().st_mtime_ns == t for p, t in old.items())
    assert len(record.status(folder)) == 3
    after = record.results(folder)
    kept = set(before["trial"].to_pylist())
    assert after.filter([t in kept for t in after["trial"].to_pylist()]).equals(before)


def test_report_status_and_sample_of_a_study(again, tmp_path, capsys):
    folder = again[1] / "tiny"
    assert (folder / "report.html").stat().st_size > 10_000
    assert cli.main(["status", str(folder)]) == 0
    assert "2 trials" in capsys.readouterr().out
    assert cli.main(["sample", str(folder), "-n", "4", "--option", "steps=2", "--out", str(tmp_path / "grid.png")]) == 0
    assert (tmp_path / "grid.png").stat().st_size > 1000
    for part in folder.glob("*/weights/**/*.safetensors"):
        part.write_bytes(bytes(part.stat().st_size))
    assert "are damaged" in mistake(capsys, "sample", str(folder))
    shutil.rmtree(next(folder.glob("*/weights")))
    assert "weights' is missing" in mistake(capsys, "sample", str(folder))


def test_judges_say_of_every_trial_what_the_same_command_says_later(trained, capsys):
    rows = record.table(trained).to_pylist()
    told = [r for r in rows if r["contrast"] is not None]
    assert sorted({r["step"] for r in told}) == [4, 8, 12]
    assert len(told) == 6
    last = [r for r in told if r["step"] == 12]
    assert all(r["contrast_n"] == 5 for r in told)
    # the errors a judge sees are those behind the recorded loss, of the averaged weights
    assert all(r["contrast_error"] == pytest.approx(r["eval_ema"], rel=1e-5) for r in last)
    assert last[0]["contrast"] != last[1]["contrast"]
    capsys.readouterr()
    assert cli.main(["sample", str(trained), "-n", "5", "--option", "steps=2", "--option", "method=euler", "--judge", JUDGE]) == 0
    said = dict(line.split() for line in capsys.readouterr().out.splitlines()[1:])
    best = min(last, key=lambda r: r["eval_loss"])
    assert float(said["contrast"]) == pytest.approx(best["contrast"], rel=1e-4)
    assert float(said["contrast_error"]) == pytest.approx(best["contrast_error"], rel=1e-4)


def test_a_judge_that_cannot_judge_refuses_before_anything_is_drawn(trained, monkeypatch, capsys):
    monkeypatch.setattr(sampling, "Painter", lambda *_, **__: pytest.fail("a sampler is made"))
    capsys.readouterr()
    assert cli.main(["sample", str(trained), "-n", "4", "--judge", "oracle"]) == 2
    (line,) = capsys.readouterr().err.splitlines()  # nothing is said to be compiled
    assert "judge 'oracle' needs a source with an oracle" in line


def test_every_trial_diverged_is_exit_code_3(tmp_path):
    assert run(experiment(tmp_path, rates=(12, 13)), tmp_path / "runs") == 3
    assert set(record.status(tmp_path / "runs" / "tiny").values()) == {"diverged"}


def mistake(capsys, *argv):
    """The one line of a command that must exit with 2."""
    assert cli.main(list(argv)) == 2
    err = [x for x in capsys.readouterr().err.splitlines() if x.startswith("lab: ")]
    assert len(err) == 1
    return err[0]


@pytest.mark.parametrize(
    "override, named",
    [
        ("--config.optim.lrr=1", ["optim.lrr", "optim.lr"]),
        ("--config.train.steps=many", ["train.steps", "many", "int"]),
        ("--config.model.patch=5", ["patch", "5", "16"]),
        ("--config.model.head_dim=24", ["width", "32", "head_dim"]),
        ("--config.optim.lr=0.3", ["optim.lr", "0.3", "0.00390625"]),
        ("--config.optim.schedule=cosin", ["optim.schedule", "cosin", "'cosine'"]),
        ("--config.model.name=dot", ["dot", "'dit'"]),
        ("--config.model.depht=2", ["model.depht", "'model.depth'"]),
        ("--config.train.steps=-3", ["train.steps=-3", "at least 1"]),
        ("--config.eval.metric=oracle", ["eval.metric", "'oracle'", "eval_ema, eval_loss"]),
        ("--config.sample.options.stepz=3", ["sample.options.stepz", "'sample.options.steps'"]),
        ("--config.parametrization.name=mpu", ["parametrization.name", "'mpu'", "'mup'"]),
    ],
)
def test_a_bad_override_is_one_line(tmp_path, capsys, override, named):
    line = mistake(capsys, "run", str(experiment(tmp_path, DIT)), "--workdir", str(tmp_path / "runs"), override)
    assert all(n in line for n in named), line


@pytest.mark.parametrize(
    "more, said",
    [
        (["--config.run.sharding=fdsp"], "config key run.sharding='fdsp' is no set of rules; expected one of: replicated, fsdp"),
        (["--config.run.sharding=fsdp", "--config.run.mesh.data=2"], "divides over the axis 'fsdp', which run.mesh lacks"),
        (["--config.run.mesh.fsdp=3"], "run.mesh={'fsdp': 3} does not cover 2 devices"),
        (["--config.run.mesh.fdsp=2"], "config key 'run.mesh.fdsp' is unknown (nearest: 'run.mesh.fsdp')"),
        (["--config.run.remat=blocks"], "config key run.remat 'blocks' is unknown (nearest: 'block')"),
        (["--config.run.accumulate=3"], "config key run.accumulate=3 must divide train.batch=16"),
        (["--config.train.dtype=bfloat"], "train.dtype 'bfloat' is unknown (nearest: 'bfloat16')"),
        (["--config.judge.names=('orakle',)"], "judge name 'orakle' is unknown (nearest: 'oracle')"),
        (["--task", "-1"], "--task -1 must be 0 or more"),
        (["--workdir", "{folder}/tiny.py"], "cannot be written (Not a directory)"),
    ],
)
def test_what_is_wrong_whatever_the_data_is_told_before_that_is_opened(tmp_path, monkeypatch, capsys, more, said):
    monkeypatch.setattr(study, "open_source", lambda *_: pytest.fail("the data is opened"))
    more = [m.format(folder=tmp_path) for m in more]
    line = mistake(capsys, "run", str(experiment(tmp_path)), *([] if "--workdir" in more else ["--workdir", str(tmp_path / "runs")]), *more)
    assert said in line
    assert not (tmp_path / "runs").exists()
    if "--workdir" in more:
        monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write everywhere
        assert "cannot be written (Permission denied)" in mistake(
            capsys, "run", str(experiment(tmp_path)), "--workdir", str(tmp_path / "runs")
        )


def test_a_task_past_all_points_is_told_before_the_data_is_opened(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "open_source", lambda *_: pytest.fail("the data is opened"))
    assert run(experiment(tmp_path), tmp_path, "--task", "2") == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_rule_of_an_axis_that_no_weight_has_is_named(tmp_path, capsys):
    path = experiment(tmp_path)
    path.write_text(path.read_text().replace("c.run = dict(", 'c.run = dict(sharding="fsdp", rules=dict(embd="fsdp"), '))
    assert "run.rules: axis 'embd' is unknown (nearest: 'embed')" in mistake(capsys, "run", str(path), "--workdir", str(tmp_path / "runs"))


def test_a_batch_larger_than_the_source_is_one_line(tmp_path, capsys):
    line = mistake(capsys, "run", str(experiment(tmp_path)), "--workdir", str(tmp_path / "runs"), "--config.train.batch=1000")
    assert all(n in line for n in ("train.batch", "1000", "128")), line


def test_bad_folders_are_one_line(again, tmp_path, capsys):
    path, runs = again
    (tmp_path / "file").write_text("")
    assert "--workdir" in mistake(capsys, "run", str(path), "--workdir", str(tmp_path / "file"))
    assert "not a study" in mistake(capsys, "status", str(tmp_path))
    folder = runs / "tiny"
    before = record.results(folder)
    other = mistake(capsys, "run", str(path), "--workdir", str(runs), "--config.train.batch=8")
    assert "another study" in other
    assert "train.batch" in other
    damaged = next(folder.glob("*/rows.parquet")).with_name("rows-0009.jsonl")
    damaged.write_text("{torn\n" + "{}\n")
    assert "line 1" in mistake(capsys, "report", str(folder))
    damaged.unlink()
    assert record.results(folder).equals(before)


def test_sections_may_hold_sections_and_an_empty_one_keeps_its_defaults(tmp_path):
    path = experiment(tmp_path)
    nested = 'dict(name="text", length=8, source=dict(name="shapes", size=16, extras=("caption",), examples=64))'
    path.write_text(re.sub(r"c\.data = .*", f"c.data = {nested}", path.read_text()).replace("c.judge = dict(", "c.judge = {} or dict("))
    loaded = load(str(path), ["--config.data.source.examples=32"])
    assert loaded.config.data.source.to_dict() == {"name": "shapes", "size": 16, "extras": ("caption",), "examples": 32}
    assert set(study.Study(loaded).train[0]) == {"image", "label", "caption", "text"}
    path.write_text(path.read_text().replace("c.judge = {} or dict(names=(), every=4, n=5)", "c.judge = {}"))
    assert load(str(path)).config.judge.n == DEFAULTS["judge"]["n"]


def test_an_axis_that_varies_without_a_base_is_named(tmp_path, capsys):
    path = experiment(tmp_path, DIT, widths=(32, 64))
    path.write_text(path.read_text().replace("c.base = dict(width=32)", "c.base = {}"))
    line = mistake(capsys, "run", str(path), "--workdir", str(tmp_path / "runs"))
    assert "'embed'" in line or "'heads'" in line or "'mlp'" in line
    assert "weights" in line
    assert "base" in line


def test_the_plan_foretells_populations_and_flops(tmp_path, capsys):
    path = experiment(tmp_path, widths=(32, 64))
    assert cli.main(["plan", str(path)]) == 0
    out = capsys.readouterr().out
    assert "4 trials in 2 populations, 2 compiles" in out
    assert jax.devices()[0].device_kind in out


@pytest.mark.parametrize(
    "body, said",
    [
        ("return dict(model=1)", "get_config() returns dict; expected a ConfigDict"),
        ("pass", "get_config() returns NoneType"),
        ('c = ConfigDict()\n    c.model = "dit"\n    return c', "config key model='dit' is a section"),
    ],
)
def test_a_config_that_is_none_is_one_line(tmp_path, body, said):
    file = tmp_path / "bad.py"
    file.write_text(f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    {body}\n")
    with pytest.raises(UserError, match=re.escape(said)) as e:
        load(str(file))
    assert "\n" not in str(e.value)
