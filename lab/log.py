"""Progress and metric writers under clu's interface; the shim that lets clu import without tensorflow lives here."""

import importlib.util
import sys
import time
import types

from rich.console import Console
from rich.live import Live
from rich.table import Table

if importlib.util.find_spec("tensorflow") is None or importlib.util.find_spec("tensorboard") is None:
    # clu.metric_writers imports its tensorboard writer, and with it tensorflow, whether it is used or not (clu PR 358)
    _stub = types.ModuleType("clu.metric_writers.summary_writer")

    class SummaryWriter:
        """Stands where clu's tensorboard writer would; it fails only when used."""

        def __init__(self, *args, **kwargs):
            raise ImportError("clu's SummaryWriter needs tensorflow and tensorboard")

    _stub.SummaryWriter = SummaryWriter
    sys.modules.setdefault(_stub.__name__, _stub)

from clu.metric_writers import interface

console = Console(stderr=True, highlight=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    s = int(max(0, round(seconds)))
    return f"{s // 3600}:{s // 60 % 60:02d}:{s % 60:02d}" if s >= 3600 else f"{s // 60}:{s % 60:02d}"


class Scalars(interface.MetricWriter):
    """A clu writer of scalars alone: one value, or one a trial, under each name."""

    def write_scalars(self, step, scalars):
        raise NotImplementedError

    def _unsupported(self, step, *args, **kwargs):
        raise NotImplementedError(f"{type(self).__name__} writes scalars")

    write_images = write_videos = write_audios = write_texts = write_histograms = write_pointcloud = _unsupported

    def write_summaries(self, step, values, metadata=None):
        self._unsupported(step)

    def write_hparams(self, hparams):
        self._unsupported(0)

    def flush(self):
        """Nothing is held back."""

    def close(self):
        """Nothing to release."""


class Progress:
    """A live table of a study's populations with step, loss and ETA; plain lines every `every` seconds off a terminal.

    `work` is the relative cost of each population; the ETA comes from what is still to do at the rate so far.
    """

    def __init__(self, title: str, work: dict[str, float], steps: dict[str, int], labels: dict[str, str], every: float = 10.0):
        self.title, self.work, self.steps, self.labels, self.every = title, work, steps, labels, every
        self.at = dict.fromkeys(work, 0)
        self.note = dict.fromkeys(work, "waiting")
        self.loss: dict[str, float | None] = dict.fromkeys(work)
        self._began, self._done, self._said, self._seconds = time.monotonic(), 0.0, 0.0, 0.0
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._table) if console.is_terminal else None

    def __enter__(self):
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exc):
        if self._live:
            self._live.stop()

    def skip(self, name: str, note: str, at: int) -> None:
        """A population that starts at step `at`, or is done already."""
        self.at[name], self.note[name] = at, note

    def stage(self, name: str, note: str) -> None:
        """What a population is doing outside its steps."""
        self.note[name] = note
        self._say(f"{self.labels[name]}: {note}")

    def step(self, name: str, at: int, loss: float | None, seconds: float) -> None:
        """A population has reached step `at`; the steps since the last call took `seconds`."""
        self._done += self.work[name] * (at - self.at[name]) / self.steps[name]
        self._seconds += seconds
        self.at[name], self.loss[name], self.note[name] = at, loss, "training"
        if time.monotonic() - self._said > self.every:
            shown = "" if loss is None else f", best loss {loss:.4f}"
            self._say(f"{self.labels[name]}: step {at}/{self.steps[name]}{shown}; {self._eta()} left for the study")

    def finish(self, name: str, note: str = "done") -> None:
        """A population is complete."""
        self.at[name] = self.steps[name]
        self.stage(name, note)

    def _left(self) -> float | None:
        rest = sum(self.work[n] * (1 - self.at[n] / self.steps[n]) for n in self.work)
        return rest * self._seconds / self._done if self._done else None

    def _eta(self) -> str:
        left = self._left()
        return "unknown time" if left is None else f"about {clock(left)}"

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        if not self._live:
            console.print(f"[{clock(time.monotonic() - self._began)}] {line}", markup=False)

    def _table(self) -> Table:
        table = Table(title=f"{self.title}   elapsed {clock(time.monotonic() - self._began)}, left {self._eta()}", title_justify="left")
        for head, side in (("population", "left"), ("step", "right"), ("best loss", "right"), ("", "left")):
            table.add_column(head, justify=side)
        for n in self.work:
            loss = self.loss[n]
            table.add_row(self.labels[n], f"{self.at[n]}/{self.steps[n]}", "" if loss is None else f"{loss:.4f}", self.note[n])
        return table
