"""What worlds of images share: items by counter, checks of their options, and the best loss under each density of times."""

import hashlib
import json
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import expit

from lab.errors import UserError, unknown

STREAMS = {"train": 0, "eval": 1, "parameters": 2}
HELD_OUT = 2**16  # small enough to permute in memory, as loader.held_out does
LOGITS = np.linspace(-8, 8, 33)  # losses are smooth in logit(t), where the trapezoid rule converges exponentially
TIMES = expit(LOGITS)
DENSITIES = {"uniform": TIMES * (1 - TIMES) / 2, "logit_normal": np.exp(-(LOGITS**2) / 2) / np.sqrt(8 * np.pi)}  # mass at TIMES
for mass in DENSITIES.values():
    mass[[0, -1]] += (1 - mass.sum()) / 2  # beyond both ends losses are constant


def check(key: str, value: Any, low: float, high: float, section: str = "data") -> None:
    """UserError unless `value` is of the type of `low` (a whole number may stand for a float) and within [low, high]."""
    whole = type(low) is int
    if (type(value) is not int and (whole or type(value) is not float)) or not low <= value <= high:
        raise UserError(f"config key {section}.{key}={value!r} must be a {'whole ' if whole else ''}number from {low} to {high}")


def check_extras(extras: Any, known: tuple[str, ...]) -> None:
    """UserError unless config key data.extras is a tuple of some that are known."""
    if not isinstance(extras, (list, tuple)):
        raise UserError(f"config key data.extras={extras!r} must be a tuple of some of: {', '.join(known)}")
    for extra in extras:
        if extra not in known:
            raise unknown("config key data.extras:", extra, known)


def numbers(seed: int, stream: str, i: int = 0) -> np.random.Generator:
    """The generator of item `i` of a stream: a counter of its own, so that no order of asking changes what is drawn."""
    return np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, 0, i, STREAMS[stream]]))


class World:
    """A source whose best loss is known; a kind of world defines `_item` and `loss_at`, `velocity` and `generate`.

    Items are image float32 [size, size, channels], of mean 0 and mean variance 1, and label int32. Train has `examples` items
    (the default stands for infinitely many), eval 65,536 others of the same distribution.
    """

    def __init__(self, split: str, classes: int, options: dict[str, Any]):
        if split not in ("train", "eval"):
            raise unknown("split", split, ("train", "eval"))
        for key, low, high in (("size", 2, 1024), ("channels", 1, 1024), ("seed", 0, 2**63 - 1), ("examples", 1, 2**62)):
            check(key, options[key], low, high)
        self.split, self.options, self.classes = split, options, classes
        self.shape = (options["size"], options["size"], options["channels"])
        self.dims = {"image": options["size"], "channels": options["channels"], "classes": classes}

    def __len__(self) -> int:
        return self.options["examples"] if self.split == "train" else HELD_OUT

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if not 0 <= i < len(self):
            raise IndexError(f"item {i} of {len(self)}")
        image, label = self._item(numbers(self.options["seed"], self.split, int(i)))
        return {"image": image.reshape(self.shape).astype(np.float32), "label": np.int32(label)}

    def _item(self, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """One image, of any shape with as many elements, and its label."""
        raise NotImplementedError

    def loss_at(self, times: np.ndarray, conditional: bool) -> tuple[np.ndarray, np.ndarray]:
        """Least mean squared velocity error per element at each time, with the label or without, and its standard error; [T]."""
        raise NotImplementedError

    @cached_property
    def info(self) -> dict[str, Any]:
        """What a study records; `best_loss` is the least loss of objective flow by density of times, with and without labels.

        With label_drop p the least loss is (1 - p) conditional + p marginal; `error` is the larger of their standard errors.
        """
        curves = [self.loss_at(TIMES, conditional) for conditional in (True, False)]
        best = {}
        for name, mass in DENSITIES.items():
            given, without = (float(mass @ mean) for mean, _ in curves)
            error = max(float(np.sqrt(mass**2 @ error**2)) for _, error in curves)
            best[name] = {"conditional": given, "marginal": without, "error": error}
        kind = type(self).__module__.rpartition(".")[2]
        # the first numbers drawn stand for numpy's streams, which may change between its versions
        drawn = numbers(self.options["seed"], "train").standard_normal(4).round(6).tolist()
        content = json.dumps([kind, self.options, drawn], sort_keys=True)
        return {
            **{"image": list(self.shape), "classes": self.classes, "class_names": [str(c) for c in range(self.classes)]},
            **{"examples": len(self), "fingerprint": hashlib.sha256(content.encode()).hexdigest()[:32]},
            **{"origin": f"world {kind}", "best_loss": best},
        }
