"""Records -> the tables that laws are fitted to: of a study's arms at their best hyperparameters, or of runs of others. No jax here."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab import bring, ladder, record
from lab.errors import UserError
from lab.laws.optimum import optimum
from lab.laws.points import ALIKE

TUNED, SIZES = ("optim.",), ("model.", "train.")  # swept numbers that are tuned at every size, and those that make sizes and horizons
RATE = "optim.lr"
COLUMNS = ("flops", "params", "examples", "loss", "seed", *ALIKE, "seconds", "unique")


class Arm(NamedTuple):
    """What `points` takes of an arm."""

    kind: str  # of objective; '' where it is not told
    table: dict[str, list]
    notes: tuple[str, ...]  # what was left out and why, and what is odd


class Folder(NamedTuple):
    """The arms of a study, or of a folder of runs of others."""

    metric: str
    floor: float | None  # the least loss that is possible, where the world tells it
    arms: dict[str, Arm]


def read(folder: Path) -> Folder:
    """Tables of every arm: at every size and horizon the trials of the best hyperparameters; runs of others as they are."""
    folder = Path(folder)
    if bring.has(folder):
        return Folder(bring.read(folder)["metric"], None, {arm: Arm("", *_tuned(*told)) for arm, told in bring.tables(folder).items()})
    study = record.read_study(folder)
    metric, known = study["config"]["eval"]["metric"], ladder.floor(study)
    return Folder(metric, known and known[0], _arms(folder, study, metric))


def trials(folder: Path) -> Folder:
    """Tables of every arm with all finished trials of a study and a column of their learning rate, whatever their grid; those that diverged have no loss.

    Raises:
      UserError: runs of others that tell no learning rate, or another hyperparameter that was swept beside it.
    """
    folder = Path(folder)
    if bring.has(folder):
        found = bring.tables(folder)
        if without := [arm for arm, (table, _) in found.items() if not np.isfinite(table.get(bring.MORE["lr"], [np.nan])).all()]:
            raise UserError(
                f"--rate: runs of {', '.join(without)} do not all tell their learning rate; `lab records add --map lr=COLUMN` brings it"
            )
        return Folder(bring.read(folder)["metric"], None, {arm: Arm("", *told) for arm, told in found.items()})
    study = record.read_study(folder)
    if more := [k for k, n in ladder.numbers(study).items() if k.startswith(TUNED) and n > 1 and k != RATE]:
        raise UserError(f"--rate fits one law of {RATE}, and {', '.join(more)} was swept beside it")
    metric, known = study["config"]["eval"]["metric"], ladder.floor(study)
    return Folder(metric, known and known[0], _arms(folder, study, metric, all_rates=True))


def seconds(folder: Path, study: dict) -> dict[str, float]:
    """Trial -> device-seconds of its training: what its populations took for their steps, times devices, shared out among their trials.

    Steps alone are timed: compiling, evaluations, judges and checkpoints are no part of it. A population that was resumed is
    timed by the steps of its last attempt. Populations that tell no time leave their trials out.
    """
    out: dict[str, float] = {}
    gone = set()
    for name, pop in study["populations"].items():
        if not ((folder / name / "timing.json").exists() and (folder / name / "card.json").exists()):
            gone |= set(pop["trials"])
            continue
        times, devices = record.read_json(folder / name / "timing.json"), record.read_json(folder / name / "card.json")["devices"]
        if not times.get("steps_here"):
            gone |= set(pop["trials"])
            continue
        halving = pop.get("halving", {"marks": [], "rung": 0})
        steps = record.until(study, name) - [0, *halving["marks"]][halving["rung"]]
        for i in pop["trials"]:
            out[i] = out.get(i, 0.0) + times["train_s"] / times["steps_here"] * steps * devices / len(pop["trials"])
    return {i: v for i, v in out.items() if i not in gone}


def _arms(folder: Path, study: dict, metric: str, all_rates: bool = False) -> dict[str, Arm]:
    """Arms at the best hyperparameters of every size and horizon, or with `all_rates` all finished trials and their learning rates."""
    numbers = ladder.numbers(study)
    tuned = tuple(k for k in numbers if k.startswith(TUNED))
    sizes = tuple(k for k in numbers if k.startswith(SIZES))
    named = ladder.arms(study, None, (*tuned, *sizes))
    cards = {n: record.read_json(folder / n / "card.json") for n in study["populations"] if (folder / n / "card.json").exists()}
    cells: dict[str, dict[tuple, list[dict]]] = {arm: {} for arm in sorted(set(named.values()))}
    ends, states, took = {r["trial"]: r for r in record.ends(folder).to_pylist()}, record.status(folder), seconds(folder, study)
    where = {i: (named[i], tuple(ladder.value(study, i, k) for k in sizes), t["seed"]) for i, t in study["trials"].items()}
    cut = {where[i] for i in where if i not in ends}  # a sweep that is not whole has no best
    lost = dict.fromkeys(cells, 0)
    for i, t in study["trials"].items():
        arm, size, seed = where[i]
        if i not in ends if all_rates else where[i] in cut:
            lost[arm] += 1
            continue
        if states[i] == "stopped":  # by halving, as it was not among the best
            continue
        r, card = ends[i], cards[t["population"]]
        gone = r.get("diverged") or r.get(metric) is None
        whole = t["steps"] / r["step"]  # of one that diverged on its way, what it was to take
        row = {
            "loss": np.nan if gone else r[metric],
            "seed": seed,
            "flops": r["flops"] * whole,
            "examples": round(r["examples"] * whole),
            "params": card["parameters"],
            "seconds": took.get(i, np.nan),
            "unique": r.get("unique") or r["examples"] / max(r["epochs"], 1.0),  # rows of before tell no unique
        }
        row |= {
            "convention": card["convention"],
            "device": card["device"],
            "data": str(study["data"].get("fingerprint") or study["data"].get("origin") or study["config"]["data"]),
        }
        row |= {"precision": " ".join(map(str, card["precision"].values())), "at": tuple(ladder.value(study, i, k) for k in tuned)}
        if all_rates:
            row["rate"] = ladder.value(study, i, RATE)
        cells[arm].setdefault(size, []).append(row)
    own = study["config"].get("objective", {}).get("name", "")
    kinds = {named[i]: t["point"].get("objective.name", own) for i, t in study["trials"].items()}
    out = {}
    for arm, mine in cells.items():
        why = "that are not finished" if all_rates else "of seeds not all of whose trials at a size are finished"
        rows, notes = [], [f"left out: {lost[arm]} trials {why}"] if lost[arm] else []
        for trials in mine.values():
            kept, odd = (trials, "") if all_rates else _best(trials)
            rows += kept
            if odd:
                size = f"{trials[0]['params']:,} parameters, {trials[0]['examples']:,} examples"
                notes.append(f"{'note' if kept else 'left out'}: {size}: {odd}")
        table = {k: [r[k] for r in rows] for k in (*COLUMNS, *["rate"] * all_rates)}
        out[arm] = Arm(kinds[arm], table, tuple(notes))
    return out


def _tuned(table: dict[str, list], notes: tuple[str, ...]) -> tuple[dict[str, list], tuple[str, ...]]:
    """The table of runs of others, whose runs that tell their learning rate are those of the best at every size and horizon."""
    table, name = dict(table), bring.MORE["lr"]
    rates = table.pop(name, [np.nan])
    if not np.isfinite(rates).all():
        some = "note: not all runs tell their learning rate, so at no size is the best of several looked for"
        return table, (*notes, some) if np.isfinite(rates).any() else notes
    cells: dict[tuple, list[dict]] = {}
    for rate, *values in zip(rates, *table.values(), strict=True):
        row = dict(zip(table, values, strict=True))
        cells.setdefault(tuple(np.nan_to_num([row.get(k, 0.0) for k in ("flops", "params", "examples", "unique")])), []).append(
            row | {"at": (rate,)}
        )
    rows, more = [], []
    for mine in cells.values():
        kept, odd = _best(mine)
        rows += kept
        if odd:
            more.append(f"{'note' if kept else 'left out'}: {mine[0]['flops']:.3g} FLOPs, {mine[0]['params']:.3g} parameters: {odd}")
    return {k: [r[k] for r in rows] for k in table}, (*notes, *more)


def _best(trials: list[dict]) -> tuple[list[dict], str]:
    """The trials of the best hyperparameters of a size and horizon, brought to the lowest point between those tried; and what is wrong with them.

    Hyperparameters at which a seed diverged, or that fewer seeds had than others, are not among the best.
    """
    by: dict[tuple, list[dict]] = {}
    for r in trials:
        by.setdefault(r["at"], []).append(r)
    most = max(map(len, by.values()))
    mean = {at: float(np.mean([r["loss"] for r in rs])) if len(rs) == most else np.nan for at, rs in by.items()}
    stable = [at for at in mean if np.isfinite(mean[at])]
    if not stable:
        return [], "a trial diverged at all hyperparameters tried"
    best = min(stable, key=mean.get)
    varied = [j for j in range(len(best)) if len({at[j] for at in by}) > 1]
    if len(varied) != 1:
        return by[best], ""
    (j,) = varied
    if any(at[j] <= 0 for at in by):
        return by[best], ""
    o = optimum(np.log2([at[j] for at in by]), np.array(list(mean.values())))
    return [
        r | {"loss": r["loss"] * o.loss / mean[best]} for r in by[best]
    ], f"its best is at the {o.edge} edge of what was tried or stable" if o.edge else ""
