"""Lion: every entry moves by the sign of a mix of gradient and momentum (arXiv 2302.06675)."""

import optax


class Optimizer:
    """sign(b1 m + (1 - b1) g), with the average m of gradients (b2)."""

    def __init__(self, b1: float, b2: float):
        self.init, self.update = optax.scale_by_lion(b1, b2)
