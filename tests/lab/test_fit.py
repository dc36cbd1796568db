"""`lab fit` and `lab forecast`: a planted study's law in words, with intervals, what was left out and why."""

import re

import isoflops
import numpy as np
import planted
import pytest

from lab import cli, fit, ladder, record
from lab.laws import allocation
from lab.laws.forecast import forecast


def said(capsys, *args):
    """(exit code, standard output, standard error) of `lab`."""
    code = cli.main([*map(str, args)])
    out = capsys.readouterr()
    return code, out.out, out.err


def numbers(pattern, text):
    found = re.search(pattern, text)
    assert found, (pattern, text)
    return [float(g) for g in found.groups()]


def test_the_planted_law_is_told_with_intervals(tmp_path, capsys):
    code, out, _ = said(capsys, "fit", isoflops.study(tmp_path), "--out", tmp_path / "law.png")
    assert code == 0
    law = isoflops.LAW
    for name, exponent in zip("ND", law.exponents, strict=True):
        low, high = numbers(rf"exponent of {name} ([\d.]+) to ([\d.]+)", out)
        assert low < exponent < high < 2 * low
    low, high = numbers(r"floor ([\d.]+) to ([\d.]+)", out)
    assert low < law.floor < high
    low, high = numbers(r"grows as C\^[\d.]+ \(90% interval ([\d.]+) to ([\d.]+)\) by the law", out)
    assert low < 0.3 / 0.65 < high
    assert "freed of biases of" in out
    assert "NO LAW OF COMPUTE" not in out
    assert "repeat" not in out
    assert "held out: L(N, D)" in out
    assert (tmp_path / "law.png").stat().st_size > 1e4
    assert "2 x multiply-adds of every dot" in out


def test_examples_that_repeat_have_a_law_of_their_own(tmp_path, capsys):
    folder = isoflops.study(tmp_path, data=1e5, repeats=3.0, seeds=(0,))
    _, out, _ = said(capsys, "fit", folder, "--out", tmp_path / "law.png")
    assert "and count as if new but in L(N, D, U)" in out
    low, high = numbers(r"R\* ([\d.]+) to ([\d.]+);", out)
    assert low < 3 < high < 2 * low
    assert "repeats count less than new examples (p = " in out
    other = isoflops.study(tmp_path / "new", data=1e5, seeds=(0,))
    _, out, _ = said(capsys, "fit", other, "--out", tmp_path / "law.png")
    assert "repeats are not told from new examples (p = " in out
    assert "to unbounded; exponent of N" in out
    few = isoflops.study(tmp_path / "few", data=1e9, seeds=(0,))
    _, out, _ = said(capsys, "fit", few, "--out", tmp_path / "law.png")
    assert "D, U" not in out


def test_all_trials_tell_how_the_best_rate_drifts(tmp_path, capsys):
    point = next(t["point"] for t in record.read_study(isoflops.study(tmp_path / "a"))["trials"].values())
    gone = [(point["model.width"], point["train.steps"], -4)]
    folder = isoflops.study(tmp_path / "b", diverged=gone)
    code, out, _ = said(capsys, "fit", folder, "--rate", "--out", tmp_path / "law.png")
    assert code == 0
    told = out[out.index("Law of eval_loss and the learning rate") :]
    low, high = numbers(r"exponent of N ([\d.]+) to ([\d.]+)", told)
    assert low < isoflops.LAW.exponents[0] < high
    low, high = numbers(r"best learning rate [\d.e-]+ \(([\d.e-]+) to ([\d.e-]+)\)", told)
    assert 0.99 * low < 2**-6.3 < 1.01 * high < 1.1 * low
    drift = numbers(r"goes as N\^\S+ \((\S+) to (\S+)\) D\^\S+ \((\S+) to (\S+)\)", told)
    assert drift == pytest.approx([0.0] * 4, abs=0.01)
    assert "left out: 1 of 125 sizes, horizons and rates, in which 2 runs diverged" in told
    code, _, err = said(capsys, "fit", folder, "--rate", "--arm", "none", "--out", tmp_path / "law.png")
    assert code == 2
    assert "--arm" in err


def test_profiles_are_printed_beside_the_intervals(tmp_path, capsys):
    _, out, _ = said(capsys, "fit", isoflops.study(tmp_path), "--profile", "--out", tmp_path / "law.png")
    ends = [list(map(float, g)) for g in re.findall(r"floor ([\d.]+) to ([\d.]+); exponent of N ([\d.]+) to ([\d.]+)", out)]
    assert out.count("by profile likelihood: ") == 3
    assert ends[0] != ends[1]
    assert ends[1] == pytest.approx(ends[0], rel=0.02)


def test_losses_are_those_of_the_best_rate_between_those_tried(tmp_path):
    t = fit.read(isoflops.study(tmp_path, noise=0.0, seeds=(0,))).arms["all"]
    p = t.points
    np.testing.assert_allclose(p.loss, isoflops.LAW(params=p.params, examples=p.examples), rtol=1e-9)


def test_a_forecast_has_its_interval_and_the_truth_in_it(tmp_path, capsys):
    folder = isoflops.study(tmp_path)
    code, out, _ = said(capsys, "forecast", folder, "--flops", 3e14)
    assert code == 0
    mid, a, b, c, d = numbers(r"all: ([\d.]+) \(([\d.]+) to ([\d.]+); ([\d.]+) to ([\d.]+)\)", out)
    assert c < a < mid < b < d
    law, size = (
        isoflops.LAW,
        allocation.best(
            np.array([[isoflops.LAW.floor, *isoflops.LAW.scales, *isoflops.LAW.exponents]]),
            np.zeros(2),
            allocation.Price(np.log(6), 1.0, 0.0),
            3e14,
        ),
    )
    wanted = law(params=np.exp(size), examples=3e14 / 6 / np.exp(size))[0, 0]
    assert c < wanted < d
    low, high = numbers(r"best N [\d.e+]+ \([\d.e+]+ to [\d.e+]+; ([\d.e+]+) to ([\d.e+]+)\)", out)
    assert low < np.exp(size[0, 0]) < high
    assert "by other forms: L(C)" in out
    for line in out.splitlines():  # no forecast without its interval
        for told in re.findall(r"L\(C\)[a-z ]* [\d.]+ ?(.)", line):
            assert told == "("
    prices = dict(re.findall(r"([\d.]+) times N \+?([\d.-]+)%", out))
    assert float(prices["0.25"]) > float(prices["0.5"]) > 0 < float(prices["2"]) < float(prices["4"])


def test_the_price_of_a_size_is_what_the_law_says():
    import published

    from lab.laws import forecast as module
    from lab.laws import points

    truth = published.HOFFMANN
    p = points.points(published.table(truth, published.isoflop(truth), 1e-9, np.random.default_rng(0)))
    f = forecast(module.laws(p), 1e23)
    size = published.best(truth, 1e23)
    assert f.params == pytest.approx(size, rel=1e-4)
    assert f.loss == pytest.approx(truth(params=size, examples=1e23 / 6 / size), rel=1e-5)
    for k, (price, _) in f.wrong.items():
        other = truth(params=k * size, examples=1e23 / 6 / size / k)
        assert price == pytest.approx(other / f.loss - 1, rel=1e-3)


def test_what_is_left_out_is_told(tmp_path, capsys):
    folder = isoflops.study(tmp_path)
    point = next(t["point"] for t in record.read_study(folder)["trials"].values())
    width, steps = point["model.width"], point["train.steps"]
    for path in folder.glob("*/*"):
        path.unlink()
    widths = {t["point"]["model.width"] for t in record.read_study(folder)["trials"].values()}
    gone = [(width, steps, k) for k in (-8, -7, -6, -5, -4)]
    isoflops.study(folder, diverged=gone, missing=(max(widths),))
    _, out, _ = said(capsys, "fit", folder, "--out", tmp_path / "law.png")
    assert f"left out: {50 * width**2:,} parameters, {16 * steps:,} examples: a trial diverged at all hyperparameters tried" in out
    assert re.search(r"left out: \d+ trials of seeds not all of whose trials at a size are finished", out)
    low, high = numbers(r"exponent of N ([\d.]+) to ([\d.]+)", out)
    assert low < 0.35 < high


def test_an_optimum_at_the_edge_is_told(tmp_path, capsys):
    _, out, _ = said(capsys, "fit", isoflops.study(tmp_path, best=-3.0), "--out", tmp_path / "law.png")
    assert out.count("note: ") == 25
    assert "its best is at the high edge" in out


def test_a_ladder_of_one_horizon_has_a_law_of_compute_alone(tmp_path, capsys):
    folder = planted.study(tmp_path, widths=(32, 64, 128, 256, 512), seeds=(0, 1, 2), noise=0.1)
    _, out, _ = said(capsys, "fit", folder, "--out", tmp_path / "law.png")
    assert "not fitted: L(N, D) needs several values of examples, and there is one (640)" in out
    assert out.count("NO LAW OF COMPUTE: all sizes saw the same 640 examples") == 2
    assert out.count("note: examples repeat up to 1.28 times, and count as if new") == 2
    low, high = numbers(r"L\(C\) without a floor.*\n.*exponent of C ([\d.]+) to ([\d.]+)", out)
    assert low <= planted.EXPONENT <= high
    _, out, _ = said(capsys, "forecast", folder, "--flops", 1e13, "--arm", "mup")
    assert "standard" not in out
    assert "no best size: L(N, D) needs several values of examples" in out


def test_too_few_sizes_are_refused_in_words(tmp_path, capsys):
    folder = planted.study(tmp_path, widths=(32,))
    code, out, err = said(capsys, "fit", folder)
    assert code == 2
    assert out.count("no law: ") == 2
    assert re.search(r"no arm has a law: mup: L\(N, D\).*; standard: ", err)
    assert err.count("\n") == 1
    assert "needs several values of flops, and there is one" in out
    for args, wanted in (
        (["--flops", 1e13], "no arm has a law to forecast from: mup: "),
        (["--flops", -1], "--flops=-1.0 must be above 0"),
        (["--flops", 1e13, "--arm", "mu"], r"--arm 'mu' is unknown \(nearest: 'mup'\)"),
    ):
        code, _, err = said(capsys, "forecast", folder, *args)
        assert code == 2
        assert re.search(wanted, err)


def test_a_known_floor_is_used_and_its_worth_told(tmp_path, capsys):
    folder = isoflops.study(tmp_path)
    study = record.read_study(folder)
    objective = {"name": "next_token", "label_drop": 0}
    record.write_json(
        folder / "study.json", study | {"config": study["config"] | {"objective": objective}, "data": study["data"] | {"best_loss": 0.5}}
    )
    _, out, _ = said(capsys, "fit", folder, "--out", tmp_path / "law.png")
    assert "floor 0.5, known" in out
    assert numbers(r"not knowing the floor would make the interval of the first exponent ([\d.]+) times as wide", out)[0] > 1
    assert "all (next_token)" in out


@pytest.mark.parametrize("saved", [1.0, 2.0])
def test_a_planted_multiplier_is_told(tmp_path, capsys, saved):
    """An arm whose records say that it took so many times fewer FLOPs for its losses than the baseline; 1 for none."""
    folder = isoflops.study(tmp_path, budgets=6, seeds=(0, 1, 2), rates=(-7, -6, -5), arms={"plain": 1.0, "idea": saved}, noise=1e-3)
    code, out, _ = said(capsys, "compare", folder, "--base", "plain")
    assert code == 0
    k, low, high = numbers(r"idea reaches .* k = ([\d.]+) \(90% interval ([\d.]+) to ([\d.]+)\); it ", out)
    assert low < saved < high
    assert 0.8 * saved < k < 1.25 * saved
    for args, wanted in (
        (["--base", "plan"], r"--base 'plan' is unknown \(nearest: 'plain'\)"),
        (["--base", "plain", "--arm", "plain"], "is the baseline itself"),
    ):
        code, _, err = said(capsys, "compare", folder, *args)
        assert code == 2
        assert re.search(wanted, err)


def test_a_key_that_only_another_family_has_is_no_value():
    points = {"a": {"model.name": "dit", "model.patch": 2}, "b": {"model.name": "decoder"}, "c": {}}
    study = {
        "config": {"model": {"name": "dit", "patch": 4}},
        "sections": ["model"],
        "trials": {i: {"point": p} for i, p in points.items()},
    }
    assert [ladder.value(study, i, "model.patch") for i in "abc"] == [2, None, 4]
    assert ladder.value(study, "c", "model.single") is None


def test_what_halving_stopped_holds_no_seed_up(tmp_path):
    folder = isoflops.study(tmp_path, noise=0.0, seeds=(0,))
    before, about = fit.read(folder).arms["all"].points, record.read_study(folder)
    lowest = min(t["point"]["optim.lr"] for t in about["trials"].values())
    for t in about["trials"].values():
        if t["point"]["optim.lr"] == lowest:
            t["stopped"] = 0
    record.write_json(folder / "study.json", about)
    after = fit.read(folder).arms["all"]
    np.testing.assert_allclose(after.points.loss, before.loss, rtol=1e-6)
    assert not any("left out" in note for note in after.notes)


def test_a_figure_that_cannot_be_written_is_one_line(tmp_path, capsys):
    code, _, said_ = said(capsys, "fit", isoflops.study(tmp_path), "--out", tmp_path / "law.xyz")
    assert code == 2
    assert said_.count("\n") == 1
    assert "law.xyz" in said_
