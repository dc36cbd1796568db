"""Contestants that take turns: the quickstart's shape without its data, a process for each, and a table of what came out."""

import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common

from lab.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def need_torch(name: str) -> None:
    """UserError where PyTorch, the peer, is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise UserError(f"benchmark {name!r} compares with PyTorch, which is not installed; expected: pip install -e '.[parity]'")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def warn_if_busy() -> None:
    """Say so where other work has the cores: timings would not be worth keeping."""
    if (load := os.getloadavg()[0]) > 0.5 * cores():
        _common.say(f"warning: the load of this machine is {load:.1f} on {cores()} cores; timings of a busy machine mean little")


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    names = [x.split(":", 1)[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")] if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def write(name: str, rows: list[dict], settings: dict[str, Any], out: str | None) -> Path:
    """The usual result file, each row with the settings; `out` is a folder to write to instead."""
    usual = _common.RESULTS
    _common.RESULTS = Path(out) if out else usual
    settings = {**settings, "cores": cores(), "processor": processor(), "load_after": round(os.getloadavg()[0], 2)}
    try:
        return _common.write(name, [{**r, "settings": settings} for r in rows])
    finally:
        _common.RESULTS = usual


def table(rows: list[tuple]) -> str:
    """Rows as aligned columns, the first row being the head."""
    rows = [tuple(map(str, r)) for r in rows]
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) for r in rows)


def config(experiment: str = "quickstart", **changes: Any) -> dict[str, Any]:
    """The complete config of an experiment of experiments/ with `changes` by dotted key."""
    from lab.experiment import load as experiment_file

    c = experiment_file(str(ROOT / "experiments" / f"{experiment}.py")).config.to_dict()
    for key, value in changes.items():
        section, _, leaf = key.partition(".")
        c[section][leaf] = value
    return c


class Noise:
    """A source of given sizes, the quickstart's by default: what a step costs does not depend on what the pixels are."""

    def __init__(self, **dims: int):
        self.dims = dims or dict(image=16, channels=1, classes=4)

    def batch(self, n: int) -> dict:
        """What the sizes tell of: uint8 image [n, image, image, channels], label [n], tokens [n, side, side], text [n, length].

        Half of the words of every text are padding (0).
        """
        import numpy as np

        rng, d, made = np.random.default_rng(0), self.dims, {}
        if "image" in d:
            made["image"] = rng.integers(0, 256, (n, d["image"], d["image"], d["channels"]), np.uint8)
        if "classes" in d:
            made["label"] = rng.integers(0, d["classes"], n).astype(np.int32)
        if "tokens" in d:
            made["tokens"] = rng.integers(0, d["vocabulary"], (n, d["side"], d["side"])).astype(np.int32)
        if "words" in d:
            said = np.arange(d["length"]) < (d["length"] + 1) // 2
            made["text"] = (said * rng.integers(1, d["words"], (n, d["length"]))).astype(np.int32)
        return made


def population(config: dict[str, Any], n: int, source: Noise | None = None) -> Any:
    """The lab's own program for `n` trials of a config that differ in learning rate, not compiled yet."""
    from lab.population import Population, Trial

    source = source or Noise()
    rates = [2.0 ** -(5 + i) for i in range(n)]
    trials = [Trial(f"t{i}", "mup", {**config, "optim": {**config["optim"], "lr": r}}, {"optim.lr": r}) for i, r in enumerate(rates)]
    return Population(trials, source, {k: v[None] for k, v in source.batch(config["train"]["batch"]).items()})


class Child:
    """A process started with a script and a JSON spec; told a number of steps, it answers with the seconds they took.

    Each contestant lives in its own process so that thread pools and allocators do not meet; while it waits, it sleeps.
    """

    def __init__(self, script: str, spec: dict[str, Any]):
        self.name, pipe = spec["name"], subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, script, "--serve", json.dumps(spec)], stdin=pipe, stdout=pipe, text=True)
        self.about = self._read()

    def _read(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name!r} ended with code {self.process.wait()}")
        return json.loads(line)

    def run(self, steps: int) -> float:
        """Seconds a step, over `steps` steps."""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self._read() / steps

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.stdin.close()
        self.process.wait(timeout=60)


def serve(about: dict[str, Any], run: Callable[[int], None]) -> None:
    """The other end of a Child: tell `about`, then answer every number of steps with the seconds that run(steps) took."""
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        run(int(line))
        print(json.dumps(time.perf_counter() - start), flush=True)
