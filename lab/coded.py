"""Tokenizers behind encoded sets: pictures to tokens or latents as a set is written, and back as a model of it is sampled.

A set that a tokenizer has made holds it, in a folder `tokenizer` beside its splits, in the lab's own or a published format.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lab import axes, find
from lab.data import encoded
from lab.data.loader import open_source
from lab.errors import UserError
from lab.files import sha256
from lab.formats import chosen, rules, tensors
from lab.objectives.pictures import floats
from lab.record import read_json
from lab.restore import described_model

FOLDER = "tokenizer"
CHUNK = 64  # pictures decoded at once


class Tokenizer:
    """The tokenizer whose weights lie in a folder; `scale` and `shift` are those by which a set's latents are read.

    UserError where the weights are of a model that is none.
    """

    def __init__(self, folder: Path, scale: float = 1.0, shift: float = 0.0):
        theirs = read_json(folder / "config.json")
        form = chosen.by_class(theirs, folder)
        sections, files = chosen.sections(form, theirs, folder), tensors.Tensors(folder, getattr(chosen.named(form), "older", {}))
        self.name, self.digest = sections["model"]["name"], "".join(map(sha256, [*files.files, folder / "config.json"]))[:32]
        knobs = find.arguments(find.module("lab.models", self.name).Model.axes)
        model, dims = described_model(
            sections["model"], sections["base"], {"data": {k: v for k, v in sections["data"].items() if k in knobs}}
        )
        if not (hasattr(model, "encode") and hasattr(model, "decode")):
            raise UserError(
                f"folder {str(folder)!r} holds weights of {self.name!r}, which is no tokenizer; expected one of: {', '.join(find.names('lab.tokenizers'))}"
            )
        arrays, _ = rules.apply(chosen.named(form).rules(sections), files, model, dims)
        leaves = [w.replace(jnp.asarray(arrays[n])) for n, w in axes.weights(model).items()]
        self._weights = jax.tree.unflatten(jax.tree.structure(model, is_leaf=axes.is_weight), leaves)
        self.vocabulary, self.own = model.vocabulary, (getattr(model, "scale", 0.0), getattr(model, "shift", 0.0))
        self._scale, self._shift = scale, shift
        self.sizes, self._decode = sections["data"], jax.jit(self.pictures_of)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Tokens or latents of a batch's images, uint8 or floats in [-1, 1]."""
        return self._weights.encode(floats(batch["image"]))

    def pictures_of(self, given: dict[str, jax.Array]) -> jax.Array:
        """Pictures [B, side, side, channels] in [-1, 1] of what a call gives."""
        return jnp.clip(self._weights.decode(given), -1.0, 1.0)

    def pictures(self, given: dict[str, np.ndarray]) -> np.ndarray:
        """Pictures float32 [..., side, side, channels] in [-1, 1] of tokens [..., h, w], or of latents as a model sees them, [..., h, w, code]."""
        ((key, x),) = given.items()
        lead = x.shape[: x.ndim - (2 if key == "tokens" else 3)]
        flat = np.asarray(x).reshape(-1, *x.shape[len(lead) :])
        flat = flat if key == "tokens" else flat / np.float32(self._scale) + np.float32(self._shift)
        padded = np.resize(flat, (-(-len(flat) // CHUNK) * CHUNK, *flat.shape[1:]))
        made = [np.asarray(self._decode({key: padded[i : i + CHUNK]})) for i in range(0, len(flat), CHUNK)]
        out = np.concatenate(made)[: len(flat)].astype(np.float32)
        return out.reshape(*lead, *out.shape[1:])


def _set(section: dict) -> dict:
    """The section of the encoded set within a section `data`, which may have captions made tokens around it; else the section."""
    while section["name"] != "encoded" and isinstance(section.get("source"), dict):
        section = section["source"]
    return section


def of(section: dict, info: dict, data_dir: str) -> Tokenizer | None:
    """The tokenizer of the data of a section `data`, whose `info` tells of one; None where it tells of none."""
    if "tokenizer" not in info:
        return None
    made = encoded.made(data_dir, _set(section)["path"])
    folder = encoded.located(data_dir, _set(section)["path"]) / FOLDER
    if not folder.is_dir():
        raise UserError(f"folder {str(folder)!r}, the tokenizer of the encoded set, is missing; restore it, or encode the set again")
    found = Tokenizer(folder, made["scale"], made["shift"])
    if found.digest != info["tokenizer"]:
        raise UserError(
            f"folder {str(folder)!r} holds another tokenizer than the one that made the set; restore it, or encode the set again"
        )
    return found


def pictured(source: Any, section: dict, split: str, data_dir: str) -> Any:
    """The source that shows the pictures of a set: for one that a tokenizer has made the source that it was made of, else itself.

    Where captions are made tokens around the set, they are around the pictures too.
    """
    if "tokenizer" not in source.info:
        return source
    made = _tuples(encoded.made(data_dir, _set(section)["path"])["data"])
    return open_source(_in_place(section, made), split, data_dir)


def _in_place(section: dict, made: dict) -> dict:
    """A section `data` with another source in the place of the encoded set in it."""
    return made if section["name"] == "encoded" else {**section, "source": _in_place(section["source"], made)}


def _tuples(x: Any) -> Any:
    """A section as a config has it: JSON has lists in the place of tuples."""
    if isinstance(x, dict):
        return {k: _tuples(v) for k, v in x.items()}
    return tuple(map(_tuples, x)) if isinstance(x, list) else x
