"""Contrast: of all captions of a batch a picture's own is to be told, and of all pictures a caption's own (CLIP, arXiv 2103.00020).

Captions that say the same are no wrong answers: where two are equal, neither counts against the other, so that the least loss is 0.
What is trained so judges pictures (lab/evals/learned.py) and draws none.
"""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from lab.errors import UserError
from lab.objectives.pictures import floats

NEVER = -1e30  # in the place of a logit that does not count


def repeats(text: jax.Array) -> jax.Array:
    """Which pairs [B, B] of different examples have the same text [B, ...]."""
    flat = text.reshape(len(text), -1)
    return jnp.all(flat[:, None] == flat[None], axis=-1) & ~jnp.eye(len(text), dtype=bool)


class Objective:
    """Mean of both cross-entropies, in nats; an example's depends on the whole batch, so it cannot be computed in parts."""

    dims: ClassVar[dict[str, int]] = {}
    makes = ""

    def inputs(self, key: jax.Array, batch: dict) -> dict[str, jax.Array]:
        """x, the pictures in [-1, 1] (bytes are scaled to it, floats are as they are), and their text."""
        if "text" not in batch:
            raise UserError(
                "objective contrast needs a source with text; config key data: shapes has it by extras=('text',), 'text' adds it"
            )
        return {"x": floats(batch["image"]), "text": batch["text"]}

    def _logits(self, model: Callable, key: jax.Array, batch: dict) -> jax.Array:
        given = self.inputs(key, batch)
        return jnp.where(repeats(given["text"]), NEVER, model(given).astype(jnp.float32))

    def loss(self, model: Callable, key: jax.Array, batch: dict) -> jax.Array:
        """Loss of each example, [B]; `model` gives logits [B, B], pictures by texts."""
        logits = self._logits(model, key, batch)
        both = jax.nn.logsumexp(logits, axis=0) + jax.nn.logsumexp(logits, axis=1)
        return both / 2 - jnp.diagonal(logits)

    def errors(self, model: Callable, key: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
        """Times, which are all 0, and 1 for each picture to which another caption of the batch is as near as its own, else 0; both [B]."""
        logits = self._logits(model, key, batch)
        own, others = jnp.diagonal(logits), jnp.max(jnp.where(jnp.eye(len(logits), dtype=bool), NEVER, logits), axis=1)
        return jnp.zeros(len(own)), (others >= own).astype(jnp.float32)
