"""Who writes what of a folder that several processes share: a claim is a file made exclusively, with a heartbeat. No jax here.

It works on any shared POSIX folder: all it asks is that of two processes that create one file, one fails. The newest of NAME.1, NAME.2, ... is the
claim of NAME; whoever takes over a claim that is released or stale creates the next number, which one process alone can. Beats are a file's time of
change, read beside that of a file made now, so clocks of hosts need not agree.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lab.files import write_json
from sharding.exits import INTERRUPTED

BEAT = 5.0  # seconds between two beats of a claim
MISSED = 12  # beats after which it is stale
WAITED = 5.0  # seconds before it is told whom one waits for
FOLDER = ".claims"
PLAN = "plan"  # the claim of what belongs to a whole folder, such as study.json; no population is called so, as its name ends in a hash


def owner() -> str:
    """host:pid of this process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _here() -> str:
    """The kernel and process namespace, within which a process number means one process; '' where that is not told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


class Claim(contextlib.AbstractContextManager):
    """One that this process holds and keeps beating for; leaving it releases it.

    A process that finds its claim taken over, as after a long stop, ends at once with `lost()`: it would write beside the new owner.
    """

    def __init__(self, path: Path, lost: Callable[[], None]):
        self.path, self._lost = path, lost
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name=f"claim {path.name}")
        self._thread.start()

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            try:
                newest = _newest(self.path.parent, self.path.stem)
                if newest is not None and _number(newest) > _number(self.path):
                    self._lost()
                    return
                os.utime(self.path)
            except OSError:  # a server that is away for a moment; missed beats are what staleness counts
                continue

    def __exit__(self, *exc) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            write_json(self.path, {"owner": owner(), "released": True})


def _end() -> None:
    print(f"lab: {owner()} was held up for long and another process has taken over its work, so this one ends", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)  # at once: whatever it still wrote would mix with the other's rows


def take(folder: Path, name: str, lost: Callable[[], None] = _end) -> Claim | None:
    """The claim of `name` in a folder; None where a live process, this one too, holds it."""
    claims = Path(folder) / FOLDER
    claims.mkdir(exist_ok=True)
    newest = _newest(claims, name)
    if newest is not None and _live(newest):
        return None
    mine = claims / f"{name}.{1 + (_number(newest) if newest else 0)}"
    try:
        descriptor = os.open(mine, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return None
    os.close(descriptor)
    write_json(mine, {"owner": owner(), "where": _here()})
    if _newest(claims, name) != mine:  # made where an older one had been tidied away
        mine.unlink(missing_ok=True)
        return None
    for old in _all(claims, name):
        if old != mine and old != newest:
            old.unlink(missing_ok=True)
    return Claim(mine, lost)


def holders(folder: Path) -> dict[str, str]:
    """{name: host:pid} of all that live processes hold in a folder."""
    newest: dict[str, tuple[int, Path]] = {}
    for path in (Path(folder) / FOLDER).glob("*"):
        if numbered := re.fullmatch(r"(.+)\.(\d+)", path.name):
            newest[numbered[1]] = max(newest.get(numbered[1], (0, path)), (int(numbered[2]), path))
    return {name: _read(path).get("owner", "another process") for name, (_, path) in newest.items() if _live(path)}


@contextlib.contextmanager
def alone(folder: Path, name: str = PLAN, told: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Wait until this process is the only one within; `told` hears after some seconds whom it waits for."""
    began, said = time.monotonic(), False
    while (claim := take(folder, name)) is None:
        time.sleep(0.05)
        if not said and time.monotonic() - began > WAITED:
            said = True
            told(f"waiting for {holders(folder).get(name, 'another process')}, which is writing {Path(folder).name}")
    with claim:
        yield


def _all(claims: Path, name: str) -> list[Path]:
    """The claims of a name, oldest first; OSError where the folder cannot be listed."""
    found = [claims / n for n in os.listdir(claims) if re.fullmatch(re.escape(name) + r"\.\d+", n)]
    return sorted(found, key=_number)


def _number(claim: Path) -> int:
    return int(claim.suffix[1:])


def _newest(claims: Path, name: str) -> Path | None:
    return next(iter(_all(claims, name)[::-1]), None)


def _read(path: Path) -> dict:
    """What a claim says; {} of one that is gone, or whose writing was cut off."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _live(path: Path) -> bool:
    """Whether a claim is held: not released, its process not known to be gone, and its last beat not long ago."""
    about = _read(path)
    if about.get("released"):
        return False
    if about.get("where") and about["where"] == _here() and not running(int(about["owner"].rpartition(":")[2])):
        return False
    try:
        with path.open("rb") as f:  # opened, as a network file system then asks its server anew
            beat = os.fstat(f.fileno()).st_mtime
    except FileNotFoundError:
        return False
    return server_time(path.parent) - beat < BEAT * MISSED


def running(pid: int) -> bool:
    """Whether a process of this machine lives; one that has ended and whose parent has not asked for its exit code does not."""
    try:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return False
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def born(pid: int) -> str:
    """What tells a process of this machine from any other that has, had or will have its number, without spaces; '' where none has it."""
    try:
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]  # since the kernel's start; field 22 of proc(5)
        return f"{_here()}:{ticks}"
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
    told = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)  # no /proc: a date, to the second
    return "-".join(told.stdout.split())


def server_time(folder: Path) -> float:
    """The time of the folder's file server; of this host where nothing can be written."""
    try:
        with tempfile.TemporaryFile(dir=folder) as f:
            return os.fstat(f.fileno()).st_mtime
    except OSError:
        return time.time()
