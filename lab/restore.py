"""Models as configs describe them, and the averaged weights that finished populations of a study keep."""

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

import jax

from lab import axes, find, parametrization, record
from lab.axes import Dims
from lab.checkpoint import Checkpoints
from lab.errors import UserError, unknown

NUMBERS = 2  # raised where the same config computes something else. 2: sine-cosine positions have the column first


def described_model(section: dict, base: dict, given: dict[str, dict[str, int]]) -> tuple[Any, Dims]:
    """The model of a config's section, described (no numbers), and its sizes, of which others are `given` by data and objective."""
    part = dict(section)
    model = find.module("lab.models", part.pop("name")).Model
    dims = _dims(model, part, base, given)
    knobs = find.arguments(model.axes)
    options = {k: v for k, v in part.items() if k not in knobs}
    for key in set(options) - set(find.arguments(model.__init__)):
        raise unknown("config key model", key, [*find.arguments(model.__init__), *knobs])
    find.check(model.__init__, options, "model")
    return model(dims, **options), dims


def _dims(model: Any, part: dict, base: dict, given: dict[str, dict[str, int]]) -> Dims:
    """dims = config | source.dims | objective.dims; a knob set twice with different values is a conflict."""
    knobs = {}
    needed = find.arguments(model.axes)
    kinds = {n: p.annotation for n, p in inspect.signature(model.axes).parameters.items()}
    for where, sizes in {"model": {k: v for k, v in part.items() if k in needed}, **given}.items():
        for k, v in sizes.items():
            if k in knobs and knobs[k] != v:
                raise UserError(f"size {k!r} is {knobs[k]} in the config but {v} in the {where}; leave it to one of them")
            knobs[k] = v
    if missing := [k for k, required in needed.items() if required and k not in knobs]:
        raise UserError(f"config key model.{missing[0]} is missing; the model's knobs: {', '.join(needed)}")
    for k, v in knobs.items():
        least = 1 if needed.get(k, True) else 0  # what may be left out may be nothing
        if kinds.get(k) is tuple:  # in a file it is a list
            if not isinstance(v, tuple | list) or not v or not all(type(x) is int and x > 0 for x in v):
                raise UserError(f"model.{k}={v!r} must be several positive whole numbers, such as (8, 5, 5)")
        elif type(v) is not int or v < least:
            raise UserError(f"model.{k}={v!r} must be a {'positive ' * least}whole number")
    return Dims.of(model.axes, {k: knobs[k] for k in needed if k in knobs}, base)


def shapes(model: Any) -> Any:
    """A described model's weights as shapes, for tracing without numbers and for reading what was kept."""
    table = axes.scales(model, parametrization.standard)
    return jax.eval_shape(lambda k: axes.draw(k, model, table), jax.eval_shape(lambda: jax.random.key(0)))


def same_numbers(folder: Path, about: dict) -> None:
    """UserError for a study of an older lab, in which its configs computed something else; its records stay readable."""
    if about.get("numbers", 1) != NUMBERS:
        raise UserError(
            f"study {str(folder)!r} was trained by an older lab, in which models placed their positions otherwise; its report and status "
            "can be had, but its weights mean another model here; train it anew in another --workdir"
        )


def populations(folder: Path, about: dict) -> list[str]:
    """The finished populations of a study that kept weights."""
    return [n for n in about["populations"] if record.finished(folder / n) and _kept(folder / n)]


def _kept(folder: Path) -> bool:
    """Whether a finished population kept weights; studies of old say so by having them."""
    return record.read_json(folder / "done.json").get("weights", (folder / "weights").exists())


def trials(folder: Path, name: str) -> dict[str, dict]:
    """Of each trial of a population that kept its weights, the best of each arm, its arm and loss."""
    store = _store(folder, name)
    found = store.meta()["trials"]
    store.close()
    return found


def digest(folder: Path, name: str, trial: str) -> str:
    """Digest of a trial's weights that a population kept, whatever their folder."""
    store = _store(folder, name)
    mine = sorted((k, v) for k, v in store.digests().items() if k.split(".", 1)[0] == trial)
    store.close()
    return hashlib.sha256(json.dumps(mine).encode()).hexdigest()[:16]


def weights(folder: Path, name: str, model: Any) -> dict[str, Any]:
    """{trial: averaged weights} of a population of `model`, as described; UserError where they are missing or damaged."""
    store = _store(folder, name)
    found = store.restore(dict.fromkeys(sorted(store.meta()["trials"]), shapes(model)))
    store.close()
    if found is None:
        raise UserError(
            f"weights of population {name!r} are damaged; restore {str(folder / name / 'weights')!r}, or delete {name!r} and run again"
        )
    return found[1]


def _store(folder: Path, name: str) -> Checkpoints:
    if not (folder / name / "weights").exists():
        raise UserError(f"folder {str(folder / name / 'weights')!r} is missing; restore it, or delete {name!r} and run again")
    return Checkpoints(folder / name / "weights")


def largest(folder: Path, about: dict) -> tuple[list[str], str | None]:
    """The finished populations that kept weights, and the one with most parameters."""
    kept_in = populations(folder, about)
    return kept_in, max(kept_in, key=lambda n: record.read_json(folder / n / "card.json")["parameters"], default=None)


def chosen(folder: Path, trial: str = "") -> tuple[dict, str, str, dict]:
    """The best trial of the largest finished population of a study, or `trial`, whose best of each arm are kept.

    -> what study.json says, its population, its id, and all that is kept there.
    """
    about = record.read_study(folder)
    same_numbers(folder, about)
    kept_in, name = largest(folder, about)
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
    kept = trials(folder, name)
    trial = trial or min(kept, key=lambda i: kept[i]["loss"])
    if trial not in kept:
        raise UserError(f"trial {trial!r} kept no weights (only the best of each arm does: {', '.join(kept)})")
    return about, name, trial, kept
