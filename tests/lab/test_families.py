"""A study of each kind of model goes from its experiment file to rows, pictures, prompts and verdicts by the same commands."""

import json

import families
import numpy as np
import pytest

from lab import cli, record

FILE = '''"""Does it run?"""
from ml_collections import ConfigDict


def get_config():
    c = ConfigDict(dict(base=dict(width=32), optim=dict(lr=2.0**-7)))
    c.model = dict({model})
    c.objective = dict({objective})
    c.data = dict({data})
    c.train = dict(steps=3, batch=8, log_every=1)
    c.eval = dict(examples=16, batch=8, every=3)
    c.sample = dict(n=5, options=dict({options}))
    c.judge = dict(names=("oracle",) * {judged}, n=8)
    return c
'''
SHAPES = 'name="shapes", size=8, grid=1, density="medium", extras=("text", "tokens")'
# family: data, options of its sampler, whether an oracle judges, shape of a picture
KINDS = {
    "pixart": (SHAPES, "steps=2, guidance=2.0", True, (8, 8, 3)),
    "decoder": (SHAPES, "guidance=2.0, top_k=5", True, (8, 8, 3)),
    "meissonic": (SHAPES, "steps=2", True, (8, 8, 3)),
    "masked": ('name="tree", side=4, vocabulary=4', "steps=2", False, (4, 4, 1)),
}


@pytest.mark.parametrize("family", [pytest.param(k, marks=[pytest.mark.slow] * (k == "meissonic")) for k in KINDS])
def test_a_study_of_every_kind_runs_is_sampled_and_judged(family, tmp_path, monkeypatch, capsys):
    data, options, judged, shape = KINDS[family]
    section, objective, _ = families.FAMILIES[family]
    keys = {k: v for k, v in section.items() if k != "patch"} | ({"patch": 2} if "patch" in section else {})
    told = {"model": {"name": family, **keys, "depth": 1}, "objective": objective}
    filled = {k: ", ".join(f"{a}={b!r}" for a, b in v.items()) for k, v in told.items()}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kind.py").write_text(FILE.format(data=data, options=options, judged=int(judged), **filled))
    assert cli.main(["run", "kind.py"]) == 0
    study = record.read_study("runs/kind")
    rows = record.table("runs/kind").to_pylist()
    assert np.isfinite([r["loss"] for r in rows if r["loss"] is not None]).all()
    if judged:
        assert 0 <= rows[-1]["oracle"] <= 1
        told = study["data"]["prompts"]
        assert told["label"] == [0, 1, 2, 3, 4]
        assert told["names"] == study["data"]["class_names"][:5]
        assert len({tuple(t) for t in told["text"]}) == 5
    (npz,) = tmp_path.glob("runs/kind/*/samples.npz")
    with np.load(npz) as z:
        assert z["samples"].shape == (5, *shape)
        assert z["samples"].dtype == np.uint8
        assert z["real"].shape[1:] == shape
        assert len(json.loads(str(z["about"]))["names"]) == 5
    capsys.readouterr()
    if judged:
        assert cli.main(["sample", "runs/kind", "--prompt", "a red circle", "-n", "2", "--out", "p.png"]) == 0
        assert (tmp_path / "p.png").stat().st_size > 1000
        for prompt, said in (("a red circel", "(nearest: 'circle')"), ("a red circle at the top left", "at most 3")):
            assert cli.main(["sample", "runs/kind", "--prompt", prompt]) == 2
            assert said in capsys.readouterr().err.splitlines()[-1]
    else:
        assert cli.main(["sample", "runs/kind", "--prompt", "a red circle"]) == 2
        assert "reads no text" in capsys.readouterr().err
    for option, said in (("gudance=2", "(nearest: 'guidance')"), ("guidance=much", "must be of type float")):
        assert cli.main(["sample", "runs/kind", "--option", option]) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]
    if family == "masked":
        assert cli.main(["sample", "runs/kind", "--option", "steps=0"]) == 2
        assert "sample.options.steps=0" in capsys.readouterr().err
        (tmp_path / "runs" / "kind" / "study.json").write_text(json.dumps(study | {"numbers": 1}))
        assert cli.main(["sample", "runs/kind"]) == cli.main(["run", "kind.py"]) == 2
        assert capsys.readouterr().err.count("was trained by an older lab") == 2
        assert cli.main(["report", "runs/kind"]) == 0


TWO = '''"""Do two families run side by side?"""
from ml_collections import ConfigDict

DIT = dict(name="dit", width=32, depth=1, head_dim=16, mlp_ratio=1, patch=4, qk_norm=False, zero_gates=True)
DECODER = dict(name="decoder", width=32, depth=1, head_dim=16, mlp_ratio=1, qk_norm=False, rope="grid")
FLOW, NEXT = dict(name="flow", time="uniform", label_drop=0.1), dict(name="next_token", label_drop=0.1)


def get_config():
    c = ConfigDict(dict(base=dict(width=16), model=DIT, objective=FLOW))
    c.data = dict(name="shapes", size=8, grid=1, extras=("tokens",))
    c.train = dict(steps=2, batch=4, log_every=1)
    c.eval = dict(examples=8, batch=4, every=2)
    c.sample = dict(n=0)
    return c


def sweep():
    for model, objective in ((DIT, FLOW), (DECODER, NEXT)):
        for width in (16, 32):
            for k in RATES:
                yield {"arm": model["name"], "model": {**model, "width": width}, "objective": objective, "optim.lr": 2.0**k}
'''


def test_a_sweep_may_set_whole_sections_and_losses_of_two_objectives_share_no_axis(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.py").write_text(TWO.replace("RATES", "(-8, -6)"))
    assert cli.main(["run", "two.py"]) == 0
    said = capsys.readouterr().out
    assert "Best eval_loss" not in said  # one number a family, of two kinds: there is no better one
    assert "dit: " in said
    assert "decoder: " in said
    figures = {p.stem for p in (tmp_path / "runs" / "two" / "figures").glob("*.png")}
    assert {"loss_against_rate_flow", "loss_against_rate_next_token", "drift"} <= figures
    assert "loss_against_rate" not in figures
    rows = record.table("runs/two").to_pylist()
    assert {(r["arm"], r["model.name"], r["model.width"]) for r in rows} == {(a, a, w) for a in ("dit", "decoder") for w in (16, 32)}
    assert {r["model.rope"] for r in rows if r["arm"] == "dit"} == {None}
    folders = {p.name.rsplit("-", 1)[0] for p in (tmp_path / "runs" / "two").glob("*-*")}
    assert folders == {f"{a}-width{w}" for a in ("dit", "decoder") for w in (16, 32)}
    (tmp_path / "two.py").write_text(TWO.replace("RATES", "(-8,)"))  # trials that are no longer asked for stay what they were
    assert cli.main(["run", "two.py"]) == 0
    assert record.table("runs/two").to_pylist() == rows
    (tmp_path / "two.py").write_text(TWO.replace("RATES", "(-8,)").replace('"model": {**', '"optim": {**'))
    assert cli.main(["run", "two.py", "--workdir", "other"]) == 2
    assert "swept key 'optim' is" in capsys.readouterr().err
