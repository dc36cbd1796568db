"""Outlines of the icon sets, read from their SVG files once: a checked file a set in data_dir, written whole or not at all."""

import hashlib
import importlib.metadata
import io
import os
import sys
from pathlib import Path

import numpy as np
from rich.progress import track

from lab.data import _svg_paths
from lab.data.icons import raster
from lab.data.stored import writing
from lab.errors import UserError
from lab.log import console


class _Damaged(Exception):
    """A stored set that cannot be used; its message says why."""


def origin() -> str:
    """What the outlines are made from and by: names and versions, and a digest of the parser."""
    versions = [f"{p} {importlib.metadata.version(p)}" for p in ("mkdocs-material", "fonttools")]
    return ", ".join([*versions, f"parser {hashlib.sha256(Path(_svg_paths.__file__).read_bytes()).hexdigest()[:8]}"])


def _file(data_dir: str, kind: str) -> Path:
    return Path(data_dir) / "strokes" / f"{kind}.outlines"


def _read(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a stored set: a line with the SHA-256 of what follows, then an npz."""
    try:
        digest, _, content = file.read_bytes().partition(b"\n")
    except OSError as e:
        raise _Damaged(f"cannot be read ({e.strerror})") from e
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise _Damaged("does not have its checksum")
    with np.load(io.BytesIO(content)) as stored:
        out = dict(stored)
    if (made := str(out.pop("origin"))) != origin():
        raise _Damaged(f"was made from {made}, installed is {origin()}")
    return out


def _make(kind: str) -> dict[str, np.ndarray]:
    names, refused, paths = [], [], []
    for _, name, file in track(raster.files((kind,)), f"reading outlines of {kind}", console=console):
        reason = ""
        try:
            path = _svg_paths.parse(file.read_text())
        except _svg_paths.Refused as e:
            path, reason = _svg_paths.Path(np.empty(0, np.int8), np.empty((0, 2))), str(e)
        names.append(name)
        refused.append(reason)
        paths.append(path)
    return {
        **{"name": np.array(names), "refused": np.array(refused), "count": np.array([len(p.commands) for p in paths], np.int32)},
        **{"commands": np.concatenate([p.commands for p in paths])},
        **{"points": np.concatenate([p.points for p in paths]).astype(np.float32)},
    }


def _write(file: Path, arrays: dict[str, np.ndarray]) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, origin=np.array(origin()), **arrays)
    temporary = file.with_name(f".{file.name}.tmp-{os.getpid()}")  # not tempfile's, which no other user may read
    temporary.write_bytes(hashlib.sha256(content.getvalue()).hexdigest().encode() + b"\n" + content.getvalue())
    os.replace(temporary, file)


def load(data_dir: str, kind: str) -> dict[str, np.ndarray]:
    """A set's outlines, made unless a sound file is there; safe against kills and a second builder.

    Of n icons name [n], refused [n] (why there is no outline, or ''), count [n] of commands; commands and points of all in order.
    """
    file = _file(data_dir, kind)
    try:
        return _read(file)
    except _Damaged:
        pass
    try:
        with writing(file, "set --config.run.data_dir=FOLDER"):
            try:
                return _read(file)  # another builder was first
            except _Damaged as e:
                if file.exists():
                    print(f"outlines of {kind} are made again: {file.name} {e}", file=sys.stderr)
            for stale in file.parent.glob(f".{file.name}.tmp-*"):
                stale.unlink()
            _write(file, _make(kind))
            return _read(file)
    except OSError as e:
        raise UserError(f"data_dir={str(data_dir)!r} cannot be written ({e.strerror}); set --config.run.data_dir=FOLDER") from e


def build(data_dir: str, sets: tuple[str, ...] = raster.SETS) -> Path:
    """Make the outlines of `sets` unless sound ones are there; returns their folder."""
    kinds = sorted({kind for kind, _, _ in raster.files(sets)})
    for kind in kinds:
        load(data_dir, kind)
    return _file(data_dir, kinds[0]).parent


def verify(data_dir: str, sets: tuple[str, ...] = raster.SETS) -> str:
    """'sound', or a UserError that says what is wrong and how to mend it."""
    for kind in sorted({kind for kind, _, _ in raster.files(sets)}):
        try:
            _read(file := _file(data_dir, kind))
        except _Damaged as e:
            raise UserError(f"{str(file)!r} {e}; mend with: lab data build strokes --data-dir {data_dir}") from e
    return f"{_file(data_dir, kind).parent}: sound"
