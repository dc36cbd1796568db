"""An experiment file -> its config, complete and checked, and the points of its sweep, stage by stage."""

import importlib.util
import inspect
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from lab import find, halving, parametrization, rates, trunk, warm
from lab import population as populations
from lab.errors import UserError, unknown
from lab.evals.subject import judge_kinds
from lab.optim import check as check_optim
from sharding.mesh import AXES

# Every key that a config may have, apart from what a model, an objective or a source declares itself.
DEFAULTS = {
    "seed": 0,
    "model": {"name": ""},
    "base": {},
    # trained weights to begin from, and the transform (lab/transforms) that carries them (lab/warm.py)
    "init": warm.NONE,
    "parametrization": {"name": "mup", "alpha": 1.0, "eps": "scaled", "decay": "constant"},
    # the learning rate at another batch and horizon than those it was tuned at (lab/rates.py)
    "transfer": rates.NONE,
    "objective": {"name": ""},
    "data": {"name": ""},
    "optim": {
        "name": "adamw",
        **{"lr": 2.0**-6, "weight_decay": 0.0, "b1": 0.9, "b2": 0.99, "eps": 1e-8, "clip": 0.0, "ema": 0.99},
        **{"schedule": "cosine", "warmup": 0, "decay": 0.2},
    },
    # f32 matmuls are bf16 on TPUs and TF32 on GPUs by default, so the precision is set and part of a trial's identity
    # failure: what becomes of an update that is not finite or, with a spike, has a gradient norm above so many times the mean (lab/failure.py)
    "train": {
        **{"steps": 1000, "batch": 64, "log_every": 10, "dtype": "float32", "precision": "highest"},
        **{"failure": "stop", "spike": 0.0, "retries": 10, "copy_every": 100},
    },
    "eval": {"examples": 512, "batch": 128, "every": 250, "metric": "eval_loss"},
    "sample": {"n": 16, "options": {}},
    # judges by name (lab/evals), on n samples of every trial at its last step and, with every > 0, along the way
    "judge": {"names": (), "every": 0, "n": 256, "options": {}},
    # not part of a trial's identity: where and how it runs. chunk: most trials in one program, 0 for what memory allows;
    # workers: processes that read data which memory cannot hold, 0 for threads; halving: after these shares of the steps, which share goes on;
    # trunk: longer horizons go on from where the decays of shorter ones begin; checkpoints: every so many seconds, and steps if not 0; the
    # newest `keep` stay, and all at multiples of keep_every; replay_every: steps between two that are computed twice and compared;
    # sharding: a set of rules by name (sharding/place.py), which
    # `rules` (dim: mesh axis, several, or '') change; mesh: sizes of axes, of which one may be -1; slices: 0 as the devices say;
    # remat: what of a block is computed again for the gradient; accumulate: parts in which a batch is computed, one after the other;
    # watchdog_seconds: without a step in this time the run ends with a dump of its stacks, 0 for never
    "run": {
        **{"sharding": "", "mesh": dict.fromkeys(AXES, 0), "rules": {}, "slices": 0, "remat": "none", "accumulate": 1},
        **{"chunk": 0, "checkpoint_seconds": 60.0, "data_dir": "data", "workers": 0, "watchdog_seconds": 1800.0},
        **{"halving": {"at": (), "keep": 0.5}, "trunk": False},
        **{"checkpoint_steps": 0, "keep": 2, "keep_every": 0, "replay_every": 0},
    },
}
# sections with keys of their own
OPEN = ("model", "base", "init.options", "objective", "data", "optim", "sample.options", "judge.options", "run.rules")
# what a sweep may set whole, so that arms are of different families, each drawn from by options of its own
SECTIONS = ("model", "objective", "sample.options")
PARTS = {"model": "lab.models", "objective": "lab.objectives", "data": "lab.data"}  # where a section's part is found by name
METRICS = ("eval_loss", "eval_ema")
# keys that older studies lack, and what they meant there; a trial that has them so keeps its identity
SINCE = {
    **{"optim.name": "adamw", "parametrization.eps": "scaled", "parametrization.decay": "constant"},
    **{f"transfer.{k}": v for k, v in rates.NONE.items()},
    **{f"init.{k}": v for k, v in warm.NONE.items()},
    **{"train.failure": "stop", "train.spike": 0.0, "train.retries": 10, "train.copy_every": 100},
}


class Experiment(NamedTuple):
    """A loaded experiment: its name, question, source text, config and the points of its sweep."""

    name: str
    question: str
    text: str
    config: ConfigDict
    points: list[dict[str, Any]]
    swept: list[str]
    sections: list[str]  # of SECTIONS, those that the sweep sets whole
    ask: Callable[[list[dict]], "Experiment"] | None = None  # of a history, where the sweep takes one: with the points that it then yields
    stage: str = ""  # its name, where it is one of several
    before: "Experiment | None" = None  # the stage whose trials its own begin from


def load(path: str, overrides: Iterable[str] = ()) -> Experiment:
    """Load an experiment file and apply `--config.key=value` overrides.

    An override of a swept key keeps the points that have that value; UserError if there is none.
    """
    file = Path(path)
    if not file.is_file():
        near = sorted(p.as_posix() for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise unknown("experiment file", path, near) if near else UserError(f"experiment file {path!r} does not exist")
    spec = importlib.util.spec_from_file_location("lab_experiment", file)
    module = importlib.util.module_from_spec(spec)

    def called(f: Callable) -> Any:
        try:
            return f()
        except UserError:
            raise
        except Exception as e:
            raise UserError(f"experiment file {path!r} fails: {type(e).__name__}: {next(iter(str(e).splitlines()), '')}") from e

    called(lambda: spec.loader.exec_module(module))
    if not hasattr(module, "get_config"):
        raise UserError(f"experiment file {path!r} has no function get_config(); expected one that returns a ConfigDict")
    given = called(module.get_config)
    if not isinstance(given, ConfigDict):
        raise UserError(f"experiment file {path!r}: get_config() returns {type(given).__name__}; expected a ConfigDict (`return c`)")
    config = _complete(given)
    sweep = getattr(module, "sweep", lambda: [{}])
    rounds = "history" in inspect.signature(sweep).parameters
    text, asked = file.read_text(), _override(config, overrides)
    staged = called(lambda: list(module.stages())) if hasattr(module, "stages") else []

    def at(history: list[dict]) -> Experiment:
        points = called(lambda: list(sweep(history) if rounds else sweep()))
        sections = _check_points(config, points)
        points = [flatten(p) for p in points]
        swept = sorted({k for p in points for k in p})
        for key in [k for k in asked if k in swept]:
            value, have = flatten(config.to_dict())[key], sorted({p[key] for p in points if key in p})
            points = [p for p in points if p.get(key) == value]
            if not points and not history:
                raise UserError(f"config key {key}={value} is swept and not among its points: {', '.join(map(repr, have))}")
        whole = Experiment(file.stem, (module.__doc__ or "").strip(), text, config, points, swept, sections, at if rounds else None)
        return _staged(whole, staged, asked) if staged else whole

    return at([])


def _staged(whole: Experiment, staged: list[dict], asked: list[str]) -> Experiment:
    """The last of an experiment's stages, which knows those before it; each is the experiment with keys of its own, and has the same points.

    UserError for a stage without a name, a key that cannot be set or that the sweep or the command sets too, and where not all trials of a
    stage come to its end.
    """
    found, flat = None, flatten(whole.config.to_dict())
    names = [str(s.get("stage", "")) for s in staged]
    for i, name in enumerate(names):
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name) or name in names[:i]:
            raise UserError(
                f"stages(): stage {i + 1} is named {name!r}; expected dict(stage=NAME, ...), each a name of its own, such as '8px'"
            )
    for key, value, never, why in (
        ("sweep(history)", whole.ask is not None, False, "asks for trials once those before are done"),
        ("run.trunk", flat["run.trunk"], False, "begins trials from those of shorter horizons"),
        ("run.halving.at", tuple(flat["run.halving.at"]), (), "stops trials before their end"),
        ("init.study", flat["init.study"], "", "is set by stages"),
    ):
        if value != never:
            raise UserError(f"{key}={value!r} {why}, and an experiment with stages(): expected {never!r}")
    for i, given in enumerate(staged):
        config = ConfigDict(whole.config.to_dict())
        for key, value in given.items():
            if key == "stage":
                continue
            if (key not in flat and not key.startswith(tuple(f"{s}." for s in OPEN))) or key.startswith(
                ("run.", "init.study", "init.trial")
            ):
                raise unknown(f"stages(): key of stage {names[i]!r}", key, flat)
            for who, keys in (("the sweep", whole.swept), ("the command", asked)):
                if key in keys:
                    raise UserError(f"config key {key} is set by {who} and by stage {names[i]!r}; expected one of them")
            parent, _, leaf = key.rpartition(".")
            _set(config[parent] if parent else config, leaf, value, key)
        config.init.study = names[i - 1] if i else ""
        last = i == len(staged) - 1
        name = whole.name if last else f"{whole.name}-{names[i]}"
        found = whole._replace(name=name, config=config.lock(), stage=names[i], before=found)
    return found


def _check_points(config: ConfigDict, points: list[dict]) -> list[str]:
    """The sections that points set whole; UserError for a key that cannot be swept."""
    flat = flatten(config.to_dict())
    sections = {k for p in points for k, v in p.items() if isinstance(v, dict)}
    for key in sorted({k for p in points for k in p}):
        if key not in flat and key not in ("arm", *SECTIONS) and not key.startswith("optim."):  # an optimizer's own are checked with it
            raise unknown("swept key", key, flat)
    if odd := sorted(sections - set(SECTIONS)):
        raise UserError(f"swept key {odd[0]!r} is a section that cannot be swept whole; expected one of: {', '.join(SECTIONS)}")
    return sorted(sections)


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """A config's values by dotted key; an empty section is a value."""
    flat = {}
    for k, v in tree.items():
        flat |= flatten(v, f"{prefix}{k}.") if isinstance(v, dict) and v else {f"{prefix}{k}": v}
    return flat


def _complete(given: ConfigDict) -> ConfigDict:
    """DEFAULTS updated by an experiment's config, locked; an unknown key or wrong type raises UserError."""
    config = ConfigDict(DEFAULTS)
    known = flatten(DEFAULTS)
    for key, value in flatten(given.to_dict()).items():
        if key not in known and key not in DEFAULTS and not key.startswith(tuple(f"{s}." for s in OPEN)) and key not in OPEN:
            raise unknown("config key", key, known)
        if value == {} and DEFAULTS.get(key):
            continue  # an empty section keeps its defaults
        *sections, leaf = key.split(".")
        at = config
        for section in sections:
            if section not in at:  # a source may hold the section of another
                at[section] = ConfigDict()
            at = at[section]
        _set(at, leaf, value, key)
    for part in ("model", "objective", "data"):
        if not config[part].name:
            raise UserError(f"config key {part}.name is missing; expected one of: {', '.join(find.names(PARTS[part]))}")
    return config.lock()


def _set(config: ConfigDict, leaf: str, value: Any, key: str) -> None:
    if leaf in config and value != {}:
        old = config[leaf]
        kind = type(old)
        if kind is float and type(value) is int:
            value = float(value)
        if kind is ConfigDict:
            raise UserError(f"config key {key}={value!r} is a section; expected dict(...) of: {', '.join(old) or 'its keys'}")
        if type(value) is not kind:
            raise UserError(
                f"config key {key}={value!r} is of type {type(value).__name__}, where the config or its default has {old!r}; "
                f"expected both of one type"
            )
    config[leaf] = value


def _counts(config: dict) -> None:
    """UserError for a number of things that is less than one, or a metric by which no trial is told best."""
    if config["eval"]["metric"] not in METRICS:
        raise unknown("config key eval.metric", config["eval"]["metric"], METRICS)
    for key in ("train.steps", "train.batch", "train.log_every", "eval.examples", "eval.batch", "eval.every", "judge.n", "run.keep"):
        section, leaf = key.split(".")
        if config[section][leaf] < 1:
            raise UserError(f"config key {key}={config[section][leaf]} must be at least 1")


def _override(config: ConfigDict, overrides: Iterable[str]) -> list[str]:
    """Apply overrides through ml_collections' own flag parser, one at a time so that an error names its key; returns the keys."""
    keys = []
    for text in overrides:
        key, _, value = text.removeprefix("--config.").partition("=")
        flat = flatten(config.to_dict())
        if key not in flat:
            raise unknown("config key", key, flat)
        holder, argv = flags.FlagValues(), ["lab", f"--config.{key}={value}"]
        config_flags.DEFINE_config_dict("config", config, flag_values=holder, sys_argv=argv)
        try:
            holder(argv)
        except Exception as e:
            kind = type(flat[key]).__name__
            raise UserError(f"config key {key}={value!r} is not valid; expected {kind} such as {flat[key]!r}") from e
        keys.append(key)
    return keys


def configs(experiment: Experiment, here: bool = False) -> list[dict]:
    """The complete config at each point of a sweep; UserError for what is wrong in one whatever its data, or with `here` this machine's devices."""
    found, seen = [], set()
    for point in experiment.points:
        full = at_point(experiment.config.to_dict(), point, experiment.sections)
        _counts(full)
        halving.marks(full)
        trunk.check(full)
        warm.check(full)
        check_optim(full["optim"], DEFAULTS["optim"], full["parametrization"]["eps"])
        parametrization.table(**full["parametrization"])  # rules are checked before anything is traced
        populations.peak(full)
        if (how := json.dumps([full["run"], full["judge"], full["train"]], default=list)) not in seen:
            populations.check(full, here)
            judge_kinds(full["judge"])
            seen.add(how)
        found.append(full)
    return found


def at_point(config: dict, point: dict[str, Any], sections: list[str]) -> dict:
    """The complete config at a point of a sweep; of `sections` that it sets whole, none of the config's own keys are left.

    A point's `arm` names it and changes nothing.
    """
    out = ConfigDict(config)
    replaced = {s: {} for s in sections if _whole(s, point)}
    for key, value in (replaced | point).items():
        parent, _, leaf = key.rpartition(".")
        if key != "arm":
            _set(out[parent] if parent else out, leaf, value, key)
    return out.to_dict()


def _whole(section: str, point: dict[str, Any]) -> bool:
    """Whether a point sets a section whole: one of a part's keys has its name; options of a sampler have no name, and stand together."""
    return f"{section}.name" in point or (section == "sample.options" and any(f"{k}.".startswith("sample.options.") for k in point))


def sampler_options(objective: Any, options: dict, what: str) -> None:
    """UserError for an option that the objective's sampler does not take, or a value of another type or below one where it counts steps."""
    if not hasattr(objective, "sample"):
        if options:
            raise UserError(f"config key {what}={options!r}: the objective draws nothing; expected no options")
        return
    find.check(objective.sample, options, what, ("model", "key", "cond", "shape"))
    find.typed(objective.sample, options, f"config key {what}.")
    if options.get("steps", 1) < 1:
        raise UserError(f"config key {what}.steps={options['steps']} must be at least 1")


def since(config: dict) -> dict:
    """A config that may be an older study's, complete."""
    out = dict(config)
    for key, value in SINCE.items():
        section, leaf = key.split(".")
        out[section] = {leaf: value, **out.get(section, {})}
    return out
