"""The coordinate check: does what each weight adds to the network drift with width or depth (Tensor Programs V, arXiv 2203.03466, D.1)?

After a few steps the rms of (W_t - W_0) x_t, each weight's own change of its output, is fitted against the size on log axes. Its slope
is what muP promises where the parametrization is right: 0 in width, and in depth -1 for the weights that close a residual branch. The
total change of an activation, which is what is usually plotted, hides a layer that learns too little behind the layers before it.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lab import audit, axes, figures, find, parametrization
from lab.coordinates import Setting, measured
from lab.data.loader import held_out
from lab.errors import UserError
from lab.experiment import load
from lab.files import write_json
from lab.log import Progress
from lab.parametrization import Table
from lab.population import build
from lab.study import Study, kinds, versions
from lab.verdict import BOUND, Fault, Ladder, Slopes, Verdict, arrows, judge, late, slopes

RULES = ("mup", "standard")  # the first is judged; the second shows whether the check can fail
DEEPER = (1, 2, 4)  # depths beside the config's own, where none are given


class Sizes(NamedTuple):
    """The sizes of a check, the base first; depths None: the config's own, twice and four times that; (): width alone."""

    widths: tuple[int, ...] = (32, 64, 128, 256)
    depths: tuple[int, ...] | None = None


class Result(NamedTuple):
    """What was found of one model: ladders, {rule: [slopes of each ladder]}, {rule: its verdict}, and the faults of its arrows."""

    ladders: list[Ladder]
    slopes: dict[str, list[Slopes]]
    verdicts: dict[str, Verdict]
    arrows: list[Fault]
    steps: int

    @property
    def wrong(self) -> list[Fault]:
        """What is at fault in the model under the rule that is judged."""
        return [*self.arrows, *next(iter(self.verdicts.values())).faults]


def _points(config: dict, source_dims: dict[str, int], sizes: Sizes) -> dict[tuple[int, int], dict]:
    """{(width, depth): config}, the base first; depth is 0 where the model has no such knob."""
    model = config["model"]
    has_depth = "depth" in find.arguments(find.module("lab.models", model["name"]).Model.axes)
    depth = model["depth"] if has_depth else 0

    def at(width: int, depth: int) -> dict:
        knobs = {"width": width, **({"depth": depth} if has_depth else {})}
        base = {"width": sizes.widths[0], **({"depth": first} if has_depth else {})}
        return {**config, "model": {**model, **knobs}, "base": base}

    def fits(depth: int) -> bool:
        try:
            build(at(sizes.widths[0], depth), source_dims)
        except UserError:
            return False
        return True

    given = sizes.depths if sizes.depths is not None else [k * depth for k in DEEPER]
    first = depth = (given or [depth])[0] if has_depth else 0
    # some models want an odd depth; what fits neither way is told by the model itself
    depths = [d if sizes.depths or fits(d) or not fits(d + 1) else d + 1 for d in given] if has_depth else []
    return {p: at(*p) for p in [*((w, depth) for w in sizes.widths), *((sizes.widths[0], d) for d in depths)]}


def climb(
    config: dict, source_dims: dict[str, int], batches: dict, sizes: Sizes, setting: Setting, rules: dict[str, Table], said: Callable
) -> list[Ladder]:
    """A ladder in width and, where there are depths to compare, one in depth; they share the base, which is measured once."""
    found, programs = {}, {}
    for (width, depth), at in _points(config, source_dims, sizes).items():
        said(f"width {width}{f', depth {depth}' if depth else ''}: {setting.steps} steps of {len(rules) * setting.seeds} trials")
        programs[width, depth], found[width, depth] = measured(at, source_dims, batches, rules, setting)
    said("")
    base = next(iter(found))

    def ladder(knob: str, points: list[tuple[int, int]], ratio: Callable) -> Ladder:
        every = [{n: w.arrow for n, w in axes.weights(programs[p].model).items()} for p in points]
        x = np.log([ratio(p, a) for p, a in zip(points, every, strict=True)])
        return Ladder(knob, x, every[-1], [found[p] for p in points])

    out = [ladder("width", [p for p in found if p[1] == base[1]], lambda p, _: p[0] / base[0])]
    deep = [p for p in found if p[0] == base[0]]
    if len(deep) > 1:
        # blocks of other kinds may stand in the same stream, so the ratio is the stack's own
        out.append(ladder("depth", deep, lambda _, a: max(x.depth for x in a.values())))
    return out


def examine(
    config: dict,
    source_dims: dict[str, int],
    batches: dict,
    sizes: Sizes,
    setting: Setting,
    rules: dict[str, Table] | None = None,
    said: Callable = print,
) -> Result:
    """Check one model by its arrows and by its slopes.

    Args:
      batches: [steps, batch, ...], the same for all trials.
      rules: the tables to compare, the one to be judged first; by default those of RULES.
      said: is told each size before it is measured, and '' after the last.
    """
    alpha = config["parametrization"]["alpha"]
    rules = rules or {name: parametrization.table(name, alpha) for name in RULES}
    ladders = climb(config, source_dims, batches, sizes, setting, rules, said)
    found = {rule: [slopes(ladder, i, alpha) for ladder in ladders] for i, rule in enumerate(rules)}
    verdicts = {rule: judge(ladders, found[rule], i) for i, rule in enumerate(rules)}
    return Result(ladders, found, verdicts, lies(config, source_dims, batches, sizes), setting.steps)


def lies(config: dict, source_dims: dict[str, int], batches: dict, sizes: Sizes) -> list[Fault]:
    """Faults of the arrows, told from the traced program of a model twice as wide as the base, where few sizes agree by chance."""
    wide = {**config, "model": {**config["model"], "width": 2 * sizes.widths[0]}, "base": {"width": sizes.widths[0]}}
    return arrows(audit.truth(wide, source_dims, jax.tree.map(lambda x: x[0][:2], batches)))


class Job(NamedTuple):
    """One model to check: a name, the arm, its complete config, and batches of its study's held-out data."""

    name: str
    arm: str
    config: dict
    dims: dict[str, int]
    batches: dict


def jobs(study: Study, steps: int, name: str = "") -> Iterator[Job]:
    """A job for every kind of model in a study."""
    for arm, config in kinds(study).items():
        n = config["train"]["batch"]
        few = {**config, "eval": {**config["eval"], "examples": n * steps, "batch": n}}
        batches = jax.tree.map(lambda x: jnp.asarray(np.resize(x, (steps, *x.shape[1:]))), held_out(few, study.held))
        yield Job(name or study.experiment.name, arm, config, study.train.dims, batches)


def every(files: list[Path], overrides: list[str], steps: int) -> Iterator[Job]:
    """A job for every model of every experiment, with zero gates and without where it has them."""
    for file in files:
        options = load(str(file)).config.model.to_dict()
        for more in ({"zero_gates": gates} for gates in (False, True)) if "zero_gates" in options else ({},):
            study = Study(load(str(file), [*overrides, *(f"--config.model.{k}={v}" for k, v in more.items())]))
            yield from jobs(study, steps, " ".join([file.stem, *(f"{k}={v}" for k, v in more.items())]))


def check(todo: list[Job], sizes: Sizes, setting: Setting, out: Path, said: Callable = print) -> list[str]:
    """Check models one by one, write slopes and verdicts to `out` and figures beside it; returns the names of those at fault."""
    names = [f"{j.name} {j.arm}" if [k.name for k in todo].count(j.name) > 1 else j.name for j in todo]
    points = [len(_points(j.config, j.dims, sizes)) for j in todo]
    # most of a program's time is its compile, which grows with the number of weights
    work = [float(len(axes.weights(build(j.config, j.dims).model)) * n) for j, n in zip(todo, points, strict=True)]
    rows, failed = [], []
    if not out.parent.is_dir():
        raise UserError(f"--out: folder {str(out.parent)!r} does not exist")
    with Progress(
        "coordinate check", dict(zip(names, work, strict=True)), dict(zip(names, points, strict=True)), {n: n for n in names}
    ) as p:
        for name, job in zip(names, todo, strict=True):
            result = examine(job.config, job.dims, job.batches, sizes, setting, said=_steps(p, name))
            said(text(result, name if len(todo) > 1 else ""))
            rows.append({"experiment": name, "model": job.config["model"], **described(result)})
            failed += [name] * bool(result.wrong)
            with figures.style():
                figure = figures.slopes(_shown(result), BOUND)
                figure.savefig(out.with_name(f"{out.stem}{'-' + name.replace(' ', '-') if len(todo) > 1 else ''}.png"), dpi=130)
    about = {"device": jax.devices()[0].device_kind, "versions": versions(), "bound": BOUND}
    write_json(out, {**about, **setting._asdict(), "widths": sizes.widths, "rows": rows})
    return failed


def _steps(progress: Progress, name: str) -> Callable[[str], None]:
    """Tells a progress of each size that is begun, and so of the one before that is done."""
    done, mark = -1, time.monotonic()

    def said(text: str) -> None:
        nonlocal done, mark
        done, now = done + 1, time.monotonic()
        progress.step(name, done, None, now - mark)
        mark = now
        progress.stage(name, text) if text else progress.finish(name)

    return said


def _shown(result: Result) -> dict[str, dict[str, dict[str, tuple]]]:
    """{knob: {rule: {entry: (slope, half, promised)}}} of the own changes."""
    return {
        ladder.knob: {rule: {n: (s.value, s.half, s.promised) for n, s in found[i]["own"].items()} for rule, found in result.slopes.items()}
        for i, ladder in enumerate(result.ladders)
    }


def described(result: Result) -> dict[str, Any]:
    """A result as JSON: by knob and rule the entries in order and [slope, half-width] of what each measure says of them, rounded."""
    out: dict[str, Any] = {"faults": {rule: v.faults for rule, v in result.verdicts.items()}, "arrows": result.arrows}
    for i, ladder in enumerate(result.ladders):
        entries = list(ladder.found[0]["activation"])
        out[ladder.knob] = {"sizes": np.exp(ladder.x).round(3).tolist(), "entries": entries}
        for rule, found in result.slopes.items():
            kept = {m: found[i][m] for m in ("own", "activation", "gradient")}
            out[ladder.knob][rule] = {
                m: [" ".join(f"{v:.3f}" for v in (s[n].value, s[n].half)) if n in s else None for n in entries] for m, s in kept.items()
            }
    return out


def text(result: Result, title: str = "") -> str:
    """A line an entry with the slope of its own change by knob and rule, what else was seen, and a verdict a rule."""
    entries = list(dict.fromkeys(n for found in result.slopes.values() for s in found for n in s["own"]))
    wide = max(map(len, entries))
    heads = [f"{rule}, {ladder.knob}" for ladder in result.ladders for rule in result.slopes]
    cell = max(21, 2 + max(map(len, heads)))
    lines = [title] * bool(title) + ["own change".ljust(wide) + "".join(h.rjust(cell) for h in heads)]
    for n in entries:
        cells = []
        for i, _ in enumerate(result.ladders):
            for rule, found in result.slopes.items():
                s = found[i]["own"].get(n)
                mark = " !" if (i, "own", n) in result.verdicts[rule].rejected else "  "
                cells.append(f"{s.value:+.2f} ± {s.half:.2f}{mark}" if s else "")
        due = {s["own"][n].promised for s in next(iter(result.slopes.values())) if n in s["own"]} - {0.0}
        lines.append(n.ljust(wide) + "".join(c.rjust(cell) for c in cells) + "".join(f"  due {d:+.2g}" for d in due))
    return "\n".join([*lines, *_seen(result), *_verdicts(result)])


def _seen(result: Result) -> list[str]:
    """What is told and not judged: relative updates of each role, and weights that wake late."""
    width, rule = result.ladders[0], next(iter(result.slopes))
    by_role: dict[str, list] = {}
    for n, s in result.slopes[rule][0]["relative"].items():
        size = float(np.exp(np.log(width.found[0]["relative"][n][0]).mean()))
        by_role.setdefault(width.arrows[n.rstrip("'")].role, []).append((size, s.value, s.promised))
    out = []
    for role, each in by_role.items():
        size, value, due = np.median(each, axis=0)
        out.append(f"{rule}: a step moves a weight of role {role} by {size:.1%} at the base, as width^{value:+.2f} (due {due:+.2f})")
    for step, names in late(width, 0, result.steps).items():
        never = step > result.steps
        out.append(
            f"{rule}: {len(names)} of {len(width.found[0]['wakes'])} entries "
            + (
                f"have no gradient in {result.steps} steps: {', '.join(names)}"
                if never
                else f"learn from step {step} on, and count from there"
            )
        )
    return out


def _verdicts(result: Result) -> list[str]:
    """One rule's verdict after the other, faults of a kind and reason together."""
    lines = [f"arrow of {f.weight}: {f.kind}: {f.why}" for f in result.arrows]
    for rule, verdict in result.verdicts.items():
        judged, told = verdict.tested, {}
        worst = max((abs(s.off) for found in result.slopes[rule] for s in found["own"].values()), default=0.0)
        if not verdict.faults:
            lines.append(f"{rule}: none of {judged} slopes is beyond {BOUND} of what is due (worst own change {worst:.2f} off)")
        for f in verdict.faults:
            told.setdefault(f.kind, []).append(f)
        for kind, each in told.items():
            names = list(dict.fromkeys(f.weight for f in each))
            lines.append(f"{rule}: {kind}: {', '.join(names)} ({each[0].weight}: {each[0].why})")
    control = [v for v in list(result.verdicts.values())[1:] if v.faults]
    if len(result.verdicts) > 1 and not control:
        lines.append("no rule drifts, not even the one that should: this check could not have failed, so it shows nothing")
    return lines
