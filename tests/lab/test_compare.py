"""`lab compare` of one folder and of two: planted multipliers by FLOPs and device-seconds, and what is refused."""

import csv
import json
import re
import shutil

import isoflops
import numpy as np
import published
import pytest

from lab import bring, cli, compare, record, tables
from lab.files import write_json

SWEEP = {"budgets": 6, "sizes": 3, "seeds": (0, 1, 2), "rates": (-7, -6, -5), "noise": 1e-3}


def lab(capsys, *args):
    """(exit code, standard output, standard error) of `lab`."""
    code = cli.main([*map(str, args)])
    out = capsys.readouterr()
    return code, out.out, out.err


def told(pattern, text):
    found = re.search(pattern + r" k = ([\d.e+]+) \(90% interval ([\d.e+]+) to ([\d.e+]+)\)", text)
    assert found, (pattern, text)
    return [float(g) for g in found.groups()]


def timed(folder, per_flop):
    """Write what populations took: `per_flop` device-seconds a FLOP of the records, on two devices."""
    study = record.read_study(folder)
    for name, pop in study["populations"].items():
        steps = study["trials"][pop["trials"][0]]["steps"]
        card, rows = record.read_json(folder / name / "card.json"), record.read_rows(folder / name).to_pylist()
        spent = sum(r["flops"] for r in rows if r["step"] == steps)
        write_json(folder / name / "card.json", card | {"devices": 2})
        # half of it before an interruption, which is not timed
        write_json(folder / name / "timing.json", {"train_s": spent * per_flop / 2 / 2, "steps_here": steps / 2})


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two studies, the second's told half the FLOPs for the same law; a FLOP of it takes 4/3 of the time of the first's."""
    at = tmp_path_factory.mktemp("pair")
    a, b = isoflops.study(at / "a", **SWEEP), isoflops.study(at / "b", **SWEEP, arms={"all": 2.0}, draw=1)
    timed(a, 3e-11)
    timed(b, 4e-11)
    return a, b


def copy(folder, to):
    shutil.copytree(folder, to)
    return to


def test_a_planted_multiplier_is_told_of_two_folders(pair, tmp_path, capsys):
    code, out, err = lab(capsys, "compare", *pair, "--out", tmp_path / "k.png")
    assert code == 0, err
    assert "b/all reaches at" in out
    k, low, high = told(r"that a/all reaches at 3e\+12:", out)
    assert low < 2 < high
    assert k == pytest.approx(2, rel=0.05)
    k, low, high = told(r"by device-seconds: at [\d.e+]+ s of a/all", out)
    assert low < 1.5 < high
    assert k == pytest.approx(1.5, rel=0.05)
    k, low, high = map(float, re.search(r"a parameter is worth ([\d.]+) of a/all's \(([\d.]+) to ([\d.]+)\)", out).groups())
    assert low < 1 < high  # both studies have one law of N and D: the second is told fewer FLOPs alone
    assert "with one set of exponents for both" in out
    assert (tmp_path / "k.png").stat().st_size > 1e4
    code, out, _ = lab(capsys, "compare", *pair, "--base", "b/all", "--out", tmp_path / "k.png")
    assert told(r"that b/all reaches at 1.5e\+12:", out)[0] == pytest.approx(0.5, rel=0.05)
    assert compare.compare(pair).by_flops.verdict == "holds"


def test_device_seconds_are_of_the_steps_and_shared_out(pair):
    study = record.read_study(pair[0])
    took = tables.seconds(pair[0], study)
    rows = {r["trial"]: r["flops"] for r in record.finals(pair[0]).to_pylist()}
    for i in study["trials"]:  # a population's trials have equal FLOPs here
        assert took[i] == pytest.approx(3e-11 * rows[i])


def test_a_trial_that_halving_let_go_on_took_what_all_its_populations_took(tmp_path):
    trials = {i: {"steps": 100} for i in "abcd"}
    halving = {"bracket": "x", "marks": [20], "keep": 0.5}
    pops = {
        "first": {"trials": list("abcd"), "halving": halving | {"rung": 0}},
        "second": {"trials": ["a", "b"], "halving": halving | {"rung": 1}},
    }
    for name, train_s, steps in (("first", 8.0, 20), ("second", 5.0, 40)):  # the second was resumed half way
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "timing.json", {"train_s": train_s, "steps_here": steps})
        write_json(tmp_path / name / "card.json", {"devices": 3})
    took = tables.seconds(tmp_path, {"trials": trials, "populations": pops})
    assert took == pytest.approx({"a": 6 + 15, "b": 6 + 15, "c": 6, "d": 6})
    (tmp_path / "second" / "timing.json").unlink()
    assert set(tables.seconds(tmp_path, {"trials": trials, "populations": pops})) == {"c", "d"}


def test_an_arm_without_timing_is_said_so(pair, tmp_path, capsys):
    b = copy(pair[1], tmp_path / "b")
    for path in b.glob("*/timing.json"):
        path.unlink()
    code, out, _ = lab(capsys, "compare", pair[0], b, "--out", tmp_path / "k.png")
    assert code == 0
    assert "by device-seconds: not told, as not all runs of b/all have their time told" in out


def cards(folder, **more):
    for path in folder.glob("*/card.json"):
        write_json(path, json.loads(path.read_text()) | more)


@pytest.mark.parametrize(
    "what, wanted",
    [
        ("convention", r"two conventions of counting FLOPs: '2 x multiply-adds of every dot' and '6ND', and are not compared"),
        ("data", r"two sets of data: '\w+' and 'others', and are not compared"),
        ("precision", r"two precisions: '.*' and 'bfloat16 .*'; --across precision holds"),
        ("device", r"two kinds of device: 'cpu' and 'TPU v4'; --across device holds"),
        ("metric", r"a/all is measured by eval_loss and b/all by eval_ema; --across metric holds"),
        ("objective", r"a/all is of flow and b/all of diffusion: losses of two objectives"),
        ("floor", r"the least possible loss is 0.5 of a/all and 0.4 of b/all"),
    ],
)
def test_what_differs_is_refused_in_a_line(pair, tmp_path, capsys, what, wanted):
    a, b = copy(pair[0], tmp_path / "a"), copy(pair[1], tmp_path / "b")
    studies = [record.read_study(f) for f in (a, b)]
    if what == "convention":
        cards(b, convention="6ND")
    elif what == "precision":
        cards(b, precision={"dtype": "bfloat16", "precision": "default"})
    elif what == "device":
        cards(b, device="TPU v4")
    elif what == "data":
        write_json(b / "study.json", studies[1] | {"data": studies[1]["data"] | {"fingerprint": "others"}})
    elif what == "metric":
        config = studies[1]["config"]
        write_json(b / "study.json", studies[1] | {"config": config | {"eval": config["eval"] | {"metric": "eval_ema"}}})
        for folder in (p.parent for p in b.glob("*/rows.parquet")):
            rows = [r | {"eval_ema": r["eval_loss"]} for r in record.read_rows(folder).to_pylist()]
            (folder / "rows.parquet").unlink()
            writer = record.Writer(folder)
            writer.append([r | {"attempt": writer.attempt} for r in rows])
            writer.close()
            record.compact(folder)
    elif what == "objective":
        for f, s, name in zip((a, b), studies, ("flow", "diffusion"), strict=True):
            write_json(f / "study.json", s | {"config": s["config"] | {"objective": {"name": name}}})
    else:
        for f, s, best in zip((a, b), studies, (0.5, 0.4), strict=True):
            objective = {"name": "next_token", "label_drop": 0}
            more = {"config": s["config"] | {"objective": objective}, "data": s["data"] | {"best_loss": best}}
            write_json(f / "study.json", s | more)
    code, _, err = lab(capsys, "compare", a, b, "--out", tmp_path / "k.png")
    assert code == 2
    assert err.count("\n") == 1
    assert re.search(wanted, err)
    code, out, err = lab(capsys, "compare", a, b, "--across", "device,precision,metric", "--out", tmp_path / "k.png")
    assert code == (0 if what in compare.ACROSS else 2)
    if what in compare.ACROSS:
        assert told(r"reaches at 3e\+12:", out)[0] == pytest.approx(2, rel=0.05)
    if what == "device":
        assert "(a/all on cpu, b/all on TPU v4)" in out


def test_mistakes_are_one_line(pair, tmp_path, capsys):
    a, b = pair
    for args, wanted in (
        ((a, a), "is .* itself"),
        ((a,), "--base: which arm is the baseline"),
        ((a, "--base", "all"), "--arm: which arm is to be held against 'all'"),
        ((a, b, "--base", "all"), "--base 'all' is unknown"),
        ((a, b, "--arm", "a/all"), "is the baseline itself"),
        ((a, b, "--across", "data"), "--across 'data' is unknown"),
        ((a, tmp_path), "is not a study"),
    ):
        code, _, err = lab(capsys, "compare", *args)
        assert code == 2
        assert err.count("\n") == 1
        assert re.search(wanted, err), err


def brought(to, arms, **more):
    """A folder of runs of others: arms are names and flops, losses."""
    for arm, (flops, loss) in arms.items():
        path = to.parent / f"{to.name}-{arm}.csv"
        with path.open("w", newline="") as f:
            rows = csv.writer(f)
            rows.writerow(["loss", "flops"])
            rows.writerows(zip(loss, flops, strict=True))
        bring.add([str(path)], to, bring.How({"loss": "loss", "flops": "flops"}, at="each", arm=arm, **more))
    return to


def test_arms_that_are_the_same_runs_at_the_base_have_k_of_one_there(tmp_path, capsys):
    law, rng = published.COMPUTE["GIDD masked"], np.random.default_rng(1)
    flops = np.geomspace(law.low, law.high, 8)
    losses = [law(flops=flops * (flops / flops[0]) ** t) * np.exp(1e-3 * rng.normal(size=8)) for t in (0, 0.06)]
    losses[1][0] = losses[0][0]
    folder = brought(tmp_path / "to", {"standard": (flops, losses[0]), "mup": (flops, losses[1])})
    code, out, _ = lab(capsys, "compare", folder, "--base", "standard", "--out", tmp_path / "k.png")
    assert code == 0
    assert "smallest budget (1e+18): 1, as both are the same runs there" in out
    assert "no worths of parameters and examples: L(N, D) needs the column 'params'" in out
    assert "by device-seconds: not told, as not all runs of standard and mup have their time told" in out
    _, low, high = told(r"reaches at 1e\+21:", out)
    assert low < 1000 ** (0.06 / 1.06) < high


def test_one_that_crosses_1_is_told_in_words(tmp_path, capsys):
    law, middle = published.COMPUTE["GIDD masked"], 10**19.5
    flops = np.geomspace(law.low, law.high, 8)
    loss, own = law(flops=flops), flops / (flops / middle) ** -0.06
    folder = brought(tmp_path / "to", {"plain": (flops, loss), "gated": (own, loss)})
    _, out, _ = lab(capsys, "compare", folder, "--base", "plain", "--out", tmp_path / "k.png")
    assert re.search(r"; it saves at small scale and costs at large: k crosses 1 near 3\.\de\+19\.", out), out
    _, out, _ = lab(capsys, "compare", folder, "--base", "gated", "--out", tmp_path / "k.png")
    assert "; it costs at small scale and saves at large: k crosses 1 near 3" in out
    assert "it holds" not in out


def test_repeats_are_noted(tmp_path, capsys):
    folders = [isoflops.study(tmp_path / n, data=d, **(SWEEP | {"seeds": (0,), "rates": (-6,)})) for n, d in (("a", 1e4), ("b", 1e12))]
    _, out, _ = lab(capsys, "compare", *folders, "--out", tmp_path / "k.png")
    assert re.search(r"note: examples repeat, up to \d+ times of a/all; k goes by examples seen, as if all were new", out)


def test_a_study_is_held_against_runs_of_others(pair, tmp_path, capsys):
    p = compare.compare(pair).ends[0]
    theirs = brought(tmp_path / "theirs", {"theirs": (p.flops / 3, p.loss)})
    args = ("compare", pair[0], theirs, "--out", tmp_path / "k.png")
    code, _, err = lab(capsys, *args)
    assert code == 2
    assert "is measured by eval_loss and theirs by loss" in err
    code, out, _ = lab(capsys, *args, "--across", "metric")
    assert code == 0
    assert told(r"reaches at 3e\+12:", out)[0] == pytest.approx(3, rel=0.01)
    assert "not told of both, and taken to be alike: convention, data, precision, device" in out
    other = brought(tmp_path / "other", {"theirs": (p.flops / 3, p.loss)}, convention="6ND")
    code, _, err = lab(capsys, "compare", pair[0], other, "--across", "metric")
    assert code == 2
    assert "two conventions" in err
