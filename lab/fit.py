"""Laws of loss in words: `lab fit` prints them. No jax here."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy

from lab import figures, tables
from lab.errors import UserError, unknown
from lab.files import write_json
from lab.laws import allocation, epochs, rates
from lab.laws.fits import FORMS, LEVEL, Fit, cost_of_floor, profile, span
from lab.laws.forecast import Laws, forecast, laws
from lab.laws.points import Points, points
from lab.laws.solve import LEAST, MOST

BEYOND = 10.0  # times the largest budget: as far as the figure goes
WIDE = 1.0  # of the exponent of the best size, which lies between 0 and 1
NAMES = {"params": "N", "examples": "D", "flops": "C"}


class Told(NamedTuple):
    """What an arm's records say."""

    points: Points | None
    laws: Laws | None
    kind: str  # of objective
    notes: tuple[str, ...]  # what was left out and why, and what is to be known of what was not
    refused: str  # why there is no law; '' where there is one


class Study(NamedTuple):
    """Laws of a study's arms."""

    metric: str
    floor: float | None  # where the world tells it
    arms: dict[str, Told]


def read(folder: Path, only: str = "") -> Study:
    """Fit the laws that a study's records tell, or runs of others in a folder, of every arm or of the one named."""
    found = tables.read(folder)
    if only and only not in found.arms:
        raise unknown("--arm", only, found.arms)
    arms = {name: _told(a.kind, a.table, a.notes, found.floor) for name, a in found.arms.items() if only in ("", name)}
    return Study(found.metric, found.floor, arms)


def _told(kind: str, table: dict, notes: tuple[str, ...], floor: float | None) -> Told:
    if not table["loss"]:
        return Told(None, None, kind, notes, "no size has all trials of a seed done")
    p = None
    try:
        p = points(table)
        notes = (*notes, *(f"left out: {why}" for why in p.left_out))
        return Told(p, laws(p, floor), kind, notes, "")
    except UserError as e:
        return Told(p, None, kind, notes, str(e))


def formula(f: Fit | epochs.Limited) -> str:
    """'0.31 + 4.2 N^-0.32 + 8.1 D^-0.41'."""
    if isinstance(f, epochs.Limited):
        return _formula(f.law)
    parts = [f"{f.value[0]:.4g}"] if FORMS[f.form].floor else []
    return " + ".join(parts + [f"{s:.4g} {NAMES[v]}^-{e:.3g}" for s, v, e in zip(f.scales, f.variables, f.exponents, strict=True)])


def _span(bounds: tuple[float, float], form: str = ".4g") -> str:
    return f"{bounds[0]:{form}} to {bounds[1]:{form}}"


def _exponent(bounds: tuple[float, float]) -> str:
    """The interval of an exponent; an end at the bound of what is fitted is none."""
    low, high = bounds
    return f"{'0 or less' if low < 1.01 * LEAST else f'{low:.3g}'} to {'unbounded' if high > 0.99 * MOST else f'{high:.3g}'}"


def _law(f: Fit) -> Iterator[str]:
    k = len(f.centre)
    yield f"{f.form} = {formula(f)}"
    said = [f"exponent of {NAMES[v]} {_exponent(f.interval(1 + k + i))}" for i, v in enumerate(f.variables)]
    if FORMS[f.form].floor:
        said.insert(0, f"floor {f.floor:.4g}, known" if f.floor is not None else f"floor {_span(f.interval(0))}")
    yield f"  {LEVEL:.0%} intervals: {'; '.join(said)}; points lie {f.sd:.2%} from it (root mean square), {len(f.points.loss)} of them"


def _profiles(f: Fit) -> str:
    """The intervals by profile likelihood, beside those of `_law`."""
    k = len(f.centre)
    said = [f"exponent of {NAMES[v]} {_exponent(profile(f, 1 + k + i))}" for i, v in enumerate(f.variables)]
    if FORMS[f.form].floor and f.floor is None:
        said.insert(0, f"floor {_span(profile(f, 0))}")
    return f"  by profile likelihood: {'; '.join(said)}" + ("; seeds' own levels are no part of these" if f.points.offset else "")


def _formula(f: epochs.Repeats) -> str:
    (a, b), (p, q) = f.scales, f.value[3:5]
    return f"{f.value[0]:.4g} + {a:.4g} N^-{p:.3g} + {b:.4g} D'^-{q:.3g}, D' = U + U R* (1 - exp(-(D / U - 1) / R*)), R* = {f.repeats:.3g}"


# what letters of `_formula` mean, for all who print it
WORTH = "D' is what D examples, U of them distinct, are worth as new ones; after R* repeats one more is worth 1 / e of a new one"


def _repeats(f: epochs.Repeats, plain: float) -> Iterator[str]:
    """The law of N, D and U; `plain` is what L(N, D) leaves of a point."""
    yield f"{epochs.FORM} = {_formula(f)}"
    yield f"  {WORTH}"
    low, high = f.interval(5)
    said = f"R* {low:.3g} to {'unbounded' if np.isinf(high) else f'{high:.3g}'}; exponent of N {_exponent(f.interval(3))}; exponent of D' {_exponent(f.interval(4))}"
    yield f"  {LEVEL:.0%} intervals: {said}; points lie {f.sd:.2%} from it, and {plain:.2%} from L(N, D)"
    most = float((f.points.examples / f.points.unique).max())
    spent = epochs.effective(most, 1.0, f.draws[:, 5]) / most
    if f.less:
        yield f"  repeats count less than new examples (p = {f.chance:.2g}): examples seen {most:.3g} times are worth {_span(span(spent), '.0%')} of as many new ones, so forecasts go by this law and not by L(N, D)"
    else:
        yield f"  repeats are not told from new examples (p = {f.chance:.2g})"


def text(folder: Path, told: Study, profiles: bool = False) -> str:
    """What `lab fit` prints; with `profiles` intervals by profile likelihood too."""
    said = [f"Laws of {told.metric}: N parameters, D examples, C training FLOPs. {folder}"]
    for arm, t in told.arms.items():
        said += ["", f"{arm}{f' ({t.kind})' if t.kind else ''}"]
        if t.laws is None:
            said += [f"  no law: {t.refused}", *_notes(t)]
            continue
        of_repeats = t.laws.repeats
        said += [f"  {warning}" for warning in warnings(t.points, of_repeats is not None)]
        for f in t.laws.fits:
            said += [f"  {line}" for line in _law(f)] + ([f"  {_profiles(f)}"] if profiles else [])
        if of_repeats is not None:
            said += [f"  {line}" for line in _repeats(of_repeats, t.laws.sizes.sd)]
        first = t.laws.fits[0]
        if told.floor is not None and first.floor is not None:
            times = cost_of_floor(first.points, first.form, told.floor)
            said.append(
                f"  not knowing the floor would {'leave nothing to fit' if np.isinf(times) else f'make the interval of the first exponent {times:.2g} times as wide'}"
            )
        if t.laws.sizes:
            said += _allocation(t.laws.sizes)
        for h in t.laws.told:
            said.append(
                f"  held out: {h.form} foretold larger budgets to {h.error:.2%} (root mean square), {h.covered:.0%} of them within its 90% interval; {h.splits} splits"
            )
        if t.laws.why:
            said.append(f"  {t.laws.why}")
        if not t.laws.told:
            said.append("  provisional: too few budgets to hold a larger one out")
        said += [f"  not fitted: {why}" for why in t.laws.refused] + _notes(t)
        said.append(f"  data {t.points.data[:12]}, code {first.code}")
    counted = sorted({t.points.convention for t in told.arms.values() if t.points is not None})
    said += [f"FLOPs: {how}" for how in counted]
    return "\n".join(said)


def rates_text(folder: Path, only: str = "") -> str:
    """What `lab fit --rate` prints besides: of every arm, or of the one named, the law of N, D and the learning rate through all its trials.

    Raises:
      UserError: an arm that is not there; runs of others; another hyperparameter that was swept.
    """
    found = tables.trials(folder)
    if only and only not in found.arms:
        raise unknown("--arm", only, found.arms)
    said = [f"Law of {found.metric} and the learning rate, through all trials: N parameters, D examples"]
    for name, arm in found.arms.items():
        if only not in ("", name):
            continue
        notes = arm.notes
        try:
            if not arm.table["loss"]:
                raise UserError("no trial is finished")
            p = points(arm.table)
            notes = (*notes, *(f"left out: {why}" for why in p.left_out))
            told = list(_rates(rates.fit(p, found.floor)))
        except UserError as e:
            told = [f"no law: {e}"]
        said += ["", name, *(f"  {line}" for line in (*told, *notes))]
    return "\n".join(said)


def _rates(f: rates.Rates) -> Iterator[str]:
    (a, b), v, (n, d) = f.scales, f.value, np.exp(f.centre)
    yield f"L(N, D) at the best rate = {v[0]:.4g} + {a:.4g} N^-{v[3]:.3g} + {b:.4g} D^-{v[4]:.3g}"
    floor = f"floor {f.floor:.4g}, known" if f.floor is not None else f"floor {_span(f.interval(0))}"
    said = f"{floor}; exponent of N {_exponent(f.interval(3))}; exponent of D {_exponent(f.interval(4))}"
    yield f"  {LEVEL:.0%} intervals: {said}; points lie {f.sd:.2%} from it, and {f.shared:.2%} all those of a size and horizon; {len(f.points.loss)} of them at {len(np.unique(f.points.rate))} rates"
    at, (low, high) = f.best(n, d)
    drifts = [np.log(2) * f.value[i] for i in (rates.BY_N, rates.BY_D)]
    spans = [_span(span(np.log(2) * f.draws[:, i]), "+.3f") for i in (rates.BY_N, rates.BY_D)]
    yield f"  best learning rate {2**at:.3g} ({2**low:.3g} to {2**high:.3g}) at N {n:.3g}, D {d:.3g}; it goes as N^{drifts[0]:+.3f} ({spans[0]}) D^{drifts[1]:+.3f} ({spans[1]})"
    yield f"  twice or half of it costs {np.expm1(v[rates.BENT]):.2%} in loss ({_span(tuple(np.expm1(f.interval(rates.BENT))), '.2%')})"
    odd = np.log2(f.points.rate)
    size = np.concatenate([np.ones((1, len(odd))), np.log([f.points.params, f.points.examples]) - f.centre[:, None]])
    outside = np.mean((best := v[rates.BEST :] @ size) < odd.min()) + np.mean(best > odd.max())
    if outside:
        yield f"  of {outside:.0%} of the trials the best rate lies outside of all that were tried"


def _allocation(f: Fit) -> list[str]:
    """How the best size grows with FLOPs, by the law and by isoFLOP profiles."""
    power = allocation.price(f.points).power

    def grows(v: np.ndarray) -> np.ndarray:
        return v[:, 4] / (v[:, 3] + power * v[:, 4])

    said = [f"  best N grows as C^{grows(f.value[None])[0]:.3f} (90% interval {_span(span(grows(f.draws)), '.3f')}) by the law of N and D"]
    try:
        iso = allocation.profiles(f.points, f)
    except UserError as e:
        return [*said, f"  no isoFLOP profiles: {e}"]
    if np.subtract(*reversed(iso.interval())) > WIDE:
        return [*said, f"  isoFLOP profiles of {len(iso.flops)} budgets do not tell it ({_span(iso.interval(), '.2f')})"]
    off = ", ".join(f"{np.expm1(b):+.1%}" for b in iso.bias)
    return [
        *said,
        f"  and as C^{iso.slope:.3f} (90% interval {_span(iso.interval(), '.3f')}) by isoFLOP profiles of {len(iso.flops)} budgets, freed of biases of {off} in N",
    ]


def warnings(p: Points, repeats: bool = False) -> list[str]:
    """What a law of these points is not: one of compute where all sizes have one horizon, one of repeats where examples repeat but for L(N, D, U), if told."""
    said = []
    if np.isfinite(p.examples).all() and len(np.unique(p.examples)) == 1 and len(np.unique(p.params)) > 1:
        said.append(
            f"NO LAW OF COMPUTE: all sizes saw the same {p.examples[0]:,.0f} examples, so L(C) is of sizes at one horizon; with more FLOPs a run would see more, and its loss fall otherwise"
        )
    if (often := np.nanmax(p.examples / p.unique, initial=1.0)) > 1:
        said.append(f"note: examples repeat up to {often:.3g} times, and count as if new{' but in L(N, D, U)' if repeats else ''}")
    return said


def _notes(t: Told) -> list[str]:
    return [f"  {note}" for note in t.notes]


def methods(told: Study) -> str:
    """What `lab fit --methods` prints: a paragraph an arm, of the law that goes first, as a paper's section of methods has it.

    Raises:
      UserError: no arm has a law.
    """
    said = []
    for arm, t in told.arms.items():
        if t.laws is None:
            continue
        f, p = t.laws.fits[0], t.points
        k, held = len(f.variables), next((h for h in t.laws.told if h.form == f.form), None)
        names = "EABab" if k == 2 else "EAa"
        terms = " + ".join(f"{names[1 + i]} {NAMES[v]}^-{names[1 + k + i]}" for i, v in enumerate(f.variables))
        values = [f"{names[1 + k + i]} = {e:.3g} ({_span(f.interval(1 + k + i), '.3g')})" for i, e in enumerate(f.exponents)]
        fitted = FORMS[f.form].floor and f.floor is None
        if FORMS[f.form].floor:
            values.insert(0, f"E = {f.value[0]:.4g} ({_span(f.interval(0)) if fitted else 'known, not fitted'})")
        of = "" if len(f.points.loss) == len(p.loss) else f"the best of each budget, {len(f.points.loss)} of "
        left = [note.removeprefix("left out: ") for note in t.notes if note.startswith("left out: ")]
        noise = f.points.offset > 0
        lines = [
            f"For {arm!r} we fitted {told.metric} = {'E + ' if FORMS[f.form].floor else ''}{terms} (N trained parameters, D examples seen, C training FLOPs) to {of}{len(p.loss)} points",
            f"({p.count.sum():.0f} runs, {p.flops.min():.3g} to {p.flops.max():.3g} FLOPs; runs of one size and horizon pooled as the mean of log loss)",
            f"by least squares of log residuals{', those of more runs weighing more' if np.ptp(f.weight) else ''}, started by variable projection over a grid of exponents and descended by Levenberg-Marquardt in all parameters.",
            f"Intervals in brackets are central {LEVEL:.0%} quantiles of {len(f.draws):,} refits to the fitted law plus noise of what it leaves ({f.sd:.2%}, its size drawn by chi squared with {f.freedom} degrees of freedom)"
            + (f" and of levels that runs of a seed share ({f.points.offset:.2%})." if noise else "."),
            f"We found {', '.join(values)}, with {formula(f)} as the law.",
        ]
        if held:
            lines.append(
                f"Fitted to the smaller budgets alone, in {held.splits} splits, it foretold the larger ones to {held.error:.2%} (root mean square); {held.covered:.0%} of them lay within its {LEVEL:.0%} interval of one run."
            )
        else:
            lines.append("No larger budget could be held out, so the law is provisional.")
        lines.append(f"Left out were: {'; '.join(left)}." if left else "No run was left out.")
        lines.append(f"FLOPs are counted so: {p.convention}.")
        lines.append(f"Scaling Lab {f.code}, numpy {np.__version__}, scipy {scipy.__version__}; SHA-256 of the runs {p.data}.")
        said.append(" ".join(lines))
    if not said:
        raise lawless(told, " to describe")
    return "\n\n".join(said)


def lawless(told: Study, what: str = "") -> UserError:
    """The error that no arm has a law, and why."""
    return UserError(f"no arm has a law{what}: " + "; ".join(f"{arm}: {t.refused}" for arm, t in told.arms.items()))


def write_points(told: Study, path: Path) -> Path:
    """Write the points that laws are fitted to, and what was left out and why: JSON with what is known of them, or CSV with a row for each left out.

    Raises:
      UserError: another suffix than .csv or .json.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".json"):
        raise unknown("--points: kind of file", path.suffix, (".csv", ".json"))
    if not path.parent.is_dir():
        raise UserError(f"--points {str(path)!r}: folder {str(path.parent)!r} does not exist")
    rows, out = [], {}
    for arm, t in told.arms.items():
        p, mine = t.points, []
        if p is not None:
            for values in zip(p.flops, p.params, p.examples, p.loss, p.count, strict=True):
                cell = {
                    k: float(v) if np.isfinite(v) else None for k, v in zip(("flops", "params", "examples", "loss"), values, strict=False)
                }
                mine.append({"arm": arm, **cell, "runs": int(values[-1])})
        left = [note.removeprefix("left out: ") for note in t.notes if note.startswith("left out: ")]
        about = {"convention": p.convention, "data": p.data} if p is not None else {"refused": t.refused}
        out[arm] = about | {"points": mine, "left_out": left}
        rows += mine + [{"arm": arm, "left_out": why} for why in left]
    if path.suffix == ".json":
        write_json(path, {"metric": told.metric, "arms": out})
    else:
        with path.open("w", newline="") as f:
            table = csv.DictWriter(f, ("arm", "flops", "params", "examples", "loss", "runs", "left_out"))
            table.writeheader()
            table.writerows(rows)
    return path


def figure(told: Study, path: Path) -> Path:
    """Write the figure of `lab fit`: every arm's points, the law of its best, and its band up to ten times the largest budget."""
    shown, bands = {}, {}
    for arm, t in told.arms.items():
        if t.laws is None:
            continue
        p = t.points
        shown[arm] = p.flops, p.loss
        span_ = np.geomspace(p.flops.min(), BEYOND * p.flops.max(), 40)
        rows = [forecast(t.laws, c) for c in span_]
        bands[arm] = span_, *(np.array(v) for v in zip(*((r.loss, *r.law[-1]) for r in rows), strict=True))
    if not shown:
        raise lawless(told, " to draw")
    with figures.style():
        return figures.save(figures.band(shown, bands, told.metric, told.floor), Path(path))
