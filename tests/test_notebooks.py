"""The notebooks run from top to bottom on a planted study, and are kept without outputs."""

from pathlib import Path

import planted
import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

FILES = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_notebook_is_kept_without_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_the_tour_finds_what_was_planted(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_STUDY", str(planted.study(tmp_path / "study", diverged={("standard", 256, -4)})))
    (path,) = (p for p in FILES if p.stem == "tour")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    text = "".join(o.get("text", "") for o in outputs)
    assert "standard: drift -3.00 octaves" in text
    assert "mup: drift +0.00 octaves" in text or "mup: drift -0.00 octaves" in text
    assert "{'done': 63, 'diverged': 1}" in text
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 3
