"""How often a model that tells something is wrong about real held-out examples: the error of a judge that is trained here."""

from typing import Any

import numpy as np

from lab.errors import UserError
from lab.evals.intervals import share


class Judge:
    """Share of held-out examples that are told wrong, for objectives whose errors are right or wrong: `classify`, and `contrast`.

    The latter's are among the captions of one evaluation batch (`eval.batch`).
    """

    def __init__(self, real: Any, train: Any):
        del real, train

    def __call__(self, subject: Any) -> dict[str, float]:
        """wrong, with Wilson's interval (_low, _high)."""
        error = np.asarray(subject.errors["error"])
        if error.ndim != 1 or not np.isin(error, (0, 1)).all():
            raise UserError("judge 'wrong' needs an objective whose errors are right or wrong, such as classify or contrast")
        return share("wrong", error)
