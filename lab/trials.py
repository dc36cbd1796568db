"""Points of a sweep -> trials, each with its identity -> groups that one program can train."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lab import axes, find, parametrization, rates, record, restore
from lab import population as populations
from lab.axes import Dims
from lab.errors import UserError
from lab.experiment import DEFAULTS, PARTS, SINCE, Experiment, configs, flatten
from lab.optim import traced
from lab.population import Begun, Trial
from lab.restore import NUMBERS

TRACED_SECTIONS = ("seed", "parametrization", "transfer")  # beside what optim traces: trials that differ in these share a program


def expand(
    experiment: Experiment, data_print: str, complete: list[dict] | None = None, begins: list[Begun | None] | None = None
) -> list[Trial]:
    """The trials of a sweep, each with its complete config, of `configs` where they are at hand, and its identity.

    `begins` is what those of each point begin from, found in the folders that they name where not told; that of a stage is told.
    """
    return list({t.id: t for t in at_points(experiment, data_print, complete, begins)}.values())


def at_points(
    experiment: Experiment, data_print: str, complete: list[dict] | None = None, begins: list[Begun | None] | None = None
) -> list[Trial]:
    """The trial at each point of a sweep, in order: two points may be one trial."""
    trials, complete = {}, complete or configs(experiment)
    if begins is None:
        named = {(full["init"]["study"], full["init"]["trial"]) for full in complete}
        found = {key: Begun("", 1, 0.0) if experiment.before else _begins(*key) for key in named}
        begins = [found[full["init"]["study"], full["init"]["trial"]] for full in complete]
    out = []
    for point, full, begun in zip(experiment.points, complete, begins, strict=True):
        arm = point.get("arm") or " ".join([full["parametrization"]["name"], *[find.stem(point[k]) for k in ("optim.name",) if k in point]])
        trial = Trial(identity(full, data_print, begun), arm, full, point, begun)
        if trials.get(trial.id, trial).config["sample"] != full["sample"]:
            raise UserError(
                "two points of the sweep differ in sample.options alone, which change no training, so they are one trial; expected one, and "
                "`lab sample DIR --option KEY=VALUE` to draw from it otherwise"
            )
        trials[trial.id] = trial
        out.append(trial)
    return [trials[t.id] for t in out]


def _begins(study: str, trial: str) -> Begun | None:
    """What begins from a trial of the folder `study`, or its best, begins from: a digest of the weights, and what they took; None without one."""
    if not study:
        return None
    folder = Path(study)
    if not (folder / "study.json").exists():
        raise UserError(f"config key init.study={study!r} holds no study.json; expected the folder of a study whose weights to begin from")
    about, name, trial, _ = restore.chosen(folder, trial)
    rows = [r for r in record.read_rows(folder / name).to_pylist() if r["trial"] == trial]
    before = about["trials"][trial].get("begun", {"after": 0})["after"]
    flops = float((rows[-1].get("flops") if rows else None) or 0.0)  # of weights brought from elsewhere nothing is known
    return Begun(restore.digest(folder, name, trial), before + 1, flops)


def identity(config: dict, data_print: str, begun: Begun | None = None) -> str:
    """Hash of what changes a trial's result: config without where it runs, how it is shown and judged, data, a user's own modules, what it begins from."""
    kept = {k: v for k, v in config.items() if k not in ("run", "sample", "judge")}
    kept["eval"] = {k: v for k, v in kept["eval"].items() if k != "metric"}
    for section in {key.split(".")[0] for key in SINCE}:
        kept[section] = {k: v for k, v in kept[section].items() if (key := f"{section}.{k}") not in SINCE or v != SINCE[key]}
    kept["init"] = {k: config["init"][k] for k in ("transform", "options")} | {"from": begun[:2]} if begun else {}  # wherever it lies
    kept = {k: v for k, v in kept.items() if k not in ("transfer", "init") or v}
    own = [find.source_digest(where, config[p]["name"]) for p, where in PARTS.items()]
    own += [find.source_digest("lab.layers", v) for k, v in sorted(config["model"].items()) if k != "name" and find.is_own(v)]
    own += filter(None, [find.source_digest("lab.optimizers", config["optim"]["name"])])
    own += filter(None, [find.source_digest("lab.transforms", config["init"]["transform"])] if begun else [])
    text = json.dumps([NUMBERS, kept, data_print, own], sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def shape_key(trial: Trial) -> str:
    """Equal for trials that one program can train: the config without what is traced."""
    config = json.loads(json.dumps(trial.config, default=list))
    config["optim"] = {k: v for k, v in config["optim"].items() if k not in traced(trial.config["optim"])}
    for key in TRACED_SECTIONS:
        del config[key]
    return json.dumps(config, sort_keys=True)


def pack(trials: list[Trial], dims: dict[str, int]) -> list[list[Trial]]:
    """Trials grouped by shape, each group cut into populations of at most run.chunk trials (0: what memory allows)."""
    groups: dict[str, list[Trial]] = {}
    for t in trials:
        groups.setdefault(shape_key(t), []).append(t)
    out = []
    for group in groups.values():
        chunk = group[0].config["run"]["chunk"] or _fitting(group[0], dims)
        n = -(-len(group) // chunk)
        out += [list(g) for g in np.array_split(np.array(group, dtype=object), n)] if n > 1 else [group]
    return out


def _fitting(trial: Trial, dims: dict[str, int]) -> int:
    """Trials that need at most half of the device's memory, of which one takes 6.5 times its state (measured on a CPU, with AdamW).

    The state stands twice in a step, and a save behind the training holds it more than three times more.
    """
    program = populations.build(trial.config, dims)
    state = jax.eval_shape(program.init, populations.hyper(program, trial.config, parametrization.standard))
    one = 6.5 * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    stats = jax.local_devices()[0].memory_stats() or {}
    total = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, int(total / 2 / one))


def check_ladder(rungs: list[tuple[Any, Dims]]) -> None:
    """UserError where an axis differs between rungs of one model without a base: its weights would be scaled by no rule."""
    for kind in dict.fromkeys(type(m) for m, _ in rungs):
        _check_ladder([r for r in rungs if type(r[0]) is kind])


def _check_ladder(rungs: list[tuple[Any, Dims]]) -> None:
    for axis in {a for _, d in rungs for a in d}:
        sizes = sorted({d[axis] for _, d in rungs if axis in d})
        if len(sizes) > 1 and any(axis not in d.base for _, d in rungs):
            named = [n for n, w in axes.weights(rungs[0][0]).items() if axis in w.arrow.names and not w.arrow.state]
            if named:
                raise UserError(
                    f"axis {axis!r} has sizes {sizes} in this sweep but no base; weights: {', '.join(named[:6])}; "
                    "give the knob that moves it an entry in config.base"
                )


def transferred(config: dict) -> dict[str, Any]:
    """What multiplied a trial's learning rate, and by which rules from which base; nothing where no rule is named."""
    c, t = config["transfer"], config["train"]
    named = {c["batch_rule"], c["horizon_rule"]} != {"none"}
    return {**c, "factor": rates.factor(c, t["batch"], t["steps"])} if named else {}


def traced_keys(optim: dict) -> set[str]:
    return {f"optim.{k}" for k in traced(optim)} | set(flatten({k: DEFAULTS[k] for k in TRACED_SECTIONS})) | {"arm"}
