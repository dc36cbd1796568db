"""The benchmark of laws writes what it shows, and its notebook contestants are what they say."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import _common
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
