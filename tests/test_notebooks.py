"""The notebooks run from top to bottom on the records beside them and on a planted study; each is one text in two forms, kept without outputs."""

import runpy
import shutil
from pathlib import Path

import planted
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
FILES = sorted(FOLDER.glob("*.ipynb"))
NAMES = {"tour", "transfer", "loss_against_compute", "compare", "forecast", "someone_elses_csv"}


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A copy of the notebooks and their records, in which they run and leave what they write."""
    monkeypatch.delenv("LAB_STUDY", raising=False)
    monkeypatch.chdir(shutil.copytree(FOLDER, tmp_path / "notebooks"))
    return tmp_path / "notebooks"


def test_every_notebook_has_both_forms():
    assert {p.stem for p in FILES} == {p.stem for p in FOLDER.glob("*.py")} == NAMES


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_notebook_is_kept_without_outputs(path):
    nbformat = pytest.importorskip("nbformat")
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_notebook_holds_the_cells_of_its_file(path):
    jupytext = pytest.importorskip("jupytext")
    both = [[(c.cell_type, c.source) for c in jupytext.read(p).cells] for p in (path, path.with_suffix(".py"))]
    assert both[0] == both[1]


def test_the_tour_finds_what_was_planted(desk, tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("LAB_STUDY", str(planted.study(tmp_path / "study", diverged={("standard", 256, -4)})))
    notebook = nbformat.read(desk / "tour.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(desk)}}).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    shown = "".join(o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs)
    assert "standard: no, the best learning rate moves: drift -3.00 octaves" in shown
    assert "mup: yes, the best learning rate stays put: drift +0.00" in shown.replace("-0.00", "+0.00")
    assert "{'done': 63, 'diverged': 1}" in shown
    assert sum(o.get("data", {}).get("text/html", "").count("data:image/png") for o in outputs) == 3
    assert (desk / "rates.pdf").read_bytes().startswith(b"%PDF")


def run(desk, name, *written):
    """What a notebook's cells leave behind, as names and as files."""
    left = runpy.run_path(str(desk / f"{name}.py"))
    assert {p.name for p in desk.iterdir()} - {p.name for p in FOLDER.iterdir()} >= set(written)
    return left


def test_transfer_tells_a_real_ladder_apart(desk, capsys):
    told = run(desk, "transfer", "rates.pdf", "drift.pdf")["carried"].told.transfers
    assert "standard: drifts; drift -" in capsys.readouterr().out
    assert abs(told["mup"][0].drift) < 1 < abs(told["standard"][0].drift)


def test_loss_against_compute_has_laws_points_and_a_paragraph(desk, capsys):
    laws = run(desk, "loss_against_compute", "law.pdf", "points.csv")["laws"]
    assert set(laws.told.arms) == {"adaLN-zero", "drawn gates"}
    said = capsys.readouterr().out
    assert "For 'adaLN-zero' we fitted eval_loss" in said
    assert "drawn gates: exponents [" in said
    assert len((desk / "points.csv").read_text().splitlines()) == 1 + 2 * 24


def test_a_forecast_has_an_interval_around_it(desk):
    left = run(desk, "forecast", "forecast.pdf")
    for told in left["ahead"].told.values():
        low, high = told.run[-1]
        assert low < told.loss < high
        assert told.beyond == pytest.approx(10, rel=0.01)


def test_two_methods_are_compared(desk):
    assert "adaLN-zero reaches at" in str(run(desk, "compare", "compare.pdf")["held"])


def test_someone_elses_csv_gives_what_the_study_gives(desk, capsys):
    """The table has the best rates of the records beside it, so that its laws are the study's, but for the lowest points between rates."""
    import lab

    left = run(desk, "someone_elses_csv", "law.pdf", "points.csv", "points.json")
    assert "FLOPs are counted so: 2 x multiply-adds" in capsys.readouterr().out
    own = lab.open("records/parametrizations").fit().told.arms
    for arm, found in left["laws"].told.arms.items():
        assert found.points.loss == pytest.approx(own[arm].points.loss, rel=0.01)
        assert (found.points.flops == own[arm].points.flops).all()
        assert (found.points.count == 4).all()
