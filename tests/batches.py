"""Synthetic studies of the batch: steps to a target of trials at every batch, learning rate and seed, with a planted critical batch."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab import record

BATCHES = (4, 8, 16, 32, 64, 128)


class Study(NamedTuple):
    """Trials of one arm, one entry a trial, as `tuned` takes them."""

    batch: np.ndarray
    log2: np.ndarray
    steps: np.ndarray  # infinite: not reached; NaN: diverged
    seed: np.ndarray
    limit: np.ndarray


def study(
    seed: int = 0,
    critical: float = 24.0,
    least: float = 80.0,
    seeds: int = 3,
    noise: float = 0.02,
    shared: float = 0.02,
    exponent: float = 1.0,
    batches: tuple[int, ...] = BATCHES,
) -> Study:
    """Steps of the law, times a parabola of the rate in octaves around a best that goes as sqrt(batch), and a wall two octaves above.

    Args:
      critical, least: B_crit, which is infinite where steps fall as 1 / batch for ever (`least` is then E_min), and S_min.
      noise, shared: spread of log steps from trial to trial, and of what all trials of a seed have in common.
    """
    rng, rows = np.random.default_rng(seed), []
    own, start, bend = shared * rng.normal(size=seeds), rng.uniform(-0.5, 0.5), rng.uniform(0.05, 0.2)
    for b in batches:
        tuned = least / b if np.isinf(critical) else least * (1 + (critical / b) ** exponent)
        at, limit = -7 + 0.5 * np.log2(b / 4) + start, 2.2 * tuned
        for s in range(seeds):
            for k in range(-10, -3):
                x = k + 0.5 * np.log2(b / 4)
                took = tuned * np.exp(bend * (x - at) ** 2 + own[s] + noise * rng.normal())
                rows.append((b, x, np.nan if x - at > 2 else np.inf if took > limit else took, s, limit))
    return Study(*map(np.array, zip(*rows, strict=True)))


CONFIG = {
    "seed": 0,
    "parametrization": {"name": "mup"},
    "transfer": {"batch_rule": "none", "base_batch": 0, "horizon_rule": "none", "base_steps": 0},
    "optim": {"lr": 2.0**-6, "schedule": "constant"},
    "train": {"steps": 100, "batch": 4},
    "eval": {"metric": "eval_ema", "examples": 64},
}


def folder(path, critical=24.0, least=80.0, noise=0.02, seed=0, seeds=3, batches=BATCHES, rates=range(-10, -3), optim=None, missing=()):
    """Write a study whose loss 1 + 1.5 / (1 + u) takes u S_min (1 + u B_crit / B) steps: B_crit at 1.75, half of it at 2; and return its folder.

    Args:
      optim: keys of the config's section that are others. missing: (batch, seed) of which the last rate was not trained.
    """
    path, trials, pops, rng = Path(path), {}, {}, np.random.default_rng(seed)
    own = 0.02 * rng.normal(size=seeds)
    for b in batches:
        name, rows, gone = f"batch{b}", [], []
        at, limit = -7 + 0.5 * np.log2(b / 4), int(2.2 * least * (1 + critical / b)) + 1
        for s in range(seeds):
            for k in rates:
                x, i = k + 0.5 * np.log2(b / 4), f"{b}-{s}-{k}"
                if (b, s) in missing and k == max(rates):
                    trials[i] = {"population": "left"}
                slow = least * np.exp(0.1 * (x - at) ** 2 + own[s] + noise * rng.normal())
                trials[i] = {"arm": "mup", "seed": s, "steps": limit, "population": trials.get(i, {"population": name})["population"]}
                trials[i]["point"] = {"train.batch": b, "train.steps": limit, "optim.lr": 2.0**x, "seed": s}
                if trials[i]["population"] == "left":
                    continue
                dead = bool(x - at > 2)
                gone += [i] * dead
                for step in sorted({*range(0, limit, max(1, limit // 40)), limit}):
                    c = critical / b
                    u = step / slow if not c else (np.sqrt(1 + 4 * c * step / slow) - 1) / (2 * c)
                    lost = dead and step > limit / 20
                    value = {"eval_loss": None, "eval_ema": None} if lost else dict.fromkeys(("eval_loss", "eval_ema"), 1 + 1.5 / (1 + u))
                    rows.append({"trial": i, "arm": "mup", "seed": s, "step": step, "attempt": 1, "diverged": lost, **value})
        pops[name] = {"trials": sorted({r["trial"] for r in rows})}
        (path / name).mkdir(parents=True)
        writer = record.Writer(path / name)
        writer.append(rows)
        writer.close()
        record.compact(path / name)
        record.write_json(path / name / "card.json", {"parameters": 1})
        record.write_json(path / name / "done.json", {"trials": pops[name]["trials"], "diverged": gone})
    if missing:
        pops["left"] = {"trials": [i for i, t in trials.items() if t["population"] == "left"]}
    swept = ["train.batch", "train.steps", "optim.lr", "seed"]
    about = {"schema": record.SCHEMA, "name": "planted", "config": {**CONFIG, "optim": CONFIG["optim"] | (optim or {})}}
    record.write_json(path / "study.json", about | {"trials": trials, "populations": pops, "swept": swept})
    return path
