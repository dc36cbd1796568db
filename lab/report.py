"""Records and laws -> figures, tables and one self-contained page that answers the study's question. No jax here."""

import base64
import csv
import html
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure

from lab import figures, fit, goodput, ladder, points, record
from lab import find as parts
from lab.data.drawing import drawing
from lab.errors import UserError
from lab.laws.fits import FORMS, Fit
from lab.laws.forecast import frontier
from lab.laws.metrics import rule
from lab.laws.solve import LEAST, MOST
from lab.laws.transfer import LEVEL, STAYS, Transfer, difference, transfer
from lab.tables import SIZES, TUNED
from lab.transfer import answer, bound, interval, seeds, sentence


class Findings(NamedTuple):
    """All that a report says, computed from a study's records."""

    study: dict
    metric: str
    rung: str | None  # the swept key that makes the ladder
    kinds: dict[str, str]  # arm -> its objective and what the sweep sets of it: losses of two objectives are never compared
    trials: list[dict]  # one row a trial of the study, whatever its state
    curves: dict[str, dict[str, np.ndarray]]  # arm -> rung, log2, loss, seed: one entry a finished trial
    transfers: dict[str, Transfer]
    laws: dict[str, fit.Told]  # of loss, as `lab fit` has them; an arm of theirs may be several here, for it has all sizes and horizons
    law_kinds: dict[str, str]  # arm of a law -> its objective, as in `kinds`
    difference: tuple[float, tuple[float, float] | None] | None  # |drift| of standard minus that of mup, and its interval
    floor: tuple[float, float] | None  # least possible loss on this data and its standard error, where a world knows it
    judged: list[dict]  # what judges say of the best trial of each arm and rung: arm, rung, flops and a column a number
    search: points.Search | None  # of a study at one size whose points lie on no grid; it has no curves, transfers and laws


# ---- reading


def find(folder: Path, over: str | None = None) -> Findings:
    """Read a study's records and fit what they allow; `over` is the swept key whose values are the sizes, found where not given."""
    folder, study = Path(folder), record.read_study(folder)
    if over == ladder.RATE:
        raise UserError(f"--over: {over} is what is tuned at every size; expected a size such as model.depth")
    size = ladder.asked(study, over, ())[0] if over else ladder.ladder(study)
    search = points.read(folder) if over is None and points.is_search(study) else None
    lad = ladder.Ladder(study, search.metric, None, search.keys, search.trials, {}) if search else ladder.read(folder, size)
    transfers, kinds = {arm: transfer(**c) for arm, c in lad.curves.items()}, _kinds(study, lad.trials)
    named = ladder.arms(study, None, tuple(k for k in ladder.numbers(study) if k.startswith((*TUNED, *SIZES))))  # as laws have them
    return Findings(
        *(study, lad.metric, lad.over, kinds, lad.trials, lad.curves, transfers),
        *(fit.read(folder).arms, {named[r["trial"]]: kinds[r["arm"]] for r in lad.trials}),
        *(_difference(transfers), ladder.floor(study), _judged(folder, study, lad.trials), search),
    )


def _kinds(study: dict, trials: list[dict]) -> dict[str, str]:
    """Arm -> name of its objective, and what the sweep sets of it where arms of that name differ in it."""
    own, names, full = study["config"].get("objective", {}).get("name", ""), {}, {}
    for r in trials:
        point = study["trials"][r["trial"]]["point"]
        more = [f"{ladder.leaf(k)} {v}" for k, v in sorted(point.items()) if k.startswith("objective.") and k != "objective.name"]
        names[r["arm"]] = parts.stem(point.get("objective.name", own))
        full[r["arm"]] = ", ".join([names[r["arm"]], *more])
    alike = {n: len({full[a] for a in names if names[a] == n}) == 1 for n in names.values()}
    return {a: n if alike[n] else full[a] for a, n in names.items()}


def judges(study: dict) -> list[str]:
    """Names of a study's judges, which their columns begin with."""
    return [parts.stem(n) for n in study["config"].get("judge", {}).get("names", ())]


def _judged(folder: Path, study: dict, trials: list[dict]) -> list[dict]:
    named, out = judges(study), []
    last = {r["trial"]: r for r in record.finals(folder).to_pylist()} if named else {}
    for r in _best(trials).values():
        said = {k: v for k, v in last.get(r["trial"], {}).items() if v is not None and any(k == n or k.startswith(f"{n}_") for n in named)}
        if said:
            out.append({k: r[k] for k in ("arm", "rung", "trial", "flops", "loss")} | said)
    return sorted(out, key=lambda r: (r["arm"], r["rung"]))


def _best(trials: list[dict]) -> dict[tuple, dict]:
    """(arm, rung) -> the finished trial of least loss."""
    best: dict[tuple, dict] = {}
    for r in trials:
        key = r["arm"], r["rung"]
        if np.isfinite(r["loss"]) and r["loss"] < best.get(key, {"loss": np.inf})["loss"]:
            best[key] = r
    return best


def _difference(transfers: dict[str, Transfer]) -> tuple | None:
    """|drift| of standard minus |drift| of mup, with an interval where both have one; arms are taken as independent."""
    if not {"standard", "mup"} <= set(transfers) or min(len(transfers[a].rungs) for a in ("standard", "mup")) < 2:
        return None
    pair = [transfers[a] for a in ("standard", "mup")]
    value = abs(pair[0].drift) - abs(pair[1].drift)
    if not np.isfinite(value):
        return None
    if any(t.drift_interval is None for t in pair):
        return value, None
    return value, difference(*pair)


# ---- the conclusion


def _transferable(f: Findings) -> bool:
    rates = {r["lr"] for r in f.trials}
    return len(rates) > 1 and any(len(t.rungs) > 1 for t in f.transfers.values())


def _answers(f: Findings) -> list[str]:
    rung = ladder.leaf(f.rung)
    if _transferable(f):
        return [sentence(arm, t, rung) for arm, t in f.transfers.items() if len(t.rungs) > 1]
    best = []
    for arm, t in f.transfers.items():
        found = [(o.loss, o.log2, r) for o, r in zip(t.optima, t.rungs, strict=True) if np.isfinite(o.loss)]
        if not found:  # all of its trials diverged, or are not done
            continue
        loss, lr, size = min(found)
        best.append(f"{arm} {loss:.4f} (learning rate 2^{lr:.2f}{f', {rung} {size:g}' if f.rung else ''})")
    why = "Transfer needs several sizes and several learning rates, which these records do not hold."
    return [f"Best {f.metric}: {'; '.join(best)}. {why}"] if best else [why]


def _caveats(f: Findings) -> str:
    """What the answer rests on: the difference between arms, seeds, what is missing."""
    said = []
    if f.difference:
        said.append(f"|drift| of standard minus |drift| of mup: {f.difference[0]:+.2f} octaves{interval(f.difference[1], '+.2f')}.")
    said += _levels(f) + _judgements(f)
    said.append(seeds(f.transfers.values()))
    return " ".join(said + _unfinished(f))


def _unfinished(f: Findings) -> list[str]:
    """How many trials are missing or were stopped, where some are."""
    left, stopped = sum(not r["finished"] for r in f.trials), sum(r["state"] == "stopped" for r in f.trials)
    said = [f"Unfinished: {left} of {len(f.trials)} trials have not reached their last step."] * bool(left)
    return said + [f"Halving stopped {stopped} of {len(f.trials)} trials, which have no final loss."] * bool(stopped)


def _levels(f: Findings) -> list[str]:
    """How the arms compare at the largest size, each at its own best rate, and what the least possible loss is."""
    size = max(r for t in f.transfers.values() for r in t.rungs)
    every = {a: t.optima[-1].loss for a, t in f.transfers.items() if t.rungs[-1] == size and np.isfinite(t.optima[-1].loss)}
    said = []
    for kind in dict.fromkeys(f.kinds.values()):
        best = {a: v for a, v in every.items() if f.kinds[a] == kind}
        if len(best) < 2:
            continue
        where = f"at {ladder.leaf(f.rung)} {size:g}, each at its own best rate" if f.rung else "each at its own best rate"
        of = f" of {kind}" if len(set(f.kinds.values())) > 1 else ""
        said.append(f"Best {f.metric}{of} {where}: {', '.join(f'{a} {v:.4f}' for a, v in sorted(best.items(), key=lambda x: x[1]))}.")
    if f.floor is not None:
        said.append(f"Least possible {f.metric} on this world: {f.floor[0]:.4f} +-{f.floor[1]:.4f}.")
    return said


def _judgements(f: Findings) -> list[str]:
    """Each judge's number at the largest size of each arm, with what it lies between."""
    said = []
    for name in judges(f.study):
        last = {r["arm"]: r for r in f.judged if name in r}  # rows are in order of size
        for arm, r in last.items():
            at = interval((r[f"{name}_low"], r[f"{name}_high"]), ".3f") if f"{name}_low" in r else ""
            between = [f"{side} {r[f'{name}_{side}']:.3f}" for side in ("chance", "floor", "ceiling") if f"{name}_{side}" in r]
            where = f" at {ladder.leaf(f.rung)} {r['rung']:g}" if f.rung else ""
            said.append(f"{name} of {arm}{where}: {r[name]:.3f}{at}{'; ' if between else ''}{', '.join(between)}.")
    return said


def conclusion(f: Findings) -> list[str]:
    """The answer in sentences, whichever way it comes out."""
    waiting = {arm: [r for r in f.trials if r["arm"] == arm and r["finished"]] for arm in sorted({r["arm"] for r in f.trials})}
    waiting = {arm: rows for arm, rows in waiting.items() if rows and arm not in f.transfers}
    dead = [arm for arm, rows in waiting.items() if not np.isfinite([r["loss"] for r in rows]).any()]
    lost = [f"{arm}: " + ("every finished trial diverged." if arm in dead else "no size has all trials of a seed yet.") for arm in waiting]
    if f.search is not None and (arms := points.arms(f.search)):
        return [*(x for arm in arms for x in points.sentences(f.search, arm)), *_unfinished(f)]
    if not f.transfers:
        return lost or ["No trial has reached its last step, so nothing can be concluded yet."]
    return [*_answers(f), *lost, _caveats(f)]


def imported(folder: Path) -> str | None:
    """What a folder of imported weights is and what can be done with it, in a line; None for a study that was trained."""
    study = record.read_study(folder)
    if "imported" not in study:
        return None
    card = record.read_json(Path(folder) / next(iter(study["populations"])) / "card.json")
    data, lacks = study["config"]["data"]["name"], study["imported"]["lacks"]
    known = "their data unknown" if data == "imported" else f"their data {data}"
    draws = f"`lab sample {folder}` draws from them"
    if lacks:
        draws = f"there is no {' and no '.join(lacks)} to sample with: import them again with --data name=SOURCE --data KEY=VALUE ..."
    return (
        f"{study['imported']['origin']}: {study['config']['model']['name']} of {card['parameters']:,} parameters, {known}; imported and not "
        f"trained here, so there are no losses to report; {draws}; `lab export weights {folder} --to OUT` writes them"
    )


def headline(f: Findings) -> str:
    """The conclusion in at most three lines."""
    said = conclusion(f)
    return "\n".join(said if len(said) <= 3 else [" ".join(said[:-1]), said[-1]])


# ---- figures and tables


def _seeds(c: dict[str, np.ndarray], rung: float) -> tuple[np.ndarray, ...]:
    """log2 rates of a rung, and mean, lowest and highest loss over seeds at each (NaN where any diverged)."""
    here = c["rung"] == rung
    x = np.unique(c["log2"][here])
    losses = [c["loss"][here & (c["log2"] == v)] for v in x]
    return x, *(np.array([f(y) for y in losses]) for f in (np.mean, np.min, np.max))


def _training(folder: Path, f: Findings) -> dict[str, dict[float, tuple]]:
    best = _best(f.trials)
    rows = record.table(folder) if best else pa.table({})
    if "loss" not in rows.column_names:
        return {}
    rows = rows.select(["trial", "step", "loss"])
    rows = rows.filter(pc.and_(pc.is_in(rows["trial"], pa.array([r["trial"] for r in best.values()])), pc.is_valid(rows["loss"])))
    out: dict[str, dict] = {arm: {} for arm in f.transfers}
    for (arm, rung), r in best.items():
        mine = rows.filter(pc.equal(rows["trial"], r["trial"]))
        if mine.num_rows:
            out.setdefault(arm, {})[rung] = tuple(np.array(mine[c], float) for c in ("step", "loss"))
    return {arm: curves for arm, curves in out.items() if curves}


def _samples(folder: Path, f: Findings) -> tuple[Figure, str] | None:
    found = [p for p in (folder / n / "samples.npz" for n in f.study["populations"]) if p.exists()]
    if not found:
        return None
    largest = max(found, key=lambda p: record.read_json(p.parent / "card.json")["parameters"])
    with np.load(largest) as z:
        about, real, made = json.loads(str(z["about"])), z["real"], z["samples"]
    arm = next((r["arm"] for r in f.trials if r["trial"] == about["trial"]), about["arm"])
    settings = ", ".join(f"{k} {v}" for k, v in about.items() if k not in ("population", "trial", "arm", "names", "class_names"))
    named = list(dict.fromkeys(about.get("names") or about.get("class_names") or ()))
    classes = f" Asked for in turn: {', '.join(named)}." if 1 < len(named) <= 10 else ""
    said = (
        f"Left: held-out real examples. Right: samples of the best trial of the largest model that kept its weights ({arm}, "
        f"{about['population']}{'; ' + settings if settings else ''}).{classes}"
    )
    return figures.pictures({"real": real, "samples": made}), said


def draw(folder: Path, f: Findings) -> dict[str, tuple[Figure, str]]:
    """Every figure the records allow: name -> (figure, caption). Losses of two objectives are in two figures."""
    out, rung = {}, ladder.leaf(f.rung)
    for kind, end, of in _by_kind(f):
        out |= {f"{name}{end}": (figure, of + said) for name, (figure, said) in _losses(folder, kind).items()}
    if f.search is not None and points.arms(f.search):
        said = f"{f.metric} against each hyperparameter searched. Ring: the best point. Faint: stopped by halving, with the loss at that mark; "
        said += "what lies far above is not shown. Crosses: diverged."
        out["search"] = _search(f.search), said
    if f.transfers and _transferable(f):
        said = "An open mark is a bound: an optimum at the edge of the rates tried or beside a diverged trial."
        if any(o.interval for t in f.transfers.values() for o in t.optima):
            said += f" Bars: {LEVEL:.0%} intervals over seeds."
        several = {arm: t for arm, t in f.transfers.items() if len(t.rungs) > 1}
        out["drift"] = figures.drift(several, rung), f"Best learning rate against {rung}. {said}"
    for name in dict.fromkeys(k for r in f.judged for k in r):
        if any(f"{name}_{side}" in r for r in f.judged for side in ("low", "floor")):
            said = "Bars: interval. Dashed: the same on real examples. Dotted: chance or the least that so few samples can show."
            out[f"judge_{name}"] = figures.judged(f.judged, name), f"{name}, best trial of each size, against training FLOPs. {said}"
    if rated := _rated(folder, f):
        said = "Held-out pictures restored by each tokenizer, numbers from -1 to 1, against what its code of a picture costs."
        out["rate"] = figures.rate(rated, rung), f"{said} A mark a trial; joined are those of one arm and {rung}."
    if shown := _samples(folder, f):
        out["samples"] = shown
    return out


def _rated(folder: Path, f: Findings) -> list[dict]:
    """Arm, rung, rate and distortion of every trial that judge `rate` has judged at its end."""
    ends = {r["trial"]: r for r in record.finals(folder).to_pylist()} if "rate" in judges(f.study) else {}
    found = [{**ends.get(r["trial"], {}), "arm": r["arm"], "rung": r["rung"]} for r in f.trials]
    return [r for r in found if r.get("rate_bits") and r.get("rate_mse")]


def _search(search: points.Search) -> Figure:
    """Loss against each hyperparameter searched, a panel a key; the axis leaves out the worst quarter."""
    figure = Figure(figsize=(2.7 * len(search.keys) + 0.6, 2.9))
    bests = [points.best(search, arm).point for arm in points.arms(search)]
    shown = sorted(p.loss for p in search.points if p.state == "done")
    seen = [p.loss for p in search.points if p.state in ("done", "stopped")]  # of stopped ones at their mark, where most losses are higher
    low, high = shown[0], max(shown[-1], float(np.quantile(seen, 0.75)), shown[0] * 1.05)
    looks = {"done": dict(marker="o", color="#0072B2"), "stopped": dict(marker="o", color="#0072B2", alpha=0.25)}
    for ax, key in zip(figure.subplots(1, len(search.keys), sharey=True, squeeze=False)[0], search.keys, strict=True):
        numbers = [p.values[key] for p in search.points]
        if all(isinstance(v, int | float) and v > 0 for v in numbers) and max(numbers) > 20 * min(numbers):
            ax.set_xscale("log", base=2)
        elif not all(isinstance(v, int | float) for v in numbers):
            ax.set_xticks(range(len(names := sorted(set(map(str, numbers))))), names)
            numbers = [names.index(str(v)) for v in numbers]
        for p, x in zip(search.points, numbers, strict=True):
            if p.state in looks:
                ax.plot(x, p.loss, ls="", ms=3.8, zorder=2 + (p.state == "done"), **looks[p.state])
            elif p.state == "diverged":
                ax.plot(x, 0.985, "x", ms=4.5, mew=1.3, color="0.5", transform=ax.get_xaxis_transform())
            if p in bests:
                ax.plot(x, p.loss, "o", ms=9, mfc="none", mec="#D55E00", mew=1.4, zorder=4)
        ax.set(xlabel=ladder.leaf(key), ylim=(low - 0.1 * (high - low), high + 0.2 * (high - low)))
    figure.axes[0].set_ylabel(search.metric)
    return figure


def _by_kind(f: Findings) -> list[tuple[Findings, str, str]]:
    """Findings of the arms of each objective, with what ends the names of its figures and begins their captions."""
    kinds = list(dict.fromkeys(f.kinds.values()))
    if len(kinds) < 2:
        return [(f, "", "")]
    out = []
    for kind in kinds:
        mine = {a for a, k in f.kinds.items() if k == kind}
        own = {k: {a: v for a, v in getattr(f, k).items() if a in mine} for k in ("curves", "transfers")}
        own["laws"] = {a: v for a, v in f.laws.items() if f.law_kinds[a] == kind}
        out.append(
            (
                f._replace(trials=[r for r in f.trials if r["arm"] in mine], **own),
                "_" + re.sub(r"[^\w.]+", "_", kind),
                f"Objective {kind}. ",
            )
        )
    return out


def _losses(folder: Path, f: Findings) -> dict[str, tuple[Figure, str]]:
    """The figures that show losses of one objective."""
    out, rung = {}, ladder.leaf(f.rung)
    if f.transfers and len({r["lr"] for r in f.trials}) > 1:
        several = {arm: t for arm, t in f.transfers.items() if len(t.rungs) > 1} or f.transfers  # beside which one size alone says little
        curves = {arm: {r: _seeds(f.curves[arm], r) for r in t.rungs} for arm, t in several.items()}
        said = f"Final {f.metric} on the fixed held-out set against learning rate. Rings: fitted minima. Crosses: diverged trials. "
        shaded = "Bands: lowest and highest over seeds. " if max(t.seeds[1] for t in several.values()) > 1 else ""
        said += shaded + "Curves that leave the axes at the top are worse than the axis shows."
        out["loss_against_rate"] = figures.loss_against_rate(curves, several, rung, f.metric), said
    if law := _law(f):
        out["loss_against_flops"] = law
    if curves := _training(folder, f):
        said = f"Training loss of the best trial of each {rung}; faint: as recorded, bold: running mean."
        out["training"] = figures.training(curves, rung), said
    return out


def _law(f: Findings) -> tuple[Figure, str] | None:
    """The best of each budget and the law of compute through them; none where no arm has two budgets."""
    best = {arm: frontier(t.points) for arm, t in f.laws.items() if t.points is not None}
    if not any(len(p.flops) > 1 for p in best.values()):
        return None
    bands, told, least = {}, [], None if f.floor is None else f.floor[0]
    for arm, p in best.items():
        laws = f.laws[arm].laws
        law = next((x for x in laws.fits if x.variables == ("flops",)), None) if laws else None  # that to go by is the first
        if law is None:
            continue
        x = np.geomspace(p.flops.min(), fit.BEYOND * p.flops.max(), 60)
        bands[arm] = x, law.loss(flops=x), *np.quantile(law.losses(flops=x), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        held = next((h for h in laws.told if h.form == law.form), None)
        low, high = _exponent(law, 0)
        ends = (-np.inf if low is None else low, np.inf if high is None else high)
        said = f"{arm}: {law.form} = {fit.formula(law)}, exponent{interval(ends, '.3g')}; "
        told.append(said + (f"it foretold larger budgets to {held.error:.2%}" if held else "it could be held against no larger budget"))
    said = ["Best loss of each budget against training FLOPs"]
    said += [f"Line and band: law and {LEVEL:.0%} interval, dashed beyond the points"] * bool(told) + told + _warned(f)
    said += ["Dotted: the least loss that is possible on this world"] * (least is not None)
    return figures.band({arm: (p.flops, p.loss) for arm, p in best.items()}, bands, f.metric, least), ". ".join(said) + "."


def _exponent(law: Fit, i: int) -> tuple[float | None, float | None]:
    """The interval of a law's exponent; an end at the bound of what is fitted is none."""
    low, high = law.interval(1 + len(law.centre) + i)
    return None if low < 1.01 * LEAST else low, None if high > 0.99 * MOST else high


def _warned(f: Findings) -> list[str]:
    """What laws are not, or why there is none, in the words of `lab fit`."""
    return _grouped((arm, x) for arm, t in f.laws.items() for x in (fit.warnings(t.points) if t.laws else [f"no law: {t.refused}"]))


def _grouped(said: Iterable[tuple[str, str]]) -> list[str]:
    """'standard, mup: what is said of both'."""
    arms: dict[str, list[str]] = {}
    for arm, x in said:
        arms.setdefault(x, []).append(arm)
    return [f"{', '.join(a)}: {x}" for x, a in arms.items()]


def _bounds(name: str, pair: tuple[float | None, float | None] | None, scale: float = 1.0) -> dict[str, float | None]:
    return {f"{name}_{side}": None if pair is None or pair[i] is None else scale * pair[i] for i, side in enumerate(("low", "high"))}


def tables(folder: Path, f: Findings) -> dict[str, list[dict[str, Any]]]:
    """The tables of the report by name, each a list of rows."""
    rung, out = ladder.leaf(f.rung), {name: [] for name in TITLES}
    for arm, t in f.transfers.items():
        for r, o in zip(t.rungs, t.optima, strict=True):
            gone = sum(x["state"] == "diverged" for x in f.trials if x["arm"] == arm and x["rung"] == r)
            at = (
                {"best_lr": 2.0**o.log2, "log2_lr": o.log2}
                | _bounds("log2_lr", o.interval)
                | {"loss": o.loss, "edge": o.edge, "diverged": gone}
            )
            out["optima"].append({"arm": arm} | ({rung: int(r)} if f.rung else {}) | at)
        if len(t.rungs) > 1 and _transferable(f):
            row = {"arm": arm, "stays_put": answer(t), "verdict": t.verdict, "drift_octaves": t.drift} | _bounds("drift", t.drift_interval)
            row |= {"bound": bound(t), "octaves_per_doubling": t.slope} | _bounds("per_doubling", t.slope_interval)
            row |= {"penalty_percent": 100 * t.penalty} | _bounds("penalty", t.penalty_interval, 100.0)
            r = rule(t)
            row |= {"law_error_octaves": r.error, "largest_from_law_octaves": r.forecast, "robustness_exponent": r.exponent}
            out["transfer"].append(row | {"rungs": len(t.rungs), "seeds": t.seeds[0], "most_seeds": t.seeds[1]})
    if f.search is not None:
        out["search"] = points.table(f.search)
        for arm in points.arms(f.search):
            for key, (share, *bounds) in points.importance(f.search, arm).items():
                out["importance"].append({"arm": arm, "key": key, "explains": share} | _bounds("explains", tuple(bounds)))
    out["laws"] = [_row(arm, t, law) for arm, t in f.laws.items() if t.laws for law in t.laws.fits]
    for name, pop in f.study["populations"].items():
        if (folder / name / "timing.json").exists():
            card, times = record.read_json(folder / name / "card.json"), record.read_json(folder / name / "timing.json")
            row = {"population": name, "trials": len(pop["trials"]), "parameters": card["parameters"]}
            if (told := goodput.account(folder / name))["wall"]:
                row["goodput_percent"] = 100 * told["steps"] / told["wall"]
            out["run_times"].append(row | times | {"device": f"{card['devices']} x {card['device']}"})
    out["stages"] = _stages(folder, f)
    if f.judged:
        columns = {k: None for r in f.judged for k in r if f.rung or k != "rung"}
        out["judges"] = [{rung if k == "rung" else k: r.get(k) for k in columns} for r in f.judged]
    left_out = {"finished"} if f.rung else {"finished", "rung"}
    out["trials"] = [{rung if k == "rung" else k: v for k, v in r.items() if k not in left_out} for r in f.trials]
    return {k: v for k, v in out.items() if v}


def _stages(folder: Path, f: Findings) -> list[dict[str, Any]]:
    """A row a stage and arm: its best loss, which is of its own data, and the FLOPs of one trial until its end."""
    out = []
    for stage, where in [*record.stages(folder), (f.study.get("stages", [""])[-1], folder)] if f.study.get("stages") else ():
        rows = record.finals(where).to_pylist() if where else []
        for arm in dict.fromkeys(r["arm"] for r in rows):
            mine = [r for r in rows if r["arm"] == arm and r.get(f.metric) is not None]
            best = min(mine, key=lambda r: r[f.metric], default=None)
            row = {"stage": stage, "arm": arm, "trials": sum(r["arm"] == arm for r in rows), "steps": best and best["step"]}
            out.append(row | {"best_loss": best and best[f.metric], "flops": best and best["flops"]})
    return out


def _row(arm: str, t: fit.Told, law: Fit) -> dict[str, Any]:
    """A law in a row of its table: a floor without an interval is known."""
    held = next((h for h in t.laws.told if h.form == law.form), None)
    row = {"arm": arm, "law": law.form, "points": len(law.points.loss), "floor": law.value[0] if FORMS[law.form].floor else None}
    row |= _bounds("floor", law.interval(0) if FORMS[law.form].floor and law.floor is None else None)
    for v, name in fit.NAMES.items():
        i = law.variables.index(v) if v in law.variables else None
        row |= {f"scale_{name}": None if i is None else law.scales[i], f"exponent_{name}": None if i is None else law.exponents[i]}
        row |= _bounds(f"exponent_{name}", None if i is None else _exponent(law, i))
    row |= {"scatter_percent": 100 * law.sd, "foretold_percent": 100 * held.error if held else None}
    return row | {"within_interval_percent": 100 * held.covered if held else None, "splits": held.splits if held else 0}


# ---- the page


TITLES = {
    "search": f"The best {points.TOP} points",
    "importance": "Share of the ranks of the loss that a parabola in one hyperparameter explains",
    "transfer": "Transfer over the ladder",
    "optima": "Optima",
    "laws": "Laws of loss, judged on larger budgets than they were fitted to",
    "run_times": "Run times (seconds)",
    "stages": "Stages: the best loss of each on its own data, and FLOPs of it and of all before",
    "judges": "What judges say of the best trial of each size",
    "trials": "All trials",
}
STYLE = """body{font:15px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;max-width:60em;margin:2.5em auto;padding:0 1.2em;color:#1f2328}
h1{font-size:1.55em;line-height:1.25;margin:0 0 .3em}
h2{font-size:1.1em;margin:2.2em 0 .5em;border-bottom:1px solid #e2e4e8;padding-bottom:.2em}
.about{color:#59636e;white-space:pre-line}
.answer{background:#f3f7fc;border-left:4px solid #2f6db3;padding:.5em 1.1em;margin:1.2em 0;border-radius:3px}
.answer p{margin:.4em 0}figure{margin:1.8em 0;text-align:center}img{max-width:100%;height:auto}
figcaption{color:#59636e;font-size:.88em;text-align:left;margin-top:.4em}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.83em;font-variant-numeric:tabular-nums}
th{font-weight:600;color:#59636e}td,th{padding:.28em .8em;text-align:right;border-bottom:1px solid #edeff2;white-space:nowrap}
td:first-child,th:first-child{text-align:left;padding-left:0}.facts td{text-align:left;white-space:normal;vertical-align:top}
pre{background:#f6f8fa;padding:1em;overflow-x:auto;font-size:.82em;border-radius:3px}summary{cursor:pointer;color:#2f6db3}"""


def _cell(v: Any) -> str:
    if v is None or (isinstance(v, float) and np.isnan(v)):
        return ""
    if isinstance(v, float) and np.isinf(v):
        return "diverges"
    return f"{v:.4g}" if isinstance(v, float) and not v.is_integer() else f"{v:,.0f}" if isinstance(v, int | float) else str(v)


def _table(rows: list[dict]) -> str:
    keep = [k for k in rows[0] if any(_cell(r[k]) for r in rows)]
    head = "".join(f"<th>{html.escape(k.replace('_', ' '))}</th>" for k in keep)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(_cell(r[k]))}</td>" for k in keep) + "</tr>" for r in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _facts(folder: Path, f: Findings) -> dict[str, str]:
    """What was run, on what, and how its numbers are to be read."""
    s, config = f.study, f.study["config"]
    cards = [record.read_json(p) for n in s["populations"] if (p := folder / n / "card.json").exists()]
    counts = {k: sum(r["state"] == k for r in f.trials) for k in record.STATES}
    sizes = "x".join(str(n) for n in s["data"].get("image", ()))
    data = f"{config['data']['name']}: {s['data']['examples']:,} training and {s['data']['eval_examples']:,} held-out examples"
    facts = {
        "Trials": f"{len(f.trials)}: " + ", ".join(f"{n} {k}" for k, n in counts.items() if n),
        "Data": data + (f", {sizes}" if sizes else "") + (f" ({s['data']['origin']})" if s["data"].get("origin") else ""),
        "Evaluation": f"{f.metric}, on one fixed set of at most {config['eval']['examples']:,} held-out examples, times and noise",
        "Optimum": _method(f),
        "Drift": f"log2 best rate at the largest size minus that at the smallest; up to {STAYS:g} octaves counts as staying put",
        "Laws": "those of `lab fit`: of N parameters, D examples, C training FLOPs, by squares of log residuals; intervals from refits to the "
        "law plus noise (docs/laws.md)" + "".join(f". {x}" for x in _warned(f)),
    }
    if notes := _grouped((arm, x) for arm, t in f.laws.items() for x in t.notes):
        facts["Notes on laws"] = "; ".join(notes)
    if any("trunk" in p for p in s["populations"].values()):
        known = [(r["flops"], record.begun(s, s["trials"][r["trial"]]["population"])) for r in f.trials if r["flops"]]
        whole, spent = sum(flops for flops, _ in known), sum(flops * (1 - share) for flops, share in known)
        took = f"their trials, each as of a run of its own, took {whole:.3g} FLOPs, of which {spent:.3g} ({spent / max(whole, 1):.0%}) were computed"
        facts["Trunk"] = f"longer horizons went on from where the decays of shorter ones begin: {took}"
    if cards:
        devices = sorted({f"{c['devices']} x {c['device']}" for c in cards})
        facts["Device"] = f"{', '.join(devices)}; {cards[0]['precision']['dtype']}, matmul precision {cards[0]['precision']['precision']}"
        facts["FLOPs"] = cards[0]["convention"]
    return facts | {"Versions": ", ".join(f"{k} {v}" for k, v in s["versions"].items()), "Limits": _limits(f)}


def _method(f: Findings) -> str:
    if f.search is not None:
        return "the point of least mean loss among those with the most seeds; what ties with it by Student's t, pooled noise and Bonferroni (docs/tuning.md)"
    if all(t.fit is None for t in f.transfers.values()):
        return "lowest point of Akima's interpolant between the neighbours of the best rate tried, in log2 learning rate"
    return (
        "lowest point of a skewed parabola in log2 learning rate, fitted to means freed of each seed's own level; intervals from the noise "
        "between seeds, pooled over sizes, and from how far true curves stray from that form (docs/transfer.md)"
    )


def _limits(f: Findings) -> str:
    said = [f"{len({r['seed'] for r in f.trials})} seed(s), one data set, one training length per trial"]
    epochs = [r["epochs"] for r in f.trials if r["epochs"] is not None]
    if epochs:
        said.append(f"at most {max(epochs):.3g} epochs")
    if f.transfers:
        said.append(f"{max(len(t.rungs) for t in f.transfers.values())} size(s)")
        if any(t.laws and not t.laws.told for t in f.laws.values()):
            said.append("a law is provisional where there are too few budgets to hold a larger one out")
        if any(o.edge for t in f.transfers.values() for o in t.optima):
            said.append("some optima are at the edge of the rates tried, so their position is a bound")
    if any(r["state"] == "diverged" for r in f.trials):
        said.append("diverged trials are kept as bounds: they have no loss to fit, and a rate counts as diverged when any seed does")
    return "; ".join(said) + "."


def _page(folder: Path, f: Findings, drawn: dict[str, tuple[bytes, str]], made: dict[str, list[dict]]) -> str:
    question, _, rest = f.study["question"].partition("\n")
    parts = [f"<h1>{html.escape(question or f.study['name'])}</h1>"]
    parts.append('<div class="answer">' + "".join(f"<p>{html.escape(x)}</p>" for x in conclusion(f)) + "</div>")
    parts.append(f'<p class="about">{html.escape(rest.strip())}</p>' if rest.strip() else "")
    for i, (name, (png, said)) in enumerate(drawn.items(), 1):
        width = int.from_bytes(png[16:20], "big") * 9 // 20  # pixels of the PNG's header, at 200 to an inch; a page has 90
        image = f'<img alt="{name}" width="{width}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        parts.append(f"<figure>{image}<figcaption><b>Figure {i}.</b> {html.escape(said)}</figcaption></figure>")
    for name, rows in made.items():
        fold = f"<details><summary>{len(rows)} rows</summary>{_table(rows)}</details>" if name == "trials" else _table(rows)
        parts.append(f"<h2>{TITLES[name]}</h2>{fold}")
    facts = "".join(f"<tr><td>{k}</td><td>{html.escape(v)}</td></tr>" for k, v in _facts(folder, f).items())
    parts.append(f'<h2>How it was made, and its limits</h2><table class="facts">{facts}</table>')
    parts.append(f"<h2>Experiment</h2><pre>{html.escape(f.study['experiment'])}</pre>")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{html.escape(f.study['name'])}</title><style>{STYLE}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _write_table(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def report(folder: Path, out: Path | None = None, found: Findings | None = None) -> Path:
    """Write report.html, figures (PNG and PDF) and tables (CSV) of a study, of what was found in it, to `out`, by default its own folder."""
    folder, out = Path(folder), Path(out or folder)
    f = found or find(folder)
    made = tables(folder, f)
    try:
        for part in ("figures", "tables"):
            (out / part).mkdir(parents=True, exist_ok=True)
        pictures = {}
        with figures.style():
            for name, (figure, said) in draw(folder, f).items():
                pictures[name] = _png(figure), said
                (out / "figures" / f"{name}.png").write_bytes(pictures[name][0])
                figure.set_layout_engine("none")  # as the picture was laid out: that takes as long as drawing
                figure.savefig(out / "figures" / f"{name}.pdf")
        for name, rows in made.items():
            _write_table(out / "tables" / f"{name}.csv", rows)
        page = out / "report.html"
        page.write_text(_page(folder, f, pictures, made), encoding="utf-8")
    except OSError as e:
        raise UserError(f"report folder {str(out)!r} cannot be written ({e.strerror}); choose another with --out") from e
    return page


def examples(source: Any, n: int) -> tuple[np.ndarray, list[str]]:
    """The first `n` examples of a source as uint8 images [n, h, w, c], and their captions or the names of their classes.

    A source's own `picture(i)` goes first; float images are shown from -1 (black) to 1 (white), tokens as the source says that they are
    drawn, else on a grey scale over the vocabulary.
    """
    items = [source[i] for i in range(min(n, len(source)))]
    if hasattr(source, "picture"):
        pictures = np.stack([source.picture(i) for i in range(len(items))])
    elif "image" in items[0]:
        pictures = np.stack([x["image"] for x in items])
    elif "drawn" in source.info:
        pictures = drawing(source.info)(np.stack([x["tokens"] for x in items]))
    else:
        tokens = np.stack([x["tokens"] for x in items])
        side = round(tokens[0].size ** 0.5)
        pictures = tokens.reshape(len(items), side, side, 1) / max(1, tokens.max()) * 2.0 - 1.0
    classes = source.info["class_names"]
    return figures.shown(pictures), [str(x.get("caption", classes[int(x["label"])])) for x in items]


def beside(real: list[np.ndarray], made: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Pairs of real pictures and what a model that looked at them has made, uint8 [2 n, h, w, c], with a name for each."""
    pairs = [x for r, m in zip(real, made, strict=True) for x in (figures.shown(r), m)]
    return np.stack(pairs), [x for n in names for x in (n, "restored")]


def grid(images: np.ndarray, names: list[str], path: Path) -> None:
    """A picture of uint8 images [n, h, w, c] with a name under each, written to `path`; UserError where it cannot be."""
    path = Path(path)
    wanted = "expected a picture's path such as samples.png"
    if not path.suffix:
        raise UserError(f"--out={str(path)!r} names no kind of picture; {wanted}")
    with figures.style():
        figure = figures.pictures({"": images}, names=names)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path)
        except (OSError, ValueError) as e:
            raise UserError(f"--out={str(path)!r} cannot be written ({e}); {wanted}") from e
