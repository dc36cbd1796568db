"""`lab.open`: records in Python tell what the commands tell, from here and from a bucket, without jax; every mistake is one line."""

import gc
import http.server
import json
import re
import subprocess
import sys
import threading
import urllib.parse
from contextlib import contextmanager
from pathlib import Path

import isoflops
import numpy as np
import planted
import pytest
from test_records_add import MAP, simulated, write

import lab
from lab import cli, opened
from lab.errors import UserError

RECORDS = Path(__file__).resolve().parents[2] / "notebooks" / "records"
WITHOUT_JAX = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "jaxlib", "flax", "optax", "orbax", "grain"):
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Block())
import lab
assert [m for m in sys.modules if m.split(".")[0] in ("lab", "numpy", "pyarrow")] == ["lab"]  # cheap, until it is asked
import json
file, columns, folder = json.loads(sys.argv[1])
laws = lab.open(file, columns, flops="6ND").fit()
laws.save(f"{folder}/law.pdf"), laws.points(f"{folder}/points.csv"), laws.points(f"{folder}/points.json")
print(laws, laws.methods(), sep="\\n\\n")
assert not any(m.split(".")[0] in ("jax", "flax") for m in sys.modules)
"""


def printed(capsys, *args):
    """What a command prints."""
    assert cli.main([*map(str, args)]) == 0
    return capsys.readouterr().out


@contextmanager
def bucket(folder):
    """The address of a bucket that holds what a folder does: as much of Google's JSON interface as listing and reading take."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            url = urllib.parse.urlsplit(self.path)
            query, name = dict(urllib.parse.parse_qsl(url.query)), urllib.parse.unquote(url.path.partition("/o/")[2])
            if not name:
                names = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
                inside = [n for n in names if n.startswith(query.get("prefix", "")) and "/" not in n[len(query.get("prefix", "")) :]]
                return self.answer(json.dumps({"kind": "storage#objects", "items": [self.about(n) for n in inside]}).encode())
            if not (folder / name).is_file():
                return self.send_error(404)
            asked.append(name)
            return self.answer((folder / name).read_bytes() if query.get("alt") == "media" else json.dumps(self.about(name)).encode())

        def about(self, name):
            size = str((folder / name).stat().st_size)
            return {"kind": "storage#object", "bucket": "bucket", "name": name, "size": size, "generation": "1"}

        def answer(self, body):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with http.server.ThreadingHTTPServer(("localhost", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"scheme=http&endpoint_override=localhost:{server.server_port}&retry_limit_seconds=5", asked
        server.shutdown()


def test_a_study_in_a_bucket_reads_as_it_does_here(tmp_path):
    """pyarrow's own client of Google's storage, against a server of its interface; weights and samples stay where they are."""
    folder = planted.study(tmp_path / "runs" / "study")
    (folder / "width32" / "weights").mkdir()
    (folder / "width32" / "weights" / "manifest.json").write_text("{}")
    here = lab.open(folder)
    with bucket(tmp_path) as (server, asked):
        there = lab.open(f"gs://anonymous@bucket/runs/study?{server}")
        with pytest.raises(UserError, match=r"holds neither a study.json nor a points.json"):
            lab.open(f"gs://anonymous@bucket/runs?{server}")
    assert there.folder != folder
    assert there.rows().equals(here.rows())
    assert there.status() == here.status() == {"done": 64}
    assert there.transfer().text == here.transfer().text
    assert {Path(n).suffix for n in asked} == {".json", ".parquet"}
    assert not [n for n in asked if "weights" in n]
    copied = there.folder
    del there
    gc.collect()
    assert not copied.exists()


def test_a_uri_of_this_machine_is_a_uri(tmp_path):
    folder = planted.study(tmp_path / "study")
    assert lab.open(f"{folder.as_uri()}/").finals().equals(lab.open(folder).finals())


def test_answers_are_what_the_commands_print(tmp_path, capsys):
    folder = isoflops.study(tmp_path / "study", arms={"plain": 1.0, "idea": 2.0}, sizes=3, seeds=(0,), rates=(-7, -6, -5))
    study, drawn = lab.open(folder), tmp_path / "law.png"
    laws, ahead, held = study.fit("idea"), study.forecast(1e14), study.compare("plain")
    assert printed(capsys, "fit", folder, "--arm", "idea", "--out", drawn, "--methods") == f"{laws}\nfigure: {drawn}\n\n{laws.methods()}\n"
    assert printed(capsys, "forecast", folder, "--flops", 1e14) == f"{ahead}\n"
    assert printed(capsys, "compare", folder, "--base", "plain") == f"{held}\nfigure: {folder / 'compare.png'}\n"
    assert set(laws.told.arms) == {"idea"}
    assert set(ahead.told) == {held.told.base.name, held.told.arm.name} == {"plain", "idea"}


def test_transfer_and_batch_of_a_study(tmp_path, capsys):
    folder = planted.study(tmp_path / "study")
    carried = lab.open(folder).transfer()
    assert printed(capsys, "transfer", folder) == f"{carried}\n"
    assert list(carried.figures) == ["loss_against_rate", "drift"]
    for kind, mark in (("pdf", b"%PDF"), ("png", b"\x89PNG"), ("svg", b"<?xml")):
        assert carried.save(tmp_path / f"drift.{kind}", "drift").read_bytes().startswith(mark)
    assert carried._repr_html_().count("data:image/png;base64,iVBOR") == 2
    (found,) = carried.told.transfers["standard"]
    assert found.drift == pytest.approx(-3.0, abs=0.1)
    with pytest.raises(UserError, match=r"needs an arm with three sizes of train.batch"):
        lab.open(folder).batch()


def test_real_records_are_whole(capsys):
    """The records beside the notebooks: a real ladder, whose answer docs/parametrizations.md has of all its seeds."""
    study = lab.open(RECORDS / "parametrizations")
    assert study.status() == {"done": 205, "diverged": 19}
    assert study.finals().num_rows == 224
    (standard,), (mup,) = (study.transfer().told.transfers[a] for a in ("standard", "mup"))
    assert standard.verdict == "drifts"
    assert standard.drift_interval[1] < 0 < mup.drift_interval[0] < mup.drift < 1
    assert study.transfer().text.count("training curves at the value best at width 32: they collapse") == 2
    assert "pruned" in study.study
    for file in RECORDS.rglob("*.json"):
        assert not re.search(r'"/\w+/', file.read_text()), f"{file} has a path of the machine that made it"


def test_three_lines_of_anothers_csv_where_jax_is_not_installed(tmp_path):
    file = write(tmp_path / "wandb.csv", simulated())
    args = json.dumps([str(file), MAP, str(tmp_path)])
    done = subprocess.run([sys.executable, "-c", WITHOUT_JAX, args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    low, high = map(float, re.search(r"exponent of N ([\d.]+) to ([\d.]+)", done.stdout).groups())
    assert low < high < 1.5 * low
    assert "For 'all' we fitted summary.val/loss = E + A N^-a + B D^-b" in done.stdout
    assert (tmp_path / "law.pdf").read_bytes().startswith(b"%PDF")
    assert len(json.loads((tmp_path / "points.json").read_text())["arms"]["all"]["points"]) == 25
    assert len((tmp_path / "points.csv").read_text().splitlines()) == 26


def test_runs_of_others_open_from_their_file_and_from_their_folder(tmp_path, capsys):
    table = simulated()
    table["summary.val/loss"][0] = "NaN"
    file = write(tmp_path / "runs.csv", table)
    theirs = lab.open(file, MAP, flops="6ND")
    columns = [a for k, v in MAP.items() for a in ("--map", f"{k}={v}")]
    printed(capsys, "records", "add", file, "--to", tmp_path / "to", *columns, "--flops", "6ND")
    added = lab.open(tmp_path / "to")
    assert theirs.finals().equals(added.finals())
    assert theirs.finals().num_rows == 50
    assert np.isfinite(theirs.forecast(1e23).told["all"].loss)
    assert str(theirs.fit()).splitlines()[1:] == str(added.fit()).splitlines()[1:]  # the first names the place
    assert str(added) == f"{tmp_path / 'to'}: 50 runs of others"
    with pytest.raises(UserError, match=r"holds the ends of others' runs; a study's own records are wanted"):
        theirs.transfer()


def test_an_answer_without_a_law_has_no_figure(tmp_path):
    file = write(tmp_path / "two.csv", {"loss": [3.0, 2.0], "flops": [1e9, 2e9], "n": [1e3, 2e3]})
    laws = lab.open(file, {"loss": "loss", "flops": "flops", "params": "n"}, at="each").fit()
    assert "no law: " in str(laws)
    assert "<img" not in laws._repr_html_()
    with pytest.raises(UserError, match="these records allow no figure"):
        laws.save(tmp_path / "law.png")


def test_a_mistake_is_one_line(tmp_path):
    file = write(tmp_path / "runs.csv", simulated())
    study = planted.study(tmp_path / "study")
    for call, wanted in (
        (lambda: lab.open(tmp_path), "is not a study"),
        (lambda: lab.open(file), "is a file; to read runs of others from it, say which columns"),
        (lambda: lab.open(file, {"loss": "val/los"}, flops="6ND"), "--flops 6ND needs --map params"),
        (lambda: lab.open(file, MAP | {"loss": "summary.val/los"}, flops="6ND"), r"'summary.val/los' is unknown \(nearest: "),
        (lambda: lab.open("ps://bucket/study"), "'ps://bucket/study' cannot be read: "),
        (lambda: lab.open(tmp_path.as_uri()), "holds neither a study.json nor a points.json"),
        (lambda: lab.open(study).transfer().save("a.pdf", "drit"), r"figure 'drit' is unknown \(nearest: 'drift'\)"),
    ):
        with pytest.raises(UserError, match=wanted) as e:
            call()
        assert "\n" not in str(e.value)
    assert lab.open is opened.open
    with pytest.raises(AttributeError, match="module 'lab' has no attribute 'opn'"):
        lab.opn  # noqa: B018
