"""Adam, which with the decoupled decay that all optimizers share is AdamW (arXiv 1711.05101)."""

import optax


class Optimizer:
    """m / (sqrt(v) + eps) of bias-corrected averages of the gradient (b1) and of its square (b2)."""

    def __init__(self, b1: float, b2: float, eps: float):
        self.init, self.update = optax.scale_by_adam(b1, b2, eps)
