"""`lab bench sweep`: one population of 8 learning rates against 8 processes, two at a time, compile cache warm."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import _common

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENT = '''"""Eight learning rates of one small DiT."""
from ml_collections import ConfigDict
def get_config():
    c = ConfigDict()
    c.model = dict(name="dit", width={width}, depth=2, head_dim=16, mlp_ratio=4, patch=4, qk_norm=False, zero_gates=True)
    c.base = dict(width={width})
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    c.data = dict(name="icons", size=16, sets=("fontawesome", "material", "octicons", "simple"))
    c.train = dict(steps={steps}, batch=32, log_every=20)
    c.eval = dict(examples=512, batch=128, every={steps})
    c.sample = dict(n=0)
    c.run = dict(data_dir={data!r})
    return c
def sweep():
    for k in range(-12, -4):
        yield {{"optim.lr": 2.0**k}}
'''


def run(experiment: Path, workdir: Path, cache: Path, *more: str) -> dict:
    """One `lab run` in a process of its own; its timing.json."""
    env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "lab.cli", "run", str(experiment), "--workdir", str(workdir), *more]
    subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)
    return json.loads(next(workdir.glob("*/*/timing.json")).read_text())


def main() -> None:
    """Measure both ways in turns and print."""
    parser = argparse.ArgumentParser(prog="lab bench sweep", description=__doc__)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    args, rates, rounds = parser.parse_args(), [2.0**k for k in range(-12, -4)], []
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        experiment = place / "eight.py"
        experiment.write_text(EXPERIMENT.format(width=args.width, steps=args.steps, data=str(ROOT / "data")))
        cache = place / "cache"
        _common.say("warming the compile cache and the data")
        run(experiment, place / "warm-many", cache)
        run(experiment, place / "warm-one", cache, f"--config.optim.lr={rates[0]}")
        for i in range(args.rounds):
            _common.say(f"round {i + 1} of {args.rounds}: one population")
            start = time.perf_counter()
            many = run(experiment, place / f"many{i}", cache)
            together = time.perf_counter() - start
            _common.say(f"round {i + 1} of {args.rounds}: eight processes, two at a time")
            start = time.perf_counter()
            with ThreadPoolExecutor(2) as pool:
                jobs = [pool.submit(run, experiment, place / f"one{i}-{j}", cache, f"--config.optim.lr={r}") for j, r in enumerate(rates)]
                singles = [j.result() for j in jobs]
            apart = time.perf_counter() - start
            alone = sum(s["train_s"] for s in singles) / 2  # two at a time
            rounds.append(
                {"population_s": together, "processes_s": apart, "population_train_s": many["train_s"], "processes_train_s": alone}
            )
    ratio = _common.spread([r["processes_s"] / r["population_s"] for r in rounds])
    steady = _common.spread([r["processes_train_s"] / r["population_train_s"] for r in rounds])
    for name, key in (("one population", "population"), ("8 processes, two at a time", "processes")):
        wall, train = (_common.spread([r[f"{key}_{k}"] for r in rounds])[0] for k in ("s", "train_s"))
        print(f"{name:28} {wall:7.1f} s wall   {8 / train:6.3f} trials/s in steady state")
    print(
        f"wall-time ratio {ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f}); steady state {steady[0]:.2f} ({steady[1]:.2f} to {steady[2]:.2f})"
    )
    print(_common.write("sweep", [{"width": args.width, "steps": args.steps, "ratio": ratio, "steady_ratio": steady, "rounds": rounds}]))


if __name__ == "__main__":
    main()
