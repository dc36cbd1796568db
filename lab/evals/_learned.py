"""Models that the lab has trained to tell pictures, read from their study: a classifier (`classify`), or two towers (`contrast`)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lab import axes, find, record, restore
from lab.errors import UserError, unknown
from lab.evals._pictures import in_chunks

CHUNK = 128  # pictures or texts that are looked at at once


def kind(model: Any) -> str:
    """'two_tower' for a model that has vectors of pictures and texts, 'classifier' for one that has features and logits, else ''."""
    if not hasattr(model, "features"):
        return ""
    return "two_tower" if hasattr(model, "said") else "classifier"


class Learned:
    """Averaged weights of one trial that look at pictures of their own size, in float32 whatever they were trained in."""

    def __init__(self, model: Any, weights: Any, about: dict[str, Any]):
        self.kind, self.about = kind(model), about
        self._weights = axes.view(weights, jnp.float32)
        self._run: dict[str, Callable] = {}

    def features(self, images: np.ndarray) -> np.ndarray:
        """What the last layer reads of pictures float32 [N, h, w, c] in the model's range, float64 [N, d]; of two towers unit vectors."""
        return self._over("features", lambda m, x: m.features(x), images)

    def label(self, images: np.ndarray) -> np.ndarray:
        """A classifier's likeliest label [N] of pictures."""
        return self._over("label", lambda m, x: m({"x": x}), images).argmax(1)

    def said(self, texts: np.ndarray) -> np.ndarray:
        """Two towers' unit vectors [N, d] of texts [N, length, ...]."""
        return self._over("said", lambda m, x: m.said(x), texts)

    def _over(self, name: str, call: Callable, given: np.ndarray) -> np.ndarray:
        if name not in self._run:
            self._run[name] = jax.jit(call)
        with jax.default_matmul_precision("highest"):
            return in_chunks(lambda x: self._run[name](self._weights, x), given, CHUNK)


def load(key: str, folder: str, trial: str = "") -> dict[str, Learned]:
    """The judges of a study, {kind: its trial of least loss}, or `trial` alone; `key` is the option that names the folder, for errors.

    Raises:
      UserError: no study, none of its finished trials is a judge, or `trial` is none of those that kept their weights.
    """
    path, found = Path(folder).expanduser(), {}
    about = record.read_study(path)
    restore.same_numbers(path, about)
    for name in restore.populations(path, about):
        config = record.read_json(path / name / "config.json")
        what = dict(config["objective"])
        objective = find.make(find.module("lab.objectives", what.pop("name")).Objective, what, "objective")
        given = {"data": about["data"]["dims"], "objective": objective.dims}
        model, _ = restore.described_model(config["model"], config["base"], given)
        if kind(model):
            found |= {i: (k["loss"], kind(model), name, model) for i, k in restore.trials(path, name).items()}
    if not found:
        raise UserError(f"{key}={folder!r}: the study has no finished trial that judges; one of objective classify or contrast does")
    if trial and trial not in found:
        raise unknown(f"{key.rpartition('.')[0]}.trial", trial, found)
    out = {}
    for i in [trial] if trial else sorted(found, key=lambda i: found[i][0]):
        _, sort, name, model = found[i]
        if sort not in out:
            told = {"trial": i, "population": name, "data": about["data"]}
            out[sort] = Learned(model, restore.weights(path, name, model)[i], told)
    return out


def fits(key: str, judge: Learned, source: Any) -> None:
    """UserError unless a judge looks at pictures of the source's shape; `key` is the option that names it."""
    if list(judge.about["data"]["image"]) != list(source.info["image"]):
        raise UserError(
            f"{key}: the judge looks at pictures of shape {list(judge.about['data']['image'])}, the source's are {list(source.info['image'])}; "
            "train one on this source"
        )
