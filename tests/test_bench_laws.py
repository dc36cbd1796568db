"""The benchmark of laws writes what it shows, and its notebook contestants are what they say."""

import json
import sys
from pathlib import Path

import numpy as np
import published
import pytest

from lab.laws import points

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import _common
import heldout
import laws


def test_contestants_are_exact_where_their_law_holds():
    c, at = np.geomspace(1e18, 1e21, 5), np.array([1e22, 1e23])
    told, half = laws.line(c, 40 * c**-0.05, at)
    np.testing.assert_allclose(told, 40 * at**-0.05, rtol=1e-9)
    assert (half < 1e-9).all()
    told, half = laws.floored(c, 1.5 + 40 * c**-0.1, at)
    np.testing.assert_allclose(told, 1.5 + 40 * at**-0.1, rtol=1e-5)
    x = np.log(np.geomspace(1e7, 1e9, 7))
    assert laws._lowest(x, 2 + 0.1 * (x - 18) ** 2) == pytest.approx(2)


def test_the_benchmark_writes_what_it_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_common, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["laws.py", "--sims", "2"])
    laws.main()
    (file,) = tmp_path.iterdir()
    speed, *rows = json.loads(file.read_text())["rows"]
    assert speed["lab_squares_cpu_s"] < 5
    assert {(r["law"], r["times"]) for r in rows} == {(n, k) for n in laws.TRUTHS for k in laws.BEYOND}
    assert {r["by"] for r in rows} == {"lab", "log-log line", "curve_fit", "parabolas, curve_fit"}
    ours = {r["error"] for r in rows if r["by"] == "lab"}
    assert max(ours) < min(r["error"] for r in rows if r["by"] == "log-log line")
    assert f"error {rows[0]['error']:.1%} of the fall" in capsys.readouterr().err


def repeating(budgets=8):
    """Points of a study of doubling budgets whose examples repeat and wear out, and what they fell to."""
    truth, rng = (
        published.Truth(("params", "examples"), 0.5, (17.0, 9.5), (0.35, 0.3), 3e10, 3e10 * 2 ** (budgets - 1) * 10),
        np.random.default_rng(0),
    )
    design = published.isoflop(truth, budgets)
    unique = np.minimum(design["examples"], 2e4)
    worth = unique * (1 - 3 * np.expm1(-(design["examples"] / unique - 1) / 3))
    loss = truth(params=design["params"], examples=worth) * np.exp(1e-3 * rng.normal(size=len(worth)))
    return points.points(design | {"unique": unique, "loss": loss})


def test_held_out_budgets_know_repeats():
    p = repeating()
    assert heldout.splits(p)[0] == (3, 5)
    row = heldout.held_out(p, 4, 6)
    assert row["form"] == "L(N, D, U)"
    assert row["lab"] == row["with repeats"]
    assert abs(row["lab"]) < 0.05 < abs(row["log-log line"])
    plain = heldout.held_out(p._replace(unique=p.examples), 4, 6)
    assert plain["form"] != "L(N, D, U)"
    assert "with repeats" not in plain
    assert abs(plain["lab"]) > 2 * abs(row["lab"])
    said = heldout.summary([row, plain])
    assert said.startswith("lab ")
    assert f"with repeats {abs(row['with repeats']):.1%} (1 splits; there lab {abs(row['lab']):.1%})" in said
