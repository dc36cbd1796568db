"""Records -> laws of what judges score, in words: `lab fit --skill` and `lab forecast --skill` print them. No jax here."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab import bring, figures, ladder, record, report, tables
from lab.errors import UserError, unknown
from lab.laws import skill
from lab.laws.fits import LEVEL, span
from lab.laws.skill import Foretold, Law, Laws, Table
from lab.transfer import ends

SIDES = ("low", "high", "chance", "ceiling")  # what stands beside a score in the records
BEYOND = 10.0  # times the largest budget: as far as the figure goes


class Skill(NamedTuple):
    """Laws of one score of a study's arms."""

    column: str
    metric: str
    tables: dict[str, Table]  # of arms with a size at which the score is known
    laws: dict[str, Laws]
    refused: dict[str, str]  # arm -> why it has no law
    notes: dict[str, tuple[str, ...]]  # what was left out and why


def read(folder: Path, asked: str, only: str = "") -> Skill:
    """Fit the laws of a score, 'COLUMN' or 'COLUMN=CHANCE', of every arm or of the one named.

    Each size and horizon has the score of its trials of least loss, as laws of loss have their loss. Without CHANCE it is what the judge recorded.

    Raises:
      UserError: no such score, a chance that is not known, or scores that are no shares.
    """
    folder, (column, given, chance) = Path(folder), asked.partition("=")
    if bring.has(folder):
        raise UserError(f"--skill={column}: runs of others have no judge's columns; skills are of a study's own records")
    study = record.read_study(folder)
    rows = {r["trial"]: r for r in record.finals(folder).to_pylist()}
    judges = report.judges(study)
    scores = sorted(
        {k for r in rows.values() for k in r if any(k == j or k.startswith(f"{j}_") for j in judges) and k.rpartition("_")[2] not in SIDES}
    )
    if not scores:
        raise UserError(f"--skill={column}: the final rows of {str(folder)!r} have no judge's columns; `c.judge` makes them")
    if column not in scores:
        raise unknown("--skill: column of the final rows", column, scores)
    beside = {side: [v for r in rows.values() if (v := r.get(f"{column}_{side}")) is not None] for side in ("chance", "ceiling")}
    if given:
        try:
            least = float(chance)
        except ValueError:
            raise UserError(f"--skill={asked}: {chance!r} is no number; expected a chance such as {column}=0.1") from None
    elif beside["chance"]:
        least = float(np.mean(beside["chance"]))
    else:
        raise UserError(f"--skill={column}: the records do not tell what chance scores; give it, as in {column}=0.1, or 0")
    most = float(np.mean(beside["ceiling"])) if beside["ceiling"] else 1.0
    out = Skill(column, study["config"]["eval"]["metric"], {}, {}, {}, {})
    cells = _cells(folder, study)
    if only and only not in cells:
        raise unknown("--arm", only, cells)
    for arm, mine in cells.items():
        if only not in ("", arm):
            continue
        known = [trials for trials in mine if all(rows[r["trial"]].get(column) is not None for r in trials)]
        out.notes[arm] = (f"left out: {len(mine) - len(known)} sizes and horizons without {column}",) if len(known) < len(mine) else ()
        try:
            if not known:
                raise UserError(f"no size has all trials of a seed done and {column} of the best")
            out.tables[arm] = _table(known, {i: r.get(column) for i, r in rows.items()}, least, most)
            out.laws[arm] = skill.laws(out.tables[arm])
        except UserError as e:
            out.refused[arm] = str(e)
    return out


def _cells(folder: Path, study: dict) -> dict[str, list[list[dict]]]:
    """Arm -> for every size and horizon the trials, over seeds, of the hyperparameters of least loss."""
    tuned, sizes = (tuple(k for k in ladder.numbers(study) if k.startswith(of)) for of in (tables.TUNED, tables.SIZES))
    by: dict[str, list[dict]] = {}
    for r in ladder.trials(folder, study, None, (*tuned, *sizes)):
        at = {name: tuple(ladder.value(study, r["trial"], k) for k in keys) for name, keys in (("rung", sizes), ("at", tuned))}
        by.setdefault(r["arm"], []).append(r | at)
    out = {}
    for arm in sorted(by):
        groups: dict[tuple, dict[tuple, list[dict]]] = {}
        for r in ladder.whole(by[arm]):
            groups.setdefault(r["rung"], {}).setdefault(r["at"], []).append(r)
        out[arm] = [best for found in groups.values() if (best := _best(list(found.values())))]
    return out


def _best(points: list[list[dict]]) -> list[dict]:
    """Of points of one size the trials of least mean loss, of those that have all seeds and a loss for each; empty where none has."""
    most = max(map(len, points))
    able = [p for p in points if len(p) == most and np.isfinite([r["loss"] for r in p]).all()]
    return min(able, key=lambda p: np.mean([r["loss"] for r in p]), default=[])


def _table(cells: list[list[dict]], scores: dict[str, float], chance: float, top: float) -> Table:
    flops, loss = (np.array([np.mean([r[k] for r in cell]) for cell in cells]) for k in ("flops", "loss"))
    score = np.array([np.mean([scores[r["trial"]] for r in cell]) for cell in cells])
    return Table(flops, loss, score, np.array([len(cell) for cell in cells]), chance, top)


def _against(predictor: str, metric: str) -> str:
    return "log FLOPs" if predictor == "compute" else metric


def text(told: Skill) -> str:
    """What `lab fit --skill` prints of one score."""
    some = next(iter(told.tables.values()), None)
    said = [f"Laws of {told.column}" + (f", from chance {some.chance:.4g} to {some.top:.4g}" if some else "")]
    for arm, notes in told.notes.items():
        said += ["", arm]
        if arm in told.refused:
            said += [f"  no law: {told.refused[arm]}", *(f"  {n}" for n in notes)]
            continue
        laws = told.laws[arm]
        for law in (law for found in laws.fits.values() for law in found):
            said += _law(law, told.metric, next((t for t in laws.told if (t.predictor, t.form) == (law.predictor, law.form)), None))
        if laws.better:
            said.append(f"  {_against(laws.better, told.metric)} foretold larger budgets better")
        elif len(laws.fits) == 2:
            said.append(f"  whether log FLOPs or {told.metric} foretells larger budgets better is not told: alike, or too few budgets")
        said += [f"  not fitted: {why}" for why in laws.refused] + [f"  {n}" for n in notes]
    return "\n".join(said)


def _law(law: Law, metric: str, held: Foretold | None) -> Iterator[str]:
    half = np.exp(law.half) if law.predictor == "compute" else -law.half
    bounds = ends(span(half[1:]), ".4g")
    unit = " FLOPs" if law.predictor == "compute" else ""
    middle = (law.table.chance + law.table.top) / 2
    yield f"  against {_against(law.predictor, metric)}, {law.form}: {middle:.3g} at {half[0]:.4g}{unit} ({LEVEL:.0%} interval {bounds}); points lie {law.left:.3f} from it (root mean square), {len(law.table.score)} of them"
    if held:
        known = "" if law.predictor == "compute" else f", given their {metric}"
        yield f"    held out: foretold larger budgets to {held.error:.3f} (root mean square){known}, {held.covered:.0%} of them within its {LEVEL:.0%} interval; {held.splits} split{'s' * (held.splits > 1)}"
    else:
        yield "    provisional: too few budgets to hold a larger one out"


def foretold(told: Skill, arm: str, flops: float, losses: np.ndarray | None, given_size: bool) -> list[str]:
    """Lines of a forecast: the score at a target by every law, each with its intervals.

    Args:
      losses: [1 + draws] of the law of loss there. given_size: the target is no best size, of which alone a law of compute is.
    """
    if arm in told.refused:
        return [f"  {told.column}: no law: {told.refused[arm]}"]
    laws, out = told.laws[arm], []
    for predictor, forms in skill.ahead(laws, flops, losses).items():
        by = "by log FLOPs" + ", at the best size" * given_size if predictor == "compute" else f"by the {told.metric} foretold"
        better = ", which foretold larger budgets better" * (laws.better == predictor)
        values = [f"{v:.3g} ({'; '.join(ends(s, '.3g') for s in spans)}), {form}" for form, (v, *spans) in forms.items()]
        out.append(f"  {told.column} {by}{better}: {'; '.join(values)}")
    return out


def figure(told: Skill, path: Path) -> Path:
    """Write the figure of a score: every arm's points and first laws, with bands up to ten times the largest budget; UserError without a law."""
    if not told.laws:
        raise UserError(f"no arm has a law of {told.column} to draw")
    points, bands = {}, {}
    for arm, laws in told.laws.items():
        for predictor, (law, *_) in laws.fits.items():
            x = law.table.x(predictor)
            more = np.log(BEYOND) if predictor == "compute" else 0.3 * np.ptp(x)
            grid = np.linspace(x.min(), x.max() + more, 80)
            low, high = np.quantile(law.scores(grid), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
            shown = np.exp if predictor == "compute" else np.negative
            points.setdefault(predictor, {})[arm] = shown(x), law.table.score
            bands.setdefault(predictor, {})[arm] = shown(grid), law.score(grid), low, high
    table = next(iter(told.tables.values()))
    with figures.style():
        return figures.save(figures.skill(points, bands, told.column, told.metric, (table.chance, table.top)), Path(path))
