"""How a step of a checkpoint lies on a disk: one safetensors file of a run of one process, Orbax's folders of one of several.

Either is a folder by the step's number, with `tree` and `meta/metadata`, whose name it has only once it is whole; both are read by any run.
"""

import contextlib
import json
import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from safetensors import safe_open
from safetensors.numpy import save_file

from sharding import hosts

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax logs every file it touches
ARRAYS = "tree/arrays.safetensors"
META = "meta/metadata"


def steps(folder: Path) -> list[int]:
    """The steps that were saved whole in a folder, in order."""
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def clean(folder: Path) -> None:
    """Remove what saves and removals that were killed have left in a folder."""
    for p in folder.glob("*"):
        if p.name.endswith(".tmp") or ".orbax-checkpoint-tmp" in p.name:
            shutil.rmtree(p, ignore_errors=True)


def held(flat: dict[str, Any], rows: int | None, into: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays on the host as they are now, of the first `rows` of each, whatever becomes of them later.

    A view of a buffer on a CPU keeps it from being donated: a step that is given it writes to another one. What lies on several devices is
    copied, to the arrays that `into` holds of the save before: the first touch of memory takes longer than the copy.
    """
    parted = {k: x for k, x in flat.items() if isinstance(x, jax.Array) and not x.is_fully_replicated}
    out = {}
    for k, x in jax.device_get({k: x for k, x in flat.items() if k not in parted}).items():
        x = x if isinstance(flat[k], jax.Array) else np.array(x)
        out[k] = np.asarray(x if rows is None else x[:rows], order="C")
    for k, x in parted.items():
        shape = x.shape if rows is None else (min(rows, x.shape[0]), *x.shape[1:])
        fits = k in into and (into[k].shape, into[k].dtype) == (shape, x.dtype)
        into[k] = out[k] = into[k] if fits else np.empty(shape, x.dtype)
        for part in x.addressable_shards:
            if part.replica_id == 0:
                at = out[k][part.index]
                np.copyto(at, np.asarray(part.data)[: at.shape[0]])
    return out


def _synced(path: Path) -> None:
    with path.open("rb+") as f:
        os.fsync(f.fileno())


class File:
    """Steps of one process, each written by a thread behind the training.

    To hand Orbax the quickstart's 93 arrays of 11 MB takes 143 ms of a core, of which some 40 are the folders, event loops and threads of one
    array alone; this takes 28 (docs/pods.md).
    """

    def __init__(self, folder: Path, keep: int, keep_every: int):
        self.folder, self._keep, self._every = folder, keep, keep_every
        folder.mkdir(parents=True, exist_ok=True)
        clean(folder)
        self._pool, self._pending, self._into = ThreadPoolExecutor(1), None, {}

    def steps(self) -> list[int]:
        return steps(self.folder)

    def save(self, step: int, flat: dict[str, Any], meta: dict, rows: int | None) -> None:
        """Save a step, once the one before is durable."""
        self._pending: Future | None = self._pool.submit(self._write, step, held(flat, rows, self._into), meta)

    def _write(self, step: int, arrays: dict[str, np.ndarray], meta: dict) -> None:
        temporary = self.folder / f"{step}.tmp"
        with contextlib.ExitStack() as failed:
            failed.callback(shutil.rmtree, temporary, ignore_errors=True)
            for path in (ARRAYS, META):
                (temporary / path).parent.mkdir(parents=True)
            save_file(arrays, temporary / ARRAYS)
            (temporary / META).write_text(json.dumps(meta))
            for path in (ARRAYS, META):
                _synced(temporary / path)
            temporary.rename(self.folder / str(step))
            failed.pop_all()
        for old in self.steps()[: -self._keep]:
            if not (self._every and old % self._every == 0):
                (self.folder / str(old)).rename(self.folder / f"{old}.tmp")  # so that no half of it is ever taken for a step
                shutil.rmtree(self.folder / f"{old}.tmp")

    def reload(self) -> None:
        """Steps are read from the folder whenever they are asked for."""

    def wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._pool.shutdown()


class Orbax:
    """Steps of several processes, of which each writes the parts that it holds; all call alike."""

    def __init__(self, folder: Path, keep: int, keep_every: int):
        if hosts.first():
            clean(folder)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, keep_period=keep_every or None, cleanup_tmp_directories=True)
        # trained numbers hardly compress, and what compresses them takes their cores from the training
        handlers = {"tree": ocp.PyTreeCheckpointHandler(use_compression=False), "meta": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(folder, options=options, item_handlers=handlers)

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(self, step: int, flat: dict[str, Any], meta: dict, rows: int | None) -> None:
        """Orbax copies arrays of the host, and holds buffers that are donated to a step."""
        flat = {k: x[:rows] for k, x in flat.items()} if rows else flat
        args = ocp.args.Composite(tree=ocp.args.PyTreeSave(flat), meta=ocp.args.JsonSave(meta))
        self._manager.save(step, args=args, force=True)

    def reload(self) -> None:
        self._manager.reload()

    def wait(self) -> None:
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def meta(at: Path) -> dict:
    """What was saved beside the arrays of a step."""
    return json.loads((at / META).read_text())


def read(at: Path, like: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """The arrays of a step on the shardings of `like`, whatever they were saved from; of damaged files any error, or other numbers."""
    if (at / ARRAYS).exists():
        with safe_open(at / ARRAYS, framework="np") as f:
            return {k: hosts.put(f.get_tensor(k), x.sharding) for k, x in like.items()}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.restore(
            at / "tree", args=ocp.args.PyTreeRestore(like, restore_args=ocp.checkpoint_utils.construct_restore_args(like))
        )
