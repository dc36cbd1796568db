"""The learning rate at another batch and horizon than the base's: a factor, by a rule that the experiment names.

    batch    sqrt          (B / base B)^1/2   Adam (Malladi et al., arXiv 2205.10287; 2512.22382)
             linear        B / base B         SGD (Goyal et al., arXiv 1706.02677)
    horizon  inverse_sqrt  (D / base D)^-1/2  2512.22382
             power         (D / base D)^-0.32 2409.19913, 2603.28743

D counts examples, steps times batch: with sqrt and inverse_sqrt together, data that grows by its batch alone changes nothing, as in
arXiv 2512.22382. Betas, epsilon and weight decay are left as they are.
"""

from collections.abc import Callable
from typing import Any

from lab.errors import UserError, unknown

BATCH: dict[str, Callable[[float], float]] = {"none": lambda k: 1.0, "sqrt": lambda k: k**0.5, "linear": lambda k: k}
HORIZON: dict[str, Callable[[float], float]] = {"none": lambda k: 1.0, "inverse_sqrt": lambda k: k**-0.5, "power": lambda k: k**-0.32}

NONE = {
    "batch_rule": "none",
    "base_batch": 0,
    "horizon_rule": "none",
    "base_steps": 0,
}  # the section's defaults, and what older studies had


def factor(transfer: dict[str, Any], batch: int, steps: int) -> float:
    """What multiplies `optim.lr` at `batch` examples a step and `steps` steps; `transfer` is the config's section.

    Raises:
      UserError: an unknown rule, or a base that a rule needs and the section does not tell.
    """
    rules = (("batch_rule", BATCH, ("base_batch",)), ("horizon_rule", HORIZON, ("base_batch", "base_steps")))
    for key, known, needed in rules:
        if transfer[key] not in known:
            raise unknown(f"transfer.{key}", transfer[key], known)
        for base in needed if transfer[key] != "none" else ():
            if transfer[base] < 1:
                raise UserError(
                    f"transfer.{base}={transfer[base]} must be at least 1 for transfer.{key}={transfer[key]!r}: the value tuned at"
                )
    wider = batch / max(transfer["base_batch"], 1)
    longer = wider * steps / max(transfer["base_steps"], 1)
    return BATCH[transfer["batch_rule"]](wider) * HORIZON[transfer["horizon_rule"]](longer)
