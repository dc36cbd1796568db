"""`lab data encode --with FOLDER`: a source through a trained or published tokenizer into an encoded set that holds the tokenizer."""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lab import record, weights
from lab.coded import FOLDER, Tokenizer
from lab.data import encode as sets
from lab.data.loader import open_source
from lab.data.mapped import read_batch
from lab.errors import UserError
from lab.files import sha256

MEASURED = 1024  # examples of which the size of latents is measured


def encode(config: dict, data_dir: str, given: Path, to: str, eval_examples: int = 0, batch: int = 64, **options: Any) -> Path:
    """Both splits of the source of a `data` section through the tokenizer of a study, or in a published format; returns the set's folder.

    Latents of a tokenizer that says no scale of its own are read centred and of unit size, by the mean and std of the first 1,024.
    """
    if "name" not in config:
        raise UserError("lab data encode wants the name of a source")
    folder = Path(data_dir) / Path(to).expanduser()
    _placed(given, folder)
    tokenizer = Tokenizer(folder / FOLDER)
    train, held = (open_source(config, split, data_dir) for split in ("train", "eval"))
    if "image" not in train[0]:
        raise UserError(f"--with={str(given)!r}: a tokenizer encodes pictures, and the source gives {', '.join(train[0])}")
    scale, shift = tokenizer.own if tokenizer.own[0] or tokenizer.vocabulary else _size(tokenizer, train, batch)
    options |= {"name": f"{tokenizer.name} {tokenizer.digest[:8]}", "batch": batch, "vocabulary": tokenizer.vocabulary}
    options |= {"scale": scale or 1.0, "shift": shift, "more": {"tokenizer": tokenizer.digest, "data": config}}
    for split, source, n in (("train", train, options.pop("examples", 0)), ("eval", held, eval_examples)):
        sets.write(source, tokenizer, folder / split, examples=n, **options)
    return folder


def _placed(given: Path, folder: Path) -> None:
    """The tokenizer's weights in the set's folder; UserError where those of another lie there."""
    there, temporary = folder / FOLDER, folder / f".{FOLDER}"
    shutil.rmtree(temporary, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    if (given / "study.json").is_file():
        weights.export_weights(given, temporary, form=weights.NATIVE if "imported" not in record.read_study(given) else "")
    elif (given / "config.json").is_file():
        temporary.mkdir()
        for file in [*given.glob("*.json"), *given.glob("*.safetensors")]:
            shutil.copy(file, temporary)
    else:
        raise UserError(f"--with={str(given)!r} is neither the folder of a study nor one with config.json and *.safetensors")
    if there.is_dir():
        mine, old = ({f.name: sha256(f) for f in d.iterdir() if f.name != weights.CARD} for d in (temporary, there))
        shutil.rmtree(temporary)
        if mine != old:
            raise UserError(f"folder {str(folder)!r} holds a set of another tokenizer; choose another --to")
    else:
        temporary.rename(there)


def _size(tokenizer: Tokenizer, source: Any, batch: int) -> tuple[float, float]:
    """(1 / std, mean) of latents, over all channels, to six digits."""
    n, call = min(MEASURED, len(source)), jax.jit(lambda image: tokenizer({"image": image})["image"])
    latents = np.concatenate([np.asarray(call(read_batch(source, i, min(i + batch, n), batch)["image"])) for i in range(0, n, batch)])[:n]
    return float(f"{1 / max(latents.std(), 1e-12):.6g}"), float(f"{latents.mean():.6g}")
