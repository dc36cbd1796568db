"""Records -> the critical batch size of every arm, in words and a table: `lab batch` prints it. No jax here."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab import figures, ladder, rates, record
from lab.errors import UserError
from lab.laws.batch import OVERHEAD, Law, Tuned, forecast, law, reach, tuned
from lab.laws.seeds import over_seeds
from lab.laws.transfer import LEVEL
from lab.transfer import ends, interval

SIZE, METRIC = "train.batch", "eval_ema"
SHARES = (8 / 27, 4 / 9, 2 / 3)  # of the steps to the target: where losses that come before it are read off
BESIDE = 3  # neighbouring rates that have to come to the default target, so that the best one has tried ones beside it


class Run(NamedTuple):
    """Evaluations of one finished trial."""

    arm: str
    batch: int
    log2: float  # of the learning rate that it trained at, after the rules of `transfer`
    seed: int
    steps: int  # that it had
    step: np.ndarray  # [n], from 0
    loss: np.ndarray  # [n] of averaged weights; NaN from where it diverged


class Told(NamedTuple):
    """What a study's records say of the batch at one target."""

    target: float
    tuned: dict[str, list[Tuned]]  # arm -> one a batch
    laws: dict[str, Law | None]  # None where fewer than three batches come to the target
    notes: list[str]
    later: dict[str, dict[float, Law]]  # arm -> higher targets


def runs(folder: Path) -> list[Run]:
    """Trials of all batches and seeds that are finished at every rate."""
    study, states = record.read_study(folder), record.status(folder)
    arms = ladder.arms(study, SIZE, (ladder.RATE,))
    rows = record.table(folder)
    if METRIC not in rows.column_names:
        raise UserError(f"study {str(folder)!r} has no row of {METRIC} yet; `lab status {folder}` tells what is missing")
    found: dict[str, list] = {}
    for r in rows.select(["trial", "step", "diverged", METRIC]).to_pylist():
        if r["diverged"] or r[METRIC] is not None:
            found.setdefault(r["trial"], []).append((r["step"], np.nan if r["diverged"] or r[METRIC] is None else r[METRIC]))
    out, left = [], set()
    for i, t in study["trials"].items():
        batch, steps = ladder.value(study, i, SIZE), t["steps"]
        if states[i] == "stopped":  # by halving, as it was not among the best
            continue
        if states[i] not in ("done", "diverged") or i not in found:
            left.add((arms[i], batch, t["seed"]))
            continue
        rule = (
            rates.NONE
            | study["config"].get("transfer", {})
            | {ladder.leaf(k): v for k, v in t["point"].items() if k.startswith("transfer.")}
        )
        rate = ladder.value(study, i, ladder.RATE) * rates.factor(rule, batch, steps)
        step, loss = map(np.array, zip(*sorted(found[i]), strict=True))
        out.append(Run(arms[i], batch, float(np.log2(rate)), t["seed"], steps, step, loss.astype(float)))
    return [r for r in out if (r.arm, r.batch, r.seed) not in left]


def _by_batch(mine: list[Run]) -> list[list[Run]]:
    return [[r for r in mine if r.batch == b] for b in sorted({r.batch for r in mine})]


def least(mine: list[Run]) -> float:
    """The least loss to which, at every batch of an arm, all seeds of BESIDE neighbouring rates come; infinite where one batch has none."""
    each = []
    for here in _by_batch(mine):
        tried = sorted({r.log2 for r in here})
        worst = np.array([max(_best(r) for r in here if r.log2 == x) for x in tried])
        wide = min(BESIDE, len(tried))
        each.append(min(worst[i : i + wide].max() for i in range(len(tried) - wide + 1)))
    return max(each)


def _best(r: Run) -> float:
    """The least loss of a run before it diverged."""
    good = r.loss[np.isfinite(r.loss)]
    return float(good.min()) if len(good) else np.inf


def _rounded(loss: float) -> float:
    """Four digits of a loss, upwards, so that what is printed is what was asked."""
    unit = 10.0 ** (np.floor(np.log10(abs(loss))) - 3)
    return float(f"{np.ceil(loss / unit - 1e-9) * unit:.6g}")


def at(mine: list[Run], target: float) -> list[Tuned]:
    """Every batch of an arm at its best rate for one target."""
    rows = [(r.batch, r.log2, reach(r.step, r.loss, target), r.seed, r.steps) for r in mine]
    return tuned(*(np.array(v, float) for v in zip(*rows, strict=True)))


def before(mine: list[Run], found: list[Tuned]) -> list[float]:
    """Losses, falling, that the middle batch has at SHARES of its steps to the target, at the rate tried next to its best."""
    t = found[len(found) // 2]
    here = [r for r in mine if r.batch == t.batch]
    near = min({r.log2 for r in here}, key=lambda x: abs(x - t.log2))
    steps = np.exp(np.log(t.steps).mean())
    return [float(np.mean([np.interp(np.log1p(steps * s), np.log1p(r.step), r.loss) for r in here if r.log2 == near])) for s in SHARES]


def read(folder: Path, target: float | None = None) -> Told:
    """The law of the batch in a study's folder; the target is by default the least loss that every batch and arm comes to.

    Raises:
      UserError: fewer than three sizes of train.batch in every arm, or a target that fewer than three come to.
    """
    folder = Path(folder)
    every = runs(folder)
    by_arm = {a: [r for r in every if r.arm == a] for a in sorted({r.arm for r in every}, reverse=True)}
    many = {a: len({r.batch for r in mine}) for a, mine in by_arm.items()}
    by_arm = {a: mine for a, mine in by_arm.items() if many[a] > 2}
    if not by_arm:
        most = max(many.values(), default=0)
        raise UserError(f"lab batch needs an arm with three sizes of {SIZE}, all rates of a seed done; study {str(folder)!r} has {most}")
    lowest = max((v for v in map(least, by_arm.values()) if np.isfinite(v)), default=np.inf)
    start = min(r.loss[0] for mine in by_arm.values() for r in mine if np.isfinite(r.loss[0]))
    told = f"; the least that every batch comes to is {_rounded(lowest):g}" if np.isfinite(lowest) else ""
    if target is not None and target >= start:
        raise UserError(f"--target={target:g} is not below {METRIC} at the start, {start:.4g}{told}")
    if target is None:
        if not lowest < start:
            raise UserError("no loss below that of the start is one that every batch of an arm comes to; give one by --target")
        target = _rounded(lowest)
    found = {a: at(mine, target) for a, mine in by_arm.items()}
    laws = {a: law(t) for a, t in found.items()}
    if not any(laws.values()):
        most = max(sum(t.reached for t in ts) for ts in found.values())
        raise UserError(f"--target={target:g} is a loss that {most} batches come to at their best rate, and the law needs three{told}")
    later = {}
    for a, mine in by_arm.items():
        if laws[a] is not None and all(t.reached for t in found[a]):
            higher = {x: law(at(mine, x)) for x in before(mine, found[a]) if target < x < start}
            later[a] = {x: v for x, v in higher.items() if v is not None}
    return Told(target, found, laws, _notes(folder, every), later)


def _notes(folder: Path, every: list[Run]) -> list[str]:
    """What of the study makes its numbers less than they say."""
    study = record.read_study(folder)
    kinds = sorted({str(ladder.value(study, i, "optim.schedule")) for i in study["trials"]} - {"constant"})
    said = (
        [f"optim.schedule is {' and '.join(kinds)}: steps to a loss then depend on the horizon; a constant one has none."] if kinds else []
    )
    left = len(study["trials"]) - len(every)
    return said + ([f"Unfinished, or beside what is: {left} of {len(study['trials'])} trials."] if left else [])


def size(batch: float) -> str:
    """A batch size or a number of steps as people write it: three digits."""
    return f"{batch:,.0f}" if batch >= 100 else f"{batch:.3g}"


def sizes(bounds: tuple[float, float] | None, form: str = "{} to {}") -> str:
    """An interval, an end that is 0 or infinite being 'unbounded'."""
    return "" if bounds is None else form.format(*("unbounded" if v in (0, np.inf) else size(v) for v in bounds))


def sentence(arm: str, target: float, found: list[Tuned], fitted: Law | None) -> str:
    """What one arm's batches say."""
    if fitted is None:
        return f"{arm}: {sum(t.reached for t in found)} of {len(found)} batches come to {METRIC} {target:g}; the law needs three."
    if not fitted.fits:
        chance = "" if np.isnan(fitted.chance) else f", which seeds' noise explains with a chance of {fitted.chance:.1g}"
        return f"{arm}: no critical batch at {METRIC} {target:g}: S_min (1 + B_crit / B) misses the steps by {fitted.miss:.0%}{chance}."
    about = sizes(fitted.critical_interval, f" ({LEVEL:.0%} interval {{}} to {{}})")
    if fitted.bound == "unknown":
        return f"{arm}: critical batch not told{about}."
    if fitted.bound:
        way = "fall as 1 / batch" if fitted.bound == "at least" else "hardly fall"
        return (
            f"{arm}: critical batch {fitted.bound} {size(fitted.told)} at {METRIC} {target:g}{about}: steps {way} over all batches tried."
        )
    fewest, most = fitted.least, fitted.least * fitted.critical
    over = sizes(fitted.critical_interval and tuple(OVERHEAD * v for v in fitted.critical_interval), " ({} to {})")
    return (
        f"{arm}: critical batch {size(fitted.critical)}{about} at {METRIC} {target:g}: never fewer than {size(fewest)} steps"
        f"{sizes(fitted.least_interval, ' ({} to {})')} nor than {size(most)} examples; steps exceed linear scaling by {OVERHEAD:.0%} at batch "
        f"{size(fitted.overhead)}{over}."
    )


def text(told: Told) -> str:
    """What `lab batch` prints."""
    counts = [len(t.seeds) for found in told.tuned.values() for t in found]
    said = [f"Steps to {METRIC} {told.target:g} over {SIZE}, learning rate tuned at each. {_seeds(counts)}"]
    for arm, found in told.tuned.items():
        fitted = told.laws[arm]
        said += ["", sentence(arm, told.target, found, fitted), *_table(found, fitted)]
        if fitted is not None:
            said += _miss(fitted) + _later(told, arm)
        said += _edges(found)
    return "\n".join(said + [""] * bool(told.notes) + told.notes)


def _seeds(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return "One seed: no interval." if high == 1 else f"{low} seeds." if low == high else f"{low} to {high} seeds a batch."


def _aligned(head: list[str], lines: list[list[str]]) -> list[str]:
    """Lines of a table, without columns that are empty."""
    keep = [i for i in range(len(head)) if any(row[i] for row in lines)]
    wide = [max(len(row[i]) for row in [head, *lines]) for i in keep]
    return ["  " + "  ".join(row[i].rjust(w) for i, w in zip(keep, wide, strict=True)) for row in [head, *lines]]


def _table(found: list[Tuned], fitted: Law | None) -> list[str]:
    """The batches of one arm, a line each; steps of one that does not come to the target are what they had."""
    lines = []
    for t in found:
        mean, spread = over_seeds(np.log(t.steps), LEVEL)
        steps = float(np.exp(mean))
        foretold = forecast(found, t.batch) if fitted is not None and t.reached else None
        lines.append(
            {
                **{"batch": f"{t.batch:g}", "best lr": f"{2**t.log2:.4g}", "log2": f"{t.log2:.2f}", "edge": t.edge or ""},
                **{"": "" if t.reached else "over", "steps": size(steps)},
                f"{LEVEL:.0%} interval": sizes(tuple(np.exp(spread))) if spread and t.reached else "",
                "examples": size(t.batch * steps),
                "law": "" if fitted is None or not t.reached else f"{fitted(t.batch) / steps - 1:+.1%}",
                "of the others": "" if foretold is None else f"{foretold.steps / steps - 1:+.1%}",
                "its interval": ends(tuple(v / steps - 1 for v in foretold.interval), "+.1%") if foretold and foretold.interval else "",
            }
        )
    return _aligned(list(lines[0]), [list(x.values()) for x in lines])


def _miss(fitted: Law) -> list[str]:
    """How well the law holds, and whether an exponent other than one is told apart."""
    noise = "" if np.isnan(fitted.noise) else f", {fitted.noise:.1%} between seeds of one batch"
    said = f"  the law is off by {fitted.miss:.1%} (root mean square{noise})"
    bounds = fitted.exponent_interval
    if bounds is None or np.isinf(bounds).any() or fitted.bound:
        return [said]
    apart = "not told apart from 1" if bounds[0] <= 1 <= bounds[1] else "told apart from 1"
    return [f"{said}; S_min (1 + (B_crit / B)^a) has a = {fitted.exponent:.2f}{interval(bounds, '.2f')}, {apart}"]


def _later(told: Told, arm: str) -> list[str]:
    """The critical batch against the loss, highest first."""
    each = {**told.later.get(arm, {}), told.target: told.laws[arm]}
    if len(each) < 2:
        return []
    lines = []
    for loss in sorted(each, reverse=True):
        v = each[loss]
        cells = [f"{loss:.4g}", f"{v.bound} {size(v.told)}".strip() if v.bound != "unknown" else "not told"]
        lines.append([*cells, sizes(v.critical_interval), size(v.least), f"{v.miss:.1%}", "" if v.fits else "does not fit"])
    return ["  over the loss:", *_aligned([METRIC, "B_crit", f"{LEVEL:.0%} interval", "S_min", "miss", ""], lines)]


def _edges(found: list[Tuned]) -> list[str]:
    """Batches whose steps are only a bound."""
    edge = [t for t in found if t.edge and t.reached]
    late = [f"{t.batch:g}" for t in found if not t.reached]
    said = []
    if edge:
        which = ", ".join(f"{t.batch:g}" for t in edge)
        said.append(
            f"  at batch {which} the best rate is at the edge of those tried or beside a diverged trial: its steps are at most these"
        )
    return said + ([f"  left out of the law, for not every seed comes to the loss: batch {', '.join(late)}"] if late else [])


def draw(told: Told, out: Path) -> None:
    """Write the figure of steps against examples."""
    with figures.style():
        figure = figures.batch({a: (told.tuned[a], told.laws[a]) for a in told.tuned}, f"{METRIC} {told.target:g}")
        figures.save(figure, out)
