"""`lab records add`: runs of others come in by a map of columns, laws of them are told without jax, and every mistake is one line."""

import csv
import json
import re
import subprocess
import sys

import numpy as np
import published
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lab import bring, cli, fit
from lab.errors import UserError
from lab.files import sha256
from lab.laws.points import points

TRUTH = published.BESIROGLU
MAP = {"run": "Name", "loss": "summary.val/loss", "params": "config.n_params", "examples": "summary.tokens", "seed": "config.seed"}
WITHOUT_JAX = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "jaxlib", "flax", "optax", "orbax", "grain"):
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Block())
import json
from lab.cli import main
for args in json.loads(sys.argv[1]):
    print("$", *args)
    assert main(args) == 0
assert not any(m.split(".")[0] in ("jax", "flax") for m in sys.modules)
"""


def lab(capsys, *args):
    """(exit code, standard output, standard error) of `lab`."""
    code = cli.main([*map(str, args)])
    out = capsys.readouterr()
    return code, out.out, out.err


def mapped(columns=MAP, **more):
    return [a for k, v in (columns | more).items() for a in ("--map", f"{k}={v}")]


def simulated(seeds=2, noise=3e-3, draw=1):
    """One row a run, with the names that a table exported from W&B has, and columns that nobody asked for."""
    rows = published.table(TRUTH, published.isoflop(TRUTH), noise, np.random.default_rng(draw), seeds)
    n = len(rows["loss"])
    return {
        "Name": [f"run-{i}" for i in range(n)],
        "State": ["finished"] * n,
        "summary.val/loss": rows["loss"].tolist(),
        "summary.tokens": rows["examples"].tolist(),
        "config.n_params": rows["params"].tolist(),
        "config.seed": rows["seed"].tolist(),
        "summary.total_flops": rows["flops"].tolist(),
    }


def write(path, columns):
    """Columns as a file of the suffix's kind."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    else:
        with path.open("w", newline="") as f:
            table = csv.DictWriter(f, columns, quoting=csv.QUOTE_ALL)
            table.writeheader()
            table.writerows(rows)
    return path


def histories(runs, length=4):
    """Histories of `runs` (name -> params, final loss) in one table: losses fall, counters grow, evaluation is logged on some rows alone."""
    out = {"run": [], "size": [], "flops": [], "loss": []}
    for name, (size, loss) in runs.items():
        for i in range(length + 1):
            out["run"].append(name)
            out["size"].append(size)
            out["flops"].append(1e6 * size * i)
            out["loss"].append(None if i % 2 else loss + length - i)
    return out


def test_laws_of_anothers_runs_are_told_where_jax_is_not_installed(tmp_path):
    file, folder = write(tmp_path / "wandb.csv", simulated()), tmp_path / "theirs"
    commands = (
        ["records", "add", file, "--to", folder, *mapped(), "--flops", "6ND"],
        ["fit", folder, "--out", tmp_path / "law.png", "--points", tmp_path / "points.json", "--methods"],
        ["forecast", folder, "--flops", "1e23"],
    )
    args = json.dumps([[*map(str, c)] for c in commands])
    done = subprocess.run([sys.executable, "-c", WITHOUT_JAX, args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _, added, law, ahead = done.stdout.split("$ ")
    assert "theirs: 50 runs; arms: all" in added
    for name, exponent in zip("ND", TRUTH.exponents, strict=True):
        low, high = map(float, re.search(rf"exponent of {name} ([\d.]+) to ([\d.]+)", law).groups())
        assert low < exponent < high < 1.5 * low
    size = published.best(TRUTH, 1e23)
    wanted = TRUTH(params=size, examples=1e23 / 6 / size)
    low, high = map(float, re.search(r"all: [\d.]+ \([\d.]+ to [\d.]+; ([\d.]+) to ([\d.]+)\)", ahead).groups())
    assert low < wanted < high
    assert (tmp_path / "law.png").stat().st_size > 1e4
    told = json.loads((tmp_path / "points.json").read_text())["arms"]["all"]
    assert len(told["points"]) == 25
    assert {p["runs"] for p in told["points"]} == {2}
    paragraph = law.split("\n\n")[-1]
    assert told["data"] in paragraph
    assert "25 points (50 runs, " in paragraph
    assert f"FLOPs are counted so: {bring.CONVENTION}." in paragraph
    assert "E + A N^-a + B D^-b" in paragraph


def test_a_file_is_the_same_points_whatever_its_kind(tmp_path):
    digests = set()
    for kind in ("csv", "parquet", "jsonl"):
        file = write(tmp_path / f"runs.{kind}", simulated())
        bring.add([str(file)], tmp_path / kind, bring.How(MAP, flops="6ND"))
        ((table, _),) = bring.tables(tmp_path / kind).values()
        digests.add(points(table).data)
    assert len(digests) == 1
    bring.add([str(file)], tmp_path / "counted", bring.How(MAP | {"flops": "summary.total_flops"}, convention="by hand"))
    ((table, _),) = bring.tables(tmp_path / "counted").values()
    assert points(table).data not in digests
    assert points(table).convention == "by hand"


def test_nested_lines_have_dotted_columns(tmp_path):
    file = tmp_path / "runs.jsonl"
    file.write_text('{"summary": {"val/loss": 2.5}, "config": {"n": 10}, "c": "1e9"}\n')
    bring.add([str(file)], tmp_path / "to", bring.How({"loss": "summary.val/loss", "params": "config.n", "flops": "c"}))
    (run,) = bring.read(tmp_path / "to")["runs"]
    assert (run["loss"], run["params"], run["flops"], run["run"]) == (2.5, 10, 1e9, str(file))


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_a_runs_end_is_its_last_logged_row_or_its_best(tmp_path, kind):
    table = histories({"a": (10.0, 3.0), "b": (20.0, 2.0)}, length=5)  # the last row has no evaluation
    table["loss"][2] = 0.5  # of a, at 2e7 FLOPs
    file, how = write(tmp_path / f"history.{kind}", table), bring.How({"run": "run", "loss": "loss", "flops": "flops", "params": "size"})
    bring.add([str(file)], tmp_path / "last", how)
    assert [(r["run"], r["loss"], r["flops"]) for r in bring.read(tmp_path / "last")["runs"]] == [("a", 4.0, 4e7), ("b", 3.0, 8e7)]
    bring.add([str(file)], tmp_path / "best", how._replace(at="best"))
    assert [(r["loss"], r["flops"]) for r in bring.read(tmp_path / "best")["runs"]] == [(0.5, 2e7), (3.0, 8e7)]


def test_runs_without_a_finite_loss_are_censored_and_named(tmp_path, capsys):
    table, kinds = simulated(), {0: "NaN", 1: "inf", 2: ""}
    for i, text in kinds.items():
        table["summary.val/loss"][i] = text
    table["Name"][:3] = ["burst", "blew", "silent"]
    file, folder = write(tmp_path / "runs.csv", table), tmp_path / "to"
    code, out, _ = lab(capsys, "records", "add", file, "--to", folder, *mapped(), "--flops", "6ND")
    assert code == 0
    assert "diverged, as they have no finite loss: burst, blew, silent" in out
    _, out, _ = lab(capsys, "fit", folder, "--out", tmp_path / "law.png", "--points", tmp_path / "points.csv", "--methods")
    assert "left out: as diverged, without a finite loss: burst, blew, silent" in out
    rows = list(csv.DictReader((tmp_path / "points.csv").open()))
    assert sum(not r["left_out"] for r in rows) == 22  # the other seed of a size that diverged is the lucky one
    assert any("burst" in r["left_out"] for r in rows)
    assert "Left out were: as diverged, without a finite loss: burst" in out
    low, high = map(float, re.search(r"exponent of N ([\d.]+) to ([\d.]+)", out).groups())
    assert low < TRUTH.exponents[0] < high


def test_adding_again_changes_nothing_and_more_files_append(tmp_path, capsys):
    whole, folder = simulated(), tmp_path / "to"
    halves = [{k: v[part] for k, v in whole.items()} for part in (slice(25), slice(25, None))]
    first, second = (write(tmp_path / f"{i}.csv", half) for i, half in enumerate(halves))
    args = ["--to", folder, *mapped(), "--flops", "6ND"]
    assert lab(capsys, "records", "add", first, *args)[0] == 0
    before = (folder / bring.FILE).read_bytes()
    code, out, _ = lab(capsys, "records", "add", first, *args)
    assert code == 0
    assert f"{first}: there already" in out
    assert (folder / bring.FILE).read_bytes() == before
    assert lab(capsys, "records", "add", first, second, *args)[0] == 0
    bring.add([str(write(tmp_path / "whole.csv", whole))], tmp_path / "whole", bring.How(MAP, flops="6ND"))
    a, b = (points(bring.tables(f)["all"][0]).data for f in (folder, tmp_path / "whole"))
    assert a == b
    assert {f["file"] for f in bring.read(folder)["files"]} == {str(first), str(second)}


def test_arms_are_compared(tmp_path, capsys):
    """A planted multiplier: the arm's table says half the FLOPs for the same losses."""
    folder = tmp_path / "to"
    for draw, (arm, saved) in enumerate((("plain", 1.0), ("idea", 2.0)), start=1):
        table = simulated(noise=1e-3, draw=draw)
        table["Name"] = [f"{arm}-{n}" for n in table["Name"]]
        table["summary.total_flops"] = [c / saved for c in table["summary.total_flops"]]
        file = write(tmp_path / f"{arm}.csv", table)
        args = [*mapped(flops="summary.total_flops"), "--arm", arm, "--convention", "as counted"]
        assert lab(capsys, "records", "add", file, "--to", folder, *args)[0] == 0
    code, out, _ = lab(capsys, "compare", folder, "--base", "plain")
    assert code == 0
    k, low, high = map(float, re.search(r"k = ([\d.]+) \(90% interval ([\d.]+) to ([\d.]+)\); it ", out).groups())
    assert low < 2 < high
    assert 1.6 < k < 2.5
    assert set(fit.read(folder).arms) == {"plain", "idea"}


def test_odd_units_are_noted(tmp_path):
    table = simulated()
    table["summary.total_flops"] = [c / 1e15 for c in table["summary.total_flops"]]  # PFLOPs
    file = str(write(tmp_path / "runs.csv", table))
    said = bring.add([file], tmp_path / "to", bring.How(MAP | {"flops": "summary.total_flops"}))
    assert any("6e-15 FLOPs a parameter and example" in line for line in said)
    assert not any("note:" in line for line in bring.add([file], tmp_path / "fine", bring.How(MAP, flops="6ND")))


def sizes(path, runs, **more):
    """A table with a row a run: its name, its parameters and what else is given."""
    return write(path, {"run": list(runs), "n": [size for size, _ in runs.values()], **more})


def test_sizes_come_from_a_table_beside_histories(tmp_path, capsys):
    runs = {"a": (10.0, 3.0), "b": (20.0, 2.0)}
    table = histories(runs)
    del table["size"]
    file, beside = write(tmp_path / "histories.csv", table), sizes(tmp_path / "sizes.parquet", runs, tokens=[100, 200])
    args = ["records", "add", file, "--to", tmp_path / "to", "--join", beside, *mapped({"run": "run", "loss": "loss"})]
    code, _, err = lab(capsys, *args, *mapped({"params": "n", "examples": "tokens"}), "--flops", "6ND")
    assert (code, err) == (0, "")
    ends = bring.read(tmp_path / "to")["runs"]
    assert [(r["run"], r["loss"], r["flops"]) for r in ends] == [("a", 3.0, 6e3), ("b", 2.0, 24e3)]
    (told,) = bring.read(tmp_path / "to")["files"]
    assert (told["join"], told["join_sha256"]) == (str(beside), sha256(beside))
    assert "there already" in lab(capsys, *args, *mapped({"params": "n", "examples": "tokens"}), "--flops", "6ND")[1]


def test_a_table_that_does_not_join_is_one_line(tmp_path, capsys):
    runs = {"a": (10.0, 3.0), "b": (20.0, 2.0)}
    file = write(tmp_path / "histories.csv", histories(runs))
    columns = {"run": "run", "loss": "loss", "flops": "flops", "params": "n"}
    twice = write(tmp_path / "twice.csv", {"run": ["a", "b", "a"], "n": [1, 2, 3]})
    for beside, given, wanted in (
        (sizes(tmp_path / "one.csv", {"a": (1, 1)}), columns, "has no row of run 'b'"),
        (twice, columns, "has run 'a' twice"),
        (sizes(tmp_path / "both.csv", runs, flops=[1, 2]), columns, "column 'flops' is in .* too"),
        (sizes(tmp_path / "plain.csv", runs), {k: v for k, v in columns.items() if k != "run"}, "needs --map run=COLUMN"),
        (sizes(tmp_path / "plain.csv", runs), columns | {"params": "size_"}, "--map params: column of .* 'size_' is unknown"),
        (sizes(tmp_path / "plain.csv", runs), columns | {"run": "Name"}, "--map run: column of .* 'Name' is unknown"),
        (tmp_path / "nowhere.csv", columns, "does not exist"),
    ):
        code, _, err = lab(capsys, "records", "add", file, "--to", tmp_path / "to", "--join", beside, *mapped(given))
        assert (code, err.count("\n")) == (2, 1), err
        assert re.search(wanted, err), err
    assert not (tmp_path / "to" / bring.FILE).exists()


def logged(folder, runs, hyperparameters=True, length=4):
    """Histories of `runs` as TensorBoard's event files, a subfolder a run; sizes are hyperparameters of the run where those are told."""
    writing = pytest.importorskip("tensorboardX")
    from tensorboardX.summary import hparams

    for name, (size, loss) in runs.items():
        with writing.SummaryWriter(str(folder / name)) as writer:
            if hyperparameters:
                for summary in hparams({"size": size, "rule": "plain"}, {}):
                    writer.file_writer.add_summary(summary)
            for i in range(length + 1):
                writer.add_scalar("flops", 1e6 * size * i, i)
                if i % 2 == 0:
                    writer.add_scalar("val/loss", loss + length - i, i)
    return folder


TAGS = {"loss": "val/loss", "flops": "flops"}


def test_tensorboards_runs_are_those_of_its_subfolders(tmp_path, capsys):
    runs = {"small/seed0": (10.0, 3.0), "large": (20.0, 2.0), "gone": (30.0, float("nan"))}
    folder = logged(tmp_path / "logs", runs)
    columns = TAGS | {"params": "size", "arm": "rule"}
    code, out, err = lab(capsys, "records", "add", folder, "--to", tmp_path / "to", *mapped(columns))
    assert (code, err) == (0, "")
    assert "diverged, as they have no finite loss: gone" in out
    ends = bring.read(tmp_path / "to")["runs"]
    assert [(r["run"], r["arm"], r["loss"], r["params"], r["flops"]) for r in ends if r["run"] != "gone"] == [
        ("large", "plain", 2.0, 20.0, 8e7),
        ("small/seed0", "plain", 3.0, 10.0, 4e7),
    ]
    assert "there already" in lab(capsys, "records", "add", folder, "--to", tmp_path / "to", *mapped(columns))[1]
    single = next((folder / "large").iterdir())
    bring.add([str(single)], tmp_path / "single", bring.How(columns))
    assert [r["run"] for r in bring.read(tmp_path / "single")["runs"]] == ["large"]


def test_tensorboards_runs_are_the_same_points_as_their_csv(tmp_path):
    """Runs that log no size get it from a table of sizes; what comes in is what the same histories give as CSV, but for float32."""
    runs = {f"n{i}": (10.0 * 2**i, 3.0 - 0.25 * i) for i in range(4)}
    how = bring.How(TAGS | {"params": "n"}, join=str(sizes(tmp_path / "sizes.csv", runs)))
    bring.add([str(logged(tmp_path / "logs", runs, hyperparameters=False))], tmp_path / "events", how)
    table = histories(runs)
    table["val/loss"] = table.pop("loss")
    bring.add([str(write(tmp_path / "h.csv", table))], tmp_path / "csv", how._replace(map=TAGS | {"params": "n", "run": "run"}))
    events, rows = ([{k: v for k, v in r.items() if k != "file"} for r in bring.read(tmp_path / d)["runs"]] for d in ("events", "csv"))
    assert events == rows


def test_tensors_of_one_number_are_scalars_and_a_torn_end_is_left(tmp_path):
    """TensorFlow 2 and clu log tensors; a run that was killed ends in the middle of a record."""
    writing = pytest.importorskip("tensorboardX")
    from tensorboardX.proto import summary_pb2, tensor_pb2

    tensors = {
        "val/loss": tensor_pb2.TensorProto(dtype=1, float_val=[2.5]),
        "flops": tensor_pb2.TensorProto(dtype=2, tensor_content=np.array(3e9, "<f8").tobytes()),
        "image": tensor_pb2.TensorProto(dtype=7, string_val=[b"png"]),
    }
    with writing.SummaryWriter(str(tmp_path / "run")) as writer:
        for tag, tensor in tensors.items():
            writer.file_writer.add_summary(summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, tensor=tensor)]), 7)
        writer.flush()
    (file,) = (tmp_path / "run").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole + whole[: len(whole) // 2 - 3])
    bring.add([str(tmp_path / "run")], tmp_path / "to", bring.How(TAGS))
    (run,) = bring.read(tmp_path / "to")["runs"]
    assert (run["run"], run["loss"], run["flops"]) == ("run", 2.5, 3e9)
    file.write_bytes(b"\x01" * 40)
    with pytest.raises(UserError, match="is damaged at byte 0"):
        bring.add([str(file)], tmp_path / "to", bring.How(TAGS))


MISTAKES = [
    ({"loss": "val/los", "flops": "flops"}, {}, r"--map loss: column of '.*' 'val/los' is unknown \(nearest: 'val/loss'\)"),
    ({"los": "val/loss"}, {}, r"--map: column of the table 'los' is unknown \(nearest: 'loss'\)"),
    ({"flops": "flops"}, {}, "--map loss=COLUMN is missing"),
    ({"loss": "val/loss"}, {}, "neither was given"),
    ({"loss": "val/loss", "flops": "flops"}, {"flops": "6ND"}, "both were given"),
    ({"loss": "val/loss"}, {"flops": "6ND"}, "--flops 6ND needs --map params=COLUMN"),
    ({"loss": "val/loss"}, {"flops": "6N"}, r"--flops '6N' is unknown \(nearest: '6ND'\)"),
    ({"loss": "val/loss", "flops": "flops"}, {"at": "lst"}, r"--at 'lst' is unknown \(nearest: 'last'\)"),
    ({"loss": "val/loss", "flops": "zero"}, {"at": "each"}, "has 0 of 'zero' at its end; flops must be above 0"),
    ({"loss": "val/loss", "flops": "less"}, {"at": "each"}, "has -1 of 'less' at its end; flops must be above 0"),
    ({"loss": "less", "flops": "flops"}, {"at": "each"}, "has -1 of 'less' at its end; loss must be above 0"),
    ({"loss": "val/loss", "flops": "words"}, {"at": "each"}, "row 1: 'words' is 'many'; expected a number"),
    ({"loss": "val/loss", "flops": "flops", "convention": "how"}, {"at": "each"}, "two conventions, '6ND' and 'counted'"),
    ({"loss": "val/loss", "flops": "flops", "params": "flops"}, {}, "has several 'flops' .* --map run=COLUMN"),
    ({"loss": "val/loss", "flops": "flops", "run": "words"}, {"at": "each"}, "run 'many' has 2 rows"),
    ({"loss": "val/loss", "flops": "flops", "seed": "half"}, {"at": "each"}, "has 0.5 of 'half'; a seed is a whole number"),
    ({"loss": "val/loss", "flops": "flops", "arm": "how"}, {"arm": "a"}, "the arm is told once"),
    ({"loss": "val/loss", "flops": "flops", "convention": "how"}, {"convention": "a"}, "how FLOPs are counted is told once"),
]


def test_all_mistakes_of_a_call_are_told_at_once(tmp_path, capsys):
    one = write(tmp_path / "one.csv", {"loss": [2.0], "n": ["many"]})
    other = write(tmp_path / "other.csv", {"loss": ["low"], "m": [3]})
    columns = {"loss": "loss", "params": "n", "examples": "d", "los": "x"}
    args = ["--map", "seed", "--map", "loss=again", "--at", "lst"]
    code, _, err = lab(capsys, "records", "add", one, other, tmp_path / "none.csv", "--to", one, *mapped(columns), *args)
    assert (code, err.count("\n")) == (2, 1)
    for wanted in (
        "--map 'seed' is malformed",
        "--map 'loss=again' names a key twice",
        "column of the table 'los' is unknown",
        "--at 'lst' is unknown",
        "neither was given",
        "one.csv' is a file; runs are brought into a folder",
        "--map examples: column of '.*one.csv' 'd' is unknown",
        "one.csv', row 1: 'n' is 'many'; expected a number",
        "--map params: column of '.*other.csv' 'n' is unknown",
        "other.csv', row 1: 'loss' is 'low'; expected a number",
        "none.csv' does not exist",
    ):
        assert re.search(wanted, err), (wanted, err)
    bad = write(tmp_path / "bad.csv", {"run": list("abcde"), "loss": [-1.0] * 5, "flops": [0.0] * 5})
    code, _, err = lab(capsys, "records", "add", bad, "--to", tmp_path / "to", *mapped({k: k for k in ("run", "loss", "flops")}))
    assert (code, err.count("has 0 of 'flops' at its end"), err.count("has -1 of 'loss' at its end")) == (2, 3, 3)
    assert "and 2 more runs of '" in err


def test_seconds_unique_examples_and_rates_come_in(tmp_path, capsys):
    """By what they bring, k by device-seconds, a law of repeats and one of the learning rate are told of runs of others."""
    design = published.isoflop(TRUTH, sizes=4)
    rng, tables = np.random.default_rng(0), {}
    for arm, saved in (("plain", 1.0), ("quick", 2.0)):
        rows = {k: np.repeat(v, 3) for k, v in design.items()}
        octaves = np.tile([-1.0, 0.2, 1.0], len(design["flops"]))  # from the best rate
        unique = np.minimum(rows["examples"], 2e9)
        worth = unique * (1 - 3 * np.expm1(-(rows["examples"] / unique - 1) / 3))
        loss = TRUTH(params=rows["params"], examples=worth) * (1 + 0.05 * octaves**2) * np.exp(1e-3 * rng.normal(size=len(worth)))
        tables[arm] = {"arm": [arm] * len(loss), "n": rows["params"], "d": rows["examples"], "val": loss, "s": rows["flops"] / 1e12 / saved}
        tables[arm] |= {"set": np.full(len(loss), 2e9), "rate": 2.0 ** (octaves - 8)}
    whole = {k: [*tables["plain"][k], *tables["quick"][k]] for k in tables["plain"]}
    file = write(tmp_path / "runs.csv", whole)
    columns = {"loss": "val", "params": "n", "examples": "d", "arm": "arm", "seconds": "s", "unique": "set", "lr": "rate"}
    code, _, err = lab(capsys, "records", "add", file, "--to", tmp_path / "to", *mapped(columns), "--flops", "6ND", "--at", "each")
    assert code == 0, err
    _, out, err = lab(capsys, "compare", tmp_path / "to", "--base", "plain", "--out", tmp_path / "k.png")
    low, high = map(float, re.search(r"by device-seconds: .* k = [\d.]+ \(90% interval ([\d.]+) to ([\d.]+)\)", out).groups())
    assert low < 2 < high
    assert "note: examples repeat, up to" in out
    code, out, err = lab(capsys, "fit", tmp_path / "to", "--arm", "plain", "--rate", "--out", tmp_path / "law.png")
    assert code == 0, err
    low, high = map(float, re.search(r"R\* ([\d.]+) to ([\d.]+);", out).groups())
    assert low < 3 < high
    (left,) = map(float, re.search(r"R\*.*; points lie ([\d.]+)% from it, and", out).groups())
    assert left < 0.5  # at the best of the rates, which moves losses by 5%
    assert "20 of them" in out
    low, high = map(float, re.search(r"best learning rate [\d.]+ \(([\d.]+) to ([\d.]+)\)", out).groups())
    assert low < 2**-8 < high
    none = bring.add([str(file)], tmp_path / "none", bring.How({k: v for k, v in columns.items() if k != "lr"}, flops="6ND", at="each"))
    assert none
    code, _, err = lab(capsys, "fit", tmp_path / "none", "--rate", "--out", tmp_path / "law.png")
    assert code == 2
    assert "`lab records add --map lr=COLUMN` brings it" in err


@pytest.mark.parametrize("columns, options, wanted", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, capsys, columns, options, wanted):
    table = {"val/loss": [2.0, 1.9], "flops": [1e9, 2e9], "zero": [0, 0], "less": [-1, -1], "words": ["many"] * 2}
    file = write(tmp_path / "runs.csv", table | {"how": ["6ND", "counted"], "half": [0.5, 0.5]})
    args = [a for k, v in options.items() for a in (f"--{k}", v)]
    code, out, err = lab(capsys, "records", "add", file, "--to", tmp_path / "to", *mapped(columns), *args)
    assert code == 2
    assert not out
    assert err.count("\n") == 1
    assert re.search(wanted, err), err
    assert not (tmp_path / "to" / bring.FILE).exists()


def test_files_that_cannot_be_read_are_one_line(tmp_path, capsys):
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    (tmp_path / "torn.jsonl").write_text('{"loss": 1\n')
    (tmp_path / "list.jsonl").write_text("[1, 2]\n")
    (tmp_path / "short.csv").write_text("loss,flops\n1.0\n")
    (tmp_path / "empty.csv").write_text("loss,flops\n")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00loss")
    (tmp_path / "runs.xlsx").write_bytes(b"PK")
    for name, wanted in {
        "torn.parquet": "cannot be read as parquet",
        "torn.jsonl": "cannot be read as jsonl",
        "list.jsonl": "cannot be read as jsonl",
        "short.csv": "row 1: 1 cells under a header of 2",
        "empty.csv": "has no rows",
        "binary.csv": "cannot be read as csv",
        "runs.xlsx": "'.xlsx' is unknown",
        "nowhere.csv": "does not exist",
        ".": "is a folder without TensorBoard's event files; name its files",
    }.items():
        args = ["--to", tmp_path / "to", "--map", "loss=loss", "--map", "flops=flops"]
        code, out, err = lab(capsys, "records", "add", tmp_path / name, *args)
        assert (code, out, err.count("\n")) == (2, "", 1), (name, err)
        assert wanted in err


def test_what_is_there_is_not_mixed_with_what_does_not_fit(tmp_path, capsys):
    folder, file = tmp_path / "to", write(tmp_path / "runs.csv", simulated())
    lab(capsys, "records", "add", file, "--to", folder, *mapped(), "--flops", "6ND")
    before = (folder / bring.FILE).read_bytes()
    more = simulated()
    more["State"] = ["other"] * len(more["State"])
    again = write(tmp_path / "again.csv", more)
    more["Name"] = [f"other-{n}" for n in more["Name"]]
    other = write(tmp_path / "other.csv", more)
    counted = [*mapped(flops="summary.total_flops"), "--convention", "forward and backward"]
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").write_text("{}")
    for args, wanted in (
        ([file, "--to", folder, *counted], "in .* already, read otherwise"),
        ([again, "--to", folder, *mapped(), "--flops", "6ND"], "run 'run-0' is in .* already"),
        ([other, "--to", folder, *counted], "two conventions"),
        ([other, "--to", tmp_path / "study", *counted], "is a study of the lab's own"),
        ([other, "--to", file, *counted], "is a file; runs are brought into a folder"),
    ):
        code, _, err = lab(capsys, "records", "add", *args)
        assert code == 2
        assert re.search(wanted, err), err
    assert (folder / bring.FILE).read_bytes() == before
    for args, wanted in (
        (["records", "ad", file, "--to", folder], "lab records 'ad' is unknown"),
        (["records", "add", file, "--to", folder, "--map", "loss"], "is malformed; expected KEY=COLUMN"),
        (["records", "add", file, "--to", folder, "--map", "loss=a", "--map", "loss=b"], "names a key twice"),
        (["fit", folder, "--out", tmp_path / "law.png", "--points", tmp_path / "p.txt"], "--points: kind of file '.txt' is unknown"),
    ):
        code, _, err = lab(capsys, *args)
        assert code == 2
        assert wanted in err


def test_points_of_too_few_sizes_are_written_though_no_law_is_told(tmp_path, capsys):
    (tmp_path / "size=1").mkdir()  # of parquet a partition, were it asked for
    file = write(tmp_path / "size=1" / "runs.parquet", histories({"a": (10.0, 3.0), "b": (20.0, 2.0)}))
    columns = {"run": "run", "loss": "loss", "flops": "flops", "params": "size"}
    lab(capsys, "records", "add", file, "--to", tmp_path / "to", *mapped(columns))
    code, out, err = lab(capsys, "fit", tmp_path / "to", "--points", tmp_path / "points.json")
    assert code == 2
    assert "no law: " in out
    assert re.fullmatch(r".*no arm has a law: all: L\(N, D\) needs 3 values.*\n", err)
    told = json.loads((tmp_path / "points.json").read_text())["arms"]["all"]
    assert [p["loss"] for p in told["points"]] == pytest.approx([3.0, 2.0])
    code, _, err = lab(capsys, "fit", tmp_path / "to", "--methods")
    assert code == 2
    assert "no arm has a law: all: " in err
