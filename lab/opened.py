"""A study's records, or runs of others, in Python: `lab.open`, whose methods tell what the commands of the same names do. No jax here."""

import base64
import functools
import html
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
from matplotlib.figure import Figure

from lab import ahead, batch, bring, compare, figures, fit, ladder, record, report, transfer
from lab.errors import UserError, unknown
from lab.laws.forecast import forecast

KINDS = ("json", "jsonl", "parquet")  # of files that are records; weights and samples are not
DRAWN = ("loss_against_rate", "drift")  # figures of the report that `transfer` shows


class Answer:
    """What a command prints, `told` in numbers, and its figures; a notebook shows all of it."""

    def __init__(self, told: Any, text: str, figures: Mapping[str, Callable[[Path], Any]]):
        self.told, self.text, self.figures = told, text, dict(figures)

    def __repr__(self) -> str:
        return self.text

    def save(self, path: Path | str, figure: str = "") -> Path:
        """Write a figure, the first or one of `figures`, as .pdf, .png or .svg; UserError where records allow none."""
        if not self.figures:
            raise UserError("these records allow no figure of this answer")
        if figure and figure not in self.figures:
            raise unknown("figure", figure, self.figures)
        self.figures[figure or next(iter(self.figures))](Path(path))
        return Path(path)

    def _repr_html_(self) -> str:
        said = f"<pre>{html.escape(self.text)}</pre>"
        with tempfile.TemporaryDirectory() as folder:
            for name in self.figures:
                drawn = self.save(Path(folder) / "figure.png", name).read_bytes()
                said += f'<img alt="{name}" width="640" src="data:image/png;base64,{base64.b64encode(drawn).decode()}">'
        return said


class Laws(Answer):
    """What `lab fit` prints of every arm; `told` is a `lab.fit.Study`."""

    def points(self, path: Path | str) -> Path:
        """Write the points used, and what was left out and why, as .csv or .json."""
        return fit.write_points(self.told, Path(path))

    def methods(self) -> str:
        """A paragraph an arm for a paper's section of methods."""
        return fit.methods(self.told)


class Records:
    """Records of a folder: a study's, or runs of others, which know `finals`, `fit`, `forecast` and `compare` alone."""

    def __init__(self, name: str, folder: Path):
        self.name, self.folder, self.brought = name, folder, bring.has(folder)
        self.study = {} if self.brought else record.read_study(folder)

    def __repr__(self) -> str:
        about = f"{len(bring.read(self.folder)['runs'])} runs of others" if self.brought else self.study["question"].splitlines()[0]
        return f"{self.name}: {about}"

    def _own(self) -> Path:
        if self.brought:
            raise UserError(f"{self.name} holds the ends of others' runs; a study's own records are wanted")
        return self.folder

    def rows(self) -> pa.Table:
        """Every row of every trial, joined with what the sweep set."""
        return record.table(self._own())

    def finals(self) -> pa.Table:
        """The last row of each finished trial; of runs of others, a row a run."""
        return pa.Table.from_pylist(bring.read(self.folder)["runs"]) if self.brought else record.finals(self.folder)

    def status(self) -> dict[str, int]:
        """How many trials are done, diverged, missing or else."""
        return dict(Counter(record.status(self._own()).values()))

    def fit(self, arm: str = "") -> Laws:
        """Laws of loss of every arm, or of one, as `lab fit`."""
        told = fit.read(self.folder, arm)
        return Laws(told, fit.text(self.name, told), _law(told))

    def forecast(self, flops: float, arm: str = "", unique: float | None = None) -> Answer:
        """What a budget of training FLOPs will buy, as `lab forecast`; `told` has a `lab.laws.forecast.Forecast` an arm.

        Args:
          unique: distinct examples that there are, as `lab forecast --unique`.
        """
        if not flops > 0:
            raise UserError(f"flops={flops!r} must be above 0")
        told = fit.read(self.folder, arm)
        text = ahead.text(told, flops, unique=unique)
        return Answer({a: forecast(t.laws, flops, unique) for a, t in told.arms.items() if t.laws}, text, _law(told))

    def compare(self, base: str = "", arm: str = "", other: "Records | None" = None) -> Answer:
        """How many times fewer FLOPs `arm`, here or in another folder, needs for what `base` reaches, as `lab compare`; `told` is a `lab.compare.Found`."""
        found = compare.compare([self.folder, *([other.folder] if other else [])], base, arm)
        return Answer(found, compare.text(found), {"compare": functools.partial(compare.figure, found)})

    def transfer(self, over: str | None = None, of: str = "") -> Answer:
        """Whether the best of a hyperparameter stays put over the ladder, as `lab transfer`; `told` is a `lab.transfer.Told`."""
        told = transfer.read(self._own(), over, tuple(filter(None, of.split(","))))
        drawn = {}
        if told.transfers and told.ladder.of == (ladder.RATE,):
            with figures.style():
                drawn = report.draw(self.folder, report.find(self.folder, told.ladder.over))
        shown = {name: functools.partial(_save, figure) for name, (figure, _) in drawn.items() if name.startswith(DRAWN)}
        return Answer(told, transfer.text(self.folder, told), shown)

    def batch(self, target: float | None = None) -> Answer:
        """Steps and examples to a loss and the critical batch, as `lab batch`; `told` is a `lab.batch.Told`."""
        told = batch.read(self._own(), target)
        return Answer(told, batch.text(told), {"batch": functools.partial(batch.draw, told)})


def _law(told: fit.Study) -> dict[str, Callable[[Path], Any]]:
    """The figure of laws, where an arm has one."""
    return {"law": functools.partial(fit.figure, told)} if any(t.laws for t in told.arms.values()) else {}


def _save(figure: Figure, path: Path) -> None:
    with figures.style():
        figures.save(figure, path)


def open(path: Path | str, map: Mapping[str, str] | None = None, **how: str) -> Records:
    """Records of a study's folder or one that `lab records add` made, here or at a URI (gs://, s3://); or of a file of others' runs, by a `map`.

    What lies elsewhere is copied, without weights and samples, to a temporary folder that goes with the object.

    Args:
      map: what a table has -> the file's column, such as dict(loss="val/loss", params="n_params"), as `lab records add --map`.
      how: at, flops, convention, arm, join: as the options of `lab records add`.

    Raises:
      UserError: no records are there, or they cannot be read.
    """
    name = str(path)
    if map is None and "://" not in name:
        if Path(path).is_file():
            raise UserError(f"{name!r} is a file; to read runs of others from it, say which columns: map=dict(loss=..., ...)")
        return Records(name, Path(path))
    folder = Path(tempfile.mkdtemp(prefix="lab-"))
    try:
        if map is None:
            _fetch(name, folder)
        else:
            bring.add([name], folder, bring.How(map, **how))
        found = Records(name, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(found, shutil.rmtree, folder, ignore_errors=True)
    return found


def _fetch(uri: str, folder: Path) -> None:
    """Copy the records at a URI: what stands in its folder, and in those of the populations that its study.json names."""
    try:
        files, root = pyarrow.fs.FileSystem.from_uri(uri.rstrip("/"))
        _copy(files, root, folder)
        study = folder / "study.json"
        for name in record.read_json(study)["populations"] if study.exists() else ():
            _copy(files, f"{root}/{name}", folder / name)
    except (OSError, pa.ArrowException) as e:
        raise UserError(f"{uri!r} cannot be read: {str(e).splitlines()[0]}") from None
    if not study.exists() and not bring.has(folder):
        raise UserError(f"{uri!r} holds neither a study.json nor a {bring.FILE}; expected a folder that the lab made")


def _copy(files: pyarrow.fs.FileSystem, source: str, folder: Path) -> None:
    for info in files.get_file_info(pyarrow.fs.FileSelector(source, allow_not_found=True)):
        if info.is_file and info.extension in KINDS:
            folder.mkdir(exist_ok=True)
            with files.open_input_stream(info.path) as f:
                (folder / info.base_name).write_bytes(f.read())
