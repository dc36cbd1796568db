"""A source -> batches: indices shuffled by grain, arrays gathered from a set decoded once, one step ahead of the device."""

import queue
import threading
from typing import Any

import grain
import numpy as np

from lab import find
from lab.errors import UserError, unknown


def open_source(config: dict, split: str, data_dir: str) -> Any:
    """The source that a config's `data` section names; an unknown option raises UserError."""
    options = dict(config)
    name = options.pop("name")
    found = find.module("lab.data", name)
    if not hasattr(found, "Source"):
        raise unknown("config key data.name", name, find.names("lab.data"))
    return find.make(found.Source, options, "data", given=(split, data_dir))


def decode(source: Any, memory: int = 2 << 30) -> dict[str, np.ndarray] | None:
    """Numeric arrays of a whole source, stacked; None where they need more than `memory` bytes."""
    if hasattr(source, "arrays"):
        return source.arrays
    first = {k: np.asarray(v) for k, v in source[0].items() if np.asarray(v).dtype.kind in "iufb"}
    if sum(v.nbytes for v in first.values()) * len(source) > memory:
        return None
    out = {k: np.empty((len(source), *v.shape), v.dtype) for k, v in first.items()}
    for i in range(len(source)):
        item = source[i]
        for k in out:
            out[k][i] = item[k]
    return out


class Loader:
    """Endless batches {key: [seeds, batch, ...]}; the batch at (seed, step) is the same wherever the iteration starts.

    Each seed has an order of its own, shuffled anew every epoch. `state` is the step, all there is to save.
    """

    def __init__(self, source: Any, batch: int, seeds: list[int], start: int = 0):
        if batch > len(source):
            raise UserError(f"train.batch={batch} is larger than the source, which has {len(source)} examples")
        self._source, self._arrays, self._step = source, decode(source), start
        orders = [grain.MapDataset.range(len(source)).seed(s).shuffle().repeat().batch(batch) for s in seeds]
        self._queue: queue.Queue = queue.Queue(maxsize=4)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(orders, start), daemon=True)
        self._thread.start()

    def _fill(self, orders: list, step: int) -> None:
        while not self._stop.is_set():
            try:
                item = self._gather(np.stack([order[step] for order in orders]))
            except Exception as e:  # handed to the consumer, whose thread can raise it
                item = e
            while not self._stop.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            step += 1

    def _gather(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        if self._arrays is not None:
            return {k: v[rows] for k, v in self._arrays.items()}
        items = [[self._source[int(i)] for i in row] for row in rows]
        keys = [k for k, v in items[0][0].items() if np.asarray(v).dtype.kind in "iufb"]
        return {k: np.stack([np.stack([item[k] for item in row]) for row in items]) for k in keys}

    @property
    def state(self) -> dict[str, int]:
        """Where the next batch stands in the order."""
        return {"step": self._step}

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        item = self._queue.get()
        if isinstance(item, Exception):
            raise item
        self._step += 1
        return item

    def close(self) -> None:
        """Stop reading ahead."""
        self._stop.set()
        self._thread.join(timeout=5)
