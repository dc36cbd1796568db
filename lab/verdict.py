"""What a coordinate check found, in words: the slopes, which of them are not what muP promises, and what is likely at fault.

What a weight adds, W x, is what must not drift; how it starts and how far a step moves it tell why, where it does.
"""

import math
from typing import NamedTuple

import numpy as np

from lab import parametrization
from lab.axes import Arrow
from lab.coordinates import Found
from lab.laws.slope import Slope, holm, slope

BOUND = 0.2  # slopes this small are effects of finite size (docs/design.md, at its end)
CAUSE = 0.5  # by how much a start or a step must be off to be named as the cause: these have hardly any noise
JUDGED = ("own", "activation", "decay")
TOLD = ("gradient", "update", "start", "relative")  # measured, and judged by no bound of their own
SHARE = 0.1  # of an update, which epsilon may not take
SILENT = 1e-5  # gradients this much smaller than the median weight's are rounding, as that of the keys' bias


class Ladder(NamedTuple):
    """What was measured as one knob grew from the base: log of its ratio to it, the arrows at the last size, and what was found."""

    knob: str  # 'width' or 'depth'
    x: np.ndarray  # [size]
    arrows: dict[str, Arrow]
    found: list[Found]  # [size] of [rule, seed, layer]


class Fault(NamedTuple):
    """A weight, the kind of fault, and the evidence."""

    weight: str
    kind: str
    why: str


Slopes = dict[str, dict[str, Slope]]  # measure -> entry -> slope


def promised(measure: str, arrow: Arrow | None, alpha: float = 1.0) -> float | None:
    """By what factor a measure should differ from the base's, by muP with branch exponent `alpha`; None: nothing is promised.

    `arrow` is None for a product of two activations, as attention's logits are.
    """
    if arrow is None:
        return 1.0
    ideal = parametrization.mup(arrow, alpha)
    if measure == "own":
        return ideal.step * arrow.r_in
    if measure == "activation":
        # what starts at zero is its own change; the output of a readout that starts elsewhere goes from width^-1/2 to constant
        if (arrow.fixed and not arrow.ins) or (arrow.role == "output" and not arrow.fixed) or not (arrow.init or arrow.fill):
            return None
        return ideal.init * (1.0 if arrow.fixed else arrow.r_in**0.5)
    return {"start": ideal.init, "update": ideal.step, "relative": ideal.step / ideal.init}.get(measure, 1.0)


def _arrow(ladder: Ladder, entry: str) -> Arrow | None:
    return None if " x " in entry else ladder.arrows[entry.rstrip("'")]


def slopes(ladder: Ladder, rule: int, alpha: float = 1.0, bound: float = BOUND) -> Slopes:
    """The slope of every measure of every entry under one rule, by the mean of its log over layers; what does not move is left out."""
    out: Slopes = {}
    for measure in (*JUDGED, *TOLD):
        out[measure] = {}
        for entry in ladder.found[0][measure]:
            factor = promised(measure, arrow := _arrow(ladder, entry), alpha)
            sizes = [f[measure][entry][rule] for f in ladder.found]
            if factor is None or (arrow is None and ladder.knob == "depth") or any(np.any(s <= 1e-12) for s in sizes):
                continue
            y = np.stack([np.log(s).mean(-1) for s in sizes])
            out[measure][entry] = slope(ladder.x, y, math.log(factor) / ladder.x[-1], bound)
    return out


def layers(ladder: Ladder, rule: int, measure: str = "own") -> dict[str, list[float]]:
    """{entry: slope of each layer}, the seeds' mean; empty where the number of layers differs."""
    out = {}
    for entry, first in ladder.found[0][measure].items():
        sizes = [f[measure][entry][rule] for f in ladder.found]
        if all(s.shape == first[rule].shape and np.all(s > 1e-12) for s in sizes):
            y = np.stack([np.log(s) for s in sizes])  # [size, seed, layer]
            out[entry] = np.einsum("w,wsl->l", ladder.x - ladder.x.mean(), y) / np.sum((ladder.x - ladder.x.mean()) ** 2) / y.shape[1]
    return {n: v.tolist() for n, v in out.items()}


def silent(ladder: Ladder, rule: int) -> set[str]:
    """Entries whose gradient is rounding: what Adam makes of it is no evidence."""
    size = {n: float(np.median(g[rule])) for n, g in ladder.found[-1]["gradient"].items()}
    return {n for n, g in size.items() if g < SILENT * np.median(list(size.values()))}


class Verdict(NamedTuple):
    """How many slopes were tested, which (ladder, measure, entry) are not as promised, and the faults behind them."""

    tested: int
    rejected: list[tuple[int, str, str]]
    faults: list[Fault]


def judge(ladders: list[Ladder], found: list[Slopes], rule: int) -> Verdict:
    """What is not as promised under one rule, whose slopes on each ladder are `found`.

    All slopes that are judged share one chance of 5% of a false alarm (Holm).
    """
    tested = [
        (i, measure, entry, s)
        for i, ladder in enumerate(ladders)
        for measure in JUDGED
        for entry, s in found[i][measure].items()
        if entry not in silent(ladder, rule)
    ]
    wrong = [t for t, rejected in zip(tested, holm([s.p for *_, s in tested]), strict=True) if rejected]
    out = [_fault(ladders[i], found[i], measure, entry, s) for i, measure, entry, s in wrong]
    out += [f for i, ladder in enumerate(ladders) for f in (*_output(ladder, found[i]), *_epsilon(ladder, rule))]
    return Verdict(len(tested), [t[:3] for t in wrong], list(dict.fromkeys(out)))


def _fault(ladder: Ladder, all_of: Slopes, measure: str, entry: str, s: Slope) -> Fault:
    """The likely fault behind a slope that is not what was promised."""
    knob, arrow, name = ladder.knob, _arrow(ladder, entry), entry.rstrip("'")
    seen = (
        f"{measure if measure == 'decay' else measure + ' change' if measure == 'own' else measure} {_power(knob, s.value)} ± {s.half:.2f}"
    )
    seen += f", due {_power(knob, s.promised)}"
    if measure == "decay":
        return Fault(
            name,
            "decay",
            f"learning rate x weight decay goes as {_power(knob, s.value)} and not as {_power(knob, s.promised)}: it is not rescaled",
        )
    if arrow is None or arrow.fixed:
        return Fault(name, "logits", f"{seen}: it is scaled by a size that it does not contract")
    step, start = (all_of[m].get(entry) for m in ("update", "start"))
    moved = step is not None and abs(step.off) > CAUSE
    began = start is not None and abs(start.off) > CAUSE / 2
    told = f"{seen}; its learning rate {_power(knob, step.value)}, due {_power(knob, step.promised)}" if moved else seen
    if began:
        told += f"; its init {_power(knob, start.value)}, due {_power(knob, start.promised)}"
    if knob == "depth" and (moved or began) and arrow.closes:
        return Fault(name, "depth", f"{told}: the branch that it closes lacks its depth multiplier")
    if measure == "activation" and began:
        return Fault(name, "init", told)
    if moved and step.off < 0 and not arrow.ins:
        return Fault(name, "filed as hidden", f"{told}: it contracts nothing, and is scaled as if it did")
    if s.off < 0 and arrow.role == "output" and knob == "width":
        return Fault(name, "counted twice", f"{told}: the readout is scaled down once too often")
    if moved:
        return Fault(name, "learning rate", told)
    return Fault(name, "drift", f"{told}: its own scales are right, so look at what it reads, and at its arrow")


def _output(ladder: Ladder, all_of: Slopes) -> list[Fault]:
    """A multiplier behind the readout is seen in the gradients of all weights, and in nothing else that Adam lets be seen."""
    if ladder.knob == "depth":
        return []
    each = [s.value for s in all_of["gradient"].values()]
    typical, spread = np.median(each), np.median(np.abs(each - np.median(each)))
    if abs(typical) - 2 * spread < CAUSE:
        return []
    ends = [n for n, a in ladder.arrows.items() if a.role == "output" and a.ins]
    why = f"gradients of all weights go as {_power('width', float(typical))} of what is expected: the output is scaled with width behind the readout"
    return [Fault(ends[0] if ends else "output", "counted twice" if typical < 0 else "output", why)]


def _epsilon(ladder: Ladder, rule: int) -> list[Fault]:
    quiet, worst = silent(ladder, rule), {}
    for entry, share in ladder.found[-1]["epsilon"].items():
        if entry not in quiet:
            name = entry.rstrip("'")
            worst[name] = max(worst.get(name, 0.0), float(np.mean(share[rule])))
    why = f"epsilon takes {{:.0%}} of its update at the largest {ladder.knob}: lower optim.eps"
    return [Fault(n, "epsilon", why.format(s)) for n, s in worst.items() if s > SHARE]


def arrows(complaints: dict[str, list[str]]) -> list[Fault]:
    """Faults of the arrows themselves, from what the audit says of them."""
    out = []
    for name, said in complaints.items():
        for text in said:
            if "the arrow contracts" in text:
                kind = "filed as hidden" if text.startswith("contracts nothing") else "fan-in"
            else:
                kind = "logits" if "a product over" in text else "branch" if "branch" in text else "arrow"
            out.append(Fault(name, kind, text))
    return out


def late(ladder: Ladder, rule: int, steps: int) -> dict[int, list[str]]:
    """{step: weights that get their first gradient in it}, but the first step; those that never do are under steps + 1."""
    out: dict[int, list[str]] = {}
    for entry, w in ladder.found[-1]["wakes"].items():
        out.setdefault(int(w[rule].max()), []).append(entry)
    return {k: v for k, v in sorted(out.items()) if k > 1}


def _power(knob: str, exponent: float) -> str:
    return f"{knob}^{exponent:+.2f}"
