"""The best weights of a finished study, with what they are sampled by and what judges say of them."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lab import coded, cost, record, restore
from lab import population as populations
from lab.data.drawing import drawing
from lab.data.loader import few, held_out, numeric, open_source, within
from lab.errors import UserError, unknown
from lab.evals.subject import open_judges
from lab.experiment import DEFAULTS, since
from lab.judging import Judging, Painter
from lab.objectives import conditions
from lab.restore import chosen
from lab.train import Program

IMPORTED = "imported"  # name in a config's section data where weights came without their data
PROMPTS = "prompts.npz"  # features of a study's prompts, which are too many numbers for study.json


class Restored(NamedTuple):
    """Averaged weights that a population kept, their program and config, and {population, trial, arm}."""

    program: Program
    weights: Any
    config: dict
    about: dict[str, str]


def restored(folder: Path, trial: str = "") -> Restored:
    """The averaged weights of a study's best trial, or of `trial`, as `chosen` has them."""
    about, name, trial, kept = chosen(folder, trial)
    config = since(record.read_json(folder / name / "config.json"))
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
    per = populations.flops_per_example(program, held_out(few(config, 1), held))
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


def looks(found: Restored, options: dict) -> bool:
    """Whether samples by `options` are drawn of pictures of the data."""
    objective = found.program.objective
    return hasattr(objective, "looks") and objective.looks(options)


def shown(found: Restored, held: Any, data_dir: str = "") -> Any:
    """The source of the pictures of held-out examples."""
    return coded.pictured(held, found.config["data"], "eval", data_dir or found.config["run"]["data_dir"])


def spelled(words: np.ndarray, source: Any) -> list[str]:
    """What drawn words [n, length] say; UserError where they are features, or the source does not tell."""
    if words.dtype.kind != "i":
        raise UserError("what is drawn of text is features, which are not words; judge it by --judge instead")
    if not hasattr(source, "decode"):
        raise UserError(
            f"source {source.info['origin']!r} has no decode(text) that makes words of what is drawn; expected one, as shapes and text have"
        )
    return [source.decode(w) for w in words]


def originals(found: Restored, items: list[dict], info: dict) -> tuple[dict[str, np.ndarray], list[str]]:
    """As `asked`, of an objective that looks at pictures: the conditions of examples, with their pictures, and a name for each."""
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


def sample(found: Restored, info: dict, cond: dict[str, np.ndarray], options: dict, data_dir: str = "") -> dict[str, np.ndarray]:
    """What restored weights draw for the conditions [n, ...], [n, ...] each: 'image' as uint8, and 'words' where a sampler gives some.

    `info` is the data's of study.json. Where a tokenizer made the data, that is looked for where the data lay, or in `data_dir`.
    """
    makes, decode = found.program.objective.makes, _decode(found, info, data_dir)
    painter = Painter(found.program, info.get("shapes", info)[makes], options, info, decode=decode)
    drawn = {k: v[0] for k, v in painter.samples(jax.tree.map(lambda x: x[None], found.weights), cond).items() if k in ("image", "words")}
    if "image" in drawn:
        drawn["image"] = np.clip(np.round((drawn["image"] + 1) * 127.5), 0, 255).astype(np.uint8)
    return drawn


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
