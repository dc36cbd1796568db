"""Stochastic gradient descent with heavy-ball momentum.

As it sees gradients over their expected size, the step of Adam becomes muP's for SGD (arXiv 2203.03466, table 3): learning rate
times r_out for weights that contract nothing infinite, r_out / r_in for hidden ones, 1 / r_in for output weights.
"""

import optax


class Optimizer:
    """The sum of past gradients, each b1 times less than the one after it."""

    def __init__(self, b1: float):
        self.init, self.update = optax.trace(b1)
