"""`lab bench crash`: a study is killed at random moments of all it does, its disk filled, its files damaged; then it is run to its end.

After each, weights, rows and states must be those of the undisturbed study. Each attempt is a process, forked from one that has imported
the lab and computed nothing. With --break one promise of the lab is broken first, and the same cases must fail.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import _common

TEXT = '''"""Does a tiny study survive anything?"""
from ml_collections import ConfigDict
def get_config():
    c = ConfigDict()
    c.model = dict(name="dit", width=16, depth=1, head_dim=8, mlp_ratio=1, patch=4, qk_norm=False, zero_gates=True)
    c.base = dict(width=16)
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    c.data = dict(name="shapes", size=16, examples=96)
    c.optim = dict(ema=0.9)
    c.train = dict(steps=40, batch=8, log_every=3)
    c.eval = dict(examples=16, batch=16, every=15)
    c.sample = dict(n=2, options=dict(steps=2, guidance=1.0, method="euler"))
    c.run = dict(checkpoint_steps=10, checkpoint_seconds=1e6)
    return c
def sweep():
    for lr in (2.0**-8, 2.0**-6):
        yield {"optim.lr": lr}
'''
# what is under way, by the function whose n-th call begins it; steps past the 12th of 96 / 8 are of another epoch
PHASES = {
    "start": ("lab.population.Population.compile", 1),
    "step": ("lab.goodput.Events.step", 40),
    "epoch": ("lab.goodput.Events.step", (12, 24, 36)),
    "evaluation": ("lab.population.Population.evaluate", 3),
    "save": ("lab.checkpoint.Checkpoints.save", 3),
    "rows": ("lab.record.Writer.append", 12),
    "weights": ("lab.population.keep_best", 1),
    "compaction": ("lab.population.compact", 1),
    "done": ("lab.population.write_json", 2),
    "removal": ("lab.population.remove_checkpoints", 1),
    "samples": ("lab.study.Study._samples", 1),
    "report": ("lab.report.report", 1),
}
LIMIT = 600.0  # seconds of one attempt
SILENCE = 30  # seconds after which a process of several counts as dead
# of a run of several processes, whose steps wait for each other: fewer of them, and all signals come to a step
PLACED = ("--config.run.sharding=fsdp", "--config.train.steps=12", "--config.run.checkpoint_steps=4", "--config.train.log_every=1")
PLACED += ("--config.eval.every=6", "--config.sample.n=0")


def _at(name: str) -> tuple:
    import importlib

    parts = name.split(".")
    owner = importlib.import_module(".".join(parts[:2]))
    for part in parts[2:-1]:
        owner = getattr(owner, part)
    return owner, parts[-1]


def _wrapped(name: str, before) -> None:
    """Call `before(n)` as the n-th call of a function begins."""
    owner, attribute = _at(name)
    call, count = getattr(owner, attribute), [0]

    def wrapped(*args, **kwargs):
        count[0] += 1
        before(count[0])
        return call(*args, **kwargs)

    setattr(owner, attribute, wrapped)


def _kill(phase: str, number: int, delay: float, how: int) -> None:
    """A signal `delay` seconds after the phase has begun for the n-th time; no delay: before a line of it has run."""

    def before(n):
        if n != number:
            return
        if delay:
            threading.Timer(delay, os.kill, (os.getpid(), how)).start()
        else:
            os.kill(os.getpid(), how)

    _wrapped(PHASES[phase][0], before)


def _broken(promise: str) -> None:
    """Break a promise of the lab in this process."""
    from lab import checkpoint, population, record

    if promise == "flush":  # a checkpoint before the rows that it makes unrepeatable
        append = record.Writer.append
        record.Writer.append = lambda self, rows: _held(self, rows, append)
        record.Writer.flush = lambda self: None
    elif promise == "digest":
        checkpoint._differs = lambda flat, said: None
        checkpoint._seal = lambda meta: meta.get("seal", 0)
    elif promise == "rows":
        record.holds = lambda folder, at: True
    elif promise == "step":  # a resumed run reads the batches of one step on
        loader = population.loader.Loader
        population.loader.Loader = lambda s, b, seeds, start, *more: loader(s, b, seeds, start + (start > 0), *more)


def _held(writer, rows, append) -> None:
    """Keep the last rows in memory until there are more."""
    last = getattr(writer, "_last", [])
    writer._last = rows
    if last:
        append(writer, last)


def begin(
    folder: Path, kill: tuple | None = None, promise: str = "", report: bool = False, log: Path | None = None, host: tuple = ()
) -> int:
    """The number of a process that is `lab run`, without a report unless asked; `host` is (which, of how many, port, devices, options)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that jax, of which nothing runs yet, does not like to be forked
        pid = os.fork()
    if pid:
        return pid
    try:
        out = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        code = 1
        import jax

        from lab import cli
        from lab import report as reports

        if not report:
            reports.find, reports.headline = lambda folder: None, lambda found: ""
            reports.report = lambda folder, found: ""
        if kill:
            _kill(*kill)
        if promise:
            _broken(promise)
        which, hosts, port, devices, options = host or (0, 1, 0, 0, ())
        if hosts > 1:
            os.environ |= {"LAB_COORDINATOR": f"127.0.0.1:{port}", "LAB_HOSTS": str(hosts), "LAB_HOST": str(which)}
        if devices:
            jax.config.update("jax_num_cpu_devices", devices)
        code = cli.main(["run", str(folder / "tiny.py"), "--workdir", str(folder / "runs"), *options])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()  # as jax does where a process ends by itself; it may abort this one
        os._exit(code)


def ended(pids: list[int]) -> tuple[list[int], float]:
    """The exit codes of processes, and the seconds from the first end to the last."""
    codes, begun, first = {}, time.monotonic(), 0.0
    while len(codes) < len(pids):
        for pid in [p for p in pids if p not in codes]:
            if (done := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid], first = os.waitstatus_to_exitcode(done[1]), first or time.monotonic()
        if time.monotonic() - begun > LIMIT:
            for pid in [p for p in pids if p not in codes]:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            raise SystemExit(f"an attempt hung for {LIMIT:.0f} s")
        time.sleep(0.02)
    return [codes[p] for p in pids], time.monotonic() - first


def attempt(folder: Path, kill: tuple | None = None, promise: str = "", report: bool = False, log: Path | None = None) -> int:
    """The exit code of `lab run`, without a report unless asked, in a process of its own."""
    return ended([begin(folder, kill, promise, report, log)])[0][0]


def several(folder: Path, kills: dict[int, tuple] | None = None, promise: str = "", options: tuple = PLACED, hosts: int = 2) -> list[int]:
    """The numbers of the processes of one run, 4 devices in all; `kills` are the moments of those that a signal comes to."""
    kills = kills or {}
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    logs = [folder / f"host-{i}.log" for i in range(hosts)]
    return [begin(folder, kills.get(i), promise, log=logs[i], host=(i, hosts, port, 4 // hosts, options)) for i in range(hosts)]


def outcome(folder: Path) -> dict:
    """What must not differ: digest of the rows, SHA-256 of the final weights, states; UserError or worse where it cannot be read."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pid = os.fork()
    if not pid:
        try:
            os.close(reading)
            told = _outcome(folder / "runs" / "tiny")
        except BaseException as e:
            told = {"error": f"{type(e).__name__}: {e}"[:300]}
        os.write(writing, json.dumps(told).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as f:
        told = json.load(f)
    os.waitpid(pid, 0)
    return told


def _outcome(study: Path) -> dict:
    import jax
    import numpy as np

    from lab import record
    from lab.sampling import restored

    rows = record.results(study).to_pylist()
    keys = [(r["trial"], r["step"]) for r in rows]
    weights = hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(restored(study).weights)))
    text = json.dumps(rows, sort_keys=True)
    return {
        **{"rows": len(rows), "twice": len(keys) - len(set(keys)), "metrics": hashlib.sha256(text.encode()).hexdigest()},
        **{"weights": weights.hexdigest(), "states": dict(Counter(record.status(study).values()))},
        "segments": sorted(p.name for p in study.glob("*/rows*")),
    }


def fresh(base: Path) -> Path:
    """A folder with the experiment."""
    folder = Path(tempfile.mkdtemp(dir=base))
    (folder / "tiny.py").write_text(TEXT)
    return folder


def moments(n: int, rng: random.Random, lengths: dict[str, float]) -> list[tuple]:
    """(phase, call, delay, signal): all phases in turn, by SIGKILL twice as often as by SIGTERM; a third before a line of it has run."""
    out = []
    for i in range(n):
        phase = list(PHASES)[i % len(PHASES)]
        calls = PHASES[phase][1]
        number = rng.choice(calls) if isinstance(calls, tuple) else rng.randint(1, calls)
        delay = 0.0 if i // len(PHASES) % 3 == 0 else rng.uniform(0.0, lengths.get(phase, 0.3))
        out.append((phase, number, delay, signal.SIGTERM if i // len(PHASES) % 3 == 2 else signal.SIGKILL))
    return out


def killed(base: Path, moment: tuple, again: tuple | None, promise: str = "") -> tuple[Path, list[int]]:
    """A study that was killed at a moment, and in its second attempt at another, and run to its end; and all exit codes."""
    folder = fresh(base)
    codes = [attempt(folder, m, promise, report=m[0] == "report") for m in (moment, again) if m]
    return folder, [*codes, attempt(folder, promise=promise)]


def struck(base: Path, how: int, workers: tuple, step: int, promise: str = "") -> tuple[Path, list[list[int]]]:
    """A study that two processes train, some of which are sent a signal at a step, and run to its end by two; and all exit codes."""
    folder = fresh(base)
    codes = [ended(several(folder, dict.fromkeys(workers, ("step", step, 0.0, how)), promise))[0]]
    return folder, [*codes, ended(several(folder, promise=promise))[0]]


def landed(how: int, workers: tuple, codes: list[int]) -> bool:
    """Whether processes ended as they are to: by a SIGKILL those that were sent it, and the rest by an error or abort; all alike by a SIGTERM."""
    if how == signal.SIGTERM:
        return codes == [75, 75]
    return all(c == -signal.SIGKILL if i in workers else c in (1, -signal.SIGABRT) for i, c in enumerate(codes))


def damage(study: Path, what: str, how: str, rng: random.Random) -> str:
    """Truncate, flip a bit of, or remove a file of a study that was killed; returns which."""
    steps = sorted((p for p in study.glob("*/checkpoints/*") if p.name.isdigit()), key=lambda p: int(p.name))
    files = {
        "leaf": lambda: [max((p for p in (steps[-1] / "tree").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)],
        "metadata": lambda: [p for p in steps[-1].rglob("*") if p.is_file() and ("meta" in p.name.lower() or "manifest" in p.name)],
        "every checkpoint": lambda: [max((p for p in s.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size) for s in steps],
        "rows": lambda: [p for p in study.glob("*/rows-*.jsonl") if p.stat().st_size],
    }[what]()
    for file in files if what == "every checkpoint" else [rng.choice(files)]:
        content = bytearray(file.read_bytes())
        if how == "missing":
            file.unlink()
        elif how == "truncated":
            file.write_bytes(content[: rng.randrange(len(content))])
        else:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            file.write_bytes(content)
    return file.relative_to(study).as_posix()


def damaged(base: Path, what: str, how: str, seed: int, promise: str = "") -> tuple[Path, list[int], str]:
    """A study killed with two checkpoints, of which a file was damaged, and run to its end."""
    folder, rng = fresh(base), random.Random(seed)
    codes = [attempt(folder, ("step", rng.randint(34, 38), 0.0, signal.SIGKILL), promise)]
    file = damage(folder / "runs" / "tiny", what, how, rng)
    return folder, [*codes, attempt(folder, promise=promise)], file


class Small:
    """A file system in memory of some MB."""

    def __init__(self, base: Path, mb: float):
        self.folder = Path(tempfile.mkdtemp(dir=base))
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={int(mb * 1024)}k", "none", str(self.folder)], capture_output=True, text=True
        )
        self.why = done.stderr.strip()
        (self.folder / "tiny.py").write_text(TEXT)

    def only(self, how: str) -> None:
        """Remount it 'ro' or 'rw'."""
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.folder)], check=True)

    def close(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", str(self.folder)], check=False)


def full(base: Path, room: float) -> tuple[dict, list[int], str]:
    """A study that finds so many MB of room on its disk, and goes on once there is more."""
    disk = Small(base, 64)
    try:
        if disk.why:
            return {}, [], f"skipped: {disk.why}"
        filler = disk.folder / "filler"
        filler.write_bytes(bytes(int((64 - room) * 2**20)))
        codes = [attempt(disk.folder, log=base / "full.log")]
        said = (base / "full.log").read_text().strip().splitlines()
        filler.unlink()
        codes.append(attempt(disk.folder))
        return outcome(disk.folder), codes, next((x for x in reversed(said) if x.startswith("lab: ")), " / ".join(said[-2:]))
    finally:
        disk.close()


def readonly(base: Path) -> tuple[dict, list[int], str]:
    """A study that was killed, found its folder read-only, and goes on when it is not."""
    disk = Small(base, 64)
    try:
        if disk.why:
            return {}, [], f"skipped: {disk.why}"
        codes = [attempt(disk.folder, ("step", 15, 0.0, signal.SIGKILL))]
        disk.only("ro")
        codes.append(attempt(disk.folder, log=base / "ro.log"))
        said = (base / "ro.log").read_text().strip().splitlines()
        disk.only("rw")
        codes.append(attempt(disk.folder))
        return outcome(disk.folder), codes, next((x for x in reversed(said) if x.startswith("lab: ")), " / ".join(said[-2:]))
    finally:
        disk.close()


def ready(cache: Path) -> None:
    """Import what attempts run, with a compile cache of their own, and compute nothing."""
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    os.environ["LAB_HEARTBEAT_SECONDS"] = str(SILENCE)
    from lab import cli, population, report, study  # noqa: F401


def cases(args: argparse.Namespace) -> list[tuple]:
    """(kind, what it takes) of all cases."""
    rng = random.Random(args.seed)
    out = []
    for n, moment in enumerate(moments(args.moments, rng, {"report": 1.0, "start": 1.0, "step": 0.05, "epoch": 0.05})):
        out.append(("kill", moment, ("step", rng.randint(1, 8), 0.0, signal.SIGKILL) if n % 4 == 3 else None))
    for what in ("leaf", "metadata", "every checkpoint", "rows"):
        out += [("damage", what, how, rng.randrange(2**32)) for how in ("truncated", "flipped", "missing")]
    for how, struck in ((h, s) for h in (signal.SIGKILL, signal.SIGTERM) for s in ((0,), (1,), (0, 1))):
        out.append(("workers", how, struck, rng.randint(1, 10)))
    out += [] if args.promise else [("full", 0.1), ("full", 0.5), ("full", 1.0), ("readonly",)]
    rng.shuffle(out)  # so that what --minutes leaves out is of every kind
    return [case for case in out if args.only in ("", case[0])]


def tried(base: Path, case: tuple, promise: str) -> dict:
    """A case in a row: kind, what was done, exit codes, what was found, and whether it did what it was to; none where it cannot be here."""
    kind, *more = case
    if kind == "kill":
        (phase, number, delay, how), again = more
        folder, codes = killed(base, (phase, number, delay, how), again, promise)
        row = {"kind": signal.Signals(how).name, "case": f"{phase} {number} + {delay:.3f} s" + ", and again" * bool(again)}
        row |= {"landed": codes[0] in (-signal.SIGKILL, 75), "found": outcome(folder)}
    elif kind == "workers":
        folder, codes = struck(base, *more, promise)
        row = {"kind": f"{signal.Signals(more[0]).name} of two workers", "case": f"{', '.join(map(str, more[1]))} at step {more[2]}"}
        row |= {"landed": landed(more[0], more[1], codes[0]), "found": outcome(folder)}
    elif kind == "damage":
        folder, codes, file = damaged(base, *more, promise)
        row = {"kind": f"{more[0]} {more[1]}", "case": file, "landed": codes[0] == -signal.SIGKILL, "found": outcome(folder)}
    else:
        found, codes, said = full(base, *more) if kind == "full" else readonly(base)
        row = {"kind": "disk full" if kind == "full" else "read-only", "case": said, "landed": 2 in codes, "found": found}
    shutil.rmtree(folder) if kind in ("kill", "workers", "damage") else None
    return row | {"codes": codes}


def matrix(base: Path, args: argparse.Namespace) -> list[dict]:
    """The rows of the cases of one part, each with whether all came out as undisturbed."""
    ready(base / "xla")
    whole, rows, (part, parts) = fresh(base), [], map(int, args.part.split("/"))
    if (code := attempt(whole, log=base / "whole.log")) != 0:
        raise SystemExit(f"the undisturbed study ended with {code}: {(base / 'whole.log').read_text()[-800:]}")
    truth, begun = outcome(whole), time.monotonic()
    _common.say(f"undisturbed: {truth}")
    mine, pair = cases(args)[part::parts], None
    if any(case[0] == "workers" for case in mine):
        both = fresh(base)
        if (codes := ended(several(both))[0]) != [0, 0]:
            raise SystemExit(f"the undisturbed study of two processes ended with {codes}: {(both / 'host-0.log').read_text()[-800:]}")
        pair = outcome(both)
    for n, case in enumerate(mine, 1):
        if args.minutes and time.monotonic() - begun > 60 * args.minutes:
            _common.say(f"{len(mine) - n + 1} cases are left out: --minutes")
            break
        row = tried(base, case, args.promise)
        if not row["codes"]:
            _common.say(f"{row['kind']}: {row['case']}")
            continue
        row["held"] = row["found"] == (pair if case[0] == "workers" else truth) and row["codes"][-1] in (0, [0, 0])
        rows.append(row)
        left = (time.monotonic() - begun) / n * (len(mine) - n)
        _common.say(
            f"[{n}/{len(mine)}, {left:.0f} s left] {row['kind']}, {row['case']}: {row['codes']} {'held' if row['held'] else row['found']}"
        )
    return rows


def workers(base: Path, args: argparse.Namespace) -> list[dict]:
    """The rows of all cases, shared out among processes."""
    parts = [base / f"part{i}.json" for i in range(args.workers)]
    command = [sys.executable, __file__, "--moments", str(args.moments), "--seed", str(args.seed), "--minutes", str(args.minutes)]
    command += ["--break", args.promise] if args.promise else []
    command += ["--only", args.only] if args.only else []
    running = [subprocess.Popen([*command, "--part", f"{i}/{len(parts)}", "--out", str(p)]) for i, p in enumerate(parts)]
    if any(p.wait() for p in running):
        raise SystemExit("a part failed")
    return [row for p in parts for row in json.loads(p.read_text())]


def main() -> None:
    """Run all cases and print how many held."""
    parser = argparse.ArgumentParser(prog="lab bench crash", description=__doc__)
    parser.add_argument("--moments", type=int, default=72, help="at which it is killed (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=0.0, help="after which no case is begun (default: all are)")
    parser.add_argument(
        "--only", default="", choices=("kill", "damage", "workers", "full", "readonly"), help="kind of cases (default: all)"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that share the cases (default %(default)s)")
    parser.add_argument(
        "--break", dest="promise", default="", choices=("", "flush", "digest", "rows", "step"), help="a promise to break first"
    )
    parser.add_argument("--part", default="", help="i/n: every n-th case from the i-th on, whose rows are written to --out")
    parser.add_argument("--out", help="with --part: file for the rows")
    args = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="lab-crash-"))
    try:
        rows = matrix(base, args) if args.part else workers(base, args)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    if args.part:
        Path(args.out).write_text(json.dumps(rows))
        return
    held = sum(r["held"] for r in rows)
    print(f"{held} of {len(rows)} cases come out as undisturbed; {sum(r['landed'] for r in rows)} did what they were to")
    if not (args.promise or args.only):
        print(_common.write("crash", [{k: v for k, v in r.items() if k != "found" or not r["held"]} for r in rows]))
    if not args.promise:
        raise SystemExit(held < len(rows))


if __name__ == "__main__":
    main()
