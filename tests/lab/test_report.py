"""A report recovers what was planted in records, says so whichever way it comes out, and degrades without a crash."""

import csv
import re
import subprocess
import sys

import numpy as np
import planted
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure
from PIL import Image

from lab import fit, ladder, record, report, transfer
from lab.errors import UserError
from lab.laws.solve import LEAST, MOST

FIGURES = {"loss_against_rate", "drift", "loss_against_flops", "training", "samples"}
TABLES = {"transfer", "optima", "laws", "run_times", "trials"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A planted study of two arms and four widths with a diverged trial, and its report."""
    folder = planted.study(tmp_path_factory.mktemp("planted"), diverged={("standard", 256, -4)})
    return folder, report.report(folder)


@pytest.fixture
def quick(monkeypatch):
    """Figures are drawn in full but coarse, and no fonts are embedded: where what matters is that nothing fails."""
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, target, format=None: save(self, target, format="png", dpi=30))


def rows(folder, name):
    """A table of a report."""
    with (folder / "tables" / f"{name}.csv").open() as f:
        return list(csv.DictReader(f))


def test_planted_drift_and_penalty_are_recovered(made):
    transfers = {r["arm"]: r for r in rows(made[0], "transfer")}
    for arm, drift in (("standard", -3.0), ("mup", 0.0)):
        assert float(transfers[arm]["drift_octaves"]) == pytest.approx(drift, abs=0.1)
        penalty = 100 * planted.CURVE * drift**2 / planted.best(256)
        assert float(transfers[arm]["penalty_percent"]) == pytest.approx(penalty, abs=0.1)
    assert float(transfers["standard"]["octaves_per_doubling"]) == pytest.approx(-1.0, abs=0.05)
    assert [t["stays_put"] for t in transfers.values()] == ["no", "yes"]


def test_optima_and_laws_are_recovered(made):
    optima = {(r["arm"], int(r["width"])): r for r in rows(made[0], "optima")}
    assert len(optima) == 8
    for (arm, width), r in optima.items():
        at = -6.0 - np.log2(width / 32) * (arm == "standard")
        assert float(r["log2_lr"]) == pytest.approx(at, abs=0.05)
        assert float(r["loss"]) == pytest.approx(planted.best(width), rel=1e-3)
    laws = {(r["arm"], r["law"]): r for r in rows(made[0], "laws")}
    assert set(laws) == {(arm, law) for arm in ("standard", "mup") for law in ("L(C)", "L(C) without a floor")}
    for arm in ("standard", "mup"):
        r = laws[arm, "L(C) without a floor"]
        assert float(r["exponent_C"]) == pytest.approx(planted.EXPONENT, rel=0.01)
        assert float(r["foretold_percent"]) < 0.1


def test_the_law_is_that_of_lab_fit(tmp_path, quick):
    folder = planted.study(tmp_path, seeds=(0, 1, 2), noise=0.15)
    page = report.report(folder).read_text()
    told = fit.read(folder)
    text = fit.text(folder, told)
    made = rows(folder, "laws")
    assert [(r["arm"], r["law"]) for r in made] == [(a, x.form) for a, t in told.arms.items() for x in t.laws.fits]
    for r in made:
        law = next(x for x in told.arms[r["arm"]].laws.fits if x.form == r["law"])
        low, high = law.interval(2)
        assert float(r["exponent_C"]) == law.exponents[0]
        assert (float(r["exponent_C_low"] or LEAST), float(r["exponent_C_high"] or MOST)) == pytest.approx((low, high), rel=0.01)
    for t in told.arms.values():
        said = f"{t.laws.fits[0].form} = {fit.formula(t.laws.fits[0])}"
        assert said in text
        assert said in page
    (warning,) = {
        x for t in told.arms.values() for x in fit.warnings(t.points) if x.startswith("NO LAW OF COMPUTE")
    }  # sizes of one horizon
    assert warning in text
    assert page.count(f"mup, standard: {warning}") == 2  # under the figure and among what was done


def test_a_study_without_a_law_says_why(tmp_path, quick):
    page = report.report(planted.study(tmp_path, widths=(32, 64))).read_text()
    (why,) = {t.refused for t in fit.read(tmp_path).arms.values()}
    assert page.count(f"mup, standard: no law: {why}") == 2
    assert (tmp_path / "figures" / "loss_against_flops.png").exists()  # of points alone
    assert not (tmp_path / "tables" / "laws.csv").exists()


@pytest.mark.parametrize("flip", [False, True])
def test_the_conclusion_flips_with_the_truth(tmp_path, flip):
    drift = {"standard": 0.0, "mup": -3.0} if flip else {"standard": -3.0, "mup": 0.0}
    said = report.headline(report.find(planted.study(tmp_path, drift))).splitlines()
    assert len(said) == 3
    for line, arm in zip(said, ("standard", "mup"), strict=False):
        moves = drift[arm] != 0
        assert line.startswith(f"{arm}: {'no' if moves else 'yes'}, the best learning rate {'moves' if moves else 'stays put'}")
        assert f"{drift[arm]:+.2f} octaves" in line or not moves
    assert f"|drift| of standard minus |drift| of mup: {'-' if flip else '+'}3.00 octaves" in said[2]
    assert "One seed: no interval." in said[2]


def test_every_trial_is_listed_the_diverged_ones_too(made):
    trials = rows(made[0], "trials")
    assert len(trials) == 64
    (gone,) = [t for t in trials if t["state"] == "diverged"]
    assert (gone["trial"], gone["loss"]) == ("standard-256--4-0", "nan")
    assert "64: 63 done, 1 diverged" in made[1].read_text()


def test_the_page_is_whole_and_stands_alone(made):
    folder, page = made
    text = page.read_text()
    assert page == folder / "report.html"
    assert {p.stem for p in (folder / "figures").glob("*.png")} == {p.stem for p in (folder / "figures").glob("*.pdf")} == FIGURES
    assert {p.stem for p in (folder / "tables").glob("*.csv")} == TABLES
    assert "<script" not in text
    assert len(re.findall(r'src="data:image/png;base64,', text)) == len(re.findall("src=", text)) == len(FIGURES)
    assert "Planted: &lt;yes&gt; &amp; no." in text
    for line in report.headline(report.find(folder)).splitlines():
        assert line in text
    for fact in ("20.25", "1 x cpu", "2 x multiply-adds of every dot", "500 training and 64 held-out", "def get_config", "1 seed(s)"):
        assert fact in text, fact


def test_three_seeds_give_intervals_that_cover_the_truth(tmp_path):
    folder = planted.study(tmp_path, seeds=(0, 1, 2), noise=0.15)
    f = report.find(folder)
    said = "\n".join(report.conclusion(f))
    assert "no interval" not in said
    assert said.count("90% interval") == 5  # drift and penalty of two arms, and the difference of drifts
    for r, drift in zip(report.tables(folder, f)["transfer"], (-3.0, 0.0), strict=True):
        assert r["drift_low"] - 0.2 < drift < r["drift_high"] + 0.2
        assert r["penalty_low"] <= r["penalty_percent"] <= r["penalty_high"]
        assert r["seeds"] == r["most_seeds"] == 3
    value, interval = f.difference
    assert interval[0] <= value <= interval[1]
    assert value == pytest.approx(3.0, abs=0.5)


def test_two_seeds_give_a_wider_interval_than_five(tmp_path):
    widths = []
    for n in (2, 5):
        (t,) = report.find(planted.study(tmp_path / str(n), {"mup": 0.0}, seeds=range(n), noise=0.2)).transfers.values()
        widths.append(np.ptp(t.drift_interval))
    assert widths[0] > 1.3 * widths[1]
    assert report.headline(report.find(tmp_path / "2")).endswith("2 seeds.")


@pytest.mark.parametrize(
    ("exponents", "drift", "answer", "bound", "said"),
    [
        (range(-8, -3), -3.0, "no", "at most", "a bound, at most this"),  # the widest is best at -9, below all rates tried
        (
            range(-6, -3),
            0.0,
            "undecided",
            "unknown",
            "undecided: drift from width 32 to 256 is not known, for optima are at the edge",
        ),  # best at the lowest rate everywhere
        (range(-10, -4), 2.0, "no", "at least", "a bound, at least this"),
    ],
)
def test_an_optimum_at_the_edge_makes_drift_a_bound(tmp_path, exponents, drift, answer, bound, said):
    (line, _) = report.headline(report.find(planted.study(tmp_path, {"mup": drift}, exponents=exponents))).splitlines()
    assert line.startswith(f"mup: {answer}")
    assert said in line
    assert ("octaves" in line) == (bound != "unknown")  # no number of what is not known
    assert report.tables(tmp_path, report.find(tmp_path))["transfer"][0]["bound"] == bound


def test_a_widest_rung_that_diverges_everywhere_is_undecided(tmp_path, quick):
    folder = planted.study(tmp_path, {"mup": 0.0}, diverged={("mup", 256, k) for k in range(-11, -3)})
    report.report(folder)
    assert report.headline(report.find(folder)).startswith("mup: undecided, every trial at width 256 diverged.")


def test_using_the_narrowest_rate_where_it_diverges_is_said(tmp_path):
    folder = planted.study(tmp_path, {"standard": -3.0}, diverged={("standard", 256, k) for k in (-7, -6, -5, -4)})
    assert "the rate that is best at 32 diverges." in report.headline(report.find(folder))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(missing=(256,)), r"from width 32 to 128;.*Unfinished: 16 of 64 trials"),
        (dict(missing=planted.WIDTHS), "No trial has reached its last step"),
        (dict(widths=(32,)), "Best eval_loss: standard 1.0000 .*Transfer needs several sizes"),
        (dict(widths=(32, 64)), "mup: yes"),
        (dict(exponents=(-6,)), "Best eval_loss: .*width 256.*Transfer needs"),
        (dict(drift={"mup": 0.0}), r"mup: yes.*\nOne seed: no interval"),
        (dict(drift={"standard": -3.0, "mup": 0.0, "other": 1.0}), "other: no"),
        (dict(diverged={("mup", w, k) for w in planted.WIDTHS for k in range(-11, -3)}), "mup: every finished trial diverged"),
        (dict(diverged={(a, w, k) for a in ("standard", "mup") for w in planted.WIDTHS for k in range(-11, -3)}), "every finished trial"),
    ],
)
def test_an_incomplete_study_is_reported_without_a_crash(tmp_path, quick, changes, said):
    folder = planted.study(tmp_path, **changes)
    page = report.report(folder)
    text = report.headline(report.find(folder))
    assert re.search(said, text, re.DOTALL), text
    assert len(text.splitlines()) <= 3
    assert len(rows(folder, "trials")) == len(record.read_study(folder)["trials"])
    assert page.stat().st_size > 2000


def test_a_size_counts_once_a_seed_has_reached_it(tmp_path):
    folder = planted.study(tmp_path, seeds=(0, 1, 2), noise=0.1)
    for done in ("rows.parquet", "done.json"):
        (folder / "width256" / done).unlink()
    w = record.Writer(folder / "width256")
    study = record.read_study(folder)["trials"]
    mine = [(i, t) for i, t in study.items() if t["point"]["model.width"] == 256 and t["seed"] == 1]
    last = {"seed": 1, "step": 40, "examples": 640, "epochs": 1.28, "attempt": 1, "flops": 6.4e10, "diverged": False, "eval_loss": 0.7}
    w.append([{"trial": i, "arm": t["arm"]} | last for i, t in mine])
    w.close()
    text = report.headline(report.find(folder))
    assert "from width 32 to 256" in text
    assert "1 to 3 seeds a size. Unfinished: 32 of 192" in text
    (folder / "width256" / "rows-0001.jsonl").write_text("")  # no seed has reached it
    assert "from width 32 to 128" in report.headline(report.find(folder))


def test_a_second_swept_setting_makes_arms_and_no_averages(tmp_path):
    folder = planted.study(tmp_path, {"mup": 0.0})
    study = record.read_study(folder)
    for i, t in list(study["trials"].items()):
        t["point"]["optim.b1"] = 0.9 if int(i.split("-")[3]) % 2 else 0.8
    study["swept"].append("optim.b1")
    record.write_json(folder / "study.json", study)
    assert set(report.find(folder).transfers) == {"mup, b1 0.8", "mup, b1 0.9"}


def test_the_ladder_is_a_size_of_the_model_before_one_of_training():
    def study(*points):
        return {"trials": {str(i): {"point": p, "arm": p.get("arm", "mup")} for i, p in enumerate(points)}}

    assert ladder.ladder(study({"model.width": 32, "optim.lr": 0.1}, {"model.width": 64, "optim.lr": 0.2})) == "model.width"
    both = [{"model.depth": d, "train.steps": s} for d, s in ((2, 10), (4, 20), (4, 30))]
    assert ladder.ladder(study(*both)) == "model.depth"
    assert ladder.ladder(study({"train.batch": 8}, {"train.batch": 16})) == "train.batch"
    assert ladder.ladder(study({"optim.lr": 0.1, "seed": 0, "optim.b1": 0.9}, {"optim.lr": 0.2, "seed": 1, "optim.b1": 0.8})) is None
    two = [{"arm": a, "model.depth": d, "model.width": w} for a, d in (("dit", 2), ("uvit", 3)) for w in (32, 64)]
    assert ladder.ladder(study(*two)) == "model.width"
    assert ladder.ladder(study(*two[::2])) is None  # what tells two families apart is no ladder


def test_a_report_can_go_elsewhere_and_says_where_it_cannot(tmp_path, quick):
    folder = planted.study(tmp_path / "study", widths=(32, 64))
    before = sorted(folder.rglob("*"))
    assert report.report(folder, tmp_path / "elsewhere").parent == tmp_path / "elsewhere"
    assert sorted(folder.rglob("*")) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*--out"):
        report.report(folder, tmp_path / "file")
    with pytest.raises(UserError, match="not a study"):
        report.report(tmp_path)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n", [1, 5, 19])
def test_a_grid_of_samples_with_names(tmp_path, n, channels):
    images = np.random.default_rng(0).integers(0, 256, (n, 8, 8, channels), np.uint8)
    path = tmp_path / "new" / "samples.png"
    report.grid(images, ["a name that is rather long"] * n, path)
    with Image.open(path) as picture:
        assert np.asarray(picture.convert("RGB")).std() > 10


def test_a_grid_that_cannot_be_written_is_the_users_mistake(tmp_path):
    images = np.zeros((2, 8, 8, 1), np.uint8)
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "samples.png", tmp_path / "samples.nonsense", tmp_path):
        with pytest.raises(UserError, match="--out="):
            report.grid(images, ["a", "b"], path)


def test_it_runs_where_jax_is_not_installed(tmp_path):
    folder = planted.study(tmp_path, widths=(32, 64))
    code = f"""
import sys
sys.modules["jax"] = None
from lab import record, report
from lab.laws import forecast, transfer
report.report({str(folder)!r})
assert not [m for m in sys.modules if m.split(".")[0] in ("jaxlib", "flax", "optax", "orbax", "grain")]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "report.html").exists()


def test_a_metric_that_is_gone_is_named_and_no_answer_is_given(tmp_path):
    folder = planted.study(tmp_path)
    path = folder / "width64" / "rows.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["eval_loss"]).replace_schema_metadata(), path)
    with pytest.raises(UserError, match=r"rows\.parquet' has no column 'eval_loss'"):
        report.find(folder)


@pytest.mark.parametrize("objective, told", [({"name": "flow", "time": "uniform", "label_drop": 0.25}, 0.35), ({"name": "other"}, None)])
def test_the_least_loss_of_a_world_is_told(tmp_path, objective, told):
    folder = planted.study(tmp_path)
    about = record.read_study(folder)
    about["config"]["objective"] = objective
    about["data"]["best_loss"] = {"uniform": {"conditional": 0.3, "marginal": 0.5, "error": 0.01}}
    record.write_json(folder / "study.json", about)
    said = report.headline(report.find(folder))
    assert (f"Least possible eval_loss on this world: {told:.4f} +-0.0100." in said) if told else ("Least possible" not in said)


def test_arms_are_compared_at_the_largest_size_and_wandering_optima_are_told(tmp_path):
    folder = planted.study(tmp_path, {"standard": -3.0, "mup": 0.0})
    said = report.headline(report.find(folder))
    assert "Best eval_loss at width 256, each at its own best rate: " in said
    assert all(f"{arm} {planted.best(256):.4f}" in said for arm in ("mup", "standard"))
    assert "spread over" not in said
    f = report.find(folder)
    middle = f.transfers["mup"].optima[1]._replace(log2=-5.0)
    wandering = f.transfers["mup"]._replace(optima=[f.transfers["mup"].optima[0], middle, *f.transfers["mup"].optima[2:]])
    assert "though optima in between spread over 1.00" in transfer.sentence("mup", wandering, "width")


def test_what_judges_say_of_the_best_trials_is_shown(tmp_path, quick):
    folder = planted.study(tmp_path, diverged={("standard", 256, -4)})
    about = record.read_study(folder)
    about["config"]["judge"] = {"names": ["oracle"]}
    record.write_json(folder / "study.json", about)
    for path in folder.glob("*/rows.parquet"):
        table = pq.read_table(path)
        loss = table["eval_loss"].to_numpy(zero_copy_only=False)
        share = 1.0 - loss / 4  # the better the loss, the better the judge
        columns = {"oracle": share, "oracle_low": share - 0.05, "oracle_high": share + 0.05, "oracle_chance": 0 * share + 0.1}
        for name, values in columns.items():
            table = table.append_column(name, pa.array(values, from_pandas=True))
        pq.write_table(table.replace_schema_metadata(), path)
    report.report(folder)
    told = rows(folder, "judges")
    assert [(r["arm"], int(r["width"])) for r in told] == [(a, w) for a in ("mup", "standard") for w in planted.WIDTHS]
    for r in told:
        assert float(r["oracle"]) == pytest.approx(1.0 - float(r["loss"]) / 4)
        # the best rate tried, at most half an octave from the optimum
        assert float(r["loss"]) <= planted.best(int(r["width"])) + planted.CURVE / 4 + 1e-9
    assert (folder / "figures" / "judge_oracle.png").exists()
    share = 1.0 - float(next(r["loss"] for r in told if r["arm"] == "mup" and r["width"] == "256")) / 4
    said = f"oracle of mup at width 256: {share:.3f} (90% interval {share - 0.05:.3f} to {share + 0.05:.3f}); chance 0.100."
    assert said in report.headline(report.find(folder))
    assert "oracle, best trial of each size" in (folder / "report.html").read_text()


def test_arms_whose_objectives_differ_in_more_than_their_name_are_kinds_of_their_own():
    def kinds(*points):
        trials = {str(i): {"point": p} for i, p in enumerate(points)}
        return report._kinds(
            {"config": {"objective": {"name": "flow"}}, "trials": trials}, [{"trial": i, "arm": f"arm{i}"} for i in trials]
        )

    flow, eps, v = {"optim.lr": 1.0}, *({"objective.name": "diffusion", "objective.prediction": p} for p in ("eps", "v"))
    assert kinds(flow, flow | {"seed": 1}) == {"arm0": "flow", "arm1": "flow"}
    assert kinds(flow, eps) == {"arm0": "flow", "arm1": "diffusion"}
    assert kinds(eps, v) == {"arm0": "diffusion, prediction eps", "arm1": "diffusion, prediction v"}
