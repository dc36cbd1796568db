"""Records: the rows that trials write, the only thing analysis reads. No jax here.

A study is a folder: study.json, and a folder a population with config.json, card.json, append-only row segments (one an
attempt, for object stores cannot append), compacted to rows.parquet when the population is done.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lab import claims
from lab.errors import UserError
from lab.files import write_json as write_json  # beside what reads it

SCHEMA = 1
KEYS = ("trial", "step", "attempt")  # columns that every row has
NOT_RESULTS = ("wall", "attempt")  # what may differ between two runs of the same study
STATES = ("done", "running", "interrupted", "stopped", "diverged", "missing")  # of a trial


def read_json(path: Path) -> Any:
    """Read JSON; a damaged file raises UserError naming it."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"file {str(path)!r} does not exist") from None
    except ValueError as e:
        raise UserError(f"file {str(path)!r} is damaged ({e}); restore it, or delete it and run the same command again") from None


def read_study(folder: Path) -> dict:
    """study.json of a study's folder."""
    path = Path(folder) / "study.json"
    if not path.parent.exists():
        raise UserError(f"folder {str(folder)!r} does not exist")
    if not path.exists():
        raise UserError(f"folder {str(folder)!r} is not a study (it has no study.json); a study is made by `lab run EXPERIMENT`")
    study = read_json(path)
    if study.get("schema") != SCHEMA:
        raise UserError(f"study {str(folder)!r} has schema {study.get('schema')!r}; this version reads schema {SCHEMA}")
    return study


def _segments(folder: Path) -> list[Path]:
    return sorted(Path(folder).glob("rows-*.jsonl"))


def _packed(folder: Path) -> pa.Table | None:
    path = Path(folder) / "rows.parquet"
    if not path.exists():
        return None
    try:
        rows = pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as e:
        raise UserError(f"file {str(path)!r} is damaged ({str(e).splitlines()[0]}); delete its folder and run again") from None
    if missing := [c for c in KEYS if c not in rows.column_names]:
        raise UserError(f"file {str(path)!r} has no column {missing[0]!r}; restore it, or delete its folder and run again")
    told, rows = (rows.schema.metadata or {}).get(b"columns"), rows.replace_schema_metadata(None)
    if told not in (None, _columns(rows)):  # of files of before none is told
        raise UserError(f"file {str(path)!r} is damaged (names of columns); delete its folder and run again")
    return rows


def _columns(rows: pa.Table) -> bytes:
    """Checksum of the columns' names and types, which parquet's own do not cover."""
    return b"%08x" % zlib.crc32(rows.schema.remove_metadata().to_string().encode())


def position(folder: Path) -> dict[str, list[int]]:
    """How far the rows of a population go: {segment: [bytes, CRC-32 of them]}. A checkpoint holds the position of the rows before it."""
    return {p.name: [p.stat().st_size, zlib.crc32(p.read_bytes())] for p in _segments(folder)}


def holds(folder: Path, at: dict[str, list[int]]) -> bool:
    """Whether the rows up to a position are there, whole: in their segments, or packed."""

    def whole(name, size, crc):
        path = Path(folder) / name
        return _packed(folder) is not None if not path.exists() else zlib.crc32(path.read_bytes()[:size]) == crc

    return all(whole(name, *told) for name, told in at.items())


def cut(folder: Path, at: dict[str, list[int]]) -> None:
    """Drop the rows after a position: their steps are trained again."""
    for path in _segments(folder):
        size = at.get(path.name, [0])[0]
        if path.stat().st_size > size:
            os.truncate(path, size)


class Writer:
    """Appends rows to a new segment of a population; `attempt` counts from 1."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        # rows are packed before done.json is written, so a kill in between leaves attempts that have no segment
        packed = _packed(folder)
        before = [int(p.stem.split("-")[1]) for p in _segments(folder)] + (packed["attempt"].to_pylist() if packed else [])
        self.attempt = max(before, default=0) + 1
        self._before = position(folder)
        self._path, self._size, self._crc = folder / f"rows-{self.attempt:04d}.jsonl", 0, 0
        self._file = self._path.open("xb")

    def append(self, rows: list[dict]) -> None:
        """Append rows; a value that is not a finite number is written as null."""
        for row in rows:
            clean = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()}
            line = json.dumps(clean).encode() + b"\n"
            self._file.write(line)
            self._size, self._crc = self._size + len(line), zlib.crc32(line, self._crc)
        self._file.flush()

    def position(self) -> dict[str, list[int]]:
        """The position of the rows so far; they are durable after `flush`."""
        return {**self._before, self._path.name: [self._size, self._crc]}

    def flush(self) -> None:
        """Make the rows so far durable."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the segment."""
        self._file.close()


def read_rows(folder: Path) -> pa.Table:
    """All rows of a population: the newest attempt of each (trial, step), its rows joined, sorted by trial and step.

    A torn last line, which a kill leaves behind, is dropped; any other damaged line raises UserError naming it.
    """
    packed, segments = _packed(folder), _segments(folder)
    if packed is not None and not segments:
        return packed
    rows: dict[tuple, dict] = {(row["trial"], row["step"]): row for row in (packed.to_pylist() if packed else [])}
    for path in segments:
        lines = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            try:
                row = json.loads(line)
                key, attempt = (row["trial"], row["step"]), row["attempt"]
            except (ValueError, KeyError, TypeError):
                if number == len(lines):
                    continue
                raise UserError(
                    f"file {str(path)!r} line {number} is damaged; delete that line (its step is then missing) or the file"
                ) from None
            if key not in rows or attempt > rows[key]["attempt"]:
                rows[key] = row
            elif attempt == rows[key]["attempt"]:  # what judges say of a step comes after its losses
                rows[key] = rows[key] | row | {"diverged": bool(rows[key].get("diverged") or row.get("diverged"))}
    ordered = [rows[k] for k in sorted(rows)]
    columns = {k: None for row in ordered for k in row}
    return pa.table({k: [row.get(k) for row in ordered] for k in columns})


def compact(folder: Path) -> None:
    """Turn the segments of a finished population into rows.parquet."""
    table = read_rows(folder)
    temporary = folder / ".rows.parquet"
    table = table.replace_schema_metadata({"columns": _columns(table)})
    pq.write_table(table, temporary, write_page_checksum=True)  # or a flipped bit would be another number
    with temporary.open("rb") as f:
        os.fsync(f.fileno())
    temporary.rename(folder / "rows.parquet")
    for path in _segments(folder):
        path.unlink()


def table(folder: Path) -> pa.Table:
    """Rows of all populations of a study, joined with what the sweep set (dotted keys), population and parameters."""
    folder, study = Path(folder), read_study(folder)
    parts = []
    for name in study["populations"]:
        rows = read_rows(folder / name) if (folder / name).is_dir() else None
        if rows is None or not rows.num_rows:
            continue
        trials = pc.unique(rows["trial"])
        points, at = [study["trials"].get(i, {}).get("point", {}) for i in trials.to_pylist()], pc.index_in(rows["trial"], trials)
        for key in study["swept"]:
            if key not in rows.column_names:  # seed and arm are columns of their own
                rows = rows.append_column(key, pa.array([p.get(key) for p in points]).take(at))
        card = read_json(folder / name / "card.json")
        rows = rows.append_column("population", pa.repeat(name, rows.num_rows))
        parts.append(rows.append_column("parameters", pa.repeat(card["parameters"], rows.num_rows)))
    whole = pa.concat_tables(parts, promote_options="permissive") if parts else pa.table({})
    return _joined(whole) if any("halving" in p for p in study["populations"].values()) else whole


def _joined(rows: pa.Table) -> pa.Table:
    """One row where a trial that halving let go on has two: of the population it ended a rung in, and of that it went on in."""
    found: dict[tuple, dict] = {}
    for row in rows.to_pylist():
        key = row["trial"], row["step"]
        found[key] = found.get(key, {}) | {k: v for k, v in row.items() if v is not None or k not in found.get(key, {})}
    return pa.Table.from_pylist(list(found.values()), rows.schema)


def finals(folder: Path) -> pa.Table:
    """One row a trial that has reached its last step."""
    trials = read_study(folder)["trials"]
    return _at(table(folder), {i: t["steps"] for i, t in trials.items()})


def ends(folder: Path) -> pa.Table:
    """`finals`, and a row each for trials that halving stopped or that had diverged at a mark: they are at an end, if not at their last step."""
    folder = Path(folder)
    rows, study = table(folder), read_study(folder)
    last = {i: t["steps"] for i, t in study["trials"].items()}
    for name, pop in study["populations"].items():
        if "halving" in pop and finished(folder / name):
            last |= dict.fromkeys(read_json(folder / name / "done.json")["diverged"], until(study, name))
    return _at(rows, last | {i: t["stopped"] for i, t in study["trials"].items() if "stopped" in t})


def _at(rows: pa.Table, steps: dict[str, int]) -> pa.Table:
    """The row of each trial at a step of its own."""
    if not rows.num_rows:
        return rows
    trials = pc.unique(rows["trial"])
    last = pa.array([steps.get(i) for i in trials.to_pylist()], pa.int64())
    return rows.filter(pc.equal(rows["step"], last.take(pc.index_in(rows["trial"], trials))))  # of a trial without a step none


def until(study: dict, name: str) -> int:
    """The step to which a population trains: its trials' last, or the mark at which halving looks at them."""
    pop = study["populations"][name]
    halving = pop.get("halving", {"marks": [], "rung": 0})
    return [*halving["marks"], study["trials"][pop["trials"][0]]["steps"]][halving["rung"]]


def begun(study: dict, name: str) -> float:
    """The share of its trials' steps that a population did not train: it began from states that shorter horizons left (run.trunk)."""
    pop = study["populations"][name]
    return pop.get("trunk", {"start": 0})["start"] / study["trials"][pop["trials"][0]]["steps"]


def finished(folder: Path) -> bool:
    """Whether a population is done; UserError where it says so and its rows are gone."""
    if not (Path(folder) / "done.json").exists():
        return False
    if not (Path(folder) / "rows.parquet").exists():
        raise UserError(
            f"file {str(Path(folder) / 'rows.parquet')!r} is missing, though its population is done; restore it, or delete its folder and run again"
        )
    return True


def columns(folder: Path) -> list[str]:
    """Columns of a finished population's rows."""
    return pq.read_schema(Path(folder) / "rows.parquet").names


def status(folder: Path) -> dict[str, str]:
    """done, diverged, stopped (by halving), running, interrupted or missing for every trial of a study."""
    folder, study = Path(folder), read_study(folder)
    held = claims.holders(folder)
    out, begun = {}, "running" if held else "interrupted"
    for name, pop in study["populations"].items():
        if finished(folder / name):
            gone = set(read_json(folder / name / "done.json")["diverged"])
            stopped = {i for i in pop["trials"] if "stopped" in study["trials"][i]}
            last = until(study, name) == study["trials"][pop["trials"][0]]["steps"]
            ended = "done" if last else begun  # at a mark, and the next rung is not packed yet
            out |= {i: "diverged" if i in gone else "stopped" if i in stopped else ended for i in pop["trials"]}
        elif name in held:
            out |= dict.fromkeys(pop["trials"], "running")
        elif _segments(folder / name) or (folder / name / "rows.parquet").exists():
            out |= dict.fromkeys(pop["trials"], "interrupted")
        else:  # of halving's later rungs the trials have begun
            out |= {i: out.get(i, "missing") for i in pop["trials"]}
    return out


def stages(folder: Path) -> list[tuple[str, Path | None]]:
    """The stages before a study's own, in order, each with its folder; None where it has not begun."""
    folder = Path(folder)
    *told, own = read_study(folder).get("stages", [""])
    home = folder.resolve().parent if (folder.resolve().parent.name, folder.resolve().name) == ("stages", own) else folder / "stages"
    return [(name, home / name if (home / name / "study.json").exists() else None) for name in told]


def progress(folder: Path) -> str:
    """'step' reached by a population, as far as its rows tell."""
    rows = read_rows(folder) if Path(folder).is_dir() else None
    return str(pc.max(rows["step"]).as_py()) if rows is not None and rows.num_rows else ""


def results(folder: Path) -> pa.Table:
    """The table without wall time and attempt, in canonical order: equal for two runs of the same study."""
    rows = table(folder)
    if not rows.num_rows:
        return rows
    keep = sorted(c for c in rows.column_names if c not in NOT_RESULTS)
    return rows.select(keep).sort_by([("trial", "ascending"), ("step", "ascending")])
