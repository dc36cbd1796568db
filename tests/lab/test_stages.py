"""Trials that begin from trained weights, and experiments in stages, by `lab run`: what is carried is what was trained, resumed bitwise as well."""

import json
import math
import shutil

import numpy as np
import pyarrow.compute as pc
import pytest
from test_study import TESTS, Asked, mistake, run

from lab import cli, record, study
from lab.errors import UserError
from lab.experiment import load
from lab.population import STREAMS, Interrupt, Preempted
from lab.restore import chosen
from lab.trials import expand

TEXT = '''"""Do stages go on from each other?"""
from ml_collections import ConfigDict
def get_config():
    c = ConfigDict()
    c.model = dict(name="dit", width=16, depth=1, head_dim=8, mlp_ratio=2, patch=4, qk_norm=False, zero_gates=True)
    c.base = dict(width=16)
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    c.data = dict(name={source!r}, n=128, side=8)
    c.optim = dict(lr=2.0**-6, warmup=2, ema=0.8)
    c.train = dict(steps=20, batch=16, log_every=1)
    c.eval = dict(examples=32, batch=16, every=10)
    c.sample = dict(n=2, options=dict(steps=2, guidance=2.0, method="euler"))
    return c
def sweep():
    for k in {rates}:
        yield {{"optim.lr": 2.0**k}}
'''
STAGES = """
def stages():
    yield dict(stage="small")
    yield {"stage": "large", "data.side": 16, "model.patch": 8, "train.steps": 6, "optim.warmup": 0}
"""
RATES = (-7, -5, 12)  # the last one diverges


def experiment(folder, stages=STAGES, rates=RATES, name="tiny", **changes):
    path = folder / f"{name}.py"
    text = TEXT.format(source=str(TESTS / "waves.py"), rates=rates)
    more = "".join(f"    c.{k} = {v!r}\n" for k, v in changes.items())
    path.write_text(text.replace("    return c\n", f"{more}    return c\n") + stages)
    return path


def at(folder, step, metric="eval_loss"):
    """{log2 of the learning rate: metric} at a step."""
    return {math.log2(r["optim.lr"]): r[metric] for r in record.table(folder).to_pylist() if r["step"] == step}


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """The folder of an experiment in two stages."""
    folder = tmp_path_factory.mktemp("staged")
    assert run(experiment(folder), folder) == 0
    return folder / "tiny"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The folder of the same experiment without stages: the first of them."""
    folder = tmp_path_factory.mktemp("plain")
    with Interrupt() as interrupt:
        return study.Study(load(str(experiment(folder, stages=""))), folder / "tiny").run(interrupt)


def parts(folder):
    return {"small": folder / "stages" / "small", "large": folder}


def test_the_first_stage_is_the_experiment_without_stages(staged, plain):
    """Trial by trial and bit by bit, as are their identities."""
    assert record.results(parts(staged)["small"]).equals(record.results(plain))


def test_a_stage_begins_from_the_same_trials_of_the_one_before(staged):
    """By learning rate. Begun from nothing, all would have the loss of a zero output. What has diverged stays so."""
    told = {k: record.read_study(f) for k, f in parts(staged).items()}
    for t in told["large"]["trials"].values():
        origin = told["small"]["trials"][t["begun"]["origin"]]
        assert origin["point"]["optim.lr"] == t["point"]["optim.lr"]
    assert [told[k]["stages"] for k in told] == [["small"], ["small", "large"]]
    start = at(staged, 0)
    assert start[-5] != start[-7]
    assert start[12] is None
    for folder in parts(staged).values():
        assert sorted(record.status(folder).values()) == ["diverged", "done", "done"]


def test_flops_are_those_of_all_stages(staged):
    """And no row counts a stage twice."""
    ends = {k: {math.log2(r["optim.lr"]): r["flops"] for r in record.finals(f).to_pylist()} for k, f in parts(staged).items()}
    own = {}
    for k, f in parts(staged).items():
        name = next(iter(record.read_study(f)["populations"]))
        own[k] = record.read_json(f / name / "card.json")["flops_per_example"] * 16 * {"small": 20, "large": 6}[k]
    for rate in (-7, -5):
        assert ends["small"][rate] == own["small"]
        assert ends["large"][rate] == sum(own.values())
    assert own["small"] != own["large"]
    assert set(at(staged, 0, "flops").values()) == {own["small"]}


def test_a_stage_sees_batches_and_noise_that_none_before_it_saw(staged):
    found = study.Study(load(str(experiment(staged.parent))), staged)
    streams = [{t.stream for t in s.trials.values()} for s in found.stages()]
    assert streams == [{0}, {STREAMS}]


def test_a_run_in_stages_that_is_stopped_at_every_step_goes_on_bitwise(staged, tmp_path):
    path, folder = experiment(tmp_path), tmp_path / "tiny"
    for _ in range(3):  # one step an attempt
        with Asked() as asked, pytest.raises(Preempted):
            study.Study(load(str(path)), folder).run(asked)
    assert set(record.status(folder).values()) == {"missing"}
    assert run(path, tmp_path) == 0
    for k, f in parts(folder).items():
        assert record.results(f).equals(record.results(parts(staged)[k])), k


def test_status_plan_and_report_show_the_stages(staged, capsys):
    capsys.readouterr()
    assert cli.main(["status", str(staged)]) == 0
    assert "stage small: 2 done, 1 diverged" in capsys.readouterr().out
    page = (staged / "report.html").read_text()
    assert "Stages: the best loss of each on its own data" in page
    assert cli.main(["plan", str(experiment(staged.parent)), "--workdir", str(staged.parent)]) == 0
    out = capsys.readouterr().out
    assert "stage small, of 2" in out
    assert out.count("are done in") == 2


def test_equal_stages_are_the_weights_of_the_one_before_with_a_new_start(tmp_path):
    """Both are carried, bit by bit: the second begins with the losses of both that the first ended with."""
    text = 'def stages():\n    yield dict(stage="a")\n    yield {"stage": "b", "train.steps": 4}\n'
    assert run(experiment(tmp_path, stages=text, rates=(-6,)), tmp_path) == 0
    folder = tmp_path / "tiny"
    assert at(folder, 0) == at(folder / "stages" / "a", 20)
    assert at(folder, 0, "eval_ema") == at(folder / "stages" / "a", 20, "eval_ema")
    assert at(folder, 0, "eval_ema") != at(folder, 0)


def begun(folder, plain, name="warm", rates=(-6,), **more):
    """The folder of a study that begins from another."""
    changes = {"init": dict(study=str(plain), **more.pop("init", {})), **more}
    path = experiment(folder, stages="", rates=rates, name=name, **changes)
    with Interrupt() as interrupt:
        return study.Study(load(str(path)), folder / name).run(interrupt)


def test_without_a_step_a_warm_start_has_the_loss_of_its_source(plain, tmp_path):
    """That of the averaged weights, bit by bit, from the first step to the last; cold it is another, and worse after as many steps."""
    folder = begun(tmp_path, plain, rates=(-100,))
    best = min((v, k) for k, v in at(plain, 20, "eval_ema").items() if v is not None)
    for step in (0, 10, 20):
        assert at(folder, step) == {-100.0: best[0]}
    warm, cold = begun(tmp_path, plain, "warmer"), experiment(tmp_path, stages="", rates=(-6,), name="cold")
    with Interrupt() as interrupt:
        cold = study.Study(load(str(cold)), tmp_path / "cold").run(interrupt)
    assert at(warm, 10)[-6] < 0.9 * at(cold, 10)[-6]
    assert at(cold, 0)[-6] > at(warm, 0)[-6]


def test_a_trial_is_another_by_what_it_begins_from_and_not_by_where_that_lies(plain, tmp_path):
    def ids(where, **more):
        path = experiment(tmp_path, stages="", rates=(-6,), init=dict(study=str(where), **more))
        return [t.id for t in expand(load(str(path)), "print")]

    copy = tmp_path / "copy"
    shutil.copytree(plain, copy)
    cold = [t.id for t in expand(load(str(experiment(tmp_path, stages="", rates=(-6,)))), "print")]
    assert ids(plain) == ids(copy) != cold
    assert ids(plain) != ids(plain, transform="grow")
    assert ids(plain, transform="grow") != ids(plain, transform="grow", options=dict(noise=0.0))
    trials = json.loads((plain / "study.json").read_text())["trials"]
    assert ids(plain, trial=next(i for i in chosen(plain)[3])) == ids(plain)
    assert len(trials) == 3


def test_a_wider_and_deeper_model_begins_where_the_small_one_ended(plain, tmp_path):
    wide = dict(name="dit", width=32, depth=3, head_dim=8, mlp_ratio=2, patch=4, qk_norm=False, zero_gates=True, position_width=16)
    folder = begun(tmp_path, plain, init=dict(transform="grow"), model=wide)
    best = min(v for v in at(plain, 20, "eval_ema").values() if v is not None)
    assert at(folder, 0)[-6] == pytest.approx(best, rel=1e-5)
    del wide["position_width"]  # the control: what is another function is told, not trained
    with pytest.raises(UserError, match=r"init\.transform='grow' is to keep what the model computes"):
        begun(tmp_path, plain, "other", init=dict(transform="grow"), model=wide)


def test_mistakes_are_one_line(tmp_path, capsys):
    def said(stages="", **changes):
        return mistake(capsys, "run", str(experiment(tmp_path, stages=stages, rates=(-6,), **changes)), "--workdir", str(tmp_path / "runs"))

    assert "init.study='nowhere' holds no study.json" in said(init=dict(study="nowhere"))
    assert "init.trial='x' is of a study" in said(init=dict(trial="x"))
    assert "transform name 'growing' is unknown (nearest: 'grow')" in said(init=dict(study="small", transform="growing"))
    assert "config key init.options 'noises' is unknown" in said(init=dict(study="small", transform="grow", options=dict(noises=1.0)))
    assert "init.options.noise='1'" in said(init=dict(study="small", transform="grow", options=dict(noise="1")))
    assert "stage 1 is named ''" in said("def stages():\n    yield {}\n")
    assert "stage 2 is named 'a'" in said('def stages():\n    yield dict(stage="a")\n    yield dict(stage="a")\n')
    assert "config key optim.lr is set by the sweep and by stage 'a'" in said('def stages():\n    yield {"stage": "a", "optim.lr": 0.1}\n')
    assert "key of stage 'a' 'train.stepz' is unknown (nearest: 'train.steps')" in said(
        'def stages():\n    yield {"stage": "a", "train.stepz": 1}\n'
    )
    assert "run.halving.at" in said('def stages():\n    yield {"stage": "a"}\n', run=dict(halving=dict(at=(0.5,), keep=0.5)))
    assert "is set by the command and by stage" in mistake(capsys, "run", str(experiment(tmp_path)), "--config.train.steps=3")


def test_what_a_stage_left_is_needed_by_the_next(staged, tmp_path, capsys):
    shutil.copytree(staged, tmp_path / "tiny")
    (name,) = record.read_study(tmp_path / "tiny")["populations"]
    shutil.rmtree(tmp_path / "tiny" / name)
    before = tmp_path / "tiny" / "stages" / "small"
    (mine,) = record.read_study(before)["populations"]
    shutil.rmtree(before / mine / "end")
    assert "are gone or damaged" in mistake(capsys, "run", str(experiment(tmp_path)), "--workdir", str(tmp_path))
    shutil.rmtree(before / mine)  # as it says
    assert run(experiment(tmp_path), tmp_path) == 0
    assert record.results(tmp_path / "tiny").equals(record.results(staged))
    assert np.isfinite(pc.max(record.table(tmp_path / "tiny")["eval_loss"]).as_py())
