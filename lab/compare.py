"""Compute multipliers in words: `lab compare` holds an arm against a baseline, of one folder or of two. No jax here."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab import bring, figures, tables
from lab.errors import UserError, unknown
from lab.fit import BEYOND
from lab.laws.fits import LEVEL, span
from lab.laws.forecast import frontier
from lab.laws.joint import Joint
from lab.laws.joint import fit as together
from lab.laws.multiplier import CROSSES, HOLDS, UNSURE, Multiplier, common, multiplier
from lab.laws.points import ALIKE, Points, points

ACROSS = ("device", "precision", "metric")  # what may differ where it is asked for; `metric` is then two names of one loss


class Side(NamedTuple):
    """An arm of a folder."""

    name: str  # FOLDER/ARM where another folder has an arm of that name
    metric: str
    floor: float | None
    kind: str
    table: dict[str, list]
    notes: tuple[str, ...]


class Found(NamedTuple):
    """What an arm needs for a baseline's losses."""

    base: Side
    arm: Side
    ends: tuple[Points, Points]  # of each the best cell of every budget
    by_flops: Multiplier
    by_seconds: Multiplier | None
    untimed: str  # why there is none by device-seconds
    joint: Joint | None  # L(N, D) of both, where their points tell it
    alone: str  # why there is none
    floor: float | None
    untold: tuple[str, ...]  # what is taken to be alike, as one of the arms does not tell


def sides(folders: Sequence[Path]) -> list[dict[str, Side]]:
    """The arms of each folder by name."""
    if len({Path(f).resolve() for f in folders}) < len(folders):
        raise UserError(f"{str(folders[1])!r} is {str(folders[0])!r} itself")
    found = [tables.read(f) for f in folders]
    labels = [Path(f).name for f in folders] if len({Path(f).name for f in folders}) == len(folders) else [str(f) for f in folders]
    out: list[dict[str, Side]] = []
    for i, (label, told) in enumerate(zip(labels, found, strict=True)):
        clash = {a for j, other in enumerate(found) if j != i for a in other.arms}
        names = {arm: f"{label}/{arm}" if arm in clash else arm for arm in told.arms}
        out.append({n: Side(n, told.metric, told.floor, *told.arms[arm]) for arm, n in names.items()})
    return out


def _chosen(of: list[dict[str, Side]], base: str, arm: str) -> tuple[Side, Side]:
    """The two arms that are meant; of a folder with one arm, and of two arms in all, names may be left out."""
    known = {name: s for mine in of for name, s in mine.items()}
    if not base:
        if len(of) < 2 or len(of[0]) > 1:
            raise UserError(f"--base: which arm is the baseline? expected one of: {', '.join(of[0])}")
        (base,) = of[0]
    for key, name in (("--base", base), ("--arm", arm or base)):
        if name not in known:
            raise unknown(key, name, known)
    if not arm:
        rest = list(of[-1]) if len(of[-1]) == 1 and base not in of[-1] else [a for a in known if a != base]
        if len(rest) != 1:
            raise UserError(f"--arm: which arm is to be held against {base!r}? expected one of: {', '.join(rest) or 'none'}")
        (arm,) = rest
    if base == arm:
        raise UserError(f"--arm {arm!r} is the baseline itself")
    return known[base], known[arm]


def _agree(base: Side, arm: Side, across: Sequence[str]) -> tuple[str, ...]:
    """What is taken to be alike as one arm does not tell it; UserError for what differs."""
    for name in across:
        if name not in ACROSS:
            raise unknown("--across", name, ACROSS)
    hint = "; --across {} holds them against each other all the same"
    if base.metric != arm.metric and "metric" not in across:
        raise UserError(f"{base.name} is measured by {base.metric} and {arm.name} by {arm.metric}{hint.format('metric')}")
    if base.kind and arm.kind and base.kind != arm.kind:
        raise UserError(f"{base.name} is of {base.kind} and {arm.name} of {arm.kind}: losses of two objectives are not compared")
    untold = [] if bool(base.kind) == bool(arm.kind) else ["objective"]
    for key, what in ALIKE.items():
        a, b = (sorted({str(v) for v in s.table.get(key, []) if v not in (None, "", bring.UNTOLD)}) for s in (base, arm))
        if not (a and b):
            untold += [key] if a or b or key == "convention" else []
        elif a != b and key not in across:
            more = hint.format(key) if key in ACROSS else ", and are not compared"
            raise UserError(f"{base.name} and {arm.name} are of two {what}: {'; '.join(a)[:80]!r} and {'; '.join(b)[:80]!r}{more}")
    if None not in (base.floor, arm.floor) and base.floor != arm.floor:
        raise UserError(
            f"the least possible loss is {base.floor:g} of {base.name} and {arm.floor:g} of {arm.name}: losses of two problems are not compared"
        )
    return tuple(untold)


def compare(folders: Sequence[Path], base: str = "", arm: str = "", across: Sequence[str] = ()) -> Found:
    """How many times the FLOPs, and the device-seconds, the arm `base` needs for the loss of `arm`.

    Args:
      folders: one or two, of studies or of runs of others.
      across: of ACROSS, what may differ between the two.

    Raises:
      UserError: an arm is not there, tells no law, or differs in what makes losses and FLOPs comparable.
    """
    one, other = _chosen(sides(folders), base, arm)
    untold = _agree(one, other, across)
    for s in (one, other):
        if not s.table["loss"]:
            raise UserError(f"{s.name}: no size has all trials of a seed done")
    whole = [points(s.table) for s in (one, other)]
    ends = tuple(map(frontier, whole))
    if "convention" in untold:  # of one that is not told; that two which are told agree was seen
        ends = tuple(p._replace(convention=bring.UNTOLD) for p in ends)
    floor = one.floor if other.floor == one.floor else None
    shared = common(*_paired([s.table for s in (one, other)], ends))
    by_flops, by_seconds, untimed = multiplier(*ends, floor, shared), None, ""
    if without := [s.name for s, p in zip((one, other), ends, strict=True) if not np.isfinite(p.seconds).all()]:
        untimed = f"not all runs of {' and '.join(without)} have their time told"
    else:
        try:
            by_seconds = multiplier(*(p._replace(flops=p.seconds) for p in ends), floor, shared)
        except UserError as e:
            untimed = str(e).replace("of flops", "of device-seconds")
    joint, alone = None, ""
    try:
        joint = together(whole, "L(N, D)", floor)
    except UserError as e:
        alone = str(e)
    return Found(one, other, ends, by_flops, by_seconds, untimed, joint, alone, floor, untold)


def text(f: Found) -> str:
    """What `lab compare` prints."""
    base, arm, m = f.base.name, f.arm.name, f.by_flops
    trend, bounds = m.trend
    said = [
        f"{arm} reaches at {m.high:.3g} / k training FLOPs the {f.base.metric} that {base} reaches at {m.high:.3g}: k = {_at(m, m.high)}; {_verdict(m)}."
    ]
    there = "1, as both are the same runs there" if m.one and np.isclose(np.log(m.low), m.centre) else _at(m, m.low)
    said.append(f"  smallest budget ({m.low:.3g}): {there}; {BEYOND:g} times beyond the largest: {_at(m, BEYOND * m.high)}")
    said.append(
        f"  k goes as C^{trend:+.3f} ({LEVEL:.0%} interval {bounds[0]:+.3f} to {bounds[1]:+.3f})"
        + (f", and would be 1 at {m.vanishes:.2g}" if np.isfinite(m.vanishes) and m.verdict != HOLDS else "")
    )
    s = f.by_seconds
    if s is None:
        said.append(f"  by device-seconds: not told, as {f.untimed}")
    else:
        devices = [sorted(set(map(str, x.table.get("device", ["?"])))) for x in (f.base, f.arm)]
        where = f"on {devices[0][0]}" if devices[0] == devices[1] else f"{base} on {devices[0][0]}, {arm} on {devices[1][0]}"
        said.append(f"  by device-seconds: at {s.high:.3g} s of {base} k = {_at(s, s.high)}; {_verdict(s, ' s')} ({where})")
    said.append(f"  no worths of parameters and examples: {f.alone}" if f.joint is None else _worths(f))
    level = "floor known" if f.floor is not None else "one floor for both, fitted"
    said.append(f"  best of {len(f.ends[0].loss)} and {len(f.ends[1].loss)} budgets; {level}; noise shared by seed: {m.shared:.2f}")
    if repeat := [f"{often:.3g} times of {s.name}" for s in (f.base, f.arm) if (often := _often(s.table)) > 1]:
        said.append(f"  note: examples repeat, up to {' and '.join(repeat)}; k goes by examples seen, as if all were new")
    if f.untold:
        said.append(f"  not told of both, and taken to be alike: {', '.join(f.untold)}")
    return "\n".join(said + [f"  {side.name}: {note}" for side in (f.base, f.arm) for note in side.notes])


def _often(table: dict[str, list]) -> float:
    """How often a run saw its examples at most; 1 where it is not told."""
    if not {"examples", "unique"} <= set(table):
        return 1.0
    return float(np.nanmax(np.asarray(table["examples"], float) / np.asarray(table["unique"], float), initial=1.0))


def _at(m: Multiplier, flops: float) -> str:
    k, (low, high) = m.at(flops)
    return f"{k:.3g} ({LEVEL:.0%} interval {low:.3g} to {high:.3g})"


def _worths(f: Found) -> str:
    """What the joint law of sizes and data says of two arms."""
    j, base = f.joint, f.base.name
    told = [
        f"{what} is worth {k:.3g} of {base}'s ({low:.3g} to {high:.3g})"
        for what, (k, (low, high)) in (("a parameter", j.worth(1, 0)), ("an example", j.worth(1, 1)))
    ]
    if j.one_exponents:
        where = f"with one set of exponents for both (p = {j.exponents:.2g})"
    else:
        n, d = np.exp(j.centre)
        where = f"at N {n:.3g}, D {d:.3g}, as exponents are not one (p = {j.exponents:.2g})"
    return f"  by L(N, D): {', '.join(told)}, {where}" + ("" if j.one_floor else f"; floors are not one (p = {j.floors:.2g})")


def _verdict(m: Multiplier, unit: str = "") -> str:
    if m.verdict == CROSSES:
        small, large = ("saves", "costs") if m.at(m.high)[0] < 1 else ("costs", "saves")
        return f"it {small} at small scale and {large} at large: k crosses 1 near {m.crosses:.2g}{unit}"
    return f"it {m.verdict if m.verdict != UNSURE else UNSURE + ' whether k holds'}"


def _paired(sides: list[dict], ends: Sequence[Points]) -> list[np.ndarray]:
    """Log losses [rungs, seeds] of both arms at the best of every budget; empty where they have not the same seeds and number of rungs."""
    out, seeds = [], sorted(set(sides[0]["seed"]))
    for t, p in zip(sides, ends, strict=True):
        rows = {
            (params, examples, seed): loss
            for params, examples, seed, loss in zip(*(t[k] for k in ("params", "examples", "seed", "loss")), strict=True)
        }
        order = np.argsort(p.flops)
        keys = [[(params, examples, s) for s in seeds] for params, examples in zip(p.params[order], p.examples[order], strict=True)]
        if set(t["seed"]) != set(seeds) or len(p.flops) != len(ends[0].flops) or any(k not in rows for row in keys for k in row):
            return [np.zeros((0, 0))] * 2
        out.append(np.log([[rows[k] for k in row] for row in keys]))
    return out


def figure(f: Found, path: Path) -> Path:
    """Write the figure of `lab compare`: the best of every budget of both arms and the laws that k is read from, to ten times the largest."""
    shown, bands, m = {}, {}, f.by_flops
    for i, (side, p) in enumerate(zip((f.base, f.arm), f.ends, strict=True)):
        x = np.geomspace(p.flops.min(), BEYOND * p.flops.max(), 40)
        law, draws = (v[..., [0, 1 + i, 3 + i]] for v in (m.value[None], m.draws))
        mid, all_ = (v[:, :1] + v[:, 1:2] * np.exp(-v[:, 2:] * (np.log(x) - m.centre)) for v in (law, draws))
        low, high = np.array([span(v) for v in all_.T]).T
        shown[side.name], bands[side.name] = (p.flops, p.loss), (x, mid[0], low, high)
    with figures.style():
        return figures.save(figures.band(shown, bands, f.base.metric, f.floor), Path(path))
