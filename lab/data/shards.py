"""The file format of encoded sets: ArrayRecord shards, one record an example, in which every damage is found and named.

Record 0 of a shard is JSON that says which shard of which set it is. Record 1 + i is example i of the shard: crc32 (4 bytes, little
endian, started from the example's number in the set), its arrays in the order of the card's fields as raw bytes, its caption.
"""

import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (gives numpy the name bfloat16)
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from lab.errors import UserError

WRITE = "group_size:1,uncompressed"  # what zstd makes of the same bytes may differ between its versions
READ = "readahead_buffer_size:0,max_parallelism:0"  # for random access


class Damage(UserError):
    """A shard or one of its records is not what was written; `record` is the example's place in the shard, None for all of them."""

    def __init__(self, path: Path, what: str, record: int | None = None):
        where = "" if record is None else f" record {record}"
        super().__init__(f"shard {str(path)!r}{where} {what}")
        self.path, self.record, self._what = path, record, what

    def __reduce__(self):  # worker processes send it through a pipe
        return Damage, (self.path, self._what, self.record)


def file_name(k: int, n: int) -> str:
    """The name of shard k of n."""
    return f"data-{k:05d}-of-{n:05d}.array_record"


class Layout:
    """How an example is laid out: `fields` {name: {dtype, shape}} in order, then its caption."""

    def __init__(self, fields: dict[str, dict]):
        self.fields = {k: (np.dtype(f["dtype"]), tuple(f["shape"])) for k, f in fields.items()}
        self.size = sum(d.itemsize * math.prod(shape) for d, shape in self.fields.values())

    def pack(self, number: int, example: dict[str, np.ndarray], caption: str = "") -> bytes:
        """The record of example `number` of the set."""
        body = b"".join(example[k].astype(d, copy=False).tobytes() for k, (d, _) in self.fields.items()) + caption.encode()
        return zlib.crc32(body, number & 0xFFFFFFFF).to_bytes(4, "little") + body

    def unpack(self, number: int, record: bytes) -> tuple[dict[str, np.ndarray], str] | None:
        """The arrays, as they were stored, and the caption of a record; None where it is not that of example `number`."""
        body = memoryview(record)[4:]
        if len(body) < self.size or zlib.crc32(body, number & 0xFFFFFFFF) != int.from_bytes(record[:4], "little"):
            return None
        out, at = {}, 0
        for k, (dtype, shape) in self.fields.items():
            count = math.prod(shape)
            out[k] = np.frombuffer(body, dtype, count, at).reshape(shape)
            at += count * dtype.itemsize
        return out, bytes(body[at:]).decode()


def write(path: Path, header: dict[str, Any], records: Iterable[bytes]) -> None:
    """Write a whole shard under its name, or nothing: it is made under another name, reaches the disk and is renamed."""
    temporary = path.with_name(f".{path.name}.tmp")

    def tried(call: Callable, *args: Any) -> Any:
        try:
            return call(*args)
        except (OSError, RuntimeError) as e:
            raise UserError(f"shard {str(path)!r} cannot be written: {_line(e)}") from e

    writer = tried(ArrayRecordWriter, str(temporary), WRITE)
    tried(writer.write, json.dumps(header, sort_keys=True).encode())
    for r in records:
        tried(writer.write, r)
    tried(writer.close)
    with temporary.open("rb") as f:
        os.fsync(f.fileno())
    temporary.rename(path)


class Shard:
    """One shard of `count` examples, the first of which is example `first` of the set; opened when first read, and in every process."""

    def __init__(self, path: Path, header: dict[str, Any], layout: Layout, first: int, count: int):
        self.path, self.header, self.layout, self.first, self.count = path, header, layout, first, count
        self._reader = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_reader": None}

    def open(self) -> ArrayRecordReader:
        """The reader; Damage where the file is missing, cut off, another set's or otherwise not this shard."""
        if self._reader is not None:
            return self._reader
        if not self.path.is_file():
            raise Damage(self.path, "is missing")
        try:
            reader = ArrayRecordReader(str(self.path), READ)
            found = reader.num_records()
            header = json.loads(reader.read([0])[0]) if found else None
        except Exception as e:
            raise Damage(self.path, f"is damaged ({_line(e)})") from e
        if not found or not reader.ok():
            raise Damage(self.path, "is damaged: it was cut off, or is no ArrayRecord file")
        if header != self.header or found != self.count + 1:
            raise Damage(self.path, "is foreign: it is not the shard that was written here")
        self._reader = reader
        return reader

    def read(self, rows: Sequence[int]) -> list[tuple[dict[str, np.ndarray], str]]:
        """Arrays as stored, and captions, of examples `rows` of the shard; Damage names the first record that is not sound."""
        reader = self.open()
        try:
            records = reader.read([i + 1 for i in rows])
        except Exception as e:
            if len(rows) > 1:
                return [self.read([i])[0] for i in rows]
            raise Damage(self.path, f"is damaged ({_line(e)})", rows[0]) from e
        out = [self.layout.unpack(self.first + i, r) for i, r in zip(rows, records, strict=True)]
        if None in out:
            raise Damage(self.path, "is damaged: its checksum does not hold", rows[out.index(None)])
        return out

    def sound(self) -> list[int]:
        """The examples of the shard that can be read; all records are."""
        try:
            self.open()
        except Damage:
            return []
        kept = []
        for i in range(self.count):
            try:
                self.read([i])
                kept.append(i)
            except Damage:
                continue
        return kept


def _line(e: Exception) -> str:
    return str(e).splitlines()[0].split(";")[0][:120] if str(e) else type(e).__name__
