"""Processes of one run: how they start together, wait for each other, agree, and end where one hangs.

Device work must be the same on all of them, so what one decides from its clock, signals or files the others are told.
"""

import faulthandler
import json
import os
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sharding.exits import INTERRUPTED

START_SECONDS = 300  # to wait for the others at the start
HEARTBEAT_SECONDS = 100  # of silence after which a process counts as dead, and all others end
WAIT_SECONDS = 1800  # to wait at a barrier
END_SECONDS = 60  # for all to come to the end, of a run or by an error
_asked: Counter[str] = Counter()


def start() -> None:
    """Join the processes of this run; nothing to do for one of its own. To be called before any device is asked for.

    By hand: LAB_COORDINATOR=host:port, LAB_HOSTS=how many, LAB_HOST=which, from 0. Else what jax finds of TPU slices, SLURM, Open MPI or
    Kubernetes, where the environment tells of several processes, or LAB_HOSTS=auto. LAB_HEARTBEAT_SECONDS is in the place of HEARTBEAT_SECONDS.

    Raises:
      ValueError: some of the three variables are not set or no numbers.
      RuntimeError: the others did not come in START_SECONDS, where jax does not abort (134) by itself.
    """
    given = {k: os.environ[k] for k in ("LAB_COORDINATOR", "LAB_HOSTS", "LAB_HOST") if os.environ.get(k)}
    wait = {
        "initialization_timeout": START_SECONDS,
        "heartbeat_timeout_seconds": int(os.environ.get("LAB_HEARTBEAT_SECONDS", HEARTBEAT_SECONDS)),
        "shutdown_timeout_seconds": END_SECONDS,
    }
    if jax.distributed.is_initialized() or not (given or _several()):
        return
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM, and nothing would come of one before training
    if not given or given == {"LAB_HOSTS": "auto"}:
        jax.distributed.initialize(**wait)
        return
    numbers = [given.get(k, "") for k in ("LAB_HOSTS", "LAB_HOST")]
    if len(given) < 3 or not all(n.isdecimal() for n in numbers) or not int(numbers[1]) < int(numbers[0]):
        told = ", ".join(f"{k}={v}" for k, v in given.items())
        raise ValueError(
            f"{told}: expected LAB_COORDINATOR=host:port, LAB_HOSTS=how many processes, and LAB_HOST=which of them from 0, or LAB_HOSTS=auto"
        )
    jax.distributed.initialize(given["LAB_COORDINATOR"], int(numbers[0]), int(numbers[1]), **wait)


def _several() -> bool:
    """Whether the environment tells of several processes that jax can find each other of."""
    e = os.environ
    if "SLURM_PROCID" in e or "OMPI_COMM_WORLD_SIZE" in e:
        return int(e.get("SLURM_STEP_NUM_TASKS", e.get("SLURM_NTASKS", 1))) > 1 or int(e.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    return (
        "," in e.get("TPU_WORKER_HOSTNAMES", "")
        or "MEGASCALE_NUM_SLICES" in e
        or ("KUBERNETES_SERVICE_HOST" in e and "JOB_COMPLETION_INDEX" in e)
    )


def first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def barrier(name: str, timeout: float = WAIT_SECONDS) -> None:
    """Wait until all processes are here.

    Raises:
      TimeoutError: some did not come in `timeout` seconds.
    """
    if jax.process_count() == 1:
        return
    from jax._src.distributed import global_state  # multihost_utils' own barrier waits on the devices, and for ever

    _asked[name] += 1
    try:
        global_state.client.wait_at_barrier(f"{name}:{_asked[name]}", timeout_in_ms=int(timeout * 1000))
    except jax.errors.JaxRuntimeError as e:
        raise TimeoutError(
            f"not all of {jax.process_count()} processes reached {name!r} in {timeout:.0f} s ({str(e).splitlines()[0]})"
        ) from e


def agreed(*asked: bool) -> list[bool]:
    """Of each question, whether any process says yes; all must ask."""
    if jax.process_count() == 1:
        return list(asked)
    return np.any(multihost_utils.process_allgather(np.array(asked)), axis=0).tolist()


def told(number: int) -> int:
    """What the first process says, on all; all must ask."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def fetch(tree: Any) -> Any:
    """A tree of arrays as numpy's, whole, on every process; all must ask."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True) if _apart(x) else np.asarray(x), tree)


def _apart(x: Any) -> bool:
    return isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)


def put(tree: Any, shardings: Any) -> Any:
    """A tree of values, the same on every process, on the devices of `shardings`; arrays that lie on several processes are moved."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    return jax.tree.map(_put, tree, shardings)


def _put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.jit(lambda x: x, out_shardings=sharding)(x)
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.jit(jax.random.wrap_key_data, out_shardings=sharding)(np.asarray(jax.random.key_data(x)))
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def share(sharding: jax.sharding.NamedSharding, shape: tuple[int, ...], dim: int) -> tuple[int, int]:
    """(i, n): the devices of this process read the i-th of n equal slices along a dim of an array; (0, 1) where that is no one slice."""
    size = shape[dim]
    parts = {index[dim].indices(size)[:2] for index in sharding.addressable_devices_indices_map(shape).values()}
    low, high = min(a for a, _ in parts), max(b for _, b in parts)
    whole = sum(b - a for a, b in parts) == high - low
    return (low // (high - low), size // (high - low)) if whole and not size % (high - low) and not low % (high - low) else (0, 1)


class Watchdog:
    """Ends a process whose steps have stopped: every thread's stack goes to a file, and the exit code is INTERRUPTED.

    `folder` holds host-<i>.json, when and where this process last made a step, and host-<i>-stacks.txt after a hang. Between `rest` and the
    next `beat` nothing is watched, as while a program compiles. With `seconds` 0 nothing is ever.
    """

    def __init__(self, folder: Path, seconds: float):
        self._folder, self._seconds, self._at, self._told = Path(folder), seconds, None, 0.0
        self._ended = threading.Event()
        if seconds:
            self._folder.mkdir(parents=True, exist_ok=True)
            threading.Thread(target=self._watch, daemon=True).start()

    def beat(self, population: str, step: int) -> None:
        """A step is done."""
        if not self._seconds:
            return
        now = self._at = time.monotonic()
        if now - self._told > min(10.0, self._seconds / 4):
            self._told, file = now, self._file("json")
            about = {"host": socket.gethostname(), "process": os.getpid(), "population": population, "step": step, "time": time.time()}
            file.with_suffix(".tmp").write_text(json.dumps(about))
            file.with_suffix(".tmp").rename(file)

    def rest(self) -> None:
        """No step is to be expected until the next beat."""
        self._at = None

    def close(self) -> None:
        """Watch no more."""
        self._ended.set()

    def _file(self, kind: str) -> Path:
        return self._folder / (f"host-{jax.process_index()}.json" if kind == "json" else f"host-{jax.process_index()}-{kind}.txt")

    def _watch(self) -> None:
        while not self._ended.wait(self._seconds / 8):
            at = self._at
            if at is None or time.monotonic() - at < self._seconds:
                continue
            with self._file("stacks").open("w") as f:
                f.write(f"no step for {time.monotonic() - at:.0f} s (run.watchdog_seconds={self._seconds})\n")
                f.flush()
                faulthandler.dump_traceback(f, all_threads=True)
            os._exit(INTERRUPTED)
