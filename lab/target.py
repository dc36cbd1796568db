"""The experiment file of a big run: the values tuned on a study's ladder, by which rule each goes on to its size, and what tuning cost.

No jax here: sizes, parameters and FLOPs come from the records. Of a search at one size they do not tell the big run's, so that is asked for.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lab import ladder, points, rates, written
from lab.errors import UserError, unknown
from lab.laws.optimum import quantiles
from lab.laws.transfer import DRIFTS, LEVEL, TRANSFERS, Transfer, combined, line, octaves
from lab.transfer import ANSWERS, Told, answer, ends, interval


class Value(NamedTuple):
    """A hyperparameter for the big run and why."""

    log2: float
    why: str


def write(told: Told, to: dict[str, Any], arm: str, out: Path) -> str:
    """Write the experiment file of the run `to` (dotted keys) to `out`; returns what it holds, in a few lines.

    Raises:
      UserError: an unknown key or arm, a value of another type, or a file that cannot be written.
    """
    lad = told.ladder
    arm = _arm(told, arm)
    largest = max((r for r in lad.trials if r["arm"] == arm and r["finished"]), key=lambda r: r["rung"])["trial"]
    config = config_of(lad.study, largest)
    for key, value in to.items():
        put(config, key, value)
    if lad.over not in to:
        raise UserError(f"--to={','.join(to)}: the size of the big run wants {lad.over}, the key of the ladder, such as {lad.over}=1024")
    rung = float(to[lad.over])
    values = {key: _value(t, rung, ladder.leaf(lad.over)) for key, t in zip(lad.of, told.transfers[arm], strict=True)}
    for key, v in values.items():
        put(config, key, float(f"{2.0**v.log2:.6g}"))
    cost = tuning(lad, arm, config, rung)
    if other := [k for k in to if k.startswith("model.") and k != lad.over]:
        cost.append(f"{', '.join(other)} changes the size too, which these numbers do not count")
    name, covered = ladder.leaf(lad.over), ladder.leaf(lad.over) in config["base"]
    rules = [_base(lad.study, arm, config)]
    rules += [f"{lad.over} has no base, so no rule moves anything with it but what was measured"] * (not covered)
    rules += [f"{k} = {2.0**v.log2:.4g} = 2^{v.log2:.2f}: {v.why}" for k, v in values.items()]
    _save(out, f"Does what was tuned in {lad.study['name']} hold at {name} {rung:g}?", [*rules, *cost], config)
    return "\n".join([*(f"{k} = {2.0**v.log2:.4g}: {v.why}" for k, v in values.items()), *cost, f"experiment: {out}"])


def carry(search: points.Search, to: dict[str, Any], arm: str, out: Path, size: Callable[[dict], tuple[float, int]]) -> str:
    """`write` of a search at one size: its best point, which the parametrization's rule alone carries over.

    `size(config)` gives the FLOPs of a training example and the parameters; where it cannot, its UserError is told in the place of the cost.

    Raises:
      UserError: as `write`, or no arm has a point that is finished.
    """
    known = points.arms(search)
    if arm and arm not in known:
        raise unknown("--arm", arm, known)
    if not known:
        raise UserError("no point of the search has reached its last step, so there is nothing to go on with")
    if not arm and len(known) > 1 and "mup" not in known:
        raise UserError(f"--arm: which arm is to go on? expected one of: {', '.join(known)}")
    arm = arm or ("mup" if "mup" in known else known[0])
    best = points.best(search, arm).point
    mine = [r for r in search.trials if r["arm"] == arm]
    trial = next(r["trial"] for r in mine if all(ladder.value(search.study, r["trial"], k) == v for k, v in best.values.items()))
    config = config_of(search.study, trial)
    for key, value in to.items():
        put(config, key, value)
    sized = [k for k in to if k.startswith("model.")]
    rules = [_base(search.study, arm, config), *points.sentences(search, arm)]
    if loose := [k for k in sized if ladder.leaf(k) not in config["base"]]:
        rules.append(f"{', '.join(loose)}: no base, so no rule carries anything over it")
    rules += [
        f"{k} = {v:.4g}: {by_rule(k, config, to)}" if type(v) is float else f"{k} = {v}: {by_rule(k, config, to)}"
        for k, v in best.values.items()
    ]
    rules.append("carried by rule alone, as one size measures no drift: a few trials at a second size would (`lab transfer` of those)")
    cost = _cost(mine, config, size)
    where = ", ".join(f"{ladder.leaf(k)} {v}" for k, v in to.items())
    _save(out, f"Does the best of the search {search.study['name']} hold at {where}?", [*rules, *cost], config)
    return "\n".join([*rules[1:], *cost, f"experiment: {out}"])


def by_rule(key: str, config: dict, to: dict[str, Any]) -> str:
    """How a hyperparameter goes on to the big run, by the parametrization's rules."""
    p, t, section = {"decay": "constant", "eps": "scaled", **config["parametrization"]}, config["train"], key.partition(".")[0]
    moved = {"train.batch", "train.steps"} & set(to)
    if key == "optim.lr":
        if p["name"] == "standard":
            said = "the standard rule has one rate for all weights at every size, whatever is best there: tune it anew"
        else:
            said = f"parametrization {p['name']} makes each weight's own step of it by the weight's arrow; the number stays"
        if moved:
            rule = rates.NONE | config.get("transfer", {})
            factor = rates.factor(rule, t["batch"], t["steps"])
            told = f"times {factor:.3g}, by transfer.batch_rule {rule['batch_rule']}, horizon_rule {rule['horizon_rule']}"
            said += f"; {told}" if factor != 1 else f"; no rule of `transfer` moves it with {' and '.join(sorted(moved))}"
        return said
    rules = {
        "optim.weight_decay": f"by parametrization.decay {p['decay']}, which says how its product with a weight's step goes with size; the number stays",
        "optim.eps": f"by parametrization.eps {p['eps']}; the number stays",
        "optim.clip": "it sees gradients of the size expected at the base, so the number stays",
    }
    said = rules.get(key, "no rule moves it with size" if section == "optim" else "as it was searched; no rule moves it")
    return said + f"; nor is it tuned for another {' or '.join(k.partition('.')[2] for k in sorted(moved))}" * bool(moved)


def _cost(trials: list[dict], config: dict, size: Callable[[dict], tuple[float, int]]) -> list[str]:
    """What trials took beside one run of `config`; those that halving stopped or that diverged count by what they took."""
    mine, examples = [r for r in trials if r["finished"] and r["flops"]], config["train"]["batch"] * config["train"]["steps"]
    flops, product = sum(r["flops"] for r in mine), sum(r["parameters"] * r["examples"] for r in mine)
    stopped = sum(r["state"] == "stopped" for r in mine)
    said = f"tuning cost, all {len(mine)} trials" + f", {stopped} of them stopped early" * bool(stopped)
    try:
        each, parameters = size(config)
    except UserError as e:
        return [f"{said}: {flops:.3g} FLOPs; what the big run takes is not known here ({e})"]
    big = f"the big run: {each * examples:.3g} FLOPs, {parameters:,} parameters, {examples:,} examples"
    return [
        f"{said}: {flops / (each * examples):.2%} of the big run's FLOPs; R S B T / (S B T) = {product / (parameters * examples):.2%}",
        big,
    ]


def _base(study: dict, arm: str, config: dict) -> str:
    known = ", ".join(f"{k} {v}" for k, v in config["base"].items())
    rule = config["parametrization"]["name"]
    return f"arm {arm} of study {study['name']}; parametrization {rule}, which scales every weight from the base ({known or 'none'})"


def _save(out: Path, question: str, told: list[str], config: dict) -> None:
    """Write an experiment file; UserError where that cannot be."""
    last = "regularisation (label_drop, weight decay, dropout) and the data's epochs are not tuned by transfer: look at them anew"
    written.save(out, written.experiment(question, "lab transfer", [*told, last], config))


def _arm(told: Told, arm: str) -> str:
    if arm and arm not in told.transfers:
        raise unknown("--arm", arm, told.transfers)
    if not told.transfers:
        raise UserError("no arm has all trials of a seed at two sizes yet, so there is nothing to go on with")
    if not arm and len(told.transfers) > 1 and "mup" not in told.transfers:
        raise UserError(f"--arm: which arm is to go on? expected one of: {', '.join(told.transfers)}")
    return arm or ("mup" if "mup" in told.transfers else next(iter(told.transfers)))


def config_of(study: dict, trial: str) -> dict:
    """The config of a trial without `run`, as study.json tells it."""
    point = study["trials"][trial]["point"]
    config = {k: dict(v) if isinstance(v, dict) else v for k, v in study["config"].items() if k != "run"}
    config |= {s: {} for s in study.get("sections", ()) if f"{s}.name" in point}
    for key, value in point.items():
        if key != "arm":
            *sections, last = key.split(".")
            inside = config
            for s in sections:
                inside[s] = dict(inside.get(s, {}))
                inside = inside[s]
            inside[last] = value
    return config


def put(config: dict, key: str, value: Any) -> None:
    """Set a dotted key that the config has, to a value of its type."""
    flat = _flat(config)
    if key not in flat:
        raise unknown("--to: config key", key, flat)
    if isinstance(flat[key], float) and type(value) is int:
        value = float(value)
    if type(value) is not type(flat[key]):
        raise UserError(
            f"--to: {key}={value!r} is of type {type(value).__name__}; expected {type(flat[key]).__name__} such as {flat[key]!r}"
        )
    *sections, last = key.split(".")
    for s in sections:
        config[s] = dict(config[s])
        config = config[s]
    config[last] = value


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for k, v in tree.items():
        flat |= _flat(v, f"{prefix}{k}.") if isinstance(v, dict) and v else {f"{prefix}{k}": v}
    return flat


def _value(t: Transfer, rung: float, name: str) -> Value:
    """What to take at `rung`: the mean of the optima where they stay, the line through them where they drift, else the largest rung's."""
    found = np.array([np.isfinite(o.log2) for o in t.optima])
    stays, drifts = (t.stays, not t.stays) if t.verdict is None else (t.verdict == TRANSFERS, t.verdict == DRIFTS)
    if t.verdict is None and (t.bounded or not np.isfinite(t.drift)):
        stays = drifts = False  # point estimates that are bounds, or of which one is missing, tell neither
    if stays:
        weights, why = found / found.sum(), f"the mean of {found.sum()} optima"
    elif drifts:
        slope, start = line(octaves(t.rungs), found)
        weights, why = (
            start + slope * np.log2(rung / t.rungs[0]),
            f"the line through {found.sum()} optima carried on, {t.slope:+.2f} octaves a doubling",
        )
    else:
        last = np.flatnonzero(found)[-1]
        weights, why = np.eye(len(found))[last], f"the optimum at {name} {t.rungs[last]:g}"
    log2 = float(weights @ np.array([o.log2 if f else 0.0 for o, f in zip(t.optima, found, strict=True)]))
    bounds = None if t.fit is None else quantiles(combined(weights, t.fit.draws), LEVEL)
    known = "no interval" if bounds is None else f"{LEVEL:.0%} interval of log2 {ends(bounds, '.2f')}"
    told = t.verdict or ANSWERS[answer(t)].format(of="value")
    drift = f"{told}, drift {t.drift:+.2f} octaves{interval(t.drift_interval, '+.2f')} over {name} {t.rungs[0]:g} to {t.rungs[-1]:g}"
    return Value(log2, f"{why}, {known}; {drift}")


def tuning(lad: ladder.Ladder, arm: str, config: dict, rung: float) -> list[str]:
    """What the arm's trials cost beside one run of `config`, by FLOPs, and by trials x parameters x batch x steps (arXiv 2505.15270)."""
    mine = [r for r in lad.trials if r["arm"] == arm and r["finished"] and r["flops"]]
    sizes = sorted({r["rung"] for r in mine})
    per = {k: next((r["flops"] / r["examples"], r["parameters"]) for r in mine if r["rung"] == k) for k in sizes}
    examples = config["train"]["batch"] * config["train"]["steps"]
    big_flops, big_parameters = (_carried(np.array(sizes), np.array([per[k][i] for k in sizes]), rung) for i in (0, 1))
    out = []
    for name, chosen in (
        (f"all {len(mine)} trials", mine),
        (f"those of the smallest size, {sizes[0]:g}", [r for r in mine if r["rung"] == sizes[0]]),
    ):
        flops = sum(r["flops"] for r in chosen) / (big_flops * examples)
        product = sum(r["parameters"] * r["examples"] for r in chosen) / (big_parameters * examples)
        out.append(f"tuning cost, {name}: {flops:.2%} of the big run's FLOPs; R S B T / (S B T) = {product:.2%}")
    big = f"{big_flops * examples:.3g} FLOPs, {big_parameters:,.0f} parameters, {examples:,} examples"
    out.append("for comparison, DiT-muP reports 5.5% (PixArt) and 3% (MMDiT, of what experts spend on tuning)")
    return [*out, f"the big run: {big} (sizes carried on from the records; `lab plan` counts them)"]


def _carried(x: np.ndarray, y: np.ndarray, to: float) -> float:
    """A polynomial of degree 2 at most, exact for what is counted over width, depth, batch or steps; a power where it turns negative."""
    degree = min(2, len(x) - 1)
    value = float(np.polyval(np.polyfit(x, y, degree, w=1 / y), to))
    if value < y.max() and to > x.max():
        value = float(y[-1] * (to / x[-1]) ** (np.log(y[-1] / y[-2]) / np.log(x[-1] / x[-2])))
    return value
