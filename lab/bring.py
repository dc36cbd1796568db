"""Runs of others -> a folder that laws are fitted to: CSV, parquet, JSON lines or TensorBoard's events, read through a map of columns. No jax here.

The folder holds one file, points.json: `runs`, one row each with the columns that lab/laws/points.py declares, and `files`, which they were read from
(SHA-256) and how (map, convention and the rest). It is written whole, after all that was given has been read and held against what is there.
"""

import csv
import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lab import claims, record
from lab.errors import UserError, unknown
from lab.files import sha256, write_json
from lab.laws.points import ALIKE, COLUMNS, NUMBERS

FILE = "points.json"
SCHEMA = 1
MORE = {"seconds": "seconds", "unique": "unique", "lr": "rate"}  # what may be told besides -> the table's column
MEASURED = (*NUMBERS, *MORE)  # what must be above 0 where it is told
COUNTERS = ("flops", "examples", "seconds", "unique")  # which grow while a run goes on
KEYS = ("run", *COLUMNS, *MORE)  # what a column may be mapped to
SHOWN = 3  # runs whose values are wrong that are named
AT = ("last", "best", "each")
SIXND = "6ND"
CONVENTION = "6ND: 6 x params x examples, as mapped"
UNTOLD = "not told"
ABSENT = ("", "null", "none", "n/a", "-")  # cells in which nothing was logged; NaN is a loss that was
WHOLE = "all"  # the arm of runs of which none was told
RUN, STEP = "run", "step"  # columns of event files beside their tags: the subfolder that holds them, and the step
Values = dict[str, list]  # column -> a value a row; None where nothing was logged


class How(NamedTuple):
    """How the columns of a file are to be read; fields are those of `lab records add`."""

    map: Mapping[str, str]  # of KEYS -> the file's column
    at: str = "last"  # which row of a run is its end; 'each': every row is a run's
    flops: str = ""  # '6ND': made of params and examples
    convention: str = ""  # how FLOPs were counted, in words
    arm: str = ""  # of all runs of the file
    join: str = ""  # file with a row a run, whose columns join those of the runs of that name


def has(folder: Path) -> bool:
    """Whether a folder holds runs that were brought in."""
    return (Path(folder) / FILE).exists()


def read(folder: Path) -> dict:
    """points.json of a folder: `schema`, `metric`, `files` and `runs`."""
    found = record.read_json(Path(folder) / FILE)
    if found.get("schema") != SCHEMA:
        raise UserError(f"runs {str(folder)!r} have schema {found.get('schema')!r}; this version reads schema {SCHEMA}")
    return found


def tables(folder: Path) -> dict[str, tuple[dict[str, list], tuple[str, ...]]]:
    """Arm -> a table as `points` takes it, and notes of what diverged and what was read."""
    found, out = read(folder), {}
    for arm in sorted({r["arm"] for r in found["runs"]}):
        mine = [r for r in found["runs"] if r["arm"] == arm]
        rows = [r for r in mine if r["flops"] is not None]
        keep = [k for k in COLUMNS if k != "arm" and (k not in ALIKE or any(r[k] for r in mine))]
        table = {k: [np.nan if k in NUMBERS and r[k] is None else r[k] for r in rows] for k in keep}
        told = {name: [np.nan if (v := r.get(k)) is None else v for r in rows] for k, name in MORE.items()}  # files of before tell none
        table |= {k: v for k, v in told.items() if np.isfinite(v).any()}
        gone = [r["run"] for r in mine if r["loss"] is None]
        notes = (f"left out: as diverged, without a finite loss: {', '.join(gone)}",) if gone else ()
        files = [f for f in found["files"] if f["sha256"] in {r["file"] for r in mine}]
        out[arm] = table, (*notes, *(f"from {f['file']}: {f['map']['loss']!r} of {f['runs']} runs, {_where(f['at'])}" for f in files))
    return out


def _where(at: str) -> str:
    return {"last": "each at its last row", "best": "each at its row of least loss", "each": "a row each"}[at]


def add(files: Sequence[str], folder: Path, how: How, wrong: Sequence[str] = ()) -> list[str]:
    """Bring runs of files into a folder, which is made where there is none; nothing is written where anything is wrong.

    Args:
      wrong: what the caller found wrong of the settings, to be told with the rest.

    Returns:
      What is to be told, a line each.

    Raises:
      UserError: all that is wrong: settings, files, columns and values that cannot be read; a file read otherwise before, a run that is there, or FLOPs
        of another convention.
    """
    folder, wrong = Path(folder), [*wrong, *_wrong(how)]
    if (folder / "study.json").exists():
        wrong.append(f"--to {str(folder)!r} is a study of the lab's own; give runs of others a folder of their own")
    if folder.exists() and not folder.is_dir():
        wrong.append(f"--to {str(folder)!r} is a file; runs are brought into a folder")
    tables = [_collected(wrong, _columns, path, how, wrong) for path in files]
    if wrong:
        raise UserError("; ".join(dict.fromkeys(wrong)))
    folder.mkdir(parents=True, exist_ok=True)
    with claims.alone(folder):
        now = read(folder) if has(folder) else {"schema": SCHEMA, "metric": how.map["loss"], "files": [], "runs": []}
        said = []
        for path, table in zip(files, tables, strict=True):
            mark, settings = _digest(Path(path)), json.loads(json.dumps(how._asdict()))
            settings |= {"join_sha256": sha256(Path(how.join))} if how.join else {}
            if before := next((f for f in now["files"] if f["sha256"] == mark), None):
                if {k: before.get(k, "") for k in settings} != settings:
                    wrong.append(f"file {path!r} is in {str(folder)!r} already, read otherwise; to read it anew delete {folder / FILE}")
                said.append(f"{path}: there already")
                continue
            if (runs := _collected(wrong, _runs, path, table, how)) is None or _collected(
                wrong, _joins, runs, now["runs"], str(folder)
            ) is None:
                continue
            now["runs"] += [r | {"file": mark} for r in runs]
            now["files"].append({"file": path, "sha256": mark, "runs": len(runs)} | settings)
            said += _told(path, runs)
        if wrong:
            raise UserError("; ".join(wrong))
        write_json(folder / FILE, now)
    arms = sorted({r["arm"] for r in now["runs"]})
    return [*said, f"{folder}: {len(now['runs'])} runs; arms: {', '.join(arms)}"]


def _collected(wrong: list[str], call: Callable, *args: Any) -> Any:
    """What a call gives; None where it raises a UserError, which joins those that are wrong."""
    try:
        return call(*args)
    except UserError as e:
        wrong.append(str(e))
        return None


def _wrong(how: How) -> Iterator[str]:
    """Why the settings do not go together."""
    for key in how.map:
        if key not in KEYS:
            yield str(unknown("--map: column of the table", key, KEYS))
    if "loss" not in how.map:
        yield "--map loss=COLUMN is missing; a law of loss needs it"
    if how.at not in AT:
        yield str(unknown("--at", how.at, AT))
    if how.flops not in ("", SIXND):
        yield str(unknown("--flops", how.flops, [SIXND]))
    if ("flops" in how.map) == bool(how.flops):
        yield f"FLOPs are told by either --map flops=COLUMN or --flops {SIXND}; {'both were' if how.flops else 'neither was'} given"
    if how.flops and (missing := [k for k in ("params", "examples") if k not in how.map]):
        yield f"--flops {SIXND} needs {' and '.join(f'--map {k}=COLUMN' for k in missing)}"
    if (bool(how.convention) + bool(how.flops) + ("convention" in how.map)) > 1:
        yield f"how FLOPs are counted is told once: by --convention, --map convention=COLUMN or --flops {SIXND}"
    if how.arm and "arm" in how.map:
        yield "the arm is told once: by --arm or --map arm=COLUMN"


def _csv(path: Path, wanted: set[str]) -> tuple[list[str], Values]:
    with path.open(newline="", encoding="utf-8-sig") as f:
        lines = csv.reader(f, strict=True)
        names, rows = next(lines, []), [line for line in lines if line]
    for i, row in enumerate(rows):
        if len(row) != len(names):
            raise UserError(f"file {str(path)!r}, row {i + 1}: {len(row)} cells under a header of {len(names)}")
    return names, {n: [row[j] for row in rows] for j, n in enumerate(names) if n in wanted}


def _parquet(path: Path, wanted: set[str]) -> tuple[list[str], Values]:
    table = pq.read_table(path, partitioning=None)  # a folder named a=b is no column
    return table.column_names, {n: table.column(j).to_pylist() for j, n in enumerate(table.column_names) if n in wanted}


def _lines(path: Path, wanted: set[str]) -> tuple[list[str], Values]:
    rows = [_flat(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    names = list(dict.fromkeys(k for row in rows for k in row))
    return names, {n: [row.get(n) for row in rows] for n in names if n in wanted}


def _flat(value: dict, before: str = "") -> dict[str, Any]:
    """{'summary.val/loss': 2.0} of {'summary': {'val/loss': 2.0}}."""
    out = {}
    for k, v in value.items():
        out |= _flat(v, f"{before}{k}.") if isinstance(v, dict) else {before + k: v}
    return out


def _event_files(path: Path) -> list[Path]:
    """Event files of a folder of runs, the oldest of each run first; of a file, itself."""
    return [path] if path.is_file() else sorted(p for p in path.rglob("*tfevents*") if p.is_file())


def _events(path: Path, wanted: set[str]) -> tuple[list[str], Values]:
    """A row a run and step of TensorBoard's event files: tags, RUN, STEP, and the hyperparameters that the run's own folder tells of it."""
    try:
        from google.protobuf.message import DecodeError
        from tensorboardX.proto import event_pb2, plugin_hparams_pb2
    except ImportError:
        raise UserError(f"event files {str(path)!r} are read by tensorboardX, which is not installed: pip install tensorboardX") from None
    root, rows, told = path if path.is_dir() else path.parent, {}, {}
    for file in _event_files(path):
        run = root.resolve().name if file.parent == root else file.parent.relative_to(root).as_posix()
        for frame in _frames(file):
            try:
                event = event_pb2.Event.FromString(frame)
            except DecodeError as e:
                raise UserError(f"event file {str(file)!r} is damaged: {e}") from None
            for value in event.summary.value:
                if value.tag == "_hparams_/session_start_info":
                    start = plugin_hparams_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content).session_start_info
                    told[run] = {k: getattr(v, v.WhichOneof("kind")) for k, v in start.hparams.items()}
                elif (scalar := _scalar(value)) is not None:
                    rows.setdefault((run, event.step), {})[value.tag] = scalar
    table = [told.get(run, {}) | rows[run, step] | {RUN: run, STEP: step} for run, step in sorted(rows)]
    names = list(dict.fromkeys(k for row in table for k in row)) or [RUN, STEP]
    return names, {n: [row.get(n) for row in table] for n in names if n in wanted}


def _frames(file: Path) -> Iterator[bytes]:
    """Records of a TFRecord file (length, its CRC, bytes, their CRC); one that is cut off at the end is of a run that writes, or was killed."""
    from tensorboardX.record_writer import masked_crc32c

    with file.open("rb") as f:
        while len(head := f.read(12)) == 12:
            length, check = struct.unpack("<QI", head)
            if masked_crc32c(head[:8]) != check:
                raise UserError(f"event file {str(file)!r} is damaged at byte {f.tell() - 12}")
            if len(body := f.read(length + 4)) == length + 4:
                yield body[:length]


def _scalar(value: Any) -> float | None:
    """The number of a summary's value, as a float or, as TensorFlow 2 and clu write it, a tensor of one; None of another kind."""
    if value.HasField("simple_value"):
        return value.simple_value
    t = value.tensor
    if not value.HasField("tensor") or any(d.size != 1 for d in t.tensor_shape.dim):
        return None
    for field in (t.float_val, t.double_val, t.int_val, t.int64_val):
        if len(field) == 1:
            return float(field[0])
    kind = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}.get(t.dtype)  # DT_FLOAT, DT_DOUBLE, DT_INT32, DT_INT64, DT_HALF
    return float(np.frombuffer(t.tensor_content, kind)[0]) if kind and t.tensor_content else None


def _digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and digests of a folder's event files."""
    if path.is_file():
        return sha256(path)
    return hashlib.sha256("".join(f"{p.relative_to(path).as_posix()} {sha256(p)}\n" for p in _event_files(path)).encode()).hexdigest()


READERS: dict[str, Callable[[Path, set[str]], tuple[list[str], Values]]] = {".csv": _csv, ".parquet": _parquet, ".jsonl": _lines}


def _reader(path: Path) -> Callable[[Path, set[str]], tuple[list[str], Values]]:
    if not path.exists():
        raise UserError(f"file {str(path)!r} does not exist")
    if "tfevents" in path.name or (path.is_dir() and _event_files(path)):
        return _events
    if path.is_dir():
        raise UserError(f"file {str(path)!r} is a folder without TensorBoard's event files; name its files")
    if path.suffix not in READERS:
        raise unknown(f"kind of file {str(path)!r}:", path.suffix, READERS)
    return READERS[path.suffix]


def _table(path: str, reader: Callable, wanted: set[str]) -> tuple[list[str], Values]:
    """Names of a file's columns, and the values of those wanted."""
    try:
        return reader(Path(path), wanted)
    except (csv.Error, ValueError, AttributeError, OSError, pa.ArrowException) as e:
        kind = "event files" if reader is _events else Path(path).suffix[1:]
        raise UserError(f"file {path!r} cannot be read as {kind}: {str(e).splitlines()[0]}") from None


def _joined(path: str, names: list[str], found: Values, how: How) -> tuple[list[str], Values]:
    """Columns of a file, and those of the file to join, whose row of the same run stands beside every row."""
    if RUN not in how.map:
        raise UserError(f"--join {how.join!r} needs --map run=COLUMN, which both files have")
    key, wanted = how.map[RUN], set(how.map.values())
    more_names, more = _table(how.join, _reader(Path(how.join)), wanted)
    for file, columns in ((path, names), (how.join, more_names)):
        if key not in columns:
            raise unknown(f"--map run: column of {file!r}", key, columns)
    if both := sorted((set(names) & set(more_names) & wanted) - {key}):
        raise UserError(f"--join {how.join!r}: column {both[0]!r} is in {path!r} too; which is meant?")
    place: dict[str, int] = {}
    for i, run in enumerate(map(str, more[key])):
        if place.setdefault(run, i) != i:
            raise UserError(f"--join {how.join!r} has run {run!r} twice; a row a run is expected")
    at = [place.get(str(v)) for v in found[key]]
    if None in at:
        raise UserError(f"--join {how.join!r} has no row of run {found[key][at.index(None)]!r}")
    return [*names, *(n for n in more_names if n != key)], found | {n: [v[i] for i in at] for n, v in more.items() if n != key}


def _columns(path: str, how: How, wrong: list[str]) -> Values:
    """Key of the map -> the file's values; what is wrong with single columns joins `wrong`. Subfolders of event files are runs unless a column tells."""
    reader = _reader(Path(path))
    columns = {RUN: RUN, **how.map} if reader is _events else how.map
    names, found = _table(path, reader, set(columns.values()))
    if how.join:
        names, found = _joined(path, names, found, how._replace(map=columns))
    if found and not next(iter(found.values())):
        raise UserError(f"file {path!r} has no rows")
    out = {}
    for key, name in columns.items():
        if name not in found:
            wrong.append(str(unknown(f"--map {key}: column of {path!r}", name, names)))
            continue
        if names.count(name) > 1:
            wrong.append(f"--map {key}: file {path!r} has {names.count(name)} columns {name!r}")
            continue
        values = [None if v is None or (isinstance(v, str) and v.strip().lower() in ABSENT) else v for v in found[name]]
        if key in MEASURED or key == "seed":
            out[key] = _collected(wrong, _numbers, values, f"file {path!r}", name)
        else:
            out[key] = [v if v is None else str(v) for v in values]
    return out


def _numbers(values: list, file: str, name: str) -> list[float | None]:
    return [v if v is None else _number(v, f"{file}, row {i + 1}: {name!r}") for i, v in enumerate(values)]


def _number(value: Any, where: str) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"{where} is {value!r}; expected a number") from None


def _runs(path: str, values: Values, how: How) -> list[dict]:
    """A row of the table for every run of a file, or of a folder of event files."""
    groups: dict[str, list[int]] = {}
    for i in range(len(values["loss"])):
        if "run" in values:
            if (name := values["run"][i]) is None:
                raise UserError(f"file {path!r}, row {i + 1}: {how.map.get(RUN, RUN)!r} is empty; every row is of a run")
        else:
            name = f"{path} row {i + 1}" if how.at == "each" else path
        groups.setdefault(name, []).append(i)
    if how.at == "each" and (several := [n for n, rows in groups.items() if len(rows) > 1]):
        raise UserError(
            f"file {path!r}: run {several[0]!r} has {len(groups[several[0]])} rows, where --at each has every row a run of its own"
        )
    wrong: list[str] = []
    out = [_collected(wrong, _run, path, name, {k: [v[i] for i in rows] for k, v in values.items()}, how) for name, rows in groups.items()]
    if wrong:
        rest = len(wrong) - SHOWN
        raise UserError("; ".join(wrong[:SHOWN]) + (f"; and {rest} more runs of {path!r} have such" if rest > 0 else ""))
    return out


def _run(path: str, name: str, rows: Values, how: How) -> dict:
    """The table's row of a run: its end, and what it says of itself once."""
    loss, wrong = rows["loss"], []
    logged = [i for i, v in enumerate(loss) if v is not None]
    gone = not logged or not math.isfinite(loss[logged[-1]])
    at = logged[-1] if logged else len(loss) - 1
    if how.at == "best" and not gone:
        at = min((i for i in logged if math.isfinite(loss[i])), key=loss.__getitem__)
    out = {"run": name, "loss": None if gone else loss[at]}
    for key in ("params", "seed", "arm", "lr", *ALIKE):
        several = list(dict.fromkeys(v for v in rows.get(key, []) if v is not None))
        if len(several) > 1:
            advice = "" if "run" in rows else "; runs are told apart by --map run=COLUMN, or by --at each where every row is a run's end"
            raise UserError(f"file {path!r}: run {name!r} has several {how.map[key]!r} ({several[0]}, {several[1]}, ...){advice}")
        out[key] = several[0] if several else None
    for key in COUNTERS:  # as far as they had come, in rows of their own it may be
        out[key] = next((v for v in reversed(rows.get(key, [])[: at + 1]) if v is not None), None)
    if how.flops and None not in (out["params"], out["examples"]):
        out["flops"] = 6.0 * out["params"] * out["examples"]
    for key in MEASURED:
        value, column = out[key], how.map.get(key, f"flops by {SIXND}")
        needed = (not gone or key == "lr") and (key in how.map or key == "flops")
        if needed and (value is None or not math.isfinite(value) or value <= 0):
            wrong.append(f"run {name!r} has {'no' if value is None else f'{value:g} of'} {column!r} at its end; {key} must be above 0")
    if wrong:
        raise UserError(f"file {path!r}: {', and '.join(wrong)}")
    if None not in (out["unique"], out["examples"]):  # a set's size, of which a run may have seen a part
        out["unique"] = min(out["unique"], out["examples"])
    if gone and (out["flops"] is None or not math.isfinite(out["flops"])):
        out["flops"] = None
    if out["seed"] is not None and not out["seed"].is_integer():
        raise UserError(f"file {path!r}: run {name!r} has {out['seed']:g} of {how.map['seed']!r}; a seed is a whole number")
    told = CONVENTION if how.flops else how.convention or out["convention"] or UNTOLD
    return out | {"seed": int(out["seed"] or 0), "arm": how.arm or out["arm"] or WHOLE, "convention": told}


def _joins(runs: list[dict], there: list[dict], folder: str) -> bool:
    """True; UserError where runs cannot stand in one table with those that are there."""
    names = {r["run"] for r in there}
    if again := [r["run"] for r in runs if r["run"] in names]:
        raise UserError(f"run {again[0]!r} is in {folder!r} already, from another file: it would count twice")
    if len(several := list(dict.fromkeys(r["convention"] for r in (*there, *runs)))) > 1:
        raise UserError(
            f"FLOPs of {folder!r} would be of two conventions, {several[0]!r} and {several[1]!r}; a law is of one: give each a folder"
        )
    return True


def _told(path: str, runs: list[dict]) -> list[str]:
    """What was read of a file, and what is odd of it."""
    gone = [r["run"] for r in runs if r["loss"] is None]
    said = [f"{path}: {len(runs)} runs, FLOPs: {runs[0]['convention']}"]
    if gone:
        said.append(f"  diverged, as they have no finite loss: {', '.join(gone)}")
    each = [r["flops"] / r["params"] / r["examples"] for r in runs if r["loss"] is not None and None not in (r["params"], r["examples"])]
    if each and np.median(each) < 1:
        said.append(
            f"  note: a run has {np.median(each):.2g} FLOPs a parameter and example, where 6 are usual: is a column in thousands, millions or such?"
        )
    return said
