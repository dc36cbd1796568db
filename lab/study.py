"""An experiment file -> trials -> populations; what is done is skipped, what is not is resumed."""

import contextlib
import errno
import hashlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import json
import os
import re
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from lab import axes, claims, coded, cost, find, halving, parametrization, rates, record, restore, trunk, warm
from lab import population as populations
from lab.axes import Dims
from lab.checkpoint import saved
from lab.data.drawing import drawing
from lab.data.loader import decode, fetch, numeric, open_source, within
from lab.errors import UserError, unknown
from lab.evals.subject import judge_kinds, open_judges
from lab.judging import Judging, Painter
from lab.log import Progress, console
from lab.objectives import conditions
from lab.optim import check as check_optim
from lab.optim import traced
from lab.population import Begun, Population, Trial
from lab.restore import NUMBERS, same_numbers
from lab.train import Program
from sharding import hosts, place
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
METRICS = ("eval_loss", "eval_ema")
IMPORTED = "imported"  # name in a config's section data where weights came without their data
STAGES = "stages"  # folder of a study's earlier stages, each a study
PROMPTS = "prompts.npz"  # features of a study's prompts, which are too many numbers for study.json
TRACED_SECTIONS = ("seed", "parametrization", "transfer")  # beside what optim traces: trials that differ in these share a program
# keys that older studies lack, and what they meant there; a trial that has them so keeps its identity
SINCE = {
    **{"optim.name": "adamw", "parametrization.eps": "scaled", "parametrization.decay": "constant"},
    **{f"transfer.{k}": v for k, v in rates.NONE.items()},
    **{f"init.{k}": v for k, v in warm.NONE.items()},
    **{"train.failure": "stop", "train.spike": 0.0, "train.retries": 10, "train.copy_every": 100},
}
TRAIN, ASKED = 1, 2  # what the first process of a run tells the others of a plan: train, or ask the sweep for its next round first
NOTHING, WAIT = -1, -2  # and of what to train next, beside a population's place
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


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
        points = [_flatten(p) for p in points]
        swept = sorted({k for p in points for k in p})
        for key in [k for k in asked if k in swept]:
            value, have = _flatten(config.to_dict())[key], sorted({p[key] for p in points if key in p})
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
    found, flat = None, _flatten(whole.config.to_dict())
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
    flat = _flatten(config.to_dict())
    sections = {k for p in points for k, v in p.items() if isinstance(v, dict)}
    for key in sorted({k for p in points for k in p}):
        if key not in flat and key not in ("arm", *SECTIONS) and not key.startswith("optim."):  # an optimizer's own are checked with it
            raise unknown("swept key", key, flat)
    if odd := sorted(sections - set(SECTIONS)):
        raise UserError(f"swept key {odd[0]!r} is a section that cannot be swept whole; expected one of: {', '.join(SECTIONS)}")
    return sorted(sections)


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for k, v in tree.items():
        flat |= _flatten(v, f"{prefix}{k}.") if isinstance(v, dict) and v else {f"{prefix}{k}": v}
    return flat


def _complete(given: ConfigDict) -> ConfigDict:
    """DEFAULTS updated by an experiment's config, locked; an unknown key or wrong type raises UserError."""
    config = ConfigDict(DEFAULTS)
    known = _flatten(DEFAULTS)
    for key, value in _flatten(given.to_dict()).items():
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
            raise UserError(f"config key {part}.name is missing; expected one of: {', '.join(find.names(f'lab.{_folder(part)}'))}")
    return config.lock()


def _folder(part: str) -> str:
    return {"model": "models", "objective": "objectives", "data": "data"}[part]


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
        flat = _flatten(config.to_dict())
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
        full = _at(experiment.config.to_dict(), point, experiment.sections)
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
    about, name, trial, _ = chosen(folder, trial)
    rows = [r for r in record.read_rows(folder / name).to_pylist() if r["trial"] == trial]
    before = about["trials"][trial].get("begun", {"after": 0})["after"]
    flops = float((rows[-1].get("flops") if rows else None) or 0.0)  # of weights brought from elsewhere nothing is known
    return Begun(restore.digest(folder, name, trial), before + 1, flops)


def _at(config: dict, point: dict[str, Any], sections: list[str]) -> dict:
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


def identity(config: dict, data_print: str, begun: Begun | None = None) -> str:
    """Hash of what changes a trial's result: config without where it runs, how it is shown and judged, data, a user's own modules, what it begins from."""
    kept = {k: v for k, v in config.items() if k not in ("run", "sample", "judge")}
    kept["eval"] = {k: v for k, v in kept["eval"].items() if k != "metric"}
    for section in {key.split(".")[0] for key in SINCE}:
        kept[section] = {k: v for k, v in kept[section].items() if (key := f"{section}.{k}") not in SINCE or v != SINCE[key]}
    kept["init"] = {k: config["init"][k] for k in ("transform", "options")} | {"from": begun[:2]} if begun else {}  # wherever it lies
    kept = {k: v for k, v in kept.items() if k not in ("transfer", "init") or v}
    own = [find.source_digest(f"lab.{_folder(p)}", config[p]["name"]) for p in ("model", "objective", "data")]
    own += [find.source_digest("lab.layers", v) for k, v in sorted(config["model"].items()) if k != "name" and find.is_own(v)]
    own += filter(None, [find.source_digest("lab.optimizers", config["optim"]["name"])])
    own += filter(None, [find.source_digest("lab.transforms", config["init"]["transform"])] if begun else [])
    text = json.dumps([NUMBERS, kept, data_print, own], sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def most(experiment: Experiment, folder: Path) -> int:
    """The most populations that a study can have before it is packed: each has a point of its own, or is in the folder."""
    return len(experiment.points) + (len(record.read_study(folder)["populations"]) if (folder / "study.json").exists() else 0)


def kinds(study: "Study") -> dict[str, dict]:
    """{arm: config} of the trials of a study whose models, objectives or optimizers differ in more than sizes: the first of each."""
    found: dict[str, tuple[str, dict]] = {}
    for t in study.trials.values():
        rest = {k: v for k, v in t.config["model"].items() if type(v) is not int}
        found.setdefault(
            json.dumps([rest, sorted(t.config["model"]), t.config["objective"], t.config["optim"]["name"]], default=list), (t.arm, t.config)
        )
    return {
        f"{arm}, kind {i + 1}" if [a for a, _ in found.values()].count(arm) > 1 else arm: c for i, (arm, c) in enumerate(found.values())
    }


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


def _tag(trials: list[Trial]) -> str:
    return hashlib.sha256("".join(sorted(t.id for t in trials)).encode()).hexdigest()[:8]


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


def held_out(config: dict, source: Any) -> dict[str, np.ndarray]:
    """The evaluation set [N, batch, ...]: the same examples in every study on this source."""
    e = config["eval"]
    n = min(e["examples"], len(source))
    batch = min(e["batch"], n)
    rows = np.random.default_rng(0).permutation(len(source))[: n // batch * batch]
    items = [source[int(i)] for i in rows]
    arrays = within({k: np.stack([item[k] for item in items]) for k, v in items[0].items() if np.asarray(v).dtype.kind in "iufb"}, source)
    return {k: v.reshape(-1, batch, *v.shape[1:]) for k, v in arrays.items()}


def versions() -> dict[str, str]:
    """Versions of what computes, and the project's git revision where there is one."""
    found = {p: importlib.metadata.version(p) for p in PACKAGES}
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return found | {"git": git.stdout.strip() or "unknown"}


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


def _unwritable(folder: Path, why: str) -> UserError:
    return UserError(f"--workdir: folder {str(folder)!r} cannot be written ({why}); choose another --workdir")


def _can_be_written(folder: Path) -> None:
    """UserError for a folder that can be neither written nor made, as far as that is told without making it."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(p))
    if not there.is_dir():
        raise _unwritable(folder, os.strerror(errno.ENOTDIR))
    if not os.access(there, os.W_OK | os.X_OK):
        raise _unwritable(folder, os.strerror(errno.EROFS if os.statvfs(there).f_flag & os.ST_RDONLY else errno.EACCES))


class Study:
    """An experiment, its data, its trials and their packing; `folder` is where it lives once it runs.

    What can be told wrong without the data is told before that is opened; with `here` also what does not fit the devices of this machine, and
    a folder that cannot be written.
    """

    def __init__(self, experiment: Experiment, folder: Path | None = None, here: bool = False, home: Path | None = None):
        self.experiment, self.folder, self.followed = experiment, folder, False
        self.config = experiment.config.to_dict()
        complete = configs(experiment, here)
        if here and folder is not None and hosts.first():
            _can_be_written(folder)
        home = home or (None if folder is None else folder / STAGES)
        self.before = experiment.before and Study(experiment.before, home and home / experiment.before.stage, here, home)
        if self.before:
            self.before.followed = True
        console.print(f"{experiment.name}: opening data", markup=False)
        data = {**self.config["data"]}
        self.train = open_source(data, "train", self.config["run"]["data_dir"])
        self.held = open_source(data, "eval", self.config["run"]["data_dir"])
        self.print = self.train.info["fingerprint"]
        points = at_points(experiment, self.print, complete, self.before and self.before.ends())
        self.at, self.trials = [t.id for t in points], {t.id: t for t in points}
        self.known: dict = {}
        self._startup = 0.0  # seconds of this process before its first population, until that is told
        self._each: dict[str, float] = {}  # FLOPs of an example of each shape
        self._twins: dict[str, str] = {}  # of each trial, what it shares with its like of other horizons
        if folder is not None and (folder / "study.json").exists():
            self.known = record.read_study(folder)
            self._check_same()
        self._pack()

    def _pack(self) -> None:
        """Packs of all trials, and what study.json says of halving, of which bracket and rung a pack is and which trials are stopped, and of trunks."""
        pops, known = self.known.get("populations", {}), self.known.get("trials", {})
        self.halving = {n: p["halving"] for n, p in pops.items() if "halving" in p}
        self.stopped = {i: t["stopped"] for i, t in known.items() if "stopped" in t}
        self.packs = self._packs()
        self.trunks = self._trunks()
        programs = [populations.build(p[0].config, self.train.dims) for p in self.packs.values()]
        several = len({type(p.objective) for p in programs}) > 1
        named = {n for p in programs for w in axes.weights(p.model).values() for n in w.arrow.names}.union(*place.DIVIDES.values())
        for dim in {d: None for first, *_ in self.packs.values() for d in first.config["run"]["rules"]}:
            if dim not in named:
                raise unknown("config key run.rules: axis", dim, named)
        for p, (first, *_) in zip(programs, self.packs.values(), strict=True):
            what = "sample.options" + f" (arm {first.arm})" * several
            sampler_options(p.objective, first.config["sample"]["options"], what)
        check_ladder([(p.model, p.dims) for p in programs])

    def _check_same(self) -> None:
        """UserError where the folder holds another study: another name, data, or a setting that no sweep moves."""
        mine, theirs = (_flatten(json.loads(json.dumps(c, default=list))) for c in (self.config, self.known["config"]))
        mine |= {"name": self.experiment.name, "data": self.print}
        theirs = SINCE | theirs | {"name": self.known["name"], "data": self.known["data"]["fingerprint"]}
        free = {*self.experiment.swept, *self.known["swept"]}
        same_numbers(self.folder, self.known)
        for key in sorted(mine.keys() | theirs.keys(), key=lambda k: (k != "name", k)):
            if key not in free and not key.startswith(("run.", "sample.", "judge.")) and mine.get(key) != theirs.get(key):
                raise UserError(
                    f"folder {str(self.folder)!r} holds another study: its {key} is {theirs.get(key)!r}, this one's is {mine.get(key)!r}; "
                    "choose another --workdir"
                )

    def _packs(self) -> dict[str, list[Trial]]:
        """Populations of the folder that hold a wanted trial, as they were packed, and new ones for the rest."""
        packs, left, pops = {}, dict(self.trials), self.known.get("populations", {})
        held = {n for n, pop in pops.items() if any(i in self.trials for i in pop["trials"])}
        brackets = {self.halving[n]["bracket"] for n in held if n in self.halving}  # a bracket is judged whole
        for name, pop in pops.items():
            if name in held or (name in self.halving and self.halving[name]["bracket"] in brackets):
                packs[name] = [self.trials.get(i) or self._old(i) for i in pop["trials"]]
                for i in pop["trials"]:
                    left.pop(i, None)
        entered, whole = self._entered(list(left.values()))
        for group in pack(whole, self.train.dims):
            packs[self._name(group)] = group
        for group in pack(entered, self.train.dims):
            name, c, shape = self._name(group), group[0].config, shape_key(group[0])
            packs[name] = group
            bracket = _tag([t for t in entered if shape_key(t) == shape])
            self.halving[name] = {"bracket": bracket, "marks": halving.marks(c), "keep": c["run"]["halving"]["keep"], "rung": 0}
        return packs

    def _entered(self, left: list[Trial]) -> tuple[list[Trial], list[Trial]]:
        """New trials that halving looks at, and those that train whole: where there is none, or their point has come through on other seeds."""
        if not any(halving.marks(t.config) for t in left):
            return [], left
        states = record.status(self.folder) if self.known else {}
        through = {self._point(self.trials.get(i) or self._old(i)) for i, s in states.items() if s == "done"}
        sides: tuple[list[Trial], list[Trial]] = ([], [])
        for t in left:
            sides[not halving.marks(t.config) or self._point(t) in through].append(t)
        return sides

    def _point(self, trial: Trial) -> str:
        """Equal for trials that differ in their seed alone."""
        return identity({**trial.config, "seed": 0}, self.print, trial.begun)

    def _trunks(self) -> dict[str, dict]:
        """Of each population that begins from states of shorter horizons, or has begun so, at which step and from which populations.

        States are those in the folder, and of populations yet to be trained those that they will leave.
        """
        pops = self.known.get("populations", {})
        if not self.config["run"]["trunk"] and not any("trunk" in p for p in pops.values()):
            return {}
        groups = {n: self._group(n) for n in pops} | self.packs
        found, left = {}, {}
        for name in sorted(groups, key=lambda n: groups[n][0].config["train"]["steps"]):
            at, mine = trunk.leaves(groups[name][0].config), [self._twin(t) for t in groups[name]]
            here = None if self.folder is None else self.folder / name
            done = here is not None and record.finished(here)
            if done or (here is not None and saved(here / "checkpoints")):
                told = pops.get(name, {}).get("trunk", {})
            else:
                told = trunk.start(mine, at, left)
            found |= {name: told} if told else {}
            if at and ((here is not None and saved(here / populations.TRUNK)) or (name in self.packs and not done)):
                left[name] = at, mine
        return found

    def _group(self, name: str) -> list[Trial]:
        """The trials of a population, wanted or not."""
        return self.packs.get(name) or [self.trials.get(i) or self._old(i) for i in self.known["populations"][name]["trials"]]

    def _twin(self, trial: Trial) -> str:
        """Equal for trials that differ in their horizon alone."""
        if trial.id not in self._twins:
            train = {**trial.config["train"], "steps": 0}
            self._twins[trial.id] = identity({**trial.config, "train": train}, self.print, trial.begun)
        return self._twins[trial.id]

    def _name(self, group: list[Trial]) -> str:
        """The name of a new population: what its shape has of its own, and a hash of its trials; a value may be a path."""
        return re.sub(r"[^\w.+-]+", "_", "-".join([*(f"{k}{v}" for k, v in self._moved(group)), _tag(group)]))

    def _moved(self, group: list[Trial]) -> list[tuple[str, Any]]:
        """What the sweep set for a population and what is not traced; where it sets whole sections, the arm and what varies within it."""
        point = {k: v for k, v in group[0].point.items() if k not in _traced_keys(group[0].config["optim"])}
        if self.experiment.sections:
            arm = [t.point for t in self.trials.values() if t.arm == group[0].arm]
            point = {"": group[0].arm} | {k: v for k, v in point.items() if len({p.get(k) for p in arm}) > 1}
        return [(k.rsplit(".", 1)[-1], v) for k, v in point.items()]

    def _label(self, name: str, group: list[Trial]) -> str:
        moved = ", ".join(f"{k} {v}".strip() for k, v in self._moved(group))
        return f"{moved or name} ({len(group)} trial{'s' * (len(group) > 1)})"

    def _old(self, trial_id: str) -> Trial:
        t = self.known["trials"][trial_id]
        config = _at(json.loads(json.dumps(self.config, default=list)), t["point"], self.known.get("sections", []))
        return Trial(trial_id, t["arm"], config, t["point"], Begun(**t["begun"]) if "begun" in t else None)

    def describe(self) -> dict:
        """study.json: everything a reader needs, and no absolute path; features of prompts are written beside it."""
        trials, pops = self.known.get("trials", {}), self.known.get("populations", {})
        for name, group in self.packs.items():
            pops[name] = {"trials": [t.id for t in group], "chunk": len(group)}
            pops[name] |= {"halving": self.halving[name]} if name in self.halving else {}
            pops[name] |= {"trunk": self.trunks[name]} if name in self.trunks else {}
            for t in group:
                about = {"arm": t.arm, "seed": t.config["seed"], "steps": t.config["train"]["steps"]}
                trials[t.id] = {**about, "point": t.point, "population": name}
                trials[t.id] |= {"stopped": self.stopped[t.id]} if t.id in self.stopped else {}
                trials[t.id] |= {"begun": t.begun._asdict()} if t.begun else {}
        e = self.experiment
        return {
            **{"schema": record.SCHEMA, "name": e.name, "question": e.question, "experiment": e.text},
            **{
                "config": self.config,
                "swept": sorted({*e.swept, *self.known.get("swept", ())}),
                "sections": sorted({*e.sections, *self.known.get("sections", ())}),
                "numbers": NUMBERS,
                "trials": trials,
                "populations": pops,
                "versions": versions(),
            },
            **({"stages": [s.experiment.stage for s in self.stages()]} if e.stage else {}),
            "data": about_data(self.folder, self.train, self.held, self.config["sample"]["n"], self.known.get("data", {})),
        }

    def example(self) -> dict[str, np.ndarray]:
        """One small batch [2, ...], for tracing."""
        return jax.tree.map(lambda x: x[0], held_out(_small(self.config, 2), self.held))

    def work(self) -> dict[str, float]:
        """FLOPs of each population, with all of its trials trained to their last step."""
        out = {}
        for name, group in self.packs.items():
            c, shape = group[0].config, shape_key(group[0])
            if shape not in self._each:
                program = populations.build(c, self.train.dims)
                self._each[shape] = populations.flops_per_example(program, held_out(_small(c, 1), self.held))
            out[name] = self._each[shape] * c["train"]["batch"] * c["train"]["steps"] * len(group)
        return out

    def stages(self) -> list["Study"]:
        """The stages up to this one, in order; a study that has none is one."""
        return [*(self.before.stages() if self.before else ()), self]

    def ends(self) -> list[Begun]:
        """What trials of the stage after this one begin from, point by point; the FLOPs are those of all stages so far."""
        work, where = self.work(), {t.id: n for n, group in self.packs.items() for t in group}
        found = [self.trials[i] for i in self.at]
        after, spent = zip(*((t.begun.after, t.begun.flops) if t.begun else (0, 0.0) for t in found), strict=True)
        each = [work[where[t.id]] / len(self.packs[where[t.id]]) for t in found]
        return [Begun(t.id, a + 1, s + e) for t, a, s, e in zip(found, after, spent, each, strict=True)]

    def run(self, interrupt: populations.Interrupt, only: str = "", largest_first: bool = False, began: float | None = None) -> Path:
        """Train what is not done yet and nobody else trains, rung by rung and round by round; returns the folder.

        Several processes may run one study: each population is trained by one of them. A process ends where all that is left is held by others
        and decides nothing of what comes next, and with `only`, a population, where that and those that it begins from are trained; what is
        then left, and who holds it, is in `others`. `began` is when the process did, in Unix time: its start-up is told beside its first population.

        Raises:
          Preempted: asked to stop.
        """
        folder = self.folder
        if hosts.first():
            self._writable()
        opened, order, self.others = None, None, {}
        if self.before:
            self._planned(True)
            self.before.run(interrupt, largest_first=largest_first, began=began)
            began = None
        while self._planned(order is None):
            wanted = self._wanted(only) if only else set(self.packs)
            order = [n for n in self._ordered(self.work(), largest_first) if n in wanted]
            if opened is None and not all(record.finished(folder / n) for n in order):
                opened = self._judges(), Decoded(self.train)
            if began is not None:
                self._startup, began = time.time() - began, None
            with self._progress() as progress:
                self._train(opened, progress, interrupt, order, wait=not only and self._goes_on())
            left = [n for n in self.packs if not record.finished(folder / n)]
            if hosts.told(len(left)):  # as the first process sees it: whoever shares the study may have ended one since
                self.others = {n: claims.holders(folder).get(n, "nobody") for n in left or self.packs}
                return folder
        with self.alone(), self._progress() as progress:
            self._samples(folder, progress)
        return folder

    def plan(self) -> None:
        """Write study.json, so that whoever trains the study has its populations as they are packed here."""
        self._writable()
        self._planned(True)

    def _writable(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f".writable-{claims.owner()}").write_text("")
            (self.folder / f".writable-{claims.owner()}").unlink()
        except OSError as e:
            raise _unwritable(self.folder, e.strerror) from e

    def alone(self) -> contextlib.AbstractContextManager:
        """What no two runs that share the folder do at a time; of a run of several processes the first takes part."""
        if not hosts.first():
            return contextlib.nullcontext()
        return claims.alone(self.folder, told=lambda line: console.print(line, markup=False))

    def _planned(self, begins: bool) -> bool:
        """Agree on study.json with whoever shares the folder, and pack the next rung or round where the last is done; whether there is one."""
        choice = 0
        with self.alone():
            if hosts.first():
                self._agree()
                if begins or not all(record.finished(self.folder / n) for n in self.packs) or self._promote():
                    choice = TRAIN
                elif self._more():
                    choice = ASKED
                self._write()
        choice = hosts.told(choice)
        if not hosts.first():
            self._follow()
            if choice == ASKED:
                self._more()
        return choice != 0

    def _agree(self) -> None:
        """Take up what others have written to study.json, and have this study's trials in it; for one process at a time."""
        if (self.folder / "study.json").exists() and (known := record.read_study(self.folder)) != self.known:
            self.known = known
            self._check_same()
            self._pack()
        self.trunks = self._trunks()  # an earlier run may have left states that are gone
        self._write()

    def _follow(self) -> None:
        """Pack as the first process of this run has written it."""
        self.known = record.read_study(self.folder)
        self._pack()

    def _write(self) -> None:
        """study.json as the study now stands, and what it says."""
        path, told = self.folder / "study.json", json.loads(json.dumps(self.describe(), default=list))
        if not path.exists() or told != record.read_json(path):
            record.write_json(path, told)
        self.known = record.read_study(self.folder)

    def longest(self) -> list[str]:
        """Populations in order of falling cost: task i of a study is the i-th."""
        work = self.work()
        return sorted(self.packs, key=lambda n: (-work[n], n))

    def _wanted(self, only: str) -> set[str]:
        """A population and all that it begins from."""
        if only not in self.packs:
            raise unknown("--only: population", only, self.packs)
        return {only}.union(*(self._wanted(n) for n in self.trunks.get(only, {"from": ()})["from"] if n in self.packs))

    def left(self) -> float:
        """The share of its FLOPs that halving leaves of a study that has not begun, where no trial diverges."""
        work, points, kept = self.work(), {}, 0.0
        for name, h in self.halving.items():
            for t in self.packs[name]:
                points.setdefault((h["bracket"], t.arm), set()).add(self._point(t))
        for name, group in self.packs.items():
            for t in group:
                team = points.get((self.halving[name]["bracket"], t.arm)) if name in self.halving else None
                kept += work[name] / len(group) * (halving.halved(len(team), t.config) if team else 1.0)
        return kept / sum(work.values())

    def _progress(self) -> Progress:
        """Progress of all populations so far, each to the step it is to reach."""
        steps = {n: self._ends(n)[-1] for n in self.packs}
        # small models reach a lower FLOP rate, about as FLOPs^1/3 on a CPU, so time grows as FLOPs^2/3
        effort = {n: w ** (2 / 3) * steps[n] / self.packs[n][0].config["train"]["steps"] for n, w in self.work().items()}
        progress = Progress(self.experiment.name, effort, steps, {n: self._label(n, g) for n, g in self.packs.items()})
        for name in (n for n in self.packs if record.finished(self.folder / n)):
            progress.skip(name, "done before", steps[name])
        return progress

    def _train(self, opened: Any, progress: Progress, interrupt: populations.Interrupt, order: list[str], wait: bool) -> None:
        """Train the populations of `order` that nobody else trains; `opened` are judges and the source in memory.

        It ends when all are done, or all that are left are held by others; with `wait` it waits for these, and goes on where one is given up.
        """
        while True:
            claim, choice = self._next(order, progress, wait) if hosts.first() else (contextlib.nullcontext(), 0)
            if (choice := hosts.told(choice)) == NOTHING:
                return
            if choice == WAIT:
                if hosts.agreed(interrupt.asked)[0]:
                    raise populations.Preempted
                time.sleep(min(1.0, claims.BEAT))
                continue
            if not hosts.first():
                self._follow()
            with claim:
                self._one(order[choice], opened, progress, interrupt)

    def _next(self, order: list[str], progress: Progress, wait: bool) -> tuple[Any, int]:
        """The claim of the next population to train and its place in `order`; None and NOTHING or WAIT where there is none now."""
        left = [n for n in order if not self._done(n, progress)]
        for name in [n for n in left if self._ready(n)]:
            if claim := claims.take(self.folder, name):
                if not record.finished(self.folder / name):
                    if self._trunks() != self.trunks:
                        with self.alone():
                            self._agree()
                    return claim, order.index(name)
                claim.__exit__()  # it was done a moment ago
        held = {n: who for n, who in claims.holders(self.folder).items() if n in left}
        if not left or (not wait and all(n in held for n in left)):
            return None, NOTHING
        for name, who in held.items():
            if progress.note[name] != (note := f"at {who}, waited for"):
                progress.stage(name, note)
        return None, WAIT

    def _done(self, name: str, progress: Progress) -> bool:
        """Whether a population is done; where another has ended it, progress hears of it."""
        done = record.finished(self.folder / name)
        if done and progress.at[name] < progress.steps[name]:
            progress.skip(name, "done by another", progress.steps[name])
        return done

    def _judges(self) -> tuple[dict[str, Any], Callable | None]:
        """Judges of pictures, and where a tokenizer made the data what makes pictures of samples."""
        c, data_dir = self.config, self.config["run"]["data_dir"]
        if not c["judge"]["names"]:
            return {}, None
        held, train = (coded.pictured(x, c["data"], s, data_dir) for x, s in ((self.held, "eval"), (self.train, "train")))
        tokenizer = coded.of(c["data"], self.held.info, data_dir)
        return open_judges(c["judge"], held, train), tokenizer and tokenizer.pictures

    def _one(self, name: str, opened: Any, progress: Progress, interrupt: populations.Interrupt) -> None:
        """Train one population to its end."""
        (judges, decode), source = opened
        startup, self._startup = self._startup, 0.0
        pop = Population(self.packs[name], source, held_out(self.packs[name][0].config, self.held))
        if hosts.first():
            self._card(self.folder / name, pop)
        judging, span = pop.judging(judges, self.held, decode), self._span(name, pop)
        populations.run(self.folder / name, name, pop, source, judging, progress, interrupt, span, startup)

    def _ready(self, name: str) -> bool:
        """Whether what a population begins from is there."""
        return all(n not in self.packs or record.finished(self.folder / n) for n in self.trunks.get(name, {"from": ()})["from"])

    def adaptive(self) -> bool:
        """Whether some populations are made of others' results, or begin from their states."""
        return self._goes_on() or bool(self.trunks) or self.before is not None

    def _goes_on(self) -> bool:
        """Whether what is trained now decides what is trained next."""
        return (
            self.followed
            or self.experiment.ask is not None
            or any(self.halving[n]["rung"] < len(self.halving[n]["marks"]) for n in self._last_rungs())
        )

    def _last_rungs(self) -> list[str]:
        """Of each bracket, the populations of the rung that it has come to."""
        brackets = {self.halving[n]["bracket"] for n in self.packs if n in self.halving}
        rung = {b: max(h["rung"] for n, h in self.halving.items() if n in self.packs and h["bracket"] == b) for b in brackets}
        return [n for b, r in rung.items() for n in self._rung(b, r)]

    def _ordered(self, work: dict[str, float], largest_first: bool = False) -> list[str]:
        """Populations in order of cost, each after those that it begins from."""
        order: dict[str, None] = {}

        def add(name: str) -> None:
            for before in self.trunks.get(name, {"from": ()})["from"]:
                add(before)
            if name in self.packs:
                order[name] = None

        for name in self.longest() if largest_first else sorted(self.packs, key=work.get):
            add(name)
        return list(order)

    def _ends(self, name: str) -> list[int]:
        """The step that a population begins at and the one it trains to."""
        steps, about = self.packs[name][0].config["train"]["steps"], self.halving.get(name, {"marks": [], "rung": 0})
        return [0, *about["marks"], steps][about["rung"] :][:2]

    def _rung(self, bracket: str, rung: int) -> list[str]:
        """The populations of one rung of a bracket."""
        return [n for n in self.packs if n in self.halving and (self.halving[n]["bracket"], self.halving[n]["rung"]) == (bracket, rung)]

    def _span(self, name: str, pop: Population) -> populations.Span:
        """The steps of a population, and where the states of its trials are when it begins."""
        start, until = self._ends(name)
        leaves = trunk.leaves(self.packs[name][0].config)
        if name in self.trunks:
            return self._branch(name, pop, until, leaves)
        if not start:
            begins = self.packs[name][0].begun and (lambda: warm.states(pop, self._found(name)))
            return populations.Span(start, until, begins, leaves=leaves, hands=self.followed)
        mine, parts = {t.id for t in self.packs[name]}, []
        for before in self._rung(self.halving[name]["bracket"], self.halving[name]["rung"] - 1):
            rows = [i for i, t in enumerate(self.packs[before]) if t.id in mine]
            parts += [(self.folder / before / "checkpoints", len(self.packs[before]), rows)] * bool(rows)
        return populations.Span(start, until, lambda: populations.gathered(pop.shapes(), start, parts))

    def _found(self, name: str) -> list[warm.Found]:
        """What each trial of a population begins from: weights of another study, or of the trials of the stage before."""
        group = self.packs[name]
        if not self.before:
            init = group[0].config["init"]
            found = restored(Path(init["study"]), init["trial"])
            jax.config.update("jax_default_matmul_precision", group[0].config["train"]["precision"])
            return [warm.Found(found.program, found.weights, found.weights)] * len(group)
        parts = {}
        for i in dict.fromkeys(t.begun.origin for t in group):
            parts.setdefault(self.before.known["trials"][i]["population"], []).append(i)
        found = {i: x for n, ids in parts.items() for i, x in zip(ids, self.before.handed(n, ids), strict=True)}
        return [found[t.begun.origin] for t in group]

    def handed(self, name: str, ids: list[str]) -> list[warm.Found]:
        """What a population's trials have left for the stage after this one."""
        group, c = self._group(name), self._group(name)[0].config
        program, where = populations.build(c, self.train.dims), {t.id: i for i, t in enumerate(group)}
        weights = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(group), *x.shape), x.dtype), populations.described(program))
        like = {"params": weights, "ema": weights, "alive": jax.ShapeDtypeStruct((len(group),), bool)}
        lost = "delete the folder of that population and run the same command again"
        parts = [(self.folder / name / populations.END, len(group), [where[i] for i in ids])]
        kept = populations.gathered(like, c["train"]["steps"], parts, lost)
        one = [jax.tree.map(lambda x, i=i: x[i], kept) for i in range(len(ids))]
        return [warm.Found(program, x["params"], x["ema"], bool(x["alive"])) for x in one]

    def _branch(self, name: str, pop: Population, until: int, leaves: int) -> populations.Span:
        """The steps of a population that begins from states of shorter horizons: their rows, so far, are its own."""
        start, groups = self.trunks[name]["start"], {n: self._group(n) for n in self.trunks[name]["from"]}
        mine, where = {self._twin(t): t for t in pop.trials}, {}
        for before, group in groups.items():
            where |= {self._twin(t): (before, i) for i, t in enumerate(group)}
        runs = itertools.groupby((where[twin] for twin in mine), key=lambda w: w[0])
        parts = [(self.folder / n / populations.TRUNK, len(groups[n]), [i for _, i in run]) for n, run in runs]

        def rows() -> list[dict]:
            of = {t.id: mine[twin] for n, g in groups.items() for t in g if (twin := self._twin(t)) in mine and where[twin][0] == n}
            table = [r for n in groups for r in record.read_rows(self.folder / n).to_pylist() if r["step"] < start and r["trial"] in of]
            return [r | {"trial": of[r["trial"]].id, "arm": of[r["trial"]].arm} for r in table]

        lost = "run the same command again, which begins without them"
        return populations.Span(start, until, lambda: populations.gathered(pop.shapes(), start, parts, lost), rows, leaves)

    def _promote(self) -> bool:
        """Stop what is not among the best of each bracket's last rung, and pack the rest anew; whether there is any."""
        more = False
        for bracket in dict.fromkeys(self.halving[n]["bracket"] for n in self.packs if n in self.halving):
            rung = max(h["rung"] for n, h in self.halving.items() if n in self.packs and h["bracket"] == bracket)
            for name in [n for r in range(rung) for n in self._rung(bracket, r)]:
                populations.remove_checkpoints(self.folder / name)
            names = self._rung(bracket, rung)
            about = self.halving[names[0]]
            if rung == len(about["marks"]):
                continue
            best, stopped = self._best(names)
            self.stopped |= stopped
            if not best:  # every point has a seed that diverged
                self._write()
                for name in names:
                    populations.remove_checkpoints(self.folder / name)
            for group in pack(best, self.train.dims):
                name = f"{self._name(group)}-rung{rung + 1}"
                self.packs[name], self.halving[name], more = group, about | {"rung": rung + 1}, True
        return more

    def _best(self, names: list[str]) -> tuple[list[Trial], dict[str, int]]:
        """Of the trials of one rung, those whose points are among the best of their arm, and {trial: step} of those that are neither they nor diverged."""
        until, keep, metric = self._ends(names[0])[1], self.halving[names[0]]["keep"], self.config["eval"]["metric"]
        rows = {r["trial"]: r for n in names for r in record.read_rows(self.folder / n).to_pylist() if r["step"] == until}
        trials = [t for n in names for t in self.packs[n]]
        on = halving.best(trials, rows, metric, keep, self._point)
        return [t for t in trials if t.id in on], {t.id: until for t in trials if t.id not in on and not rows[t.id]["diverged"]}

    def history(self) -> list[dict]:
        """What has become of the trials so far, in the order of the sweep, as a `sweep(history)` is told it (lab/search.py)."""
        states, metric, out = record.status(self.folder), self.config["eval"]["metric"], []
        ends = {r["trial"]: r for r in record.ends(self.folder).to_pylist()}
        for t in self.trials.values():
            loss = ends[t.id][metric]
            about = {"point": dict(t.point), "seed": t.config["seed"], "arm": t.arm, "loss": loss, "step": ends[t.id]["step"]}
            out.append(about | {"state": "diverged" if loss is None else states[t.id]})
        return out

    def _more(self) -> bool:
        """Ask the sweep for the trials of another round, and pack them; whether there are any."""
        if self.experiment.ask is None:
            return False
        asked = self.experiment.ask(self.history())
        new = {t.id: t for t in expand(asked, self.print) if t.id not in self.trials}
        whole = {k: sorted({*getattr(self.experiment, k), *getattr(asked, k)}) for k in ("swept", "sections")}
        self.experiment = asked._replace(**whole)
        self.trials |= new
        if new:
            self._pack()
        return bool(new)

    def _card(self, folder: Path, pop: Population) -> None:
        folder.mkdir(exist_ok=True)
        record.write_json(folder / "config.json", pop.config)
        by_role = cost.parameters(pop.program.model)
        device = jax.devices()[0]
        card = {
            **{"parameters": sum(by_role.values()), "by_role": by_role, "weights": cost.card(pop.program.model)},
            **{"flops_per_example": pop.flops(), "convention": cost.CONVENTION, "base": pop.config["base"]},
            "transfer": {t.id: told for t in pop.trials if (told := transferred(t.config))},
            **{"versions": versions(), "device": device.device_kind, "devices": jax.device_count(), "owner": claims.owner()},
            "precision": {k: pop.config["train"][k] for k in ("dtype", "precision")},
        }
        record.write_json(folder / "card.json", card)

    def _samples(self, folder: Path, progress: Progress) -> None:
        """Samples of the best trial of the largest population, beside real examples."""
        told = record.read_study(folder)
        _, name = _largest(folder, told)
        (there,) = hosts.agreed(name is not None and (folder / name / "samples.npz").exists())
        if name is None or there or not self.config["sample"]["n"]:
            return  # every trial diverged, or it is done
        progress.stage(name, "sampling")
        shown = self.config["sample"]
        try:
            found = restored(folder)
            options = self.trials.get(found.about["trial"], found).config["sample"]["options"]
            rows = np.random.default_rng(1).permutation(len(self.held))[: shown["n"]]
            shows = coded.pictured(self.held, self.config["data"], "eval", self.config["run"]["data_dir"])
            real = [shows[int(i)] for i in rows]
            restores = getattr(found.program.objective, "restores", False)
            cond, names = originals(found, real, told["data"]) if restores else asked(found, folder, told["data"], shown["n"])
            images, about = sample(found, told["data"], cond, options), {**found.about, "names": names, **options}
        except UserError as e:  # what is trained is told all the same
            progress.finish(name, f"no samples: {e}")
            return
        if not hosts.first():  # all restore and draw, as reading a checkpoint is a thing that processes do together
            return
        real = np.stack([picture(item, shows.info) for item in real])
        target = folder / about["population"] / "samples.npz"
        with target.with_suffix(".tmp").open("wb") as f:
            np.savez_compressed(f, samples=images, real=real, about=json.dumps(about))
        target.with_suffix(".tmp").rename(target)
        progress.finish(name)


def _since(config: dict) -> dict:
    """A config that may be an older study's, complete."""
    out = dict(config)
    for key, value in SINCE.items():
        section, leaf = key.split(".")
        out[section] = {leaf: value, **out.get(section, {})}
    return out


def transferred(config: dict) -> dict[str, Any]:
    """What multiplied a trial's learning rate, and by which rules from which base; nothing where no rule is named."""
    c, t = config["transfer"], config["train"]
    named = {c["batch_rule"], c["horizon_rule"]} != {"none"}
    return {**c, "factor": rates.factor(c, t["batch"], t["steps"])} if named else {}


def _small(config: dict, n: int) -> dict:
    return {**config, "eval": {**config["eval"], "examples": n, "batch": n}}


def _traced_keys(optim: dict) -> set[str]:
    return {f"optim.{k}" for k in traced(optim)} | set(_flatten({k: DEFAULTS[k] for k in TRACED_SECTIONS})) | {"arm"}


class Decoded:
    """A source whose arrays are in memory, decoded once for all populations of a study."""

    def __init__(self, source: Any):
        self._source, self.arrays = source, decode(source)
        self.info, self.dims = source.info, source.dims
        if hasattr(source, "unique"):
            self.unique = source.unique

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> dict:
        return self._source[i]

    def __getitems__(self, rows: Sequence[int]) -> list[dict]:
        """Examples `rows`, read together where the source can."""
        return fetch(self._source, rows)


def _largest(folder: Path, about: dict) -> tuple[list[str], str | None]:
    """The finished populations that kept weights, and the one with most parameters."""
    kept_in = restore.populations(folder, about)
    return kept_in, max(kept_in, key=lambda n: record.read_json(folder / n / "card.json")["parameters"], default=None)


class Restored(NamedTuple):
    """Averaged weights that a population kept, their program and config, and {population, trial, arm}."""

    program: Program
    weights: Any
    config: dict
    about: dict[str, str]


def chosen(folder: Path, trial: str = "") -> tuple[dict, str, str, dict]:
    """The best trial of the largest finished population of a study, or `trial`, whose best of each arm are kept.

    -> what study.json says, its population, its id, and all that is kept there.
    """
    about = record.read_study(folder)
    same_numbers(folder, about)
    kept_in, name = _largest(folder, about)
    if name is None:
        raise UserError(f"study {str(folder)!r} has no finished population to sample from; `lab status {folder}` tells what is missing")
    if trial:
        if trial not in about["trials"]:
            raise unknown("trial", trial, about["trials"])
        name = about["trials"][trial]["population"]
        if name not in kept_in:
            raise UserError(
                f"trial {trial!r} has no weights: its population {name!r} is not done, every trial of it diverged, or halving stopped it"
            )
    kept = restore.trials(folder, name)
    trial = trial or min(kept, key=lambda i: kept[i]["loss"])
    if trial not in kept:
        raise UserError(f"trial {trial!r} kept no weights (only the best of each arm does: {', '.join(kept)})")
    return about, name, trial, kept


def restored(folder: Path, trial: str = "") -> Restored:
    """The averaged weights of a study's best trial, or of `trial`, as `chosen` has them."""
    about, name, trial, kept = chosen(folder, trial)
    config = _since(record.read_json(folder / name / "config.json"))
    jax.config.update("jax_default_matmul_precision", config["train"]["precision"])
    program = populations.build(config, sizes(about["data"]))
    weights = restore.weights(folder, name, program.model)[trial]
    return Restored(program, weights, config, {"population": name, "trial": trial, "arm": kept[trial]["arm"]})


def sizes(info: dict) -> dict[str, int]:
    """Sizes that the data gave, so that sampling needs no data; studies of old tell them by their images."""
    if "dims" in info:
        return info["dims"]
    h, _, c = info["image"]
    return {"image": h, "channels": c, "classes": info["classes"]}


def sources(folder: Path, data_dir: str = "") -> tuple[Any, Any]:
    """The two splits of a study's data, train and held-out; UserError where they are no longer what the study was trained on."""
    about = record.read_study(folder)
    config = about["config"]
    if config["data"]["name"] == IMPORTED:
        raise UserError(_without_data(folder))
    train, held = (open_source(config["data"], s, data_dir or config["run"]["data_dir"]) for s in ("train", "eval"))
    if train.info["fingerprint"] != about["data"]["fingerprint"]:
        raise UserError(f"study {str(folder)!r} was trained on other data than {train.info['origin']!r} now is; its fingerprint differs")
    return train, held


def _without_data(folder: Path) -> str:
    return (
        f"{str(folder)!r} holds weights that were imported without their data, so it has no prompts, palette or real examples; import them "
        "again with --data name=SOURCE --data KEY=VALUE ..., the data that they were trained on"
    )


def about_data(folder: Path, train: Any, held: Any, n: int, before: dict) -> dict[str, Any]:
    """What a study says of its data, and what samples are drawn with where that is not at hand: shapes of an example's arrays, `n` prompts.

    Features of prompts are written to the folder. `before` is what the same study said earlier, whose prompts are kept.
    """
    item = held[0]
    told = {**train.info, "dims": train.dims, "eval_examples": len(held)}
    told["shapes"] = {k: list(np.shape(v)) for k, v in item.items() if not isinstance(v, str)}
    if not n or "text" not in item:
        return told
    kept = before.get("prompts", {"names": ()})
    if len(kept["names"]) == n and ("text" in kept or (folder / PROMPTS).exists()):
        return told | {"prompts": kept}
    found = prompts(held, n)
    if features := {k: found.pop(k) for k in ("text", "pooled") if k in found and found[k].dtype.kind == "f"}:
        temporary = folder / f".{PROMPTS}"  # savez would give another ending a second one
        np.savez_compressed(temporary, **features)
        temporary.rename(folder / PROMPTS)
    return told | {"prompts": {k: np.asarray(v).tolist() for k, v in found.items()}}


def counted(folder: Path, config: dict) -> tuple[float, int]:
    """FLOPs of a training example of a config on a study's data, and its parameters; UserError where the data is not at hand."""
    train, held = sources(folder)
    program = populations.build(config, train.dims)
    per = populations.flops_per_example(program, held_out(_small(config, 1), held))
    return per, sum(cost.parameters(program.model).values())


def prompts(source: Any, n: int) -> dict[str, Any]:
    """Conditions [n, ...] to draw samples by: classes in turn, each with the text of held-out examples of its own; and their names.

    A class that none of some hundred examples shows has no turn.
    """
    first = range(min(n, source.info["classes"]))
    found: dict[int, list[dict]] = {}
    for i in np.random.default_rng(1).permutation(len(source))[: max(512, 8 * n)]:
        item = source[int(i)]
        within(numeric(item), source)
        found.setdefault(int(item["label"]), []).append(item)
        if all(len(found.get(k, ())) >= -(-n // len(first)) for k in first):
            break
    at = sorted(found)[:n]
    turn = [found[k][j % len(found[k])] for i in range(n) for k, j in [(at[i % len(at)], i // len(at))]]
    names = [x.get("caption") or source.info["class_names"][int(x["label"])] for x in turn]
    given = [conditions.known(x) for x in turn]
    return {k: np.stack([g[k] for g in given]) for k in given[0]} | {"names": names}


def picture(item: dict, info: dict) -> np.ndarray:
    """The picture of an example as uint8 or floats: its own, or of its tokens as the source's `info` says they are drawn."""
    return item["image"] if "image" in item else drawing(info)(item["tokens"][None])[0]


def lacks(program: Program, info: dict) -> list[str]:
    """Of 'palette' and 'prompts', what pictures of a model need and the `info` of its data lacks."""
    draws = hasattr(program.objective, "sample")
    needed = {
        "palette": draws and program.objective.makes != "image" and not info.keys() & {"tokenizer", "drawn"},
        "prompts": draws and "text" in program.model.takes,
    }
    return [k for k, wanted in needed.items() if wanted and k not in info]


def _check_drawn(found: Restored, folder: Path, info: dict, given: tuple[str, ...] = ()) -> None:
    """UserError where a model draws nothing, or its pictures lack something beside what is `given`."""
    if not hasattr(found.program.objective, "sample"):
        name = found.config["objective"]["name"]
        raise UserError(f"a model of objective {name!r} draws nothing; it judges: c.judge = dict(names=('learned',), options=...)")
    if not (lacking := [k for k in lacks(found.program, info) if k not in given]):
        return
    if found.config["data"]["name"] == IMPORTED:
        raise UserError(_without_data(folder))
    if "palette" in lacking:
        makes = found.program.objective.makes
        raise UserError(f"samples are {makes} that no palette of the source makes into pictures; judge them by --judge instead")
    name = found.config["model"]["name"]
    raise UserError(f"model {name!r} reads text, and the study keeps no prompts (sample.n=0); give --prompt, or run with a larger sample.n")


def asked(found: Restored, folder: Path, info: dict, n: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Conditions [n, ...] to sample by, and a name for each: a study's prompts in turn, or its classes.

    Raises:
      UserError: the model reads text and there are no prompts, or what it draws cannot be made a picture.
    """
    _check_drawn(found, folder, info)
    if "prompts" in info:
        told, names = _told(folder, info["prompts"])
        rows = np.arange(n) % len(names)
        return {k: v[rows] for k, v in told.items()}, [names[i] for i in rows]
    labels = np.arange(n, dtype=np.int32) % info["classes"]
    return {"label": labels}, [info["class_names"][i] for i in labels]


def originals(found: Restored, items: list[dict], info: dict) -> tuple[dict[str, np.ndarray], list[str]]:
    """As `asked`, of a tokenizer: examples to be restored, and a name for each."""
    names = [x.get("caption") or info["class_names"][int(x["label"])] for x in items]
    return conditions.stacked(found.program.objective, items), names


def _told(folder: Path, kept: dict) -> tuple[dict[str, np.ndarray], list[str]]:
    """The conditions and names of the prompts of study.json, with the features beside it."""
    told = {k: np.asarray(v) for k, v in kept.items() if k != "names"}
    told = {k: v.astype(np.float32 if v.dtype.kind == "f" else np.int32) for k, v in told.items()}
    if "text" not in told:
        try:
            with np.load(folder / PROMPTS) as features:
                told |= dict(features)
        except (OSError, EOFError, ValueError, zipfile.BadZipFile):
            raise UserError(
                f"file {str(folder / PROMPTS)!r}, the features of the study's prompts, is missing or damaged; restore it, or delete it and run "
                "the study again, which makes it anew"
            ) from None
    return told, kept["names"]


def prompted(found: Restored, folder: Path, source: Any, texts: list[str], n: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """`asked` of captions in turn, with no label beside them; of a source that gives features, whose encoder is elsewhere, its prompts alone.

    UserError where the model reads no text, or for a text that the source has no tokens or features of.
    """
    if "text" not in (takes := found.program.model.takes):
        raise UserError(f"--prompt: model {found.config['model']['name']!r} of this study reads no text; it takes {', '.join(takes)}")
    info = record.read_study(folder)["data"]
    _check_drawn(found, folder, info, given=("prompts",))
    names, origin, kept = [texts[i % len(texts)] for i in range(n)], source.info["origin"], info.get("prompts")
    if hasattr(source, "encode"):
        given = {"text": np.stack([source.encode(t) for t in names])}
    elif kept is None:
        raise UserError(f"--prompt: the source {origin!r} makes no tokens of a text")
    else:
        told, known = _told(folder, kept)
        if odd := [t for t in texts if t not in known]:
            raise unknown(
                f"--prompt: {origin!r} has features of texts and no encoder for others than the study's own; prompt", odd[0], known
            )
        given = {k: v[[known.index(t) for t in names]] for k, v in told.items()}
    return {**given, "label": np.full(n, -1, np.int32)}, names


def sample(found: Restored, info: dict, cond: dict[str, np.ndarray], options: dict, data_dir: str = "") -> np.ndarray:
    """uint8 images [n, h, w, c] of restored weights, one for each of the conditions [n, ...]; `info` is the data's of study.json.

    Where a tokenizer made the data, that is looked for where the data lay, or in `data_dir`.
    """
    makes, decode = found.program.objective.makes, _decode(found, info, data_dir)
    painter = Painter(found.program, info.get("shapes", info)[makes], options, info, decode=decode)
    images = painter.samples(jax.tree.map(lambda x: x[None], found.weights), cond)["image"][0]
    return np.clip(np.round((images + 1) * 127.5), 0, 255).astype(np.uint8)


def _decode(found: Restored, info: dict, data_dir: str) -> Callable | None:
    """What makes pictures of a model's samples, where a tokenizer made its data."""
    tokenizer = coded.of(found.config["data"], info, data_dir or found.config["run"]["data_dir"])
    return tokenizer and tokenizer.pictures


def judged(
    found: Restored,
    train: Any,
    held: Any,
    names: list[str],
    n: int,
    options: dict,
    data_dir: str = "",
    begins: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """What judges say of restored weights: {column: value}; `options` are the sampler's, `data_dir` as in `sample`.

    `begins` is called once no judge has refused.
    """
    config = {**DEFAULTS["judge"], **found.config.get("judge", {}), "names": names, "n": n}
    where = data_dir or found.config["run"]["data_dir"]
    judges = open_judges(config, *(coded.pictured(x, found.config["data"], s, where) for x, s in ((held, "eval"), (train, "train"))))
    begins()
    batches = jax.tree.map(jnp.asarray, held_out(found.config, held))
    made = held[0].get(found.program.objective.makes, np.zeros(0))
    drawn = {"clip": made.dtype == np.uint8, "decode": _decode(found, held.info, data_dir)}
    painter = Painter(found.program, made.shape, options, held.info, **drawn)
    judging = Judging(judges, config, painter, held, (jax.random.key(populations.EVAL_KEY), batches), 1, strict=True)
    judging.judge(0, jax.tree.map(lambda x: x[None], found.weights), np.array([True]))
    ((_, values),) = judging.rows(wait=True)
    judging.close()
    return {k: float(v[0]) for k, v in values.items() if k != "diverged"}
