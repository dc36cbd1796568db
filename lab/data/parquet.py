"""Images stored within parquet files, as Hugging Face's datasets store them: a column of encoded images, captions or classes beside it.

Rows are read a row group at a time, so a set that memory cannot hold is read faster once it is encoded (`lab data encode`).
"""

import hashlib
import io
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lab.data import pixels
from lab.data.folder import check_split, held_out, in_order
from lab.data.stored import digests
from lab.errors import UserError, nearest, unknown

GROUPS = 8  # row groups that are kept, as neighbouring rows are asked for by several threads
CAPTIONS, LABELS = ("text", "caption"), ("label", "class")


@lru_cache(maxsize=GROUPS)
def _group(path: str, group: int, column: str, stamp: int) -> list[bytes | None]:
    """The encoded images of a row group; `stamp` tells files of one name apart."""
    values = pq.ParquetFile(path).read_row_group(group, columns=[column])[column].to_pylist()
    return [v.get("bytes") if isinstance(v, dict) else v for v in values]


def _files(data_dir: str, path: str) -> list[Path]:
    at = Path(data_dir) / Path(path).expanduser()
    found = [at] if at.is_file() else sorted(at.rglob("*.parquet")) if at.is_dir() else []
    if not found:
        beside = [p.name for p in at.parent.iterdir()] if at.parent.is_dir() else []
        raise UserError(
            f"config key data.path={path!r}: there is no parquet file {str(at)!r} or in it{nearest(at.name, beside)}; "
            f"expected one, or a folder of them, absolute or within run.data_dir={str(data_dir)!r}"
        )
    return found


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as e:
        raise UserError(f"file {str(file)!r} cannot be read: {str(e).splitlines()[0]}") from e


def _column(key: str, asked: str, known: tuple[str, ...], have: list[str], file: Path) -> str:
    """The column that is asked for, or the first of the usual names that is there, '' for none."""
    if asked and asked not in have:
        raise unknown(f"config key data.{key}={asked!r}: column of {str(file)!r}", asked, have)
    return asked or next((c for c in known if c in have), "")


class Source:
    """Images of parquet files: image uint8 [size, size, channels], label = class, and a caption where there is a column of them.

    path: a file or a folder of files, absolute or within data_dir. image, caption, label: names of columns ('': the usual ones; one class
      'all' without labels). A share of about `eval_share` is held out, by a hash of file and row.
    """

    def __init__(
        self,
        split: str,
        data_dir: str,
        path: str,
        size: int,
        channels: int = 3,
        image: str = "image",
        caption: str = "",
        label: str = "",
        eval_share: float = 0.05,
    ):
        pixels.check(size, channels)
        check_split(split, eval_share)
        files = _files(data_dir, path)
        root = files[0].parent if len(files) == 1 else Path(data_dir) / Path(path).expanduser()
        self.size, self.channels, self.column = size, channels, image
        self._rows: list[tuple[str, int, int, int]] = []  # file, row group, row in it, stamp
        labels, captions, names = [], [], set()
        for file in files:
            opened = _open(file)
            have, stamp = opened.schema_arrow.names, file.stat().st_mtime_ns
            if image not in have:
                raise unknown(f"config key data.image={image!r}: column of {str(file)!r}", image, have)
            told, said = _column("label", label, LABELS, have, file), _column("caption", caption, CAPTIONS, have, file)
            beside = opened.read(columns=[c for c in (told, said) if c]) if told or said else None
            at = 0
            for group in range(opened.num_row_groups):
                for row in range(opened.metadata.row_group(group).num_rows):
                    if held_out(f"{file.relative_to(root).as_posix()}:{at}", eval_share) == (split == "eval"):
                        self._rows.append((str(file), group, row, stamp))
                        labels.append(str(beside[told][at]) if told else "all")
                        captions.append(str(beside[said][at]) if said else None)
                    at += 1
            names |= set(map(str, beside[told])) if told else {"all"}
        if not self._rows:
            raise UserError(f"config key data.eval_share={eval_share} leaves no image in {str(root)!r} for {split}")
        classes = in_order(names)
        index = {c: i for i, c in enumerate(classes)}
        self.labels, self._captions = np.array([index[x] for x in labels], np.int32), captions
        self.dims = {"image": size, "channels": channels, "classes": len(classes)}
        sums = digests(root, [f.relative_to(root).as_posix() for f in files], data_dir)
        content = json.dumps([sums, image, caption, label], sort_keys=True)
        self.info: dict[str, Any] = {
            **{"image": [size, size, channels], "classes": len(classes), "class_names": classes, "examples": len(self)},
            **{"fingerprint": hashlib.sha256(content.encode()).hexdigest()[:32], "origin": f"parquet {Path(path).name}", "best_loss": None},
        }

    def __len__(self) -> int:
        return len(self._rows)

    def caption(self, i: int) -> str | None:
        """The caption of example `i`, without its image being decoded."""
        return self._captions[i]

    def __getitem__(self, i: int) -> dict:
        file, group, row, stamp = self._rows[i]
        name = f"{file} row {row} of group {group}"
        try:
            stored = _group(file, group, self.column, stamp)[row]
        except (pa.ArrowInvalid, OSError) as e:
            raise UserError(f"file {file!r} cannot be read: {str(e).splitlines()[0]}") from e
        if not isinstance(stored, bytes):
            raise UserError(f"{name!r}: its column {self.column!r} holds no encoded image")
        item = {"image": pixels.decode(io.BytesIO(stored), self.size, self.channels, name), "label": self.labels[i]}
        return item if self._captions[i] is None else {**item, "caption": self._captions[i]}
