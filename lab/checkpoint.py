"""Steps of training saved and restored, with a digest of every leaf: their readers alone restore a flipped byte without a word."""

import errno
import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from lab import stores
from lab.digests import digests, kind, named
from lab.errors import UserError
from sharding import hosts


def _seal(meta: dict) -> int:
    """Checksum of what is saved beside the arrays, as JSON gives it back."""
    return zlib.crc32(json.dumps([meta["digests"], meta["meta"]], sort_keys=True).encode())


def saved(folder: Path) -> bool:
    """Whether a folder holds a step that was saved whole."""
    return bool(stores.steps(Path(folder)))


def _differs(flat: dict[str, Any], said: dict[str, str]) -> str | None:
    """The first leaf that is not what its digest says; a digest of the form of older checkpoints is a CRC-32 of the bytes."""
    now = digests(flat)
    for k, x in flat.items():
        mine = now[k] if len(said[k].split("-", 1)[0]) > 8 else f"{zlib.crc32(np.asarray(x).tobytes()):08x}-{kind(x)}"
        if mine != said[k]:
            return k
    return None


class Checkpoints:
    """Steps saved in one folder, the newest `keep` of them kept and all that `keep_every` divides (0: none for that).

    A save is written behind the training and is durable after `wait`. Leaves are arrays on the host or on devices, of one process or of
    several, which then all call alike. `store` is the form in which steps are saved, that of the number of processes unless told.
    """

    def __init__(self, folder: Path, keep: int = 2, keep_every: int = 0, store: Callable | None = None):
        self.folder = Path(folder).resolve()
        self._store = (store or (stores.Orbax if jax.process_count() > 1 else stores.File))(self.folder, keep, keep_every)

    def save(self, step: int, tree: Any, meta: dict | None = None, rows: int | None = None) -> None:
        """Save a tree of arrays and a JSON-able `meta` as `step`, which may have been saved before; OSError where there is no space.

        With `rows`, the first so many of every array are all that is saved. What becomes of the arrays afterwards changes nothing.
        """
        self.wait()
        if step in self._store.steps():
            return
        flat = named(tree)
        meta = {"digests": digests(flat, rows), "meta": json.loads(json.dumps(meta or {}))}
        meta["seal"] = _seal(meta)
        self._told(lambda: self._store.save(step, flat, meta, rows))

    def restore(self, like: Any, cast: bool = False, holds: Callable[[dict], bool] = lambda meta: True) -> tuple[int, Any, dict] | None:
        """The newest step that verifies and whose meta `holds`, as (step, tree like `like`, meta); None when there is none.

        Leaves come back on the shardings of `like`, whatever they were saved from; without one, on the first device. `cast` lets them
        become another dtype than the one saved. A step that cannot be read, whose digests differ or whose meta does not hold is moved
        aside as `damaged-<step>` and the one before is tried.
        """
        self.wait()
        for step in reversed(self._store.steps()):
            found, why = None, ""
            try:
                found = self._read(step, like, cast, holds)
            except UserError:
                raise
            except Exception as e:  # whatever a damaged file makes the reader raise
                why = str(e).splitlines()[0][:120]
            if not hosts.agreed(found is None)[0]:
                flat, meta = found
                odd = _differs(flat, meta["digests"])
                if not hosts.agreed(odd is not None)[0]:
                    flat = {k: flat[k].astype(x.dtype) if cast else flat[k] for k, x in named(like).items()}
                    return step, jax.tree.unflatten(jax.tree.structure(like), list(flat.values())), meta["meta"]
                why = f"the digest of {odd} differs" if odd else why
            self._aside(step, why or "another process cannot read it")
        return None

    def _aside(self, step: int, why: str) -> None:
        print(f"checkpoint {step} of {self.folder.name} is damaged and put aside ({why})", flush=True)
        if hosts.first():
            aside = self.folder / f"damaged-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / str(step)).rename(aside)
        hosts.barrier(f"checkpoint {step} is put aside")
        self._store.reload()

    def _read(self, step: int, like: Any, cast: bool, holds: Callable[[dict], bool]) -> tuple[dict, dict]:
        meta, like = self._meta(step), named(like)
        have = {k: d.split("-", 1)[1] for k, d in meta["digests"].items()}
        where = f"checkpoint {step} in {self.folder.name}"
        if odd := sorted(have.keys() ^ like.keys()):
            raise UserError(f"{where} holds other weights than the config describes: {', '.join(odd[:3])}")
        for k, x in like.items():  # Orbax would pad, cut or cast without a word
            (dtype, shape), (mine, wanted) = have[k].rsplit("-", 1), kind(x).rsplit("-", 1)
            if shape != wanted:
                raise UserError(f"{where} holds other weights than the config describes: {k} is {shape}, not {wanted}")
            if dtype != mine and not cast:
                raise UserError(f"{where} holds {k} as {dtype}, where {mine} is asked for; expected one dtype, or a cast that is asked for")
        if not holds(meta["meta"]):
            raise ValueError("the rows that it goes with are gone or damaged")
        first = SingleDeviceSharding(jax.local_devices()[0])
        dtypes = {k: jnp.dtype(have[k].rsplit("-", 1)[0]) for k in like}
        abstract = {k: jax.ShapeDtypeStruct(x.shape, dtypes[k], sharding=getattr(x, "sharding", None) or first) for k, x in like.items()}
        return stores.read(self.folder / str(step), abstract), meta

    def _meta(self, step: int) -> dict:
        meta = stores.meta(self.folder / str(step))
        if meta["seal"] != _seal(meta):
            raise ValueError("the digest of its metadata differs")
        return meta

    def meta(self) -> dict:
        """The JSON saved with the newest step."""
        self.wait()
        if not (steps := self._store.steps()):
            raise UserError(f"folder {self.folder.name!r} holds no checkpoint")
        try:
            return self._meta(steps[-1])["meta"]
        except Exception as e:  # whatever a damaged file makes the reader raise
            raise UserError(f"checkpoint {steps[-1]} in {self.folder.name} is damaged ({str(e).splitlines()[0][:120]})") from e

    def digests(self) -> dict[str, str]:
        """The digest of every leaf of the newest step, by its path."""
        self.meta()
        return self._meta(self._store.steps()[-1])["digests"]

    def _told(self, call: Callable[[], Any]) -> None:
        """A call of a library that tells a full disk in words of its own, as the OSError that it is."""
        try:
            call()
        except Exception as e:
            if not isinstance(e, OSError) and os.strerror(errno.ENOSPC) in str(e):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder)) from e
            raise

    def wait(self) -> None:
        """Block until every save is durable; OSError where there was no space."""
        self._told(self._store.wait)

    def close(self) -> None:
        """Finish pending saves and release the folder."""
        self._told(self._store.close)
