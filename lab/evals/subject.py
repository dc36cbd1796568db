"""What a judge is given, and judges found by name."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from lab import find
from lab.errors import UserError, unknown


class Subject:
    """A trained model as judges see it; what no judge asks for is never computed.

    samples: image float32 [N, ...] as the model paints it, in [-1, 1] where the source has bytes, its tokens [N, ...] where it draws
      those, and what was asked for, label int32 [N] and text.
    errors: prediction less target on the held-out set, error float32 [M, ...], at times t float32 [M]; of sequences that end, nats of
      each token, [M, tokens], and their lengths.
    draw(cond, **options): samples for conditions [N, ...] of the judge's own, such as sequences with holes, by the sampler with `options`
      over its own; one `cond` is the same object for every trial, as it is drawn for all of them at once.
    """

    def __init__(
        self,
        samples: Callable[[], dict[str, np.ndarray]],
        errors: Callable[[], dict[str, np.ndarray]],
        draw: Callable[..., dict[str, np.ndarray]] | None = None,
    ):
        self._samples, self._errors, self.draw = samples, errors, draw

    @cached_property
    def samples(self) -> dict[str, np.ndarray]:
        """Samples for the labels of held-out examples."""
        return self._samples()

    @cached_property
    def errors(self) -> dict[str, np.ndarray]:
        """Errors on held-out examples."""
        return self._errors()


def judge_kinds(config: dict) -> dict[str, tuple[Any, dict]]:
    """The Judge and its options of each name in a config's `judge` section; UserError for an unknown name, or options of no judge."""
    found, stems = {}, [find.stem(n) for n in config["names"]]
    for key in config["options"]:
        if key not in stems:
            raise unknown("config key judge.options", key, stems)
    for name, key in zip(config["names"], stems, strict=True):
        module, options = find.module("lab.evals", name), config["options"].get(key, {})
        if not hasattr(module, "Judge"):
            raise unknown("judge name", name, find.names("lab.evals"))
        if not isinstance(options, dict):
            raise UserError(f"config key judge.options.{key}={options!r} must be a section, such as dict(...)")
        found[name] = module.Judge, options
    return found


def open_judges(config: dict, real: Any, train: Any) -> dict[str, Any]:
    """The judges that a config's `judge` section names: name -> judge(subject) -> columns of a record, which begin with its name.

    Options go by the last part of a name: `judge.options.mine` are those of './mine.py'.

    `real` and `train` are the two splits of the data. An unknown name or option, or a source that a judge cannot judge, raises
    UserError.
    """
    return {
        name: find.make(judge, options, f"judge.options.{find.stem(name)}", given=(real, train))
        for name, (judge, options) in judge_kinds(config).items()
    }
