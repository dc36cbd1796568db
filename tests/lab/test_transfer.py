"""`lab transfer`: the ladder found or named, the answer in words, and the experiment file of the big run, which trains."""

import json
import re
from pathlib import Path

import numpy as np
import planted
import pytest

from lab import cli, ladder, record, report, target, transfer, written
from lab.errors import UserError
from lab.laws.transfer import DRIFTS, TRANSFERS

TESTS = Path(__file__).resolve().parents[1]


def renamed(folder, **keys):
    """A planted study whose swept keys are others: model_width='train.steps' renames model.width."""
    study = record.read_study(folder)
    names = {k.replace("_", ".", 1): v for k, v in keys.items()}
    for t in study["trials"].values():
        t["point"] = {names.get(k, k): v for k, v in t["point"].items()}
    study["swept"] = [names.get(k, k) for k in study["swept"]]
    record.write_json(folder / "study.json", study)
    return folder


def said(capsys, *args):
    """(exit code, standard output, standard error) of `lab transfer`."""
    code = cli.main(["transfer", *map(str, args)])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.parametrize("flip", [False, True])
def test_the_answer_flips_with_the_truth(tmp_path, capsys, flip):
    drift = {"standard": 0.0, "mup": -3.0} if flip else {"standard": -3.0, "mup": 0.0}
    code, out, _ = said(capsys, planted.study(tmp_path, drift, seeds=(0, 1, 2), noise=0.1))
    assert code == 0
    for arm, octaves in drift.items():
        line = re.search(rf"^{arm}: (\w+): drift ([-+.\d]+) octaves \(90% interval ([-+.\d]+) to ([-+.\d]+)\)", out, re.MULTILINE)
        assert line[1] == (DRIFTS if octaves else TRANSFERS)
        assert float(line[3]) < octaves < float(line[4])
    assert out.startswith("optim.lr over model.width, by eval_loss. 3 seeds.")
    assert len(re.findall(r"^ +256 ", out, re.MULTILINE)) == 2
    # loss and curve are planted: an octave's error costs CURVE / best, which grows as size^0.2
    assert float(re.search(r"grows as size\^([-+.\d]+)", out)[1]) == pytest.approx(2 * planted.EXPONENT, abs=0.1)


def test_one_seed_has_the_report_s_answer_and_no_interval(tmp_path, capsys):
    folder = planted.study(tmp_path)
    _, out, _ = said(capsys, folder)
    for line in report.headline(report.find(folder)).splitlines()[:2]:
        assert line in out
    assert "One seed: no interval." in out
    assert "90%" not in out


@pytest.mark.parametrize("key", ["model.depth", "train.batch", "train.steps"])
def test_the_ladder_is_found_whatever_makes_it(tmp_path, capsys, key):
    _, out, _ = said(capsys, renamed(planted.study(tmp_path, {"mup": -3.0}, seeds=(0, 1), noise=0.05), model_width=key))
    assert out.startswith(f"optim.lr over {key},")
    assert f"mup: {DRIFTS}: drift -" in out
    assert f"from {key.split('.')[1]} 32 to 256" in out


def test_any_swept_hyperparameter_has_an_optimum(tmp_path, capsys):
    folder = renamed(planted.study(tmp_path, {"mup": -3.0}, seeds=(0, 1), noise=0.05), optim_lr="optim.weight_decay")
    _, out, _ = said(capsys, folder, "--of", "optim.weight_decay")
    assert "best weight_decay" in out
    assert "the value that is best at 32" in out
    assert out == said(capsys, folder)[1]  # what varies beside the ladder is found


def test_what_is_asked_for_and_not_there_is_named(tmp_path, capsys):
    folder = planted.study(tmp_path, seeds=(0, 1))
    for args, wanted in (
        (["--over", "model.widht"], r"--over: .* 'model.widht' is unknown \(nearest: 'model.width'\)"),
        (["--of", "lr"], r"--of: .* 'lr' is unknown \(nearest: 'optim.lr'\)"),
        (["--of", "optim.lr,optim.b1,optim.b2"], "at most two"),
        (["--of", "model.width"], "--of: .* 'model.width' is unknown"),
        (["--to", "model.depth=3"], "model.depth.* is unknown"),
        (["--to", "optim.lr=0.1"], r"wants model.width, the key of the ladder"),
        (["--to", "model.width=wide"], "model.width='wide' is of type str; expected int"),
        (["--to", "model.width=512", "--arm", "mu"], r"--arm 'mu' is unknown \(nearest: 'mup'\)"),
        (["--to", "model.width=512", "--out", str(tmp_path)], "cannot be written"),
    ):
        code, _, err = said(capsys, folder, *args)
        assert code == 2, args
        assert re.search(wanted, err), (args, err)
        assert len(err.splitlines()) == 1
    assert said(capsys, planted.study(tmp_path / "flat", widths=(32,)))[0] == 2
    assert "nothing varies" in said(capsys, planted.study(tmp_path / "one", exponents=(-6,)))[2]
    study = record.read_study(folder)
    next(iter(study["trials"].values()))["point"]["optim.lr"] = 0.0
    record.write_json(folder / "study.json", study)
    assert "optim.lr=0.0 has no logarithm" in said(capsys, folder)[2]


def test_sizes_may_have_seeds_of_their_own_number(tmp_path):
    folder = planted.study(tmp_path, {"mup": -3.0}, seeds=range(5), noise=0.1)
    study = record.read_study(folder)
    few = {128: 2, 256: 1}
    gone = [i for i, t in study["trials"].items() if t["seed"] >= few.get(t["point"]["model.width"], 5)]
    for i in gone:
        study["populations"][study["trials"].pop(i)["population"]]["trials"].remove(i)
    record.write_json(folder / "study.json", study)
    (t,) = transfer.read(folder).transfers["mup"]
    assert t.seeds == (1, 5)
    assert t.verdict == DRIFTS
    assert t.drift_interval[0] < -3.0 < t.drift_interval[1]
    widths = [np.diff(o.interval)[0] for o in t.optima]
    assert widths[-1] > 1.2 * widths[0]  # one seed tells less than five


def two(folder, drift=(1.5, 0.0), seeds=(0, 1)):
    """A planted study of learning rate and weight decay on a grid."""
    folder, trials, pops, rng = Path(folder), {}, {}, np.random.default_rng(0)
    for i, width in enumerate((32, 64, 128)):
        rows, name = [], f"width{width}"
        for seed in seeds:
            offset = 0.01 * rng.normal()
            for k in range(-9, -3):
                for d in range(-7, -2):
                    trial = f"{width}-{seed}-{k}-{d}"
                    high = 0.01 * (k + 7 - drift[0] * i / 2) ** 2 + 0.02 * (d + 4.6 - drift[1] * i / 2) ** 2
                    loss = planted.best(width) * (1 + high + offset + 1e-3 * rng.normal())
                    point = {"model.width": width, "optim.lr": 2.0**k, "optim.weight_decay": 2.0**d, "seed": seed}
                    trials[trial] = {"arm": "mup", "seed": seed, "steps": 40, "point": point, "population": name}
                    rows += planted._rows(trial, "mup", seed, planted.flops(width), loss)
        mine = [i for i, t in trials.items() if t["population"] == name]
        pops[name] = {"trials": mine, "chunk": len(mine)}
        planted._population(folder / name, rows, mine, [], 50 * width**2)
    about = {"schema": record.SCHEMA, "name": "two", "question": "Two?", "experiment": "", "config": planted.CONFIG, "data": planted.DATA}
    swept = ["model.width", "optim.lr", "optim.weight_decay", "seed"]
    record.write_json(folder / "study.json", about | {"trials": trials, "populations": pops, "swept": swept, "versions": {}})
    return folder


def test_two_hyperparameters_swept_together(tmp_path, capsys):
    folder = two(tmp_path)
    _, out, _ = said(capsys, folder, "--of", "optim.lr,optim.weight_decay")
    lr, decay = re.findall(r"^mup: (\w+): drift ([-+.\d]+)", out, re.MULTILINE)
    assert (lr[0], decay[0]) == (DRIFTS, TRANSFERS)
    assert float(lr[1]) == pytest.approx(1.5, abs=0.15)
    assert float(decay[1]) == pytest.approx(0.0, abs=0.15)
    _, out, _ = said(capsys, folder)  # one at a time, each value of the other makes an arm
    assert len(re.findall(r"^mup, weight_decay \S+: ", out, re.MULTILINE)) == 5


def test_values_for_the_big_run_follow_the_verdict(tmp_path):
    stays, drifts = (planted.study(tmp_path / n, {"mup": d}, seeds=(0, 1, 2), noise=0.05) for n, d in (("stays", 0.0), ("drifts", -3.0)))
    (still,), (moving,) = (transfer.read(f).transfers["mup"] for f in (stays, drifts))
    v = target._value(still, 1024, "width")
    assert v.log2 == pytest.approx(-6.0, abs=0.1)
    assert "the mean of 4 optima" in v.why
    v = target._value(moving, 1024, "width")
    assert v.log2 == pytest.approx(-11.0, abs=0.3)  # -9 at 256, an octave a doubling
    assert "carried on" in v.why
    low, high = map(float, re.search(r"interval of log2 ([-.\d]+) to ([-.\d]+)", v.why).groups())
    assert low < -11.0 < high
    assert np.diff([low, high]) > np.diff(moving.optima[-1].interval)  # further than was tried, less is known
    unsure = still._replace(drift_interval=(-1.0, 1.0))
    assert "the optimum at width 256" in target._value(unsure, 1024, "width").why


def test_what_tuning_cost_is_counted(tmp_path):
    folder = planted.study(tmp_path, {"mup": 0.0}, seeds=(0, 1))
    told = transfer.read(folder)
    big = target.config_of(told.ladder.study, next(iter(told.ladder.study["trials"])))
    big["train"] = dict(big["train"], steps=80)
    whole, small, _, size = target.tuning(told.ladder, "mup", big, 512.0)
    share = [100 * 16 * sum(map(planted.flops, w)) / (2 * planted.flops(512)) for w in (planted.WIDTHS, (32,))]
    for line, wanted in zip((whole, small), share, strict=True):
        # trials x parameters x batch x steps: here parameters go as FLOPs do
        assert list(map(float, re.findall(r"([\d.]+)%", line))) == pytest.approx([wanted, wanted], abs=0.01)
    assert "all 64 trials" in whole
    assert "smallest size, 32" in small
    assert f"{2 * planted.flops(512):.3g} FLOPs, {50 * 512**2:,} parameters, 1,280 examples" in size


def test_a_ladder_with_nothing_finished_says_so(tmp_path, capsys):
    _, out, _ = said(capsys, planted.study(tmp_path, missing=planted.WIDTHS))
    assert "No arm has all trials of a seed" in out
    assert said(capsys, tmp_path, "--to", "model.width=512")[0] == 2


EXPERIMENT = '''"""Does a tiny ladder transfer?"""
from ml_collections import ConfigDict
def get_config():
    c = ConfigDict()
    c.model = dict(name="dit", width=32, depth=1, head_dim=16, mlp_ratio=2, patch=4, qk_norm=False, zero_gates=True)
    c.base = dict(width=32)
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    c.data = dict(name={source!r}, n=128)
    c.train = dict(steps=40, batch=16, log_every=1)
    c.eval = dict(examples=32, batch=16, every=16)
    c.sample = dict(n=0)
    return c
'''


def test_the_big_run_s_experiment_trains(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    from lab.experiment import load

    (tmp_path / "tiny.py").write_text(EXPERIMENT.format(source=str(TESTS / "waves.py")))
    folder = planted.study(tmp_path / "tiny", {"mup": 0.0}, seeds=(0, 1), noise=0.1)  # of the records of a whole config
    about = record.read_study(folder)
    record.write_json(folder / "study.json", about | {"config": load(str(tmp_path / "tiny.py")).config.to_dict()})
    big = tmp_path / "new" / "big.py"
    code, out, _ = said(capsys, folder, "--to", "model.width=48", "--to", "train.steps=500", "--out", big)
    assert code == 0
    for told in ("base (width 32)", "parametrization mup", "optim.lr = ", "tuning cost, all 64 trials", "R S B T"):
        assert told in big.read_text()
    loaded = load(str(big))
    assert (loaded.config.model.width, loaded.config.train.steps) == (48, 500)
    assert loaded.config.optim.lr == pytest.approx(float(re.search(r"^optim.lr = (\S+):", out, re.MULTILINE)[1]), rel=1e-3)
    assert loaded.question.startswith("Does what was tuned in planted hold at width 48?")
    assert cli.main(["run", str(big), "--workdir", str(tmp_path), "--config.train.steps=2", "--config.eval.every=2"]) == 0
    (row,) = record.finals(tmp_path / "big").to_pylist()
    assert row["step"] == 2


def test_sensitivity_and_training_curves_are_told(tmp_path, capsys):
    drawn = dict(seeds=(0, 1), noise=0.1, diverged={("mup", 256, -4)})
    _, out, _ = said(capsys, planted.study(tmp_path, {"mup": 0.0}, **drawn))
    assert "training curves at the value best at width 32: they collapse: 0.00% apart" in out  # planted alike
    lines = [line.split() for line in out.splitlines() if re.match(r" +(32|256) ", line)]
    at = np.arange(-11.0, -3)
    high = planted.CURVE * (at + 6) ** 2
    assert float(lines[0][7]) == pytest.approx(np.trapezoid(high, at) / 7 - high.min(), abs=0.01)
    high[-1] = 2.0 - planted.best(256)  # diverged: as far up as at the start, where the loss is 2
    assert float(lines[1][7]) == pytest.approx(np.trapezoid(high, at) / 7 - high.min(), abs=0.01)


def test_config_of_a_trial_is_the_config_at_its_point(tmp_path):
    study = record.read_study(planted.study(tmp_path))
    trial = "mup-64--7-0"
    config = target.config_of(study, trial)
    assert (config["model"]["width"], config["optim"]["lr"], config["parametrization"]["name"]) == (64, 2.0**-7, "mup")
    assert study["config"]["model"]["width"] == 32  # untouched
    assert ladder.value(study, trial, "optim.lr") == 2.0**-7
    study["sections"] = ["model"]
    study["trials"][trial]["point"] = {"model.name": "uvit", "model.width": 16, "arm": "uvit"}
    assert target.config_of(study, trial)["model"] == {"name": "uvit", "width": 16}
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize(
    "value", [{"a": (1,), "b": "it's", "c": {}}, {"a": (), "n": {"x-y": 2.5}}, 3, {"long": "x" * 90, "more": ("y" * 50, 1)}]
)
def test_a_config_s_python_reads_back(value):
    assert eval(written._written(json.loads(json.dumps(value)))) == value


def test_an_experiment_is_written_over_what_the_lab_wrote_and_over_nothing_else(tmp_path):
    out = tmp_path / "big.py"
    for text in ("a = 1\n", "a = 2\n"):
        written.save(out, text)
        assert out.read_text().startswith(text)
    whole = out.read_text()
    for mine in (whole.replace("2", "3", 1), whole + "b = 1\n", "a = 2\n", ""):
        out.write_text(mine)
        with pytest.raises(UserError, match=r"big\.py' is there already, and was not written by the lab or was edited since"):
            written.save(out, "a = 4\n")
        assert out.read_text() == mine
