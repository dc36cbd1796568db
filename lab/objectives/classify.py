"""Classification: a picture's label is to be told. What is trained so judges pictures (lab/evals/learned.py) and draws none."""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from lab.errors import UserError
from lab.objectives.pictures import floats


class Objective:
    """Cross-entropy of the label in nats; `smoothing` moves that share of the target to all classes alike (arXiv 1512.00567)."""

    dims: ClassVar[dict[str, int]] = {}
    makes = ""

    def __init__(self, smoothing: float = 0.0):
        if not 0 <= smoothing < 1:
            raise UserError(f"config key objective.smoothing={smoothing} must lie in [0, 1)")
        self.smoothing = smoothing

    def inputs(self, key: jax.Array, batch: dict) -> dict[str, jax.Array]:
        """x, the pictures in [-1, 1] (bytes are scaled to it, floats are as they are), and `target`, their labels [B]."""
        return {"x": floats(batch["image"]), "target": batch["label"]}

    def losses(self, model: Callable, given: dict) -> jax.Array:
        """`loss` of what `inputs` gave, or of some of its examples."""
        logits = model({"x": given["x"]}).astype(jnp.float32)
        target = optax.smooth_labels(jax.nn.one_hot(given["target"], logits.shape[-1]), self.smoothing)
        return optax.softmax_cross_entropy(logits, target)

    def loss(self, model: Callable, key: jax.Array, batch: dict) -> jax.Array:
        """Cross-entropy of each example, [B]; `model` gives logits [B, classes]."""
        return self.losses(model, self.inputs(key, batch))

    def errors(self, model: Callable, key: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
        """Times, which are all 0, and 1 for each example whose label is not the likeliest, else 0; both [B]."""
        given = self.inputs(key, batch)
        wrong = jnp.argmax(model({"x": given["x"]}), axis=-1) != given["target"]
        return jnp.zeros(len(wrong)), wrong.astype(jnp.float32)
