"""Records: what a kill, a second writer or a damaged disk can do to them, and that readers say so."""

import json

import pyarrow.parquet as pq
import pytest

from lab import claims, record
from lab.errors import UserError


def row(trial, step, attempt=1, loss=None, **more):
    """A row as a population writes it."""
    loss = float(step) if loss is None else loss
    return {"trial": trial, "arm": "mup", "seed": 0, "step": step, "wall": 0.5 * step, "attempt": attempt, "loss": loss, **more}


def write(folder, rows, close=True):
    """One segment with `rows`, and its writer."""
    w = record.Writer(folder)
    w.append(rows)
    w.flush()
    if close:
        w.close()
    return w


@pytest.fixture
def study(tmp_path):
    """A study of two populations and no rows yet."""
    trials = {
        i: {"arm": "mup", "seed": 0, "steps": 3, "point": {"optim.lr": lr}, "population": p}
        for i, lr, p in (("a", 0.1, "p"), ("b", 0.2, "p"), ("c", 0.1, "q"))
    }
    pops = {"p": {"trials": ["a", "b"], "chunk": 2}, "q": {"trials": ["c"], "chunk": 1}}
    record.write_json(
        tmp_path / "study.json",
        {"schema": record.SCHEMA, "name": "s", "trials": trials, "populations": pops, "swept": ["optim.lr", "seed"]},
    )
    for name, n in (("p", 100), ("q", 200)):
        (tmp_path / name).mkdir()
        record.write_json(tmp_path / name / "card.json", {"parameters": n})
    return tmp_path


def test_rows_come_back_sorted_and_a_nonfinite_value_is_null(tmp_path):
    write(tmp_path, [row("b", 1), row("a", 2), row("a", 0, loss=float("nan")), row("a", 1, loss=float("inf"), extra=3)])
    got = record.read_rows(tmp_path).to_pylist()
    assert [(r["trial"], r["step"], r["loss"]) for r in got] == [("a", 0, None), ("a", 1, None), ("a", 2, 2.0), ("b", 1, 1.0)]
    assert [r["extra"] for r in got] == [None, 3, None, None]


def test_a_torn_last_line_is_dropped_wherever_it_tore(tmp_path):
    write(tmp_path, [row("a", i) for i in range(3)])
    file = tmp_path / "rows-0001.jsonl"
    whole = file.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for cut in range(last, len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert record.read_rows(tmp_path)["step"].to_pylist() == [0, 1]
    for cut in (len(whole) - 1, len(whole)):  # only the line's end is missing: the row is whole
        file.write_bytes(whole[:cut])
        assert record.read_rows(tmp_path)["step"].to_pylist() == [0, 1, 2]


@pytest.mark.parametrize("line", [b'{"trial": "a", "st', b"\xff\xfe", b"[1, 2]", b'{"trial": "a"}', b"7", b'{"trial": "a", "step": 0}'])
def test_a_damaged_middle_line_names_the_file_and_the_line(tmp_path, line):
    write(tmp_path, [row("a", i) for i in range(3)])
    file = tmp_path / "rows-0001.jsonl"
    lines = file.read_bytes().split(b"\n")
    lines[1] = line
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match=r"rows-0001.jsonl.* line 2 is damaged"):
        record.read_rows(tmp_path)


def test_the_newest_attempt_of_a_step_wins(tmp_path):
    write(tmp_path, [row("a", i) for i in range(4)])
    second = record.Writer(tmp_path)
    assert second.attempt == 2
    second.append([row("a", i, 2, loss=10.0 + i) for i in (2, 3, 4)])
    second.close()
    got = record.read_rows(tmp_path)
    assert got["loss"].to_pylist() == [0.0, 1.0, 12.0, 13.0, 14.0]
    assert got["attempt"].to_pylist() == [1, 1, 2, 2, 2]


def test_compact_changes_nothing_a_reader_sees_and_leaves_no_segment(tmp_path):
    write(tmp_path, [row("a", i) for i in range(4)])
    write(tmp_path, [row("a", i, 2, loss=10.0 + i) for i in (2, 3)])
    before = record.read_rows(tmp_path)
    record.compact(tmp_path)
    assert record.read_rows(tmp_path).equals(before)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.parquet"]
    record.compact(tmp_path)
    assert record.read_rows(tmp_path).equals(before)


def test_an_attempt_after_compacting_is_newer_than_those_before(tmp_path):
    """A kill may fall between the compacting and done.json: the next attempt must not lose to the packed rows."""
    write(tmp_path, [row("a", 0)])
    write(tmp_path, [row("a", 0, 2, loss=5.0)])
    record.compact(tmp_path)
    w = record.Writer(tmp_path)
    w.append([row("a", 0, w.attempt, loss=7.0)])
    w.close()
    assert record.read_rows(tmp_path)["loss"].to_pylist() == [7.0]


def test_a_damaged_parquet_file_is_named(tmp_path):
    write(tmp_path, [row("a", 0)])
    record.compact(tmp_path)
    file = tmp_path / "rows.parquet"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"rows.parquet.* is damaged"):
        record.read_rows(tmp_path)


@pytest.mark.parametrize("column", record.KEYS)
def test_a_parquet_file_without_a_column_is_named(tmp_path, column):
    write(tmp_path, [row("a", 0)])
    record.compact(tmp_path)
    file = tmp_path / "rows.parquet"
    pq.write_table(pq.read_table(file).drop_columns([column]), file)
    with pytest.raises(UserError, match=f"rows.parquet' has no column '{column}'"):
        record.read_rows(tmp_path)


def test_rows_that_are_gone_of_a_done_population_are_named(study):
    write(study / "p", [row("a", 0), row("b", 0)])
    record.compact(study / "p")
    record.write_json(study / "p" / "done.json", {"trials": ["a", "b"], "diverged": []})
    (study / "p" / "rows.parquet").unlink()
    with pytest.raises(UserError, match=r"rows\.parquet' is missing, though its population is done"):
        record.status(study)


def test_what_is_said_later_of_a_step_joins_its_row(tmp_path):
    write(tmp_path, [row("a", 4), row("a", 8)])
    write(tmp_path, [row("a", 8, attempt=2, loss=1.5), {**row("a", 8, attempt=2), "loss": 1.5, "oracle": 0.75}])
    first, second = record.read_rows(tmp_path).to_pylist()
    assert (second["loss"], second["oracle"], second["attempt"]) == (1.5, 0.75, 2)
    assert first["oracle"] is None


@pytest.mark.parametrize("said", [(True, False), (False, True)])
def test_a_trial_that_diverged_stays_so_whichever_is_written_last(tmp_path, said):
    write(tmp_path, [row("a", 4, diverged=said[0]), row("a", 4, diverged=said[1], oracle=0.5)])
    (found,) = record.read_rows(tmp_path).to_pylist()
    assert found["diverged"] is True
    assert found["oracle"] == 0.5


def test_status_of_a_trial(study):
    assert record.status(study) == dict.fromkeys("abc", "missing")
    write(study / "p", [row("a", 0), row("b", 0)])
    assert record.status(study) == {"a": "interrupted", "b": "interrupted", "c": "missing"}
    with claims.take(study, "p"):
        assert record.status(study) == {"a": "running", "b": "running", "c": "missing"}
    with claims.take(study, "q"):
        assert record.status(study) == {"a": "interrupted", "b": "interrupted", "c": "running"}
    record.compact(study / "p")
    assert record.status(study)["a"] == "interrupted"  # killed before done.json
    record.write_json(study / "p" / "done.json", {"trials": ["a", "b"], "diverged": ["b"]})
    assert record.status(study) == {"a": "done", "b": "diverged", "c": "missing"}
    assert (record.progress(study / "p"), record.progress(study / "q")) == ("0", "")


def test_the_table_joins_what_the_sweep_set(study):
    write(study / "p", [row(i, s) for i in "ab" for s in (0, 3)])
    write(study / "q", [row("c", 0)])
    rows = record.table(study).to_pylist()
    assert {(r["trial"], r["optim.lr"], r["population"], r["parameters"]) for r in rows} == {
        ("a", 0.1, "p", 100),
        ("b", 0.2, "p", 100),
        ("c", 0.1, "q", 200),
    }
    assert [r["trial"] for r in record.finals(study).to_pylist()] == ["a", "b"]


def test_results_leave_out_wall_time_and_attempt_and_nothing_else(study):
    write(study / "p", [row("b", 0), row("a", 0)])
    first = record.results(study)
    assert set(first.column_names) == set(record.table(study).column_names) - {"wall", "attempt"}
    for file in (study / "p").glob("rows-*"):
        file.unlink()
    write(study / "p", [])
    write(study / "p", [row("a", 0, 2, wall=99.0), row("b", 0, 2, wall=98.0)])
    assert record.results(study).equals(first)
    write(study / "p", [row("a", 0, 3, loss=0.25)])
    assert not record.results(study).equals(first)


def test_a_study_without_rows_has_an_empty_table(study):
    for read in (record.table, record.results, record.finals):
        assert read(study).num_rows == 0


def test_json_is_whole_or_named(tmp_path):
    record.write_json(tmp_path / "x.json", {"a": (1, 2)})
    assert record.read_json(tmp_path / "x.json") == {"a": [1, 2]}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    (tmp_path / "x.json").write_text(json.dumps({"a": 1})[:-2])
    with pytest.raises(UserError, match=r"x.json.* is damaged"):
        record.read_json(tmp_path / "x.json")
    with pytest.raises(UserError, match="does not exist"):
        record.read_json(tmp_path / "y.json")


def test_a_folder_that_is_no_study_or_of_another_schema_is_refused(study, tmp_path_factory):
    with pytest.raises(UserError, match="is not a study"):
        record.read_study(tmp_path_factory.mktemp("empty"))
    record.write_json(study / "study.json", {**record.read_study(study), "schema": record.SCHEMA + 1})
    with pytest.raises(UserError, match="has schema"):
        record.read_study(study)
