"""Accuracy by a source's exact oracle: the share of samples that show what their label asks for, after DALL-Eval (arXiv 2202.04053)."""

from functools import cached_property
from typing import Any

import numpy as np

from lab.errors import UserError
from lab.evals._pictures import check
from lab.evals.intervals import share

LEVEL = 0.9  # coverage of the interval


class Judge:
    """Columns oracle, its Wilson interval oracle_low and oracle_high, and what it lies between: oracle_chance and oracle_ceiling.

    The ceiling is the oracle's accuracy on `ceiling` real held-out examples. Where the source tells them apart, the share of samples
    right in each attribute follows as oracle_<attribute>.
    """

    def __init__(self, real: Any, train: Any, ceiling: int = 512):
        if not hasattr(real, "correct"):
            raise UserError(f"judge 'oracle' needs a source with an oracle, such as shapes; {real.info['origin']!r} has none")
        check("oracle.ceiling", ceiling, 1, 1 << 20)
        self.source, self._reals = real, ceiling

    @cached_property
    def ceiling(self) -> float:
        """The oracle's accuracy on real held-out examples."""
        real = [self.source[i] for i in range(min(self._reals, len(self.source)))]
        return float(np.mean(self.source.correct(np.stack([x["image"] for x in real]), np.array([x["label"] for x in real]))))

    def __call__(self, subject: Any) -> dict[str, float]:
        images, labels = subject.samples["image"], subject.samples["label"]
        if not np.isfinite(images).all():
            raise UserError(f"{int((~np.isfinite(images)).reshape(len(images), -1).any(1).sum())} of {len(images)} samples are not finite")
        right = np.asarray(self.source.correct(images, labels))
        out = share("oracle", right, LEVEL) | {"oracle_chance": self.source.chance, "oracle_ceiling": self.ceiling}
        parts = self.source.parts(images, labels) if hasattr(self.source, "parts") else {}
        return {k: float(v) for k, v in out.items()} | {f"oracle_{k}": float(np.mean(v)) for k, v in parts.items()}
