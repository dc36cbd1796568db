"""`lab bench sweep`: learning rates as one study against a process each, two at a time, compile cache warm; trials per second of both."""

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
EXPERIMENT = '''"""Learning rates of one small DiT."""
from ml_collections import ConfigDict
def get_config():
    c = ConfigDict()
    c.model = dict(name="dit", width={width}, depth={depth}, head_dim=16, mlp_ratio=4, patch=4, qk_norm=False, zero_gates=True)
    c.base = dict(width={width})
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    c.data = dict(name="icons", size=16, sets=("fontawesome", "material", "octicons", "simple"))
    c.train = dict(steps={steps}, batch={batch}, log_every=20)
    c.eval = dict(examples=512, batch=128, every={steps})
    c.sample = dict(n=0)
    c.run = dict(data_dir={data!r})
    return c
def sweep():
    for lr in {rates!r}:
        yield {{"optim.lr": lr}}
'''


def run(experiment: Path, workdir: Path, cache: Path, *more: str) -> float:
    """One `lab run` in a process of its own; seconds that its populations trained."""
    env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "lab.cli", "run", str(experiment), "--workdir", str(workdir), *more]
    code = subprocess.run(command, cwd=ROOT, env=env, capture_output=True).returncode
    if code not in (0, 3):  # 3: its rate is one that diverges
        raise SystemExit(f"{' '.join(command)} ended with exit code {code}")
    return sum(json.loads(p.read_text())["train_s"] for p in workdir.glob("*/*/timing.json"))


def main() -> None:
    """Measure both ways in turns and print."""
    parser = argparse.ArgumentParser(prog="lab bench sweep", description=__doc__)
    for name, value, about in (
        ("width", 32, "of the model"),
        ("depth", 2, "of the model"),
        ("batch", 32, "examples of a step"),
        ("steps", 300, "of each trial"),
        ("trials", 8, "of the study"),
        ("processes", 0, "trials that processes train, for the rate of both is what is compared (0: all)"),
        ("rounds", 3, "of both ways in turns"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{about} (default %(default)s)")
    args = parser.parse_args()
    rates, rounds = [2.0 ** (-12 + 8 * i / args.trials) for i in range(args.trials)], []
    some = rates[:: max(1, args.trials // (args.processes or args.trials))]
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        experiment = place / "rates.py"
        sizes = {"width": args.width, "depth": args.depth, "batch": args.batch, "steps": args.steps}
        experiment.write_text(EXPERIMENT.format(**sizes, rates=rates, data=str(ROOT / "data")))
        cache = place / "cache"
        _common.say("warming the compile cache and the data")
        if len(some) == len(rates):  # a long study compiles within what is measured, for a round to warm it would double the time
            run(experiment, place / "warm-many", cache)
        run(experiment, place / "warm-one", cache, f"--config.optim.lr={rates[0]}")
        for i in range(args.rounds):
            _common.say(f"round {i + 1} of {args.rounds}: one study of {args.trials} trials")
            start = time.perf_counter()
            many = run(experiment, place / f"many{i}", cache)
            together = time.perf_counter() - start
            _common.say(f"round {i + 1} of {args.rounds}: {len(some)} processes, two at a time")
            start = time.perf_counter()
            with ThreadPoolExecutor(2) as pool:
                jobs = [pool.submit(run, experiment, place / f"one{i}-{j}", cache, f"--config.optim.lr={r}") for j, r in enumerate(some)]
                singles = [j.result() for j in jobs]
            apart = time.perf_counter() - start
            took = {"study_s": together, "processes_s": apart, "study_train_s": many, "processes_train_s": sum(singles) / 2}
            _common.say(", ".join(f"{k} {v:.1f}" for k, v in took.items()))
            rounds.append({k: v / (args.trials if k.startswith("study") else len(some)) for k, v in took.items()})  # a trial
    ratio = _common.spread([r["processes_s"] / r["study_s"] for r in rounds])
    steady = _common.spread([r["processes_train_s"] / r["study_train_s"] for r in rounds])
    for name, key in (
        (f"one study of {args.trials}", "study"),
        (f"{len(some)} processes, two at a time", "processes"),
    ):
        wall, train = (1 / _common.spread([r[f"{key}_{k}"] for r in rounds])[0] for k in ("s", "train_s"))
        print(f"{name:30} {wall:7.3f} trials/s by the wall   {train:7.3f} in steady state")
    print(
        f"ratio by the wall {ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f}); steady state {steady[0]:.2f} ({steady[1]:.2f} to {steady[2]:.2f})"
    )
    about = {**sizes, "trials": args.trials, "processes": len(some), "ratio": ratio, "steady_ratio": steady, "seconds_a_trial": rounds}
    print(_common.write("sweep" if args.trials == 8 else f"sweep-{args.trials}", [about]))


if __name__ == "__main__":
    main()
