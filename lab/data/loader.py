"""A source -> batches: indices shuffled by grain, arrays gathered from a set decoded once, a few steps ahead of the device.

A batch is a function of (seed, step), so grain may read steps in threads or worker processes and no state but the step is needed:
the state of grain's own prefetching, read back with another number of workers, would silently give other batches.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cloudpickle
import grain
import numpy as np
from absl import flags
from rich.progress import Progress

from lab import find
from lab.errors import UserError, unknown
from lab.log import console

# what of an example is an index: the size in dims that it lies below, and the least it may be (a label below zero is none)
INDICES = {"tokens": ("vocabulary", 0), "text": ("words", 0), "label": ("classes", -1)}
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def open_source(config: dict, split: str, data_dir: str) -> Any:
    """The source that a config's `data` section names; an unknown option raises UserError."""
    options = dict(config)
    name = options.pop("name")
    found = find.module("lab.data", name)
    if not hasattr(found, "Source"):
        raise unknown("config key data.name", name, find.names("lab.data"))
    return find.make(found.Source, options, "data", given=(split, data_dir))


def fetch(source: Any, rows: Sequence[int]) -> list[dict]:
    """Examples `rows` of a source, read together where it can (`__getitems__`)."""
    return source.__getitems__(rows) if hasattr(source, "__getitems__") else [source[i] for i in rows]


def numeric(item: dict) -> dict[str, np.ndarray]:
    """What of an example an array can hold: all but its caption."""
    arrays = {k: np.asarray(v) for k, v in item.items()}
    return {k: v for k, v in arrays.items() if v.dtype.kind in "iufb"}


def within(arrays: dict[str, np.ndarray], source: Any) -> dict[str, np.ndarray]:
    """Arrays of examples, as they are; UserError for tokens, words or labels outside what the source says there are.

    A device would read another row of a table without a word.
    """
    dims = getattr(source, "dims", {})
    for key, (size, least) in INDICES.items():
        x = arrays.get(key)
        if x is None or size not in dims or x.dtype.kind not in "iu" or not x.size:
            continue
        if x.min() < least or x.max() >= dims[size]:
            raise UserError(
                f"the data's {key!r} lie in {x.min()}..{x.max()}; expected {least} to {dims[size] - 1}, as the source says {size}={dims[size]}"
            )
    return arrays


def decode(source: Any, memory: int = 2 << 30) -> dict[str, np.ndarray] | None:
    """Numeric arrays of a whole source, stacked and `within`; None where they need more than `memory` bytes."""
    if hasattr(source, "arrays"):
        return source.arrays and within(source.arrays, source)  # a set known to be too large has None
    first, n = numeric(source[0]), len(source)
    if sum(v.nbytes for v in first.values()) * n > memory:
        return None
    out = {k: np.empty((n, *v.shape), v.dtype) for k, v in first.items()}

    def fill(start: int) -> None:
        rows = range(start, min(start + 32, n))
        for i, item in zip(rows, fetch(source, rows), strict=True):
            for k, v in out.items():
                v[i] = item[k]

    with ThreadPoolExecutor(CORES) as pool:  # pictures are decoded outside Python's lock
        for _ in shown(pool.map(fill, range(0, n, 32)), -(-n // 32), "decoding"):
            pass
    return within(out, source)


def shown(work: Iterable, total: int, what: str, after: float = 5.0) -> Iterator:
    """`work`, with a bar and an ETA once it has taken `after` seconds."""
    began, bar = time.monotonic(), Progress(console=console)
    task = bar.add_task(what, total=total)
    try:
        for x in work:
            yield x
            if not bar.live.is_started and time.monotonic() - began > after:
                bar.start()
            bar.advance(task)
    finally:
        if bar.live.is_started:
            bar.stop()


class _Steps:
    """Step -> a host's part of the batch: an endless source for grain, which may send it to worker processes."""

    def __init__(self, source: Any, arrays: dict | None, batch: int, seeds: list[int], host: tuple[int, int]):
        self._source, self._arrays, self._batch = source, arrays, batch
        self._orders = [grain.MapDataset.range(len(source)).seed(s).shuffle().repeat() for s in seeds]
        size = batch // host[1]
        self._part = range(host[0] * size, (host[0] + 1) * size)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        rows = np.array([[order[step * self._batch + i] for i in self._part] for order in self._orders])
        if self._arrays is not None:
            return {k: v[rows] for k, v in self._arrays.items()}
        items = fetch(self._source, rows.ravel().tolist())
        batch = {k: np.stack([item[k] for item in items]).reshape(*rows.shape, *v.shape) for k, v in numeric(items[0]).items()}
        return within(batch, self._source)


class Loader:
    """Endless batches {key: [seeds, batch / hosts, ...]}; the batch at (seed, step) is the same wherever the iteration starts.

    Each seed has an order of its own, shuffled anew every epoch. `host` = (i, n) gets the i-th of n slices of each batch. A set that
    is not held in memory is read by `workers` processes (0: by threads of this one). `state` is the step, all there is to save.
    """

    def __init__(self, source: Any, batch: int, seeds: list[int], start: int = 0, host: tuple[int, int] = (0, 1), workers: int = 0):
        if batch > len(source):
            raise UserError(f"train.batch={batch} is larger than the source, which has {len(source)} examples")
        if batch % host[1]:
            raise UserError(f"train.batch={batch} must be a multiple of the number of hosts, {host[1]}, which share it")
        if type(workers) is not int or not 0 <= workers <= 512:
            raise UserError(f"config key run.workers={workers!r} must be a whole number from 0 to 512")
        arrays = decode(source)
        steps = grain.MapDataset.source(_Steps(source, arrays, batch, seeds, host))[start:]
        threads = 1 if arrays is not None else 2 if workers else max(2, min(CORES, 16))
        order = steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(4, threads)))
        if workers and arrays is None:
            _ready_to_send(source, workers)
            order = order.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
        self._step, self._batches = start, iter(order)
        self._batches.start_prefetch()

    @property
    def state(self) -> dict[str, int]:
        """Where the next batch stands in the order."""
        return {"step": self._step}

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._batches)
        self._step += 1
        return batch

    def close(self) -> None:
        """Stop reading ahead."""
        if hasattr(self._batches, "close"):
            self._batches.close()
        self._batches = iter(())  # grain's iterators complain when the interpreter takes them down


def _ready_to_send(source: Any, workers: int) -> None:
    """Make this process able to start grain's workers, which are new interpreters, and `source` able to reach them."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads flags of its own, which nobody has parsed outside absl's app
    for name, module in list(sys.modules.items()):
        if name.startswith("lab_user_"):  # a part from a user's file has no name that another process could import
            cloudpickle.register_pickle_by_value(module)
    try:
        cloudpickle.dumps(source)
    except Exception as e:
        raise UserError(f"config key run.workers={workers}: the source cannot be sent to a process ({e}); expected 0") from e


def held_out(config: dict, source: Any) -> dict[str, np.ndarray]:
    """The evaluation set [N, batch, ...]: the same examples in every study on this source."""
    e = config["eval"]
    n = min(e["examples"], len(source))
    batch = min(e["batch"], n)
    rows = np.random.default_rng(0).permutation(len(source))[: n // batch * batch]
    items = [source[int(i)] for i in rows]
    arrays = within({k: np.stack([item[k] for item in items]) for k, v in items[0].items() if np.asarray(v).dtype.kind in "iufb"}, source)
    return {k: v.reshape(-1, batch, *v.shape[1:]) for k, v in arrays.items()}


def few(config: dict, n: int) -> dict:
    """A config of which `held_out` gives `n` examples in one batch."""
    return {**config, "eval": {**config["eval"], "examples": n, "batch": n}}


class Decoded:
    """A source whose arrays are in memory, decoded once for all populations of a study."""

    def __init__(self, source: Any):
        self._source, self.arrays = source, decode(source)
        self.info, self.dims = source.info, source.dims
        if hasattr(source, "unique"):
            self.unique = source.unique

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> dict:
        return self._source[i]

    def __getitems__(self, rows: Sequence[int]) -> list[dict]:
        """Examples `rows`, read together where the source can."""
        return fetch(self._source, rows)
