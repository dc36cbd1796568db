"""`lab forecast`: a given run, hours on devices, the next run, and a score at the target; never a number without its interval."""

import re

import isoflops
import numpy as np
import planted
import pytest
from test_designs import EXPERIMENT
from test_fit import numbers, said

from lab import cost, devices, record, skills
from lab.data.loader import open_source
from lab.experiment import load
from lab.sampling import counted


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A planted study of one seed and rate."""
    return isoflops.study(tmp_path_factory.mktemp("iso"), rates=(-6,))


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Planted losses under the config, data and convention of a model that can be built; and the experiment's file."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "base.py").write_text(EXPERIMENT)
    isoflops.study(folder / "runs", rates=(-6,))
    config = load(str(folder / "base.py")).config.to_dict()
    info = open_source(dict(config["data"]), "train", "").info
    about = record.read_study(folder / "runs")
    data = about["data"] | {"fingerprint": info["fingerprint"], "origin": info["origin"]}
    record.write_json(folder / "runs" / "study.json", about | {"config": config, "data": data})
    convene(folder / "runs", cost.CONVENTION)
    return folder


def convene(folder, convention):
    for path in folder.glob("*/card.json"):
        record.write_json(path, record.read_json(path) | {"convention": convention})


def test_a_given_size_has_its_price_against_the_best(plain, capsys):
    code, out, _ = said(capsys, "forecast", plain, "--to", "params=2e6,examples=2.5e7")
    assert code == 0
    mid, low, high = numbers(r"all: ([\d.]+) \([\d.]+ to [\d.]+; ([\d.]+) to ([\d.]+)\)", out)
    assert low < isoflops.LAW(params=2e6, examples=2.5e7) < high
    assert low < mid < high
    price, low, high = numbers(r"price against the best size .*: \+([\d.]+)% \(.*; \+([\d.]+)% to \+([\d.]+)%\)", out)
    flops = 6 * 2e6 * 2.5e7
    _, alone, _ = said(capsys, "forecast", plain, "--flops", flops)
    (best,) = numbers(r"all: ([\d.]+)", alone)
    assert price == pytest.approx(100 * (mid / best - 1), abs=0.03)
    assert low < price < high
    assert "3e+14 FLOPs" in out


def test_a_config_is_counted_and_its_file_too(real, capsys):
    code, out, err = said(capsys, "forecast", real / "runs", "--to", "model.width=64,train.steps=100000")
    assert code == 0, err
    config = load(str(real / "base.py"), ["--config.model.width=64", "--config.train.steps=100000"]).config.to_dict()
    each, params = counted(real / "runs", config)
    size, data, flops = numbers(r"of N ([\d.e+]+), D ([\d.e+]+), ([\d.e+]+) FLOPs", out)
    assert size == pytest.approx(params, rel=5e-3)
    assert data == 8e5
    assert flops == pytest.approx(each * 8e5, rel=5e-3)
    (real / "big.py").write_text(EXPERIMENT.replace("width=16, depth", "width=64, depth").replace("steps=50", "steps=100000"))
    code, again, err = said(capsys, "forecast", real / "runs", "--to", real / "big.py")
    assert code == 0, err
    assert again == out


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (('vocabulary=8', 'vocabulary=16'), "its data are .* those of"),
        (('name="decoder", width=16, depth=1, head_dim=8, mlp_ratio=2, kv_group=1, qk_norm=True, rope="grid"',
          'name="masked", width=16, depth=1, head_dim=8, mlp_ratio=2, qk_norm=True'), "no arm foretells this run: all: .* has model.name masked, and the arm decoder"),
    ],
)  # fmt: skip
def test_another_data_or_model_is_refused(real, capsys, change, wanted):
    (real / "other.py").write_text(EXPERIMENT.replace(*change))
    code, _, err = said(capsys, "forecast", real / "runs", "--to", real / "other.py")
    assert code == 2
    assert re.search(wanted, err), err
    assert err.count("\n") == 1


def test_another_convention_is_refused(real, capsys):
    convene(real / "runs", "6ND")
    code, _, err = said(capsys, "forecast", real / "runs", "--to", "train.steps=1000")
    convene(real / "runs", cost.CONVENTION)
    assert code == 2
    assert "were counted as '6ND', and here as" in err


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        ([], "wants either --flops or --to, neither was given"),
        (["--flops", "1e14", "--to", "train.steps=3"], "both were given"),
        (["--to", "params=1e6"], "wants params and examples, both and alone"),
        (["--to", "params=1e6,examples=-3"], "examples=-3 must be a number above 0"),
        (["--to", "modle.width=8"], "modle.width is no size or horizon"),
        (["--to", "optim.lr=0.1"], "optim.lr is no size or horizon"),
        (["--to", "train.dtype=bfloat16"], "train.dtype is no size or horizon"),
        (["--to", "model.name=masked"], "model.name is no size or horizon"),
        (["--to", "model.widht=8"], r"'model.widht' is unknown \(nearest: 'model.width'\)"),
        (["--flops", "1e14", "--on", "v5p:64"], "wants --mfu, the share of the peak"),
        (["--flops", "1e14", "--on", "v5:64", "--mfu", "0.4"], r"device 'v5' is unknown \(nearest: 'v5[ep]'\)"),
        (["--flops", "1e14", "--on", "v5p:0", "--mfu", "0.4"], "'0' is no number of devices"),
        (["--flops", "1e14", "--on", "v5p", "--mfu", "40"], "--mfu=40.0 must be above 0 and at most 1"),
        (["--flops", "1e14", "--on", "v5p", "--mfu", "0.4", "--price", "-1"], "--price=-1.0 must be that of a device-hour"),
        (["--flops", "1e14", "--mfu", "0.4"], "name them by --on"),
        (["--flops", "1e14", "--skill", "oracle"], "have no judge's columns"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(real, capsys, args, wanted):
    code, _, err = said(capsys, "forecast", real / "runs", *args)
    assert code == 2
    assert re.search(wanted, err), err
    assert err.count("\n") == 1


def test_a_law_of_compute_alone_foretells_no_given_size(tmp_path, capsys):
    folder = planted.study(tmp_path, widths=(32, 64, 128, 256, 512))
    for to in ("params=1e6,examples=1e6", "train.steps=100"):
        code, _, err = said(capsys, "forecast", folder, "--to", to)
        assert code == 2
        assert "no arm foretells this run: mup: its law is of compute alone" in err
        assert err.count("\n") == 1
    code, out, _ = said(capsys, "forecast", folder, "--flops", 1e13)
    assert code == 0
    assert out.count("next run: the 90% interval would shrink most a FLOP by the best size, ") == 2


def test_hours_are_flops_over_what_is_assumed(plain, capsys):
    _, out, _ = said(capsys, "forecast", plain, "--flops", 1e22, "--on", "h100:8", "--mfu", 0.5, "--price", 3)
    hours = 1e22 / (0.5 * 8 * 989e12) / 3600
    assert (
        f"on 8 H100 (published peak 9.89e+14 bf16 FLOP/s each): {hours / 24:.3g} days, {8 * hours:,.0f} device-hours, {24 * hours:,.0f} at 3 a device-hour"
        in out
    )
    assert "if 0.5 of the peak is reached, which is assumed" in out
    assert "too far to be believed" in out
    for flops, wanted in (
        (2e16, "5.06 seconds, 40.4 device-seconds"),
        (2e19, "1.4 hours, 11.2 device-hours"),
        (2e18, "8.43 minutes, 1.12 device-hours"),
    ):
        _, out, _ = said(capsys, "forecast", plain, "--flops", flops, "--on", "h100:8", "--mfu", 0.5)
        assert f"FLOP/s each): {wanted}, if 0.5" in out
    one = devices.machine("B200", 1.0)
    assert one.hours(2250e12 * 3600) == pytest.approx(1)
    assert one.count == 1


def test_a_forecast_knows_repeats(tmp_path, capsys):
    """Where records refute that repeats count as new the law of N, D and U foretells, by the data that there are, and L(N, D) is off."""
    folder = isoflops.study(tmp_path, rates=(-6,), seeds=(0,), data=1e5, repeats=3.0)
    inside = r"all: ([\d.]+) \([\d.]+ to [\d.]+; ([\d.]+) to ([\d.]+)\)"
    for unique, worth in ((None, 1e5 * (1 - 3 * np.expm1(-99 / 3))), (1e8, 1e7)):
        _, out, _ = said(capsys, "forecast", folder, "--to", "params=1e6,examples=1e7", *(["--unique", unique] if unique else []))
        low, high = numbers(inside, out)[1:]
        assert low < isoflops.LAW(params=1e6, examples=worth) < high
        assert "by L(N, D, U) = " in out
        assert "(D' is what D examples, U of them distinct, are worth as new ones; after R* repeats" in out
    assert "of 1e+08 distinct examples, each seen 1 times" in out
    _, few, _ = said(capsys, "forecast", folder, "--flops", 3e13)
    _, more, _ = said(capsys, "forecast", folder, "--flops", 3e13, "--unique", 1e8)
    size, loss = zip(*((numbers(r"best N ([\d.e+]+)", out)[0], numbers(inside, out)) for out in (few, more)), strict=True)
    assert size[0] > 2 * size[1]  # of what repeats a run is to see less
    assert loss[0][0] > loss[1][2]
    plain = numbers(r"by other forms: L\(N, D\) [\d.]+ \(([\d.]+) to ([\d.]+)\)", more)
    assert plain[0] > loss[1][2]
    new = isoflops.study(tmp_path / "new", rates=(-6,), seeds=(0,), data=1e5)
    _, out, _ = said(capsys, "forecast", new, "--flops", 3e13)
    assert "by L(N, D) = " in out
    code, _, err = said(capsys, "forecast", new, "--flops", 3e13, "--unique", 1e8)
    assert code == 2
    assert "--unique=1e+08 has no meaning here" in err


def test_every_forecast_has_its_interval_what_is_left_out_and_the_next_run(tmp_path, capsys):
    point = (-6,)
    folder = isoflops.study(tmp_path, rates=point)
    first = next(t["point"] for t in record.read_study(folder)["trials"].values())
    for path in folder.glob("*/*"):
        path.unlink()
    isoflops.study(folder, rates=point, diverged=[(first["model.width"], first["train.steps"], -6)])
    _, out, _ = said(capsys, "forecast", folder, "--flops", 3e13)
    assert "left out: " in out
    assert "diverged" in out
    assert "L(C) without a floor" in out.split("by other forms: ")[1]
    for told in re.findall(
        r"(?:all: |one run |L\(C\)[a-z ]* |best N |D )[\d.e+]+ ?(.)", out.split("next run")[0].replace("one run ", "one run (")
    ):
        assert told == "("
    shrinks = numbers(r"next run: the 90% interval would shrink most a FLOP by .* by ([\d.]+)%; most of all, .* by ([\d.]+)%", out)
    assert 0 < shrinks[0] <= shrinks[1] < 100


def scored(folder, of, samples=0, name="oracle", **more):
    """A planted study whose trials have a judge's score, `of` (FLOPs, loss)."""
    isoflops.study(folder, **more)
    about, rng = record.read_study(folder), np.random.default_rng(0)
    record.write_json(folder / "study.json", about | {"config": about["config"] | {"judge": {"names": [name], "every": 0, "n": samples}}})
    for pop in about["populations"]:
        rows = record.read_rows(folder / pop).to_pylist()
        for r in rows:
            if r["flops"] and r["eval_loss"] is not None:
                right = of(r["flops"], r["eval_loss"])
                r |= {name: rng.binomial(samples, right) / samples if samples else right, f"{name}_chance": 0.03, f"{name}_ceiling": 1.0}
                r |= {f"{name}_part": right}
        (folder / pop / "rows.parquet").unlink()
        writer = record.Writer(folder / pop)
        writer.append(rows)
        writer.close()
        record.compact(folder / pop)
    return folder


def by_loss(flops, loss):
    return 1 - 0.97 / (1 + np.exp(14 * (0.95 - loss)))


def by_flops(flops, loss):
    return 1 - 0.97 / (1 + (flops / 5e11) ** 0.9)


def test_a_planted_skill_is_told_and_foretold(tmp_path, capsys):
    folder = scored(tmp_path / "runs", by_loss, 4096, budgets=7, rates=(-7, -6))
    code, out, _ = said(capsys, "fit", folder, "--skill", "oracle", "--out", tmp_path / "law.png")
    assert code == 0
    assert "Laws of oracle, from chance 0.03 to 1" in out
    half, low, high = numbers(r"against eval_loss, logistic: 0.515 at ([\d.]+) \(90% interval ([\d.]+) to ([\d.]+)\)", out)
    assert low < 0.95 < high
    assert half == pytest.approx(0.95, rel=0.01)
    assert "against log FLOPs, logistic" in out
    assert (tmp_path / "law-oracle.png").stat().st_size > 1e4
    _, out, _ = said(capsys, "forecast", folder, "--flops", 3e13, "--skill", "oracle")
    (size,) = numbers(r"best N ([\d.e+]+)", out)
    wanted = by_loss(0, isoflops.LAW(params=size, examples=3e13 / 6 / size))
    told = [
        numbers(line + r": ([\d.]+) \([\d.]+ to [\d.]+; ([\d.]+) to ([\d.]+)\)", out)
        for line in (r"oracle by the eval_loss foretold[a-z, ]*", "oracle by log FLOPs[a-z, ]*")
    ]
    assert all(low < value < high for value, low, high in told)
    assert told[0][1] <= wanted <= told[0][2]
    assert told[1][0] == pytest.approx(wanted, abs=0.02)  # of another form, so that nothing promises its interval
    _, out, _ = said(capsys, "forecast", folder, "--to", "params=2e6,examples=2e6", "--skill", "oracle")
    assert "oracle by log FLOPs, at the best size: " in out


def test_a_skill_that_follows_compute_and_not_loss_is_told_so(tmp_path, capsys):
    folder = scored(tmp_path / "runs", by_flops, 4096, budgets=9, rates=(-6,))
    _, out, _ = said(capsys, "fit", folder, "--skill", "oracle", "--out", tmp_path / "law.png")
    assert "log FLOPs foretold larger budgets better" in out
    _, out, _ = said(capsys, "forecast", folder, "--flops", 3e13, "--skill", "oracle")
    assert "oracle by log FLOPs, which foretold larger budgets better: " in out
    assert "oracle by the eval_loss foretold: " in out  # both are shown


def test_scores_that_cannot_be_read_are_one_line(tmp_path, capsys):
    folder = scored(tmp_path / "runs", lambda f, loss: 0.4, budgets=3, rates=(-6,), seeds=(0,))
    for name, wanted in (
        ("oracl", r"column of the final rows 'oracl' is unknown \(nearest: 'oracle'\); expected one of: oracle, oracle_part$"),
        ("oracle_part", "do not tell what chance scores; give it, as in oracle_part=0.1, or 0"),
        ("oracle_part=x", "'x' is no number"),
    ):
        code, _, err = said(capsys, "fit", folder, "--skill", name, "--out", tmp_path / "law.png")
        assert code == 2
        assert re.search(wanted, err), err
    told = skills.read(folder, "oracle_part=0.1")
    assert told.tables["all"].chance == 0.1
    assert "needs 4 budgets, and there are 3" in told.refused["all"]
    assert "does not rise" in told.refused["all"]
    assert "no law: " in skills.text(told)


def test_a_score_is_that_of_the_trials_of_least_loss(tmp_path):
    folder = scored(tmp_path / "runs", lambda f, loss: loss / 10, rates=(-9, -6, -3), noise=0.0, seeds=(0,))
    t = skills.read(folder, "oracle").tables["all"]
    np.testing.assert_allclose(t.score, t.loss / 10)
    assert len(t.loss) == 25
    truth = sorted(
        float(isoflops.LAW(params=50 * w**2, examples=16 * s)) * (1 + isoflops.CURVE * 0.3**2)
        for w, s in {(v["point"]["model.width"], v["point"]["train.steps"]) for v in record.read_study(folder)["trials"].values()}
    )
    np.testing.assert_allclose(sorted(t.loss), truth, rtol=1e-9)
