"""Orbax behind one small module, with a digest of every leaf: Orbax alone restores a flipped byte without a word."""

import json
import logging
import shutil
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from lab.errors import UserError

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax logs every file it touches


def _flat(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(k, simple=True, separator="."): x for k, x in jax.tree_util.tree_leaves_with_path(tree)}


def kind(x: Any) -> str:
    """dtype and shape of an array or a description of one."""
    return f"{np.dtype(x.dtype).name}-{'x'.join(map(str, x.shape))}"


def digest(x: Any) -> str:
    """Checksum of an array's bytes, dtype and shape."""
    x = np.asarray(x)
    return f"{zlib.crc32(x.tobytes()):08x}-{kind(x)}"


def _seal(meta: dict) -> int:
    """Checksum of what is saved beside the arrays, as JSON gives it back."""
    return zlib.crc32(json.dumps([meta["digests"], meta["meta"]], sort_keys=True).encode())


def saved(folder: Path) -> bool:
    """Whether a folder holds a step that was saved whole."""
    return any(p.name.isdigit() for p in Path(folder).glob("*"))


class Checkpoints:
    """Steps saved in one folder, newest kept; a save is written behind the training and is durable after `wait`."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = Path(folder).resolve()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, tree: Any, meta: dict | None = None) -> None:
        """Save a tree of arrays and a JSON-able `meta` as `step`."""
        # a copy, as the live buffers are donated to the next step while the save is still being written
        flat = {k: np.array(x, copy=True) for k, x in _flat(tree).items()}
        meta = {"digests": {k: digest(x) for k, x in flat.items()}, "meta": json.loads(json.dumps(meta or {}))}
        meta["seal"] = _seal(meta)
        args = ocp.args.Composite(tree=ocp.args.StandardSave(flat), meta=ocp.args.JsonSave(meta))
        self._manager.save(step, args=args, force=True)

    def restore(self, like: Any) -> tuple[int, Any, dict] | None:
        """The newest step that verifies, as (step, tree like `like`, meta); None when there is none.

        A step that cannot be read or whose digests differ is moved aside as `damaged-<step>` and the one before is tried.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return (step, *self._read(step, like))
            except UserError:
                raise
            except Exception as e:  # whatever a damaged file makes the reader raise
                print(f"checkpoint {step} of {self.folder.name} is damaged and put aside ({str(e).splitlines()[0][:120]})", flush=True)
                aside = self.folder / f"damaged-{step}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / str(step)).rename(aside)
                self._manager.reload()
        return None

    def _read(self, step: int, like: Any) -> tuple[Any, dict]:
        abstract = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in _flat(like).items()}
        meta = self._meta(step)
        have = {(k, d.split("-", 1)[1]) for k, d in meta["digests"].items()}
        if odd := have ^ {(k, kind(x)) for k, x in abstract.items()}:  # Orbax would pad, cut or cast without a word
            odd = sorted({k for k, _ in odd})[:3]
            raise UserError(f"checkpoint {step} in {self.folder.name} holds other weights than the config describes: {', '.join(odd)}")
        cpu = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=cpu) for k, x in abstract.items()}
        flat = self._manager.restore(step, args=ocp.args.Composite(tree=ocp.args.StandardRestore(abstract))).tree
        for name, x in flat.items():
            if digest(x) != meta["digests"][name]:
                raise ValueError(f"the digest of {name} differs")
        return jax.tree.unflatten(jax.tree.structure(like), [flat[k] for k in _flat(like)]), meta["meta"]

    def _meta(self, step: int) -> dict:
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        if meta["seal"] != _seal(meta):
            raise ValueError("the digest of its metadata differs")
        return meta

    def meta(self) -> dict:
        """The JSON saved with the newest step."""
        step = self._manager.latest_step()
        if step is None:
            raise UserError(f"folder {self.folder.name!r} holds no checkpoint")
        try:
            return self._meta(step)["meta"]
        except Exception as e:  # whatever a damaged file makes the reader raise
            raise UserError(f"checkpoint {step} in {self.folder.name} is damaged ({str(e).splitlines()[0][:120]})") from e

    def wait(self) -> None:
        """Block until every save is durable."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish pending saves and release the folder."""
        self._manager.close()
