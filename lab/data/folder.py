"""A folder of images as people have it: a folder a class, or a table metadata.csv, .jsonl or .parquet beside the images.

The table has a column file_name, and may have text (or caption) and label. Images are decoded when asked for, so a set may be
larger than memory; the loader keeps a small one.
"""

import csv
import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet

from lab.data import pixels
from lab.data.stored import digests
from lab.errors import UserError, nearest, unknown

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm", ".pgm")
TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLITS = {"train", "training", "val", "valid", "validation", "test", "eval"}


class Row(NamedTuple):
    """One example: file name relative to the folder with '/', class and caption."""

    name: str
    label: str
    caption: str | None


def find_folder(data_dir: str, path: str) -> Path:
    """The folder that config key data.path names, absolute or within data_dir."""
    folder = Path(data_dir) / Path(path).expanduser()
    if not folder.is_dir():
        beside = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        raise UserError(
            f"config key data.path={path!r}: there is no folder {str(folder)!r}{nearest(folder.name, beside)}; "
            f"expected a folder of images, absolute or within run.data_dir={str(data_dir)!r}"
        )
    return folder


def find_images(folder: Path) -> list[str]:
    """Names of all images in a folder and those within it, relative to it, sorted."""
    found = []
    for at, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [d for d in folders if not d.startswith(".")]
        kept = [f for f in files if f.lower().endswith(SUFFIXES) and not f.startswith(".")]
        found += [(Path(at) / f).relative_to(folder).as_posix() for f in kept]
    if not found:
        raise UserError(
            f"folder {str(folder)!r} (config key data.path) holds no images; expected files such as *{', *'.join(SUFFIXES[:4])}"
        )
    return sorted(found)


def _table(path: Path) -> list[dict]:
    """The rows of a table of any of the three formats."""
    try:
        if path.suffix == ".parquet":
            rows = pyarrow.parquet.read_table(path).to_pylist()
        elif path.suffix == ".jsonl":
            rows = [dict(json.loads(line)) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        else:
            with path.open(encoding="utf-8-sig", newline="") as f:
                rows = list(csv.DictReader(f))
    except (OSError, ValueError, TypeError, csv.Error) as e:
        raise UserError(f"table {str(path)!r} cannot be read: {str(e).splitlines()[0]}") from e
    if not rows or "file_name" not in rows[0]:
        columns = [str(c) for c in rows[0]] if rows else []
        raise UserError(
            f"table {str(path)!r} has no column 'file_name'{nearest('file_name', columns)}; it has: {', '.join(columns) or 'no rows'}"
        )
    return rows


def _described(folder: Path, path: Path, images: list[str]) -> list[Row]:
    """The rows of a table, in its order; one class 'all' where it has no column label."""
    given, have = _table(path), set(images)
    text = next((c for c in ("text", "caption") if c in given[0]), None)
    rows = []
    for i, r in enumerate(given, 1):
        name = Path(str(r["file_name"])).as_posix() if r.get("file_name") else ""
        if name not in have:
            near = nearest(name, [n for n in images if n.rpartition("/")[0] == name.rpartition("/")[0]][:2000])
            raise UserError(f"table {str(path)!r} row {i}: file_name={name!r} is not an image in {str(folder)!r}{near}")
        label = r.get("label") if "label" in given[0] else "all"
        if label is None or label == "":
            raise UserError(f"table {str(path)!r} row {i}: {name!r} has no label; expected one in every row, or no such column")
        rows.append(Row(name, str(label), str(r.get(text) or "") if text else None))
    return rows


def _classed(folder: Path, images: list[str]) -> list[Row]:
    """The class of an image is the topmost folder it lies in; one class 'all' where there are no folders."""
    tops = {n.partition("/")[0] if "/" in n else "" for n in images}
    if "" in tops and len(tops) > 1:
        loose = next(n for n in images if "/" not in n)
        raise UserError(f"image {loose!r} in {str(folder)!r} lies outside the class folders {', '.join(sorted(tops - {''})[:6])}")
    if {t.lower() for t in tops} <= SPLITS:
        parts = ", ".join(sorted(tops))
        raise UserError(
            f"folder {str(folder)!r} holds splits ({parts}), not classes; append one to config key data.path, such as /{sorted(tops)[0]}"
        )
    return [Row(n, n.partition("/")[0] if "/" in n else "all", None) for n in images]


def _rows(folder: Path) -> list[Row]:
    images = find_images(folder)
    tables = [folder / t for t in TABLES if (folder / t).is_file()]
    if len(tables) > 1:
        raise UserError(f"folder {str(folder)!r} has both {tables[0].name} and {tables[1].name}; keep one")
    return _described(folder, tables[0], images) if tables else _classed(folder, images)


def _in_bucket(rows: list[Row], sizes: dict, bucket: tuple[int, int], shapes: list[tuple[int, int]]) -> tuple[list[Row], dict]:
    """The rows whose nearest shape is a bucket, and what to tell: images of each shape, and the mean share cut off those of the bucket."""
    near = {s: pixels.nearest(shapes, *s) for s in set(sizes.values())}
    counts = Counter(near[sizes[r.name]] for r in rows)
    told = {f"{h}x{w}": counts[h, w] for h, w in shapes}
    kept = [r for r in rows if near[sizes[r.name]] == bucket]
    if not kept:
        raise UserError(f"config key data.bucket={bucket} is nearest to no image; images of each shape: {told}")
    return kept, {"buckets": told, "cropped": float(np.mean([pixels.cropped(*sizes[r.name], bucket) for r in kept]))}


def check_split(split: str, eval_share: float) -> None:
    """UserError unless a set can be split so."""
    if split not in ("train", "eval"):
        raise unknown("split", split, ("train", "eval"))
    if not isinstance(eval_share, float) or not 0 < eval_share < 1:
        raise UserError(f"config key data.eval_share={eval_share!r} must be a number between 0 and 1, such as 0.05")


def held_out(name: str, share: float) -> bool:
    """Whether an example of this name belongs to eval: about `share` of all names do, whatever others there are."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) < share * 2**32


def in_order(labels: set[str]) -> list[str]:
    """Classes by name, numbered ones in the order of their numbers."""
    return sorted(labels, key=lambda c: (0, int(c), c) if c.isdecimal() else (1, 0, c))


class Source:
    """Images of a folder: image uint8 [size, size, channels], label = class, and a caption where a table has them.

    `path` is absolute or within data_dir; a share of about `eval_share` is held out, by a hash of each file's name.
    bucket: (h, w), to have only the images that this shape crops least of all shapes in multiples of `bucket_step` with at most
      size x size pixels and sides within `bucket_ratio`; `info` counts the images of each. One that is no square has
      dims image = (h, w), which models that take squares refuse.
    """

    def __init__(
        self,
        split: str,
        data_dir: str,
        path: str,
        size: int,
        channels: int = 3,
        eval_share: float = 0.05,
        bucket: tuple[int, int] | None = None,
        bucket_ratio: float = 2.0,
        bucket_step: int = 8,
    ):
        pixels.check(size, channels)
        check_split(split, eval_share)
        self.folder, self.channels = find_folder(data_dir, path), channels
        rows = _rows(self.folder)
        # of both splits, so that a change of what is held out shows too
        sums = digests(self.folder, sorted({r.name for r in rows}), data_dir)
        content = hashlib.sha256("\n".join(json.dumps([*r, sums[r.name]]) for r in rows).encode())
        self.classes = in_order({r.label for r in rows})
        index = {c: i for i, c in enumerate(self.classes)}
        self.shape, told = (size, size), {}
        if bucket is not None:
            shapes = pixels.shapes_of(bucket, size, bucket_ratio, bucket_step)
            self.shape = h, w = tuple(bucket)
            rows, told = _in_bucket(rows, pixels.shapes(self.folder, sums, data_dir), self.shape, shapes)
            size = h if h == w else self.shape
        self.rows = [r for r in rows if held_out(r.name, eval_share) == (split == "eval")]
        if not self.rows:
            raise UserError(
                f"config key data.eval_share={eval_share} leaves no image of {len(rows)} in {str(self.folder)!r} for {split}; "
                f"expected a {'larger' if split == 'eval' else 'smaller'} share, or more images"
            )
        self.labels = np.array([index[r.label] for r in self.rows], np.int32)
        self.dims = {"image": size, "channels": channels, "classes": len(self.classes)}
        self.info = {
            **{"image": [*self.shape, channels], "classes": len(self.classes), "class_names": self.classes, "examples": len(self.rows)},
            **{"fingerprint": content.hexdigest()[:32], "origin": f"folder {self.folder.resolve().name}", "best_loss": None, **told},
        }

    def __len__(self) -> int:
        return len(self.rows)

    def caption(self, i: int) -> str | None:
        """The caption of example `i`, without its image being decoded."""
        return self.rows[i].caption

    def __getitem__(self, i: int) -> dict:
        row = self.rows[i]
        path = str(self.folder / row.name)
        item = {"image": pixels.decode(path, self.shape, self.channels, path), "label": self.labels[i]}
        return item if row.caption is None else {**item, "caption": row.caption}
