"""`lab data encode --with FOLDER`: a source through a trained or published tokenizer into an encoded set that holds the tokenizer."""

import shutil
import tempfile
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
    folder = Path(data_dir) / Path(to).expanduser()
    train, held = (open_source(config, split, data_dir) for split in ("train", "eval"))
    if "image" not in train[0]:
        raise UserError(f"--with={str(given)!r}: a tokenizer encodes pictures, and the source gives {', '.join(train[0])}")
    with tempfile.TemporaryDirectory() as new:
        weights_of(given, Path(new) / FOLDER)
        tokenizer = Tokenizer(Path(new) / FOLDER)
        _fits(tokenizer, train, given)
        _settle(Path(new) / FOLDER, folder)
    scale, shift = tokenizer.own if tokenizer.own[0] or tokenizer.vocabulary else _size(tokenizer, train, batch)
    options |= {"name": f"{tokenizer.name} {tokenizer.digest[:8]}", "batch": batch, "vocabulary": tokenizer.vocabulary}
    options |= {"scale": scale or 1.0, "shift": shift, "more": {"tokenizer": tokenizer.digest, "data": config}}
    for split, source, n in (("train", train, 0), ("eval", held, eval_examples)):
        sets.write(source, tokenizer, folder / split, examples=n, **options)
    return folder


def weights_of(given: Path, to: Path) -> None:
    """The weights of a study's best trial, or of a published folder, in the folder `to`; UserError where there are none."""
    if (given / "study.json").is_file():
        weights.export_weights(given, to, form="" if "imported" in record.read_study(given) else weights.NATIVE)
    elif (given / "config.json").is_file():
        to.mkdir()
        for file in [*given.glob("*.json"), *given.glob("*.safetensors")]:
            shutil.copy(file, to)
    else:
        raise UserError(f"--with={str(given)!r} is neither the folder of a study nor one with config.json and *.safetensors")


def _settle(new: Path, folder: Path) -> None:
    """The tokenizer's weights in the set's folder, whole or not at all; UserError where those of another lie there."""
    there, temporary = folder / FOLDER, folder / f".{FOLDER}"
    if there.is_dir():
        mine, old = ({f.name: sha256(f) for f in d.iterdir() if f.name != weights.CARD} for d in (new, there))
        if mine != old:
            raise UserError(f"folder {str(folder)!r} holds a set of another tokenizer; choose another --to")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(new, temporary)
    except OSError as e:
        raise UserError(f"folder {str(folder)!r} cannot be written ({e.strerror}); choose another --to") from e
    temporary.rename(there)


def _fits(tokenizer: Tokenizer, source: Any, given: Path) -> None:
    """UserError where a tokenizer cannot give back the source's pictures."""
    image = source[0]["image"]
    one = jax.ShapeDtypeStruct((1, *image.shape), image.dtype)
    try:
        back = jax.eval_shape(lambda x: tokenizer.pictures_of(tokenizer({"image": x})), one).shape
    except (TypeError, ValueError):
        back = ()
    if back != one.shape:
        told = ", ".join(f"{k}={tokenizer.sizes[k]}" for k in ("image", "channels") if k in tokenizer.sizes)
        raise UserError(f"--with={str(given)!r}: the tokenizer is of {told}, and the source's pictures are {list(image.shape)}")


def _size(tokenizer: Tokenizer, source: Any, batch: int) -> tuple[float, float]:
    """(1 / std, mean) of latents, over all channels, to six digits."""
    n, call = min(MEASURED, len(source)), jax.jit(lambda image: tokenizer({"image": image})["image"])
    latents = np.concatenate([np.asarray(call(read_batch(source, i, min(i + batch, n), batch)["image"])) for i in range(0, n, batch)])[:n]
    return float(f"{1 / max(latents.std(), 1e-12):.6g}"), float(f"{latents.mean():.6g}")
