"""A study's folder with planted truths: rows, cards and samples as a run writes them, from a law that is known."""

import json
from pathlib import Path

import numpy as np

from lab import record

WIDTHS = (32, 64, 128, 256)
CURVE, EXPONENT = 0.01, 0.1  # loss = (FLOPs / smallest)^-EXPONENT + CURVE (octaves from the best rate)^2
CONFIG = {
    "seed": 0,
    "model": {"name": "dit", "width": 32},
    "base": {"width": 32},
    "parametrization": {"name": "mup"},
    "data": {"name": "planted"},
    "optim": {"lr": 2.0**-6},
    "train": {"steps": 40, "batch": 16},
    "eval": {"metric": "eval_loss", "examples": 64},
}
DATA = {"image": [8, 8, 1], "classes": 3, "class_names": list("abc"), "examples": 500, "eval_examples": 64, "origin": "tests"}
CARD = {
    **{"device": "cpu", "devices": 1, "precision": {"dtype": "float32", "precision": "highest"}},
    "convention": "2 x multiply-adds of every dot",
}


def flops(width):
    """Training FLOPs of a trial of `width`."""
    return 1e9 * (width / 32) ** 2


def best(width):
    """Loss of `width` at its best learning rate."""
    return (flops(width) / flops(32)) ** -EXPONENT


def study(folder, drift=None, widths=WIDTHS, exponents=range(-11, -3), seeds=(0,), at=-6.0, diverged=(), missing=(), noise=0.0):
    """Write a study and return its folder.

    Args:
      drift: octaves that each arm's best learning rate moves from the narrowest to the widest, by default standard -3, mup 0.
      exponents, at: log2 of the learning rates tried, and the best one at the narrowest width.
      diverged: (arm, width, exponent) that diverge. missing: widths of which nothing was trained.
      noise: spread over seeds of the best log2 learning rate.
    """
    drift = {"standard": -3.0, "mup": 0.0} if drift is None else drift
    folder, trials, pops = Path(folder), {}, {}
    span = np.log2(widths[-1] / widths[0]) or 1.0
    for width in widths:
        name, rows, gone = f"width{width}", [], []
        shift = np.random.default_rng(width).normal(size=(len(drift), len(seeds))) * noise
        for a, (arm, octaves) in enumerate(drift.items()):
            for s, seed in enumerate(seeds):
                optimum = at + octaves * np.log2(width / widths[0]) / span + shift[a, s]
                for k in exponents:
                    trial = f"{arm}-{width}-{k}-{seed}"
                    point = {"model.width": width, "parametrization.name": arm, "optim.lr": 2.0**k, "seed": seed}
                    trials[trial] = {"arm": arm, "seed": seed, "steps": 40, "point": point, "population": name}
                    dead = (arm, width, k) in diverged
                    gone += [trial] * dead
                    rows += _rows(trial, arm, seed, flops(width), None if dead else best(width) + CURVE * (k - optimum) ** 2)
        mine = [i for i, t in trials.items() if t["population"] == name]
        pops[name] = {"trials": mine, "chunk": len(mine)}
        if width not in missing:
            _population(folder / name, rows, mine, gone, 50 * width**2)
    about = {"schema": record.SCHEMA, "name": "planted", "question": "Does the best learning rate stay put?\n\nPlanted: <yes> & no."}
    about |= {"experiment": "def get_config(): ...", "config": CONFIG, "trials": trials, "populations": pops, "data": DATA}
    varied = [k for k in ("model.width", "optim.lr", "parametrization.name", "seed") if len({t["point"][k] for t in trials.values()}) > 1]
    record.write_json(folder / "study.json", about | {"swept": varied, "versions": {"numpy": np.__version__}})
    _samples(folder / f"width{widths[-1]}", f"{next(reversed(drift))}-{widths[-1]}-{max(exponents)}-{seeds[0]}")
    return folder


def _rows(trial, arm, seed, total, final):
    rows = []
    for step in range(0, 41, 4):
        row = {"trial": trial, "arm": arm, "seed": seed, "step": step, "examples": 16 * step, "epochs": 16 * step / 500}
        row |= {"flops": total * step / 40, "wall": 0.1 * step, "attempt": 1, "diverged": final is None and step > 12}
        loss = None if row["diverged"] else 2.0 - 0.02 * step
        judged = {"eval_loss": 2.0, "eval_ema": 2.0} if step == 0 else {"eval_loss": final, "eval_ema": final} if step == 40 else {}
        rows.append(row | judged | ({"loss": loss} if step < 40 else {}))
    return rows


def _population(folder, rows, trials, gone, parameters):
    writer = record.Writer(folder)
    writer.append(rows)
    writer.close()
    record.compact(folder)
    record.write_json(folder / "config.json", CONFIG)
    record.write_json(folder / "card.json", CARD | {"parameters": parameters})
    times = {"compile_s": 1.5, "train_s": 20.25, "eval_s": 2.0, "steps_here": 40, "device_bytes": 10**8}
    record.write_json(folder / "timing.json", times)
    record.write_json(folder / "done.json", {"trials": trials, "diverged": gone})


def _samples(folder, trial):
    if not folder.exists():
        return
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 8, 1), np.uint8)
    about = {"population": folder.name, "trial": trial, "arm": "mup", "class_names": list("abc"), "steps": 25, "guidance": 2.0}
    np.savez_compressed(folder / "samples.npz", samples=pixels[0], real=pixels[1], labels=np.arange(6) % 3, about=json.dumps(about))
