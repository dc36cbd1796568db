"""What sources that read or write stored files share: digests of files, locks, and a quiet tensorflow-datasets."""

import fcntl
import hashlib
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterable
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

from rich.progress import track

from lab.errors import UserError
from lab.files import sha256
from lab.log import console


@contextmanager
def quiet_tfds():
    """tensorflow-datasets, quiet: it has progress bars of its own and warns of its own dependencies."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds

        tfds.disable_progress_bar()
        yield tfds


@contextmanager
def writing(folder: Path, hint: str):
    """The one writer of `folder`, whose parents are made; a second waits, however the first ends. UserError ends with `hint`."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = (folder.parent / f".{folder.name}.lock").open("w")
    except OSError as e:
        raise UserError(f"folder {str(folder)!r} cannot be written ({e.strerror}); {hint}") from e
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"waiting for another process that writes {folder}", markup=False)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def digests(folder: Path, names: Iterable[str], data_dir: str) -> dict[str, str]:
    """SHA-256 of the bytes of each named file of `folder`.

    They are kept in `data_dir`, so that opening a large set again reads only the files that changed since.
    """
    tag = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    cache = Path(data_dir) / ".digests" / f"{tag}.json"
    known = {}
    with suppress(OSError, ValueError):
        known = json.loads(cache.read_text())
    stamps = {n: _stamp(folder / n) for n in names}
    out = {n: known[n][1] for n, stamp in stamps.items() if n in known and known[n][0] == stamp}
    todo = [n for n in stamps if n not in out]
    brief = len(todo) < 5000 and sum(stamps[n][0] for n in todo) < 1 << 28
    for n in track(todo, f"reading {folder.name}", console=console, disable=brief):
        try:
            out[n] = sha256(folder / n)
        except OSError as e:
            raise UserError(f"file {str(folder / n)!r} cannot be read ({e.strerror})") from e
    if todo:
        with suppress(OSError):  # a data_dir that cannot be written costs time, not the answer
            cache.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=cache.parent, suffix=".tmp", delete=False) as f:
                json.dump({n: [stamps[n], out[n]] for n in stamps}, f)
            os.replace(f.name, cache)
    return out


def _stamp(path: Path) -> list[int]:
    """Changes whenever the file does: unlike the time of its last writing, that of its last change cannot be set."""
    try:
        s = path.stat()
    except OSError as e:
        raise UserError(f"file {str(path)!r} cannot be read ({e.strerror})") from e
    return [s.st_size, s.st_ctime_ns]
