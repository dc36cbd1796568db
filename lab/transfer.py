"""What a ladder says of a hyperparameter, in words: `lab transfer` prints it, the report shows it. No jax here."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab import ladder, record
from lab.laws import collapse
from lab.laws.metrics import asymptotic, rule, sensitivities
from lab.laws.surface import joint
from lab.laws.transfer import LEVEL, STAYS, UNSURE, Interval, Transfer, transfer, wanted

ANSWERS = {"yes": "yes, the best {of} stays put", "no": "no, the best {of} moves", "undecided": "undecided"}


def bound(t: Transfer) -> str:
    """How far the signed drift is known: '', or 'at least' or 'at most' where an optimum is at an edge, or 'unknown' where both hold."""
    sides = {(t.optima[0].edge, "first"), (t.optima[-1].edge, "last")}
    more, less = sides & {("low", "first"), ("high", "last")}, sides & {("high", "first"), ("low", "last")}
    return "unknown" if more and less else "at least" if more else "at most" if less else ""


def answer(t: Transfer) -> str:
    """By point estimates: 'yes' where the best value stays put over the ladder, 'no' where it moves, 'undecided' where they do not tell."""
    side = bound(t)
    if (side == "at least" and t.drift > STAYS) or (side == "at most" and t.drift < -STAYS):
        return "no"
    return "undecided" if side or not np.isfinite(t.drift) else "yes" if t.stays else "no"


def ends(bounds: Interval, form: str) -> str:
    """'-0.10 to +0.20'; an end that is infinite is 'unbounded'."""
    return " to ".join("unbounded" if np.isinf(v) else f"{v:{form}}" for v in bounds)


def interval(bounds: Interval, form: str) -> str:
    """' (90% interval -0.10 to +0.20)', or nothing where there is none."""
    return "" if bounds is None or np.isnan(bounds).any() else f" ({LEVEL:.0%} interval {ends(bounds, form)})"


def seeds(transfers: Iterable[Transfer]) -> str:
    """How many seeds answers rest on."""
    counts = [n for t in transfers for n in t.seeds]
    low, high = min(counts), max(counts)
    return "One seed: no interval." if high == 1 else f"{low} seeds." if low == high else f"{low} to {high} seeds a size."


def sentence(arm: str, t: Transfer, rung: str, of: str = "learning rate") -> str:
    """The answer for one arm: the verdict where there is an interval, else what the point estimates say."""
    word = "rate" if of == "learning rate" else "value"
    if not np.isfinite(t.drift):
        where = t.rungs[-1] if np.isfinite(t.optima[0].log2) else t.rungs[0]
        return f"{arm}: undecided, every trial at {rung} {where:g} diverged."
    said = ANSWERS[answer(t)].format(of=of) if t.verdict is None else t.verdict + (f" ({wanted(t)})" if t.verdict == UNSURE else "")
    side = bound(t)
    beyond = f"at the edge of the {word}s tried or beside a diverged trial"
    edge = f" (drift is a bound, {side} this, for an optimum is {beyond})" if side else ""
    least = "at least " if t.optima[-1].edge else ""
    cost = "diverges" if np.isinf(t.penalty) else f"costs {least}{t.penalty:.2%} in loss{interval(t.penalty_interval, '.2%')}"
    over = f"from {rung} {t.rungs[0]:g} to {t.rungs[-1]:g}"
    moved = f"drift {t.drift:+.2f} octaves{interval(t.drift_interval, '+.2f')} {over}{edge}"
    if side == "unknown":
        moved = f"drift {over} is not known, for optima are {beyond}"
    elif t.wander > max(STAYS, abs(t.drift)):
        moved += f", though optima in between spread over {t.wander:.2f}"
    return f"{arm}: {said}: {moved}; at {rung} {t.rungs[-1]:g}, the {word} that is best at {t.rungs[0]:g} {cost}."


class Told(NamedTuple):
    """A study's ladder and what the laws say of each arm and hyperparameter."""

    ladder: ladder.Ladder
    transfers: dict[str, tuple[Transfer, ...]]  # arm -> one for each of ladder.of


def read(folder: Path, over: str | None = None, of: tuple[str, ...] = ()) -> Told:
    """Transfer of the hyperparameters `of` over the swept key `over` in a study's folder; both are found where not given."""
    lad = ladder.read(folder, *ladder.asked(record.read_study(folder), over, of))
    fitted = {arm: (transfer(**c),) if len(lad.of) == 1 else joint(**c) for arm, c in lad.curves.items()}
    return Told(lad, {arm: t for arm, t in fitted.items() if len(t[0].rungs) > 1})


def text(folder: Path, told: Told) -> str:
    """What `lab transfer` prints."""
    lad, several = told.ladder, [t for ts in told.transfers.values() for t in ts]
    if not several:
        return f"No arm has all trials of a seed at two values of {lad.over} yet; `lab status {folder}` tells what is missing."
    table = record.table(folder)
    rows = table.select([c for c in ("trial", "step", "loss", lad.metric) if c in table.column_names]).to_pylist()
    said = [f"{', '.join(lad.of)} over {lad.over}, by {lad.metric}. {seeds(several)}"]
    for arm, transfers in told.transfers.items():
        for key, t in zip(lad.of, transfers, strict=True):
            said += ["", sentence(arm, t, ladder.leaf(lad.over), "learning rate" if key == ladder.RATE else ladder.leaf(key))]
            said += _table(lad, arm, key, t, rows) + _rule(t)
        said += _training(lad, arm, transfers, rows) if len(transfers) == 1 else []
    return "\n".join(said + _limits(told))


def _table(lad: ladder.Ladder, arm: str, key: str, t: Transfer, rows: list[dict]) -> list[str]:
    """The optima of one arm, a line a rung."""
    start = [r[lad.metric] for r in rows if r["step"] == 0 and r.get(lad.metric) is not None]
    c, lines = lad.curves[arm], []
    for r, o in zip(t.rungs, t.optima, strict=True):
        here = c["rung"] == r
        cells = [
            f"{r:g}",
            f"{2**o.log2:.4g}",
            f"{o.log2:.2f}",
            "" if o.interval is None else ends(o.interval, ".2f"),
            o.edge or "",
            f"{o.loss:.4f}",
        ]
        if len(lad.of) == 1 and start:
            mean, spread = sensitivities(c["log2"][here], c["loss"][here], c["seed"][here], float(np.median(start)))
            cells += [f"{mean:.4f}", "" if spread is None else ends(spread, ".4f")]
        lines.append([*cells, str(len(np.unique(c["seed"][here])))])
    head = [ladder.leaf(lad.over), f"best {ladder.leaf(key)}", "log2", f"{LEVEL:.0%} interval", "edge", "loss"]
    head += (["sensitivity", f"{LEVEL:.0%} interval"] if len(lines[0]) > 7 else []) + ["seeds"]
    table = [head, *lines]
    keep = [i for i in range(len(head)) if any(row[i] for row in lines)]
    wide = [max(len(row[i]) for row in table) for i in keep]
    return ["  " + "  ".join(row[i].rjust(w) for i, w in zip(keep, wide, strict=True)) for row in table]


def _rule(t: Transfer) -> list[str]:
    """How well a law of the optimum holds, in a line."""
    r = rule(t)
    if np.isnan(r.error):
        return []
    said = f"  law of the optimum: {t.slope:+.2f} octaves a doubling{interval(t.slope_interval, '+.2f')}, off by {r.error:.2f} (root mean square); "
    said += f"the largest is {r.forecast:+.2f} from the law of the others{interval(r.forecast_interval, '+.2f')}"
    if np.isfinite(r.exponent):
        said += f"; what an octave's error costs grows as size^{r.exponent:+.2f}{interval(r.exponent_interval, '+.2f')}"
    return [said]


def _training(lad: ladder.Ladder, arm: str, transfers: tuple[Transfer, ...], rows: list[dict]) -> list[str]:
    """Whether training curves at the smallest rung's best value collapse, and whether the largest rung's leave the others'."""
    (t,), (key,) = transfers, lad.of
    if not np.isfinite(t.optima[0].log2):
        return []
    runs = _runs(lad, arm, key, t, rows)
    done = [r for r in runs if np.isfinite(r.loss).all() and max(r.steps) + max(np.diff(r.steps)) >= r.last]
    found = collapse.collapse(done)
    if found is None:
        return []
    name = ladder.leaf(lad.over)
    said = (
        f"  training curves at the value best at {name} {t.rungs[0]:g}: they {found.verdict}: " if found.verdict else "  training curves: "
    )
    said += f"{found.spread:.2%} apart, " + (
        f"{found.noise:.2%} between seeds" if found.verdict else "one seed tells no noise to hold it against"
    )
    said += f" (over {name} {found.rungs[0]:g} to {found.rungs[-1]:g}, floor {found.floor:.3g}{' fitted' if found.fitted else ''})"
    lines, small = [said], [r for r in done if r.rung < t.rungs[-1]]
    if len(small) > 2:
        within = collapse.band(small, found.floor)
        out = {r.seed: at for r in runs if r.rung == t.rungs[-1] and (at := collapse.leaves(within, r)) is not None}
        lines += [f"  alarm: {name} {t.rungs[-1]:g}, seed {s}, leaves the smaller sizes' band from step {at:,}" for s, at in out.items()]
    return lines


def _runs(lad: ladder.Ladder, arm: str, key: str, t: Transfer, rows: list[dict]) -> list[collapse.Run]:
    """Training losses of an arm's trials whose value is that tried next to the smallest rung's optimum, finished or not."""
    mine = {r["trial"]: r for r in lad.trials if r["arm"] == arm and r["state"] != "missing"}
    octave = {i: np.log2(ladder.value(lad.study, i, key)) for i in mine}
    if not octave:
        return []
    nearest = min(set(octave.values()), key=lambda v: abs(v - t.optima[0].log2))
    losses: dict[str, list] = {}
    for r in rows:
        if octave.get(r["trial"]) == nearest and r["step"] < lad.study["trials"][r["trial"]]["steps"]:
            losses.setdefault(r["trial"], []).append((r["step"], np.nan if r.get("loss") is None else r["loss"]))
    out = []
    for i, pairs in losses.items():
        steps, loss = (np.array(v) for v in zip(*sorted(pairs), strict=True))
        out.append(collapse.Run(mine[i]["rung"], mine[i]["seed"], steps.astype(int), loss, lad.study["trials"][i]["steps"]))
    return out


def _limits(told: Told) -> list[str]:
    """What tells arms apart in the limit, and what is missing."""
    lad, said = told.ladder, []
    arms = {a: t[0] for a, t in told.transfers.items() if t[0].offsets and np.isfinite(t[0].optima[-1].loss)}
    alike = not any(k.startswith("objective.") for k in lad.study["swept"])  # losses of two objectives are never compared
    if len(arms) > 1 and alike:
        best = min(arms, key=lambda a: arms[a].optima[-1].loss)
        for arm in arms.keys() - {best}:
            limit, spread = asymptotic(arms[arm], arms[best])
            if np.isfinite(limit):
                said.append(
                    f"{arm} against {best}, each tuned at every size: {limit:+.2%} in loss in the limit of size{interval(spread, '+.2%')}."
                )
    left = sum(not r["finished"] for r in lad.trials)
    return ["", *said] + ([f"Unfinished: {left} of {len(lad.trials)} trials."] if left else [])
