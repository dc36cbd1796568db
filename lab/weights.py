"""Weights in and out: from a folder in a published format to one that reads like a study, and back."""

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lab import axes, cost, find, parametrization, record, restore, sampling, study
from lab import population as populations
from lab.checkpoint import Checkpoints
from lab.data.loader import open_source
from lab.errors import UserError
from lab.experiment import DEFAULTS
from lab.files import sha256
from lab.formats import chosen, rules, tensors
from lab.sampling import IMPORTED, about_data, restored, sizes
from lab.train import Program

CARD = "parametrization.json"  # beside config.json: what a published config does not tell
NATIVE = "native"  # the format that holds every model
KEPT = ("base", "objective", "parametrization")  # sections of a config that the card carries over


def import_weights(
    source: Path,
    to: Path,
    allow_extra: bool = False,
    form: str = "",
    objective: dict | None = None,
    data: dict | None = None,
    data_dir: str = "data",
) -> list[str]:
    """Make the folder `to`, which reads like a study of one finished trial, from a published folder; returns what to tell the user.

    `form` names the format (lab/formats) where config.json does not; `objective` takes the place of the format's own section. `data` is
    the section of the source that the weights were trained on, which gives the folder prompts, palette and real examples.

    Raises:
      UserError: no known format, damaged files, tensors that do not fit the model, or data of other sizes.
    """
    source, to = Path(source), Path(to)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"--to={str(to)!r} exists and is not empty; choose another folder")
    theirs = record.read_json(source / "config.json")
    for option, given, package in (("--objective", objective, "lab.objectives"), ("--data", data, "lab.data")):
        if given and "name" not in given:
            raise UserError(f"{option} names none; expected name=..., of: {', '.join(find.names(package))}")
    name = form or chosen.by_class(theirs, source)
    format, sections = chosen.named(name), chosen.sections(name, theirs, source)
    if (source / CARD).exists():
        card = record.read_json(source / CARD)
        sections |= {k: card[k] for k in KEPT if k in card}
    if objective:
        sections["objective"] = objective
    dims = sections.pop("data")
    splits = [open_source(data, s, data_dir) for s in ("train", "eval")] if data else None
    if splits:
        dims = _agreed(dims, data["name"], splits[0].dims, sections["model"]["name"])
    config = {**json.loads(json.dumps(DEFAULTS)), **sections, "data": data or {"name": IMPORTED}}
    config["run"]["data_dir"] = data_dir
    program = populations.build(config, dims)
    files = tensors.Tensors(source, getattr(format, "older", {}))
    arrays, extra = rules.apply(format.rules(_complete(config, dims, program)), files, program.model, program.dims, allow_extra)
    trial = hashlib.sha256("".join(map(sha256, files.files)).encode()).hexdigest()[:12]
    origin = f"weights of {source.resolve().name!r} in the format {name!r}"
    lacks = _write(to, trial, config, dims, program, arrays, origin, splits)
    count = sum(cost.parameters(program.model).values())
    told = [f"{len(files) - len(extra)} tensors of the format {name!r} -> {len(arrays)} weights, {count:,} parameters: {to}"]
    if lacks:
        told.append(f"no {' and no '.join(lacks)} to sample with: --data name=SOURCE --data KEY=VALUE ... tells the data")
    return told + [f"left: {n} {list(files[n].shape)}" for n in extra]


def _agreed(dims: dict[str, int], name: str, given: dict[str, int], model: str) -> dict[str, int]:
    """The sizes that weights are of, `length` as the source gives it; UserError for one that the model reads and the source has otherwise.

    Where no weight depends on the length of a text, its format makes one up; where one does, its shape tells.
    """
    knobs, out = find.arguments(find.module("lab.models", model).Model.axes), dict(dims)
    for key in [k for k in dims if k in knobs]:
        if key not in given or (given[key] != dims[key] and key != "length"):
            gives = f"gives as {given[key]}" if key in given else "does not give"
            raise UserError(f"--data: the weights are of {key}={dims[key]}, which source {name!r} {gives}")
        out[key] = given[key]
    return out


def export_weights(folder: Path, to: Path, trial: str = "", form: str = "") -> list[str]:
    """Write the averaged weights of a study's trial (its best, or `trial`) to the folder `to`; returns what to tell the user.

    The folder gets the format's config.json and safetensors file, and parametrization.json: rule, base, objective, and arrow, role and
    scales of every weight.

    Raises:
      UserError: the study has no such weights, or the format has no place for them.
    """
    folder, to = Path(folder), Path(to)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"--to={str(to)!r} exists and is not empty; choose another folder")
    about = record.read_study(folder)
    dims = sizes(about["data"])
    found = restored(folder, trial)
    point = about["trials"][found.about["trial"]]["point"]
    name = form or _by_model(found.config["model"]["name"])
    format, config = chosen.named(name), _complete(found.config, dims, found.program)
    arrays = {n: np.asarray(w.get_value()) for n, w in axes.weights(found.weights).items()}
    try:
        theirs = format.theirs(config)
        made = rules.invert(format.rules(config), arrays, found.program.model, found.program.dims)
    except UserError as e:
        raise e if name == NATIVE else UserError(f"{e} (--format {NATIVE} holds every model)") from None
    to.mkdir(parents=True, exist_ok=True)
    tensors.write(to / format.file, made)
    record.write_json(to / CARD, card(_at(found.config, point), found.program))
    record.write_json(to / "config.json", theirs)
    return [f"trial {found.about['trial']} ({found.about['arm']}): {len(made)} tensors in the format {name!r}: {to}"]


def card(config: dict, program: Program) -> dict[str, Any]:
    """The parametrization card: rule, base, objective, and of every weight its arrow, role, shape and scales."""
    table = parametrization.table(**config["parametrization"])
    rows = cost.card(program.model)
    for row, w, scales in zip(rows, axes.weights(program.model).values(), axes.scales(program.model, table), strict=True):
        row |= {"init_std": w.arrow.std * scales.init, **scales._asdict()}
    return {**{k: config[k] for k in KEPT}, "model": config["model"], "weights": rows}


def _at(config: dict, point: dict[str, Any]) -> dict:
    """A population's config at a trial's point, as far as a card tells: trials of several parametrizations share a program."""
    out = dict(config)
    for key, value in point.items():
        section, _, leaf = key.partition(".")
        if section in KEPT:
            out[section] = {**out[section], leaf: value}
    return out


def _by_model(model: str) -> str:
    """The one published format of a model of the lab; the lab's own where there is none."""
    names = [n for n in find.names("lab.formats") if chosen.named(n).model == find.stem(model)]
    if len(names) > 1:
        raise UserError(f"model {model!r} has several formats; --format chooses one of: {', '.join(names)}")
    return names[0] if names else NATIVE


def _complete(config: dict, dims: dict[str, int], program: Program) -> dict:
    """A config whose model section has every knob and option, defaults and the objective's too, and whose data section is `dims`."""
    kind = type(program.model)
    known = {**inspect.signature(kind.axes).parameters, **inspect.signature(kind.__init__).parameters}
    defaults = {n: p.default for n, p in known.items() if p.default is not p.empty}
    told = {k: v for k, v in {**dims, **program.objective.dims}.items() if k in known}
    return {**config, "model": {**defaults, **config["model"], **told}, "data": dims}


def _write(
    to: Path,
    trial: str,
    config: dict,
    dims: dict,
    program: Program,
    arrays: dict[str, np.ndarray],
    origin: str,
    splits: list | None,
) -> list[str]:
    """A study of one population of one trial that is done: config, card, a row, weights, done.json and study.json, in this order.

    Returns what samples of it lack (sampling.lacks).
    """
    name, arm = f"imported-{trial[:8]}", "imported"
    folder = to / name
    folder.mkdir(parents=True)
    leaves = [w.replace(arrays[n]) for n, w in axes.weights(program.model).items()]
    tree = jax.tree.unflatten(jax.tree.structure(program.model, is_leaf=axes.is_weight), leaves)
    record.write_json(folder / "config.json", config)
    by_role = cost.parameters(program.model)
    about = {"parameters": sum(by_role.values()), "by_role": by_role, "weights": cost.card(program.model), "base": config["base"]}
    record.write_json(folder / "card.json", {**about, "origin": origin, "versions": study.versions()})
    writer = record.Writer(folder)
    writer.append([{"trial": trial, "arm": arm, "seed": 0, "step": 0, "attempt": writer.attempt, "diverged": False}])
    writer.close()
    record.compact(folder)
    store = Checkpoints(folder / "weights", keep=1)
    store.save(0, {trial: tree}, {"trials": {trial: {"arm": arm, "loss": None}}, "weights": origin})
    store.wait()
    store.close()
    record.write_json(folder / "done.json", {"trials": [trial], "diverged": [], "weights": True})
    if splits:
        data = {**about_data(to, *splits, config["sample"]["n"], {}), "dims": dims}
    else:
        image = {"image": [dims["image"], dims["image"], dims["channels"]]} if "image" in dims else {}
        classes = dims.get("classes", 1)
        data = {**image, "shapes": image, "classes": classes, "class_names": [str(i) for i in range(classes)], "dims": dims}
        data |= {"origin": origin, "fingerprint": trial, "examples": 0, "eval_examples": 0}
    lacks = sampling.lacks(program, data)
    trials = {trial: {"arm": arm, "seed": 0, "steps": 0, "point": {}, "population": name}}
    record.write_json(
        to / "study.json",
        {
            **{"schema": record.SCHEMA, "name": to.name, "question": f"{origin}: what do they draw?", "experiment": ""},
            **{
                "config": config,
                "swept": [],
                "sections": [],
                "numbers": restore.NUMBERS,
                "trials": trials,
                "populations": {name: {"trials": [trial], "chunk": 1}},
            },
            **{"versions": study.versions(), "data": data, "imported": {"origin": origin, "lacks": lacks}},
        },
    )
    return lacks
