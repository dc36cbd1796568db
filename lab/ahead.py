"""What a bigger run will do, in words: `lab forecast` prints it. No jax here, but to count the program of a run that is given by its config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lab import bring, ladder, record, skills, target
from lab.devices import PEAK, Machine
from lab.errors import UserError
from lab.fit import WORTH, Study, Told, formula, lawless, warnings
from lab.laws.allocation import price
from lab.laws.epochs import Limited, effective
from lab.laws.fits import DRAWN, LEVEL, NEAR, Fit, span
from lab.laws.forecast import LEVELS, Forecast, at_best, forecast, sized
from lab.laws.worth import REACH, Run, suggest
from lab.skills import Skill
from lab.tables import SIZES, TUNED
from lab.transfer import ends

FAR = 1000.0  # times the largest budget from which a forecast is told to be none
ALIKE = ("model.name", "objective.name", "train.dtype", "train.precision")  # what a run has in common with the arm whose law foretells it
HORIZON = ("train.steps", "train.batch")
GIVEN = {"params", "examples"}  # a run that is given by its size and horizon themselves


class Target(NamedTuple):
    """A run to be foretold of an arm, and how it was told."""

    flops: float
    params: float
    examples: float
    said: str


def targets(folder: Path, told: Study, to: Mapping[str, Any] | Path) -> dict[str, Target | str]:
    """Arm with a law -> the run of its config that `to` gives, or why there is none.

    Args:
      to: an experiment file; or dotted keys of a config (model.*, train.steps, train.batch) in place of the arm's own; or params and examples themselves.

    Raises:
      UserError: a run that no arm foretells; a key, convention or data that are not the records'.
    """
    able, out, config = _able(told), {}, None
    given = isinstance(to, Mapping) and bool(GIVEN & set(to))
    if not given:
        if bring.has(folder):
            raise UserError("--to: runs of others have no config to count; give the run's size itself, --to params=1e9,examples=2e10")
        study = record.read_study(folder)
        named = ladder.arms(study, None, tuple(k for k in ladder.numbers(study) if k.startswith((*TUNED, *SIZES))))
        config = None if isinstance(to, Mapping) else _loaded(folder, study, to)
    for arm, t in able.items():
        if t.laws.sizes is None:
            out[arm] = f"its law is of compute alone, of best sizes and no given one: {t.laws.refused[0]}"
            continue
        if given:
            out[arm] = _given(t, to)
            continue
        own = target.config_of(study, next(i for i, name in named.items() if name == arm))
        if config is None:
            for key, value in to.items():
                if key not in HORIZON and (not key.startswith("model.") or key in ALIKE):
                    raise UserError(
                        f"--to: {key} is no size or horizon (model.*, {', '.join(HORIZON)}), and under another one this law need not hold"
                    )
                target.put(own, key, value)
        elif other := next((k for k in ALIKE if _value(config, k) != _value(own, k)), None):
            out[arm] = f"{to} has {other} {_value(config, other)}, and the arm {_value(own, other)}"
            continue
        out[arm] = _counted(folder, config or own, t.points.convention)
    if not any(isinstance(v, Target) for v in out.values()):
        raise UserError(f"--to: no arm foretells this run: {'; '.join(f'{arm}: {why}' for arm, why in out.items())}")
    return out


def _given(t: Told, to: Mapping[str, Any]) -> Target:
    """A size and horizon told themselves, at what such a size's example costs by the records."""
    if set(to) != GIVEN:
        raise UserError(f"--to: {', '.join(to)}: a run given by its size wants params and examples, both and alone")
    for key, value in to.items():
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise UserError(f"--to: {key}={value!r} must be a number above 0")
    params, examples = float(to["params"]), float(to["examples"])
    cost = price(t.points)
    return Target(
        float(np.exp(cost.log + cost.power * np.log(params))) * examples, params, examples, "FLOPs by what an example costs in the records"
    )


def _value(config: Mapping, key: str) -> Any:
    section, _, leaf = key.partition(".")
    return config[section][leaf]


def _loaded(folder: Path, study: dict, file: Path) -> dict:
    """The config of an experiment file; UserError where its data are not those of the records."""
    from lab.data.loader import open_source
    from lab.experiment import load

    config = load(str(file)).config.to_dict()
    info, known = open_source({**config["data"]}, "train", config["run"]["data_dir"]).info, study["data"]
    mine, theirs = (str(v.get("fingerprint", v["origin"])) for v in (info, known))
    if mine != theirs:
        raise UserError(
            f"--to {file}: its data are {info['origin']!r} ({mine[:12]}), those of {folder} {known['origin']!r} ({theirs[:12]})"
        )
    return config


def _counted(folder: Path, config: dict, convention: str) -> Target:
    """A config's run, its example counted in the traced program; UserError where the records' FLOPs were counted otherwise."""
    from lab import cost
    from lab.sampling import counted

    if convention != cost.CONVENTION:
        raise UserError(f"--to: FLOPs of {folder} were counted as {convention!r}, and here as {cost.CONVENTION!r}")
    each, params = counted(folder, config)
    examples = config["train"]["batch"] * config["train"]["steps"]
    return Target(float(each * examples), float(params), float(examples), f"counted: {each:.4g} FLOPs an example")


def _able(told: Study) -> dict[str, Told]:
    """Arms with a law; UserError where none has."""
    able = {arm: t for arm, t in told.arms.items() if t.laws is not None}
    if not able:
        raise lawless(told, " to forecast from")
    return able


def text(
    told: Study,
    flops: float | None = None,
    to: Mapping[str, Target | str] | None = None,
    machine: Machine | None = None,
    scores: tuple[Skill, ...] = (),
    unique: float | None = None,
) -> str:
    """What `lab forecast` prints of a budget `flops`, or of the runs `to` of each arm.

    Args:
      unique: distinct examples that there are, where repeats count less than new ones (default: as many as the arm's runs had).

    Raises:
      UserError: no arm has a law; `unique` where no arm's repeats count less.
    """
    if unique is not None and not any(t.laws.limited() for t in _able(told).values()):
        raise UserError(
            f"--unique={unique:g} has no meaning here: of no arm it is told that examples which repeat count less than new ones"
        )
    what = f" at {flops:.3g} training FLOPs" if flops is not None else " of a given run"
    said = [f"{told.metric}{what}; intervals of {' and '.join(f'{v:.0%}' for v in LEVELS)}. N: parameters, D: examples, C: training FLOPs."]
    if flops is not None and machine:
        said.append(takes(machine, flops))
    for arm, t in _able(told).items():
        if to is not None and isinstance(to[arm], str):
            said += ["", f"{arm}: no forecast: {to[arm]}"]
            continue
        run = to[arm] if to is not None else None
        limited, first = (
            t.laws.limited(unique),
            (t.laws.first if run is None else t.laws.of_sizes)(unique),
        )  # a given run is no best of its budget
        if run is None:
            here = at_best(first, flops)
            lines = _budget(arm, t, forecast(t.laws, flops, unique), first)
        else:
            here = {"params": run.params, "examples": run.examples}
            lines = _run(arm, t, run, unique) + ([f"  {takes(machine, run.flops)}"] if machine else [])
        said += ["", *lines, *([_next(first, here)] if limited is None else _spent(limited, here["examples"]))]
        losses = np.concatenate([first.loss(**here), first.losses(**here)[:, 0]])
        for s in scores:
            said += skills.foretold(s, arm, flops if run is None else run.flops, losses, run is not None)
        said += [
            f"  {line}"
            for line in ([t.laws.why] if t.laws.why and run is None and not limited else []) + warnings(t.points, limited is not None)
        ]
        if not t.laws.told:
            said.append("  provisional: too few budgets to hold a larger one out")
        said += [f"  {note}" for note in t.notes if note.startswith("left out: ")]
    if to is None and len({t.laws.first(unique).form for t in _able(told).values()}) > 1:
        said += [
            "",
            "arms are foretold by different forms here, which differ by more than arms may: hold arms against each other by one form, or by `lab compare`",
        ]
    return "\n".join(said + [f"{arm}: no law: {t.refused}" for arm, t in told.arms.items() if t.laws is None])


def _span(bounds: tuple[float, float], form: str = ".4g") -> str:
    return ends(bounds, form)


def _spent(f: Limited, examples: float) -> list[str]:
    """How often the run sees its examples, and what they are worth."""
    unique = min(f.unique, examples)
    worth = effective(examples, unique, f.law.draws[:, 5]) / examples
    said = f"  of {f.unique:.3g} distinct examples, each seen {examples / unique:.3g} times"
    return [said + (f": worth {_span(span(worth), '.0%')} of as many new ones" if examples > unique else "")]


def _law(first: Fit | Limited, beyond: float) -> str:
    far = ": too far to be believed, whatever its intervals" if beyond > FAR else ""
    drawn = (
        f" (exponents drawn to {NEAR[0]:g} +- {NEAR[1]:g}, as published ones are, for {len(first.points.loss)} points tell little of them)"
        * (first.form == DRAWN)
    )
    worth = f" ({WORTH})" if isinstance(first, Limited) else ""
    return f"  by {first.form} = {formula(first)}{worth}{drawn}, {beyond:.3g} times {'beyond ' * (beyond >= 1)}its largest budget{far}"


def _budget(arm: str, t: Told, f: Forecast, first: Fit | Limited) -> list[str]:
    said = [f"{arm}: {f.loss:.4g} ({'; '.join(map(_span, f.law))}); one run {'; '.join(map(_span, f.run))}", _law(first, f.beyond)]
    if f.wrong:
        sizes, data = ("; ".join(_span(s, ".3g") for s in v) for v in (f.params_spans, f.examples_spans))
        said.append(f"  best N {f.params:.3g} ({sizes}), D {f.examples:.3g} ({data}){' by L(N, D)' * (len(first.variables) == 1)}")
        prices = ", ".join(f"{k:g} times N {v:+.2%} ({_span(s[-1], '+.2%')})" for k, (v, s) in f.wrong.items())
        said.append(f"  price of another size at the same FLOPs, in loss: {prices}")
    else:
        said.append(f"  no best size: {t.laws.refused[0] if t.laws.refused else 'a law of compute alone tells none'}")
    if others := {k: v for k, v in f.forms.items() if k != first.form}:
        said.append("  by other forms: " + "; ".join(f"{k} {v:.4g} ({_span(s[-1])})" for k, (v, s) in others.items()))
    return said


def _run(arm: str, t: Told, run: Target, unique: float | None) -> list[str]:
    f, first = sized(t.laws, run.flops, run.params, run.examples, unique), t.laws.of_sizes(unique)
    most = f.best
    loss, spans = most.forms[first.form if first.form in most.forms else t.laws.sizes.form]
    others = {k: v for k, v in most.forms.items() if k != first.form}
    return [
        f"{arm}: {f.loss:.4g} ({'; '.join(map(_span, f.law))}); one run {'; '.join(map(_span, f.run))}",
        f"  of N {run.params:.3g}, D {run.examples:.3g}, {run.flops:.3g} FLOPs ({run.said})",
        _law(first, f.beyond[0]) + f"; {f.beyond[1]:.3g} times its largest N, {f.beyond[2]:.3g} times its largest D",
        f"  price against the best size at the same FLOPs, in loss: {f.price:+.2%} ({'; '.join(_span(s, '+.2%') for s in f.price_spans)})",
        f"  the best: N {most.params:.3g} ({_span(most.params_spans[-1], '.3g')}), D {most.examples:.3g} ({_span(most.examples_spans[-1], '.3g')}), {loss:.4g} ({_span(spans[-1])})",
        *(["  there by other forms: " + "; ".join(f"{k} {v:.4g} ({_span(s[-1])})" for k, (v, s) in others.items())] if others else []),
    ]


def _next(first: Fit, here: dict[str, float]) -> str:
    """The line of the run that is worth most to the forecast."""
    cheap, most = suggest(first, here)
    largest = float(first.points.flops.max())

    def named(r: Run) -> str:
        size = f"N {r.params:.3g}, D {r.examples:.3g}" if np.isfinite(r.params) else "the best size"
        return f"{size}, {r.flops:.3g} FLOPs ({r.flops / largest:.3g} times the largest budget), by {r.shrinks:.1%}"

    return (
        f"  next run: the {LEVEL:.0%} interval would shrink most a FLOP by {named(cheap)}; "
        f"most of all, of runs up to {REACH:g} times the largest, by {named(most)}"
    )


def takes(machine: Machine, flops: float) -> str:
    """Time, device-time and cost of training FLOPs, and what was assumed."""
    hours = machine.hours(flops)
    cost = "" if machine.price is None else f", {_amount(hours * machine.count * machine.price)} at {machine.price:g} a device-hour"
    return (
        f"on {machine.count:,} {machine.kind} (published peak {PEAK[machine.kind]:.4g} bf16 FLOP/s each): {_time(hours, days=True)}, "
        f"{_time(hours * machine.count, 'device-')}{cost}, if {machine.mfu:.3g} of the peak is reached, which is assumed"
    )


def _time(hours: float, of: str = "", days: bool = False) -> str:
    """Hours in the unit that suits them; device-time goes up to hours, by which it is paid."""
    units = {"days": 1 / 24, "hours": 1.0, "minutes": 60.0, "seconds": 3600.0}
    least = {"days": 48.0 if days else np.inf, "hours": 1.0, "minutes": 1 / 60, "seconds": 0.0}
    unit = next(u for u, from_ in least.items() if hours >= from_)
    return f"{_amount(hours * units[unit])} {of}{unit}"


def _amount(v: float) -> str:
    return f"{v:,.0f}" if v >= 100 else f"{v:.3g}"
