"""Reconstruction: a tokenizer (lab/tokenizers) is to give back the pictures that it is given, through a code that is short.

loss = mean error of the picture's numbers + weight cost. For `kl`, whose cost is the KL in nats a number of the picture, it is the bound
on -log p(picture) with Gaussian noise of variance weight / 2, up to a factor and a constant (arXiv 1312.6114).
"""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from lab.errors import UserError, unknown
from lab.objectives.pictures import floats

ERRORS = {"mse": jnp.square, "l1": jnp.abs}


class Objective:
    """`error` is 'mse' or 'l1'; `weight` is that of the tokenizer's own cost: commitment for `vq`, KL for `kl`, nothing for `fsq`."""

    dims: ClassVar[dict[str, int]] = {}
    makes = "image"

    def __init__(self, error: str = "mse", weight: float = 0.25):
        if error not in ERRORS:
            raise unknown("objective.error", error, ERRORS)
        if weight < 0:
            raise UserError(f"config key objective.weight={weight} must be at least 0")
        self.error, self.weight = ERRORS[error], weight

    def inputs(self, key: jax.Array, batch: dict) -> dict[str, jax.Array]:
        """Pictures in [-1, 1] (bytes are scaled to it, floats are as they are), and a key for each."""
        image = floats(batch["image"])
        return {"image": image, "keys": jax.random.split(key, image.shape[0])}

    def losses(self, model: Callable, given: dict) -> jax.Array:
        """`loss` of what `inputs` gave, or of some of its examples."""
        out = self._restored(model, given)
        error = self.error(out["image"].astype(jnp.float32) - given["image"])
        return jnp.mean(error, axis=(1, 2, 3)) + self.weight * out["cost"]

    def loss(self, model: Callable, key: jax.Array, batch: dict) -> jax.Array:
        """Error and cost of each example, [B]."""
        return self.losses(model, self.inputs(key, batch))

    def errors(self, model: Callable, key: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
        """Times, which are all 0, [B], and restored less true pictures."""
        given = self.inputs(key, batch)
        return jnp.zeros(given["image"].shape[0]), self._restored(model, given)["image"].astype(jnp.float32) - given["image"]

    def _restored(self, model: Callable, given: dict) -> dict[str, jax.Array]:
        out = model(given)
        if not isinstance(out, dict) or not {"image", "cost", "bits"} <= out.keys() or out["image"].shape != given["image"].shape:
            raise UserError(
                "objective reconstruct wants a tokenizer, which gives image, cost and bits (lab/tokenizers); this model does not"
            )
        return out

    def looks(self, options: dict) -> bool:
        """Whether samples are drawn by a picture, `original` beside the conditions."""
        return True

    def sample(self, model: Callable, key: jax.Array, cond: dict, shape: tuple[int, ...]) -> dict[str, jax.Array]:
        """image [B, *shape], the pictures cond['original'] restored; bits [B], and tokens [B, h, w] where there are any."""
        out = self._restored(model, self.inputs(key, {"image": cond["original"]}))
        return {k: out[k].astype(jnp.float32) if k != "tokens" else out[k] for k in ("image", "bits", "tokens") if k in out}
