"""Folders of safetensors files, whole or in shards with an index."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  (gives numpy the type bfloat16)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lab.errors import UserError
from lab.record import read_json


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of a folder by name, each read when it is asked for; `older` parts of names are read as the newer ones.

    Raises:
      UserError: no file, a shard that the index names and the folder lacks, a damaged file, or a tensor that lies in two files.
    """

    def __init__(self, folder: Path, older: Mapping[str, str] | None = None):
        self.files = _files(Path(folder))
        self._open, self._where, self._called = {}, {}, {}
        for file in self.files:
            try:
                self._open[file] = safe_open(file, framework="np")
            except (SafetensorError, OSError) as e:
                raise UserError(f"file {str(file)!r} is damaged or no safetensors file ({str(e).splitlines()[0]})") from None
            for called in self._open[file].keys():  # noqa: SIM118  (no dict)
                name = called
                for old, new in (older or {}).items():
                    name = name.replace(old, new)
                self._called[name] = called
                if name in self._where:
                    raise UserError(f"tensor {name!r} lies in {self._where[name].name!r} and in {file.name!r}; keep one of the files")
                self._where[name] = file

    def __getitem__(self, name: str) -> np.ndarray:
        return self._open[self._where[name]].get_tensor(self._called[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def _files(folder: Path) -> list[Path]:
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if not indices:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise UserError(f"folder {str(folder)!r} has no *.safetensors file")
        return files
    maps = [read_json(index).get("weight_map") for index in indices]
    if None in maps:
        raise UserError(f"file {str(indices[maps.index(None)])!r} has no key 'weight_map'")
    files = sorted({folder / name for names in maps for name in names.values()})
    if missing := [f.name for f in files if not f.is_file()]:
        raise UserError(f"folder {str(folder)!r} lacks {', '.join(missing)}, which {indices[0].name!r} names")
    return files


def write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write one safetensors file, whole or not at all, marked as PyTorch's libraries want it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(tensors, temporary, {"format": "pt"})
    temporary.rename(path)
