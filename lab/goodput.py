"""What a population's time went to, told by its own attempts: the share of it that trained steps which stand. No jax here.

Each attempt leaves a file of events beside its rows: when it began and who it was, and the seconds of all it did.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# causes of time that trains nothing: named events, of which startup is imports, data and packing before a process's first population; steps
# done again; time between attempts, and between populations; the rest
CAUSES = ("startup", "init", "compile", "restore", "save", "eval", "judge", "replay", "redone", "down", "between", "other")
EVERY = 2.0  # seconds of steps in one event: what a kill leaves untold


class Events:
    """Writes the events of one attempt, which `began` at a Unix time and goes on from a step; of attempt 0, of a process that does not write, none.

    `startup` are seconds before it began that were spent for it, of which those beside an earlier attempt are not told.
    """

    def __init__(self, folder: Path, attempt: int, began: float, step: int, startup: float = 0.0):
        if earlier := read(folder):
            startup = max(0.0, min(startup, began - earlier[-1][-1]["at"]))
        self._file = (Path(folder) / f"events-{attempt:04d}.jsonl" if attempt else Path(os.devnull)).open("a")
        self._step, self._to, self._seconds, self._said = step, step, 0.0, time.monotonic()
        self.seconds: dict[str, float] = {}
        self._write("start", at=round(began - startup, 3), attempt=attempt, owner=f"{socket.gethostname()}:{os.getpid()}")
        if startup > 0:
            self.tell("startup", startup)

    def _write(self, what: str, **about: Any) -> None:
        self._file.write(json.dumps({"at": round(time.time(), 3), "what": what, **about}) + "\n")
        self._file.flush()

    def step(self, to: int, seconds: float) -> None:
        """Steps up to `to` are trained, the last of them in so many seconds."""
        self._to, self._seconds = to, self._seconds + seconds
        if time.monotonic() - self._said > EVERY:
            self._steps()

    def _steps(self) -> None:
        if self._to > self._step:
            self._write("steps", **{"from": self._step, "to": self._to, "seconds": round(self._seconds, 4)})
        self._step, self._seconds, self._said = self._to, 0.0, time.monotonic()

    def tell(self, what: str, seconds: float = 0.0, **about: Any) -> None:
        """Something took so many seconds, or happened."""
        self._steps()
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds
        self._write(what, **about, seconds=round(seconds, 4))

    @contextmanager
    def timed(self, what: str, **about: Any) -> Iterator[None]:
        """`tell` of what is done inside."""
        begun = time.monotonic()
        yield
        self.tell(what, time.monotonic() - begun, **about)

    def close(self) -> None:
        """Tell the last steps and close the file."""
        self._steps()
        self._file.close()


def read(folder: Path) -> list[list[dict]]:
    """The events of each attempt of a population; lines that a kill or a damaged disk left are no events."""
    attempts = []
    for path in sorted(Path(folder).glob("events-*.jsonl")):
        found = []
        for line in path.read_bytes().splitlines():
            try:
                event = json.loads(line)
                found.append(event | {"at": float(event["at"]), "what": str(event["what"])})
            except (ValueError, KeyError, TypeError):
                continue
        attempts += [found] * bool(found)
    return attempts


def account(folder: Path) -> dict[str, float]:
    """Seconds of a population: `wall` from its first start to its last event, `steps` that stand, and what each of CAUSES took."""
    attempts = read(folder)
    out = dict.fromkeys(("wall", "steps", *CAUSES), 0.0)
    if not attempts:
        return out
    out["wall"] = attempts[-1][-1]["at"] - attempts[0][0]["at"]
    for i, events in enumerate(attempts):
        after = attempts[i + 1 :]
        out["down"] += after[0][0]["at"] - events[-1]["at"] if after else 0.0
        again = min((e["from"] for later in after for e in later if e["what"] == "steps"), default=float("inf"))
        for e in events:
            if e["what"] == "steps":
                stands = min(1.0, max(0.0, (again - e["from"]) / (e["to"] - e["from"])))
                out["steps"] += stands * e["seconds"]
                out["redone"] += (1 - stands) * e["seconds"]
            elif e["what"] in CAUSES:
                out[e["what"]] += e["seconds"]
    out["other"] = out["wall"] - sum(v for k, v in out.items() if k != "wall")
    return out


def study(folder: Path, populations: list[str]) -> dict[str, float]:
    """`account` of a study: the sum over its populations; where these followed one another, time between them is `between`."""
    each = [account(Path(folder) / name) for name in populations]
    out = {k: sum(a[k] for a in each) for k in ("wall", "steps", *CAUSES)}
    ends = [(a[0][0]["at"], a[-1][-1]["at"]) for name in populations if (a := read(Path(folder) / name))]
    whole = max((e for _, e in ends), default=0.0) - min((b for b, _ in ends), default=0.0)
    between = max(0.0, whole - out["wall"])
    return out | {"wall": out["wall"] + between, "between": between}


def said(told: dict[str, float]) -> str:
    """An account in a line; empty where nothing was told."""
    if not told["wall"]:
        return ""
    lost = sorted(((told[k] / told["wall"], k) for k in CAUSES), reverse=True)
    losses = ", ".join(f"{k} {share:.1%}" for share, k in lost if share >= 0.0005)
    return f"goodput {told['steps'] / told['wall']:.1%} of {told['wall']:.0f} s since the first start" + (f"; {losses}" if losses else "")
