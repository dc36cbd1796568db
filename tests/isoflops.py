"""A study's folder whose losses are a law of parameters and examples, times a parabola in the learning rate, times noise."""

import numpy as np
import planted
from published import Truth

from lab import record

LAW = Truth(("params", "examples"), 0.5, (0.3 * 1e5**0.35, 0.3 * 1e5**0.3), (0.35, 0.3), 3e10, 3e12)
CURVE = 0.01  # relative loss a squared octave from the best learning rate
BATCH = 16


def study(
    folder,
    budgets=5,
    sizes=5,
    seeds=(0, 1),
    noise=2e-3,
    rates=(-8, -7, -6, -5, -4),
    best=-6.3,
    arms=None,
    diverged=(),
    missing=(),
    law=LAW,
    draw=0,
    data=np.inf,
    repeats=np.inf,
):
    """Write a study of isoFLOP profiles; `arms` are names, and how many times fewer FLOPs than it did each is told it took for its loss.

    Args:
      diverged: (width, steps, rate) at which every trial diverged. missing: widths of which nothing was trained.
      draw: of the noise.
    """
    arms = arms or {"all": 1.0}
    trials, pops = {}, {}
    for flops in np.geomspace(law.low, law.high, budgets):
        centre = np.sqrt(flops / 6) * 0.7
        for size in centre * np.geomspace(0.25, 4, sizes):
            width = round(np.sqrt(size / 50))
            params = 50 * width**2
            steps = round(flops / 6 / params / BATCH)
            name, rows, gone = f"width{width}-steps{steps}", [], []
            rng = np.random.default_rng(width + 10**6 * draw)
            mine = []
            for arm, saved in arms.items():
                for seed in seeds:
                    level = np.exp(noise * rng.normal())
                    for k in rates:
                        trial = f"{arm}-{width}-{steps}-{k}-{seed}"
                        point = {"model.width": width, "train.steps": steps, "optim.lr": 2.0**k, "seed": seed}
                        point |= {"arm": arm} if len(arms) > 1 else {}
                        trials[trial] = {"arm": arm, "seed": seed, "steps": steps, "point": point, "population": name}
                        dead = (width, steps, k) in diverged
                        gone += [trial] * dead
                        mine.append(trial)
                        examples = BATCH * steps
                        unique = min(examples, data)
                        worth = examples if np.isinf(repeats) else unique * (1 + repeats * -np.expm1(-(examples / unique - 1) / repeats))
                        loss = float(law(params=params, examples=worth) * level * (1 + CURVE * (k - best) ** 2))
                        row = {
                            "trial": trial,
                            "arm": arm,
                            "seed": seed,
                            "attempt": 1,
                            "wall": 1.0,
                            "epochs": examples / unique,
                            "diverged": dead,
                        }
                        row |= {"flops": 6.0 * params * examples / saved, "examples": examples, "step": steps}
                        rows += [
                            row | {"step": 0, "eval_loss": 2.0, "flops": 0.0, "examples": 0},
                            row | {"eval_loss": None if dead else loss},
                        ]
            pops[name] = {"trials": mine, "chunk": len(mine)}
            if width not in missing:
                planted._population(folder / name, rows, mine, gone, params)
    about = {
        "schema": record.SCHEMA,
        "name": "isoflops",
        "question": "What law?",
        "experiment": "",
        "config": planted.CONFIG,
        "trials": trials,
    }
    about |= {"populations": pops, "data": planted.DATA, "versions": {}, "sections": [], "numbers": {}}
    varied = ["model.width", "train.steps", "optim.lr", "seed", *(["arm"] if len(arms) > 1 else [])]
    record.write_json(folder / "study.json", about | {"swept": varied})
    return folder
