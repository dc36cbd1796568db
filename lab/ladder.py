"""Records -> the ladder of a study: its rungs, its arms and their final losses, as the laws take them. No jax here."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lab import record
from lab.errors import UserError, unknown

RATE = "optim.lr"


class Ladder(NamedTuple):
    """What of a study's records says how a hyperparameter moves with size."""

    study: dict
    metric: str
    over: str | None  # the swept key whose values are the rungs
    of: tuple[str, ...]  # the hyperparameters whose best values are looked for, one or two
    trials: list[dict]  # one row a trial of the study, whatever its state
    curves: dict[str, dict[str, np.ndarray]]  # arm -> rung, log2 [n] or [n, 2], loss, seed: one entry a finished trial


def leaf(key: str | None) -> str:
    """The last part of a dotted key."""
    return (key or "model").rsplit(".", 1)[-1]


def value(study: dict, trial: str, key: str) -> Any:
    """What a trial had for a dotted config key: the sweep's value or the config's own; None where it had none."""
    point, at = study["trials"][trial]["point"], study["config"]
    if key in point:
        return point[key]
    if any(f"{s}.name" in point and key.startswith(f"{s}.") for s in study.get("sections", ())):
        return None  # a section that the sweep sets whole keeps nothing of the config's
    for part in key.split("."):
        at = at.get(part) if isinstance(at, dict) else None
    return at


def floor(study: dict) -> tuple[float, float] | None:
    """Least possible loss of a study's objective on its data, and its standard error; None where it is not known.

    A world of images gives it by density of times, with labels and without; a hidden label counts by the share that hides it. One of
    tokens gives its entropy where labels are told.
    """
    best, objective = study["data"].get("best_loss"), study["config"].get("objective", {})
    if any(k.startswith("objective.") for k in study.get("swept", ())):
        return None
    if isinstance(best, float):
        entropies = ({"name": "next_token"}, {"name": "unmask", "weighting": "elbo"})  # losses whose least is the entropy
        told = {k: v for k, v in objective.items() if k in ("name", "weighting", "z_loss")}
        return (best, study["data"].get("best_loss_error", 0.0)) if told in entropies and objective["label_drop"] == 0 else None
    if not isinstance(best, dict) or objective.get("name") != "flow" or objective.get("time") not in best:
        return None
    if set(objective) > {"name", "time", "label_drop"}:  # any further option makes another density
        return None
    at, hidden = best[objective["time"]], objective["label_drop"]
    return (1 - hidden) * at["conditional"] + hidden * at["marginal"], at["error"]


def numbers(study: dict) -> dict[str, int]:
    """Swept keys with numbers -> how many values they have within one arm."""
    values: dict[tuple[str, str], set] = {}
    for t in study["trials"].values():
        for k, v in t["point"].items():
            if type(v) in (int, float) and k != "seed":
                values.setdefault((k, t["arm"]), set()).add(v)
    return {k: max(len(v) for (other, _), v in values.items() if other == k) for k in sorted({k for k, _ in values})}


def ladder(study: dict) -> str | None:
    """The swept key whose sizes are the rungs: a whole number of the model, or else of training, with the most values in one arm."""
    whole = {k for t in study["trials"].values() for k, v in t["point"].items() if type(v) is int}
    many = {k: n for k, n in numbers(study).items() if n > 1 and k in whole and k.startswith(("model.", "train."))}
    return max(many, key=lambda k: (k.startswith("model."), many[k]), default=None)


def asked(study: dict, over: str | None, of: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The ladder's key and the hyperparameters, those given or found; UserError names what the records do not vary."""
    varied = [k for k, n in numbers(study).items() if n > 1]
    if over is not None and over not in varied:
        raise unknown("--over: key that varies within an arm", over, varied)
    found = over or ladder(study)
    if found is None:
        raise UserError(
            "transfer needs several sizes, and no size of the model or of training varies within an arm; name another by --over, "
            "or carry the best of one size to another by --to"
        )
    rest = [k for k in varied if k != found]
    if not rest:
        raise UserError(f"transfer needs several values of a hyperparameter, and beside {found} nothing varies within an arm")
    if len(of) > 2:
        raise UserError(f"--of={','.join(of)!r}: at most two hyperparameters at a time")
    for key in of:
        if key not in rest:
            raise unknown("--of: key that varies within an arm", key, rest)
    of = of or ((RATE,) if RATE in rest else (max(rest, key=lambda k: numbers(study)[k]),))
    for key in of:
        if low := [v for i in study["trials"] if (v := value(study, i, key)) is not None and v <= 0]:
            raise UserError(f"--of: {key}={low[0]!r} has no logarithm; octaves need values above 0")
    return found, of


def arms(study: dict, rung: str | None, of: tuple[str, ...]) -> dict[str, str]:
    """Trial -> arm; what the sweep varies besides arm, rung, hyperparameters and seed makes arms of its own, never an average."""
    groups: dict[tuple, dict[str, set]] = {}
    for t in study["trials"].values():
        for k in set(study["swept"]) - {*of, "seed", "arm", rung}:
            groups.setdefault((t["arm"], t["point"].get(rung)), {}).setdefault(k, set()).add(str(t["point"].get(k)))
    extra = sorted({k for g in groups.values() for k, v in g.items() if len(v) > 1})
    return {i: ", ".join([t["arm"], *(f"{leaf(k)} {t['point'].get(k)}" for k in extra)]) for i, t in study["trials"].items()}


def trials(folder: Path, study: dict, rung: str | None, of: tuple[str, ...]) -> list[dict]:
    """One row a trial of a study, whatever its state, with its final loss, where it has one, and what it took."""
    metric, last = study["config"]["eval"]["metric"], {r["trial"]: r for r in record.ends(folder).to_pylist()}
    states, named, config = record.status(folder), arms(study, rung, of), study["config"]
    for name in study["populations"]:
        if record.finished(folder / name) and metric not in record.columns(folder / name):
            raise UserError(
                f"file {str(folder / name / 'rows.parquet')!r} has no column {metric!r}; restore it, or delete its folder and run again"
            )
    rows = []
    for i, t in study["trials"].items():
        r = last.get(i, {})
        gone = bool(r.get("diverged"))
        lost = gone or r.get(metric) is None or states[i] == "stopped"
        row = {"trial": i, "arm": named[i], "rung": t["point"].get(rung, 1), "lr": t["point"].get(RATE, config["optim"]["lr"])}
        row |= {"seed": t["seed"], "state": "diverged" if gone else states[i], "loss": np.nan if lost else r[metric], "finished": bool(r)}
        rows.append(row | {k: r.get(k) for k in ("step", "examples", "epochs", "flops", "parameters")})
    return rows


def whole(rows: list[dict]) -> list[dict]:
    """Trials of one arm, of those rungs and seeds all of whose trials are finished: seeds may differ from rung to rung, curves are never cut.

    What halving stopped is left out and holds nothing up: its loss is not a final one, and that it was worse at a mark is no sign of instability.
    """
    left = {(r["rung"], r["seed"]) for r in rows if not r["finished"]}
    return [r for r in rows if (r["rung"], r["seed"]) not in left and r["state"] != "stopped"]


def read(folder: Path, over: str | None, of: tuple[str, ...] = (RATE,)) -> Ladder:
    """The ladder of a study's folder over the swept key `over`; values of `of` are given in log2."""
    folder, study = Path(folder), record.read_study(folder)
    metric = study["config"]["eval"]["metric"]
    rows, curves = trials(folder, study, over, of), {}
    for arm in sorted({r["arm"] for r in rows}, reverse=True):  # standard before mup
        mine = whole([r for r in rows if r["arm"] == arm])
        if np.isfinite([r["loss"] for r in mine]).any():
            curves[arm] = {k: np.array([r[k] for r in mine], float) for k in ("rung", "loss", "seed")}
            at = np.log2(np.array([[value(study, r["trial"], k) for k in of] for r in mine], float))
            curves[arm]["log2"] = at[:, 0] if len(of) == 1 else at
    return Ladder(study, metric, over, of, rows, curves)
