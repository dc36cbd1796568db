"""Adam-atan2: Adam without an epsilon, blind to the gradient's scale (Everett et al., arXiv 2407.05872)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


class Optimizer:
    """atan2(m, sqrt(v)) of Adam's bias-corrected averages; its entries are at most pi / 2 and, where they are small, Adam's."""

    def __init__(self, b1: float, b2: float):
        adam = optax.scale_by_adam(b1, b2)

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            _, state = adam.update(updates, state)
            m, v = (optax.tree.bias_correction(x, b, state.count) for x, b in ((state.mu, b1), (state.nu, b2)))
            return jax.tree.map(lambda m, v: jnp.arctan2(m, jnp.sqrt(v)), m, v), state

        self.init, self.update = adam.init, update
