"""What a machine lacks for studies, a line each with how to mend it. No jax in this process: a device that hangs must not hang the doctor."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lab import claims

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
TOOLS = {"sbatch": "slurm", "gcloud": "tpu-vm", "kubectl": "gke", "gcluster": "gke with tool=gcluster", "xpk": "gke with tool=xpk"}
LEAST = 5  # GB


class Finding(NamedTuple):
    """A line of the doctor's: whether it is as it should be, what was seen, and what to do where not. `needed`: by every study."""

    ok: bool
    seen: str
    mend: str = ""
    needed: bool = True

    def __str__(self) -> str:
        return f"{'ok ' if self.ok else 'not'}  {self.seen}" + (f"\n     {self.mend}" if not self.ok else "")


def look(workdir: Path, cache: Path, seconds: float = 120.0) -> Iterator[Finding]:
    """Every check in turn; `seconds` is how long devices may take to answer."""
    yield _packages()
    yield _holders()
    yield _devices(seconds)
    yield _folder("work dir", workdir, "choose another --workdir")
    yield _clock(workdir)
    yield _folder("compile cache", cache, "set JAX_COMPILATION_CACHE_DIR to a local folder")
    for tool, use in TOOLS.items():
        at = shutil.which(tool)
        yield Finding(
            at is not None, f"{tool}: {at or 'not on PATH'}", f"install it for `lab submit --to {use}`; nothing else needs it", False
        )


def _packages() -> Finding:
    missing = [p for p in PACKAGES if not _version(p)]
    seen = f"python {sys.version.split()[0]}, " + ", ".join(f"{p} {_version(p) or 'missing'}" for p in PACKAGES)
    return Finding(sys.version_info >= (3, 11) and not missing, seen, "./launch.sh env makes the environment, with Python 3.11 or newer")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _devices(seconds: float) -> Finding:
    code = (
        "import jax; d = jax.devices(); print(len(d), *dict.fromkeys((d[0].platform, d[0].device_kind)), 'on', jax.process_count(), 'host')"
    )
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return Finding(
            False,
            f"devices: no answer in {seconds:.0f} s",
            "a TPU that another process holds, or a slice of which not every host asks at once",
        )
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    mend = "extras cuda and tpu have the drivers' part: LAB_EXTRAS=icons,tpu ./launch.sh env; JAX_PLATFORMS=cpu does without"
    return Finding(done.returncode == 0, f"devices: {said[-1] if said else 'none'}", mend)


def _holders() -> Finding:
    """Processes that have a TPU open: a second one that asks for it fails, or waits."""
    held = sorted(
        {int(p.parts[2]) for p in Path("/proc").glob("[0-9]*/fd/*") if _link(p).startswith(("/dev/accel", "/dev/vfio/"))} - {os.getpid()}
    )
    at = "no process holds a TPU" if not held else f"TPU held by process {', '.join(map(str, held))}"
    return Finding(
        not held, at, "wait for it, or end it by `kill` and its number if it is a dead run's; a lock left behind is /tmp/libtpu_lockfile"
    )


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _folder(what: str, folder: Path, mend: str) -> Finding:
    """A folder that can be written, of which a file can be made exclusively, and that has room."""
    if "://" in str(folder) or str(folder).startswith("gs:/"):
        return Finding(what == "work dir", f"{what} {folder}: at a URI", mend)  # XLA keeps part of its cache in local folders alone
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".doctor-{claims.owner()}"
        probe.touch(exist_ok=False)
        try:
            probe.touch(exist_ok=False)
            return Finding(False, f"{what} {folder}: files cannot be made exclusively, so processes cannot share it", mend)
        except FileExistsError:
            pass
        finally:
            probe.unlink()
        room = shutil.disk_usage(folder).free / 1e9
    except OSError as e:
        return Finding(False, f"{what} {folder}: {e.strerror}", mend)
    return Finding(room >= LEAST, f"{what} {folder}: can be written, {room:.0f} GB free", f"fewer than {LEAST} GB; {mend}")


def _clock(folder: Path) -> Finding:
    off = claims.server_time(folder) - time.time() if folder.is_dir() else 0.0
    return Finding(
        abs(off) < 5,
        f"clock: {round(off, 1) or 0.0:+.1f} s from the work dir's file server",
        "have the hosts keep time by NTP; records' wall times come from it",
    )
