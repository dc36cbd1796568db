"""Accuracy by a source's exact oracle: the share of samples that show what their label asks for, after DALL-Eval (arXiv 2202.04053)."""

from typing import Any

import numpy as np

from lab.errors import UserError
from lab.evals.intervals import wilson

LEVEL = 0.9  # coverage of the interval


class Judge:
    """Columns oracle, its Wilson interval oracle_low and oracle_high, and what it lies between: oracle_chance and oracle_ceiling.

    The ceiling is the oracle's accuracy on `ceiling` real held-out examples. Where the source tells them apart, the share of samples
    right in each attribute follows as oracle_<attribute>.
    """

    def __init__(self, real: Any, train: Any, ceiling: int = 512):
        if not hasattr(real, "correct"):
            raise UserError(f"judge 'oracle' needs a source with an oracle, such as shapes; {real.info['origin']!r} has none")
        self.source, self.ceiling = real, ceiling

    def __call__(self, subject: Any) -> dict[str, float]:
        images, labels = subject.samples["image"], subject.samples["label"]
        right = np.asarray(self.source.correct(images, labels))
        low, high = wilson(right.sum(), len(right), LEVEL)
        real = [self.source[i] for i in range(min(self.ceiling, len(self.source)))]
        shown = self.source.correct(np.stack([x["image"] for x in real]), np.array([x["label"] for x in real]))
        out = {"oracle": right.mean(), "oracle_low": low, "oracle_high": high}
        out |= {"oracle_chance": self.source.chance, "oracle_ceiling": shown.mean()}
        parts = self.source.parts(images, labels) if hasattr(self.source, "parts") else {}
        return {k: float(v) for k, v in out.items()} | {f"oracle_{k}": float(np.mean(v)) for k, v in parts.items()}
