"""`lab bench resume`: the quickstart is killed after a checkpoint, and the same command timed up to its first new step, part by part."""

import argparse
import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import _common
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
# parts of a start, by the function whose first call begins each; what comes before is "imports", and a step that is done ends the last
PARTS = {
    "data": "lab.study.open_source",
    "plan": "lab.study.Study._pack",
    "program": "lab.population.Population.__init__",
    "restore": "lab.population._restored",
    "compile": "lab.population.Population.compile",
    "first step": "lab.population.Records.__init__",
}
BETWEEN = 50  # steps from checkpoint to checkpoint


def attempt(begun: float, folder: Path, more: list[str]) -> None:
    """`lab run` in this process, killed by itself: after its first step where it goes on, else where it has saved one; tells its marks."""
    marks = {"imports": (begun, 0.0)}

    def told(part: str, name: str) -> None:
        module, *path = name.split(".")[:2], *name.split(".")[2:]
        owner = importlib.import_module(".".join(module))
        for attribute in path[:-1]:
            owner = getattr(owner, attribute)
        call = getattr(owner, path[-1])

        def wrapped(*args, **kwargs):
            marks.setdefault(part, (time.time(), time.process_time()))
            return call(*args, **kwargs)

        setattr(owner, path[-1], wrapped)

    for part, name in PARTS.items():
        told(part, name)
    from lab import cli, goodput, stores

    goes_on = any(stores.steps(p) for p in folder.glob("*/*/checkpoints"))

    def step(self, to, seconds):
        if goes_on or any(stores.steps(p) for p in folder.glob("*/*/checkpoints")):
            (folder / "marks.json").write_text(json.dumps({**marks, "end": (time.time(), time.process_time()), "step": to}))
            os.kill(os.getpid(), signal.SIGKILL)

    goodput.Events.step = step
    run = ["run", str(ROOT / "experiments" / "quickstart.py"), "--workdir", str(folder), *more]
    cli.main([*run, f"--config.run.data_dir={ROOT / 'data'}", f"--config.run.checkpoint_steps={BETWEEN}"])


def begin(folder: Path, more: list[str]) -> dict:
    """Seconds of each part of an attempt in a process of its own and of all of them, and those of the cores, which other load hardly changes."""
    env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"), "PYTHONPATH": str(ROOT)}
    env.setdefault("JAX_NUM_CPU_DEVICES", str(os.cpu_count()))
    (folder / "marks.json").unlink(missing_ok=True)
    command = [sys.executable, __file__, "--attempt", str(time.time()), "--folder", str(folder), *more]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if not (folder / "marks.json").exists():
        raise SystemExit(f"an attempt ended with {done.returncode} before a step: {done.stderr[-800:]}")
    marks = json.loads((folder / "marks.json").read_text())
    told = {"step": marks.pop("step")}
    for n, clock in enumerate(("seconds", "cores")):
        told[clock] = {a: round(marks[b][n] - marks[a][n], 3) for a, b in itertools.pairwise(["imports", *PARTS, "end"])}
        told[clock]["all"] = round(marks["end"][n] - marks["imports"][n], 3)
    return told


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="lab bench resume", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="starts after each kill (default %(default)s)")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 256], choices=[32, 256], help="of the model (default: both)")
    parser.add_argument("--attempt", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args, more = parser.parse_known_args()
    if args.attempt:
        attempt(args.attempt, args.folder, more)
        return
    rows = []
    for width in args.widths:
        order = ["--largest-first"] * (width == 256)  # the quickstart begins with width 32
        folder = Path(tempfile.mkdtemp(prefix="lab-resume-"))
        try:
            cold = begin(folder, order)
            warm = [begin(folder, order) for _ in range(args.rounds)]
        finally:
            shutil.rmtree(folder)
        if any(w["step"] != BETWEEN + 1 for w in warm):
            raise SystemExit(f"an attempt did not go on from step {BETWEEN}: {warm}")
        row = {"width": width}
        for clock in ("seconds", "cores"):
            parts = {k: round(float(np.median([w[clock][k] for w in warm])), 2) for k in warm[0][clock]}
            beyond = _common.spread([w[clock]["all"] - w[clock]["compile"] for w in warm])
            row[clock] = {"beyond_compile": [round(b, 2) for b in beyond], **parts}
            told = ", ".join(f"{k} {v:.1f}" for k, v in parts.items())
            print(
                f"width {width}, {clock}: {beyond[0]:.1f} to the first step beside the compile cache's {parts['compile']:.1f} ({told})",
                flush=True,
            )
        rows.append(row | {"first": cold, "resumed": warm})
    print(_common.write("resume", rows))


if __name__ == "__main__":
    main()
