"""Rectified flow: x_t = (1 - t) data + t noise, and the model learns the velocity noise - data (arXiv 2209.03003).

Times follow a logit-normal density (Stable Diffusion 3, arXiv 2403.03206) or the uniform one, stratified over the batch.
"""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from lab.errors import unknown
from lab.objectives import conditions

TIMES = {"uniform": lambda u: u, "logit_normal": lambda u: jax.nn.sigmoid(ndtri(u))}
METHODS = ("euler", "heun")


class Objective:
    """`label_drop` is the share of examples whose label and text are hidden, for classifier-free guidance (arXiv 2207.12598)."""

    dims: ClassVar[dict[str, int]] = {}
    makes = "image"

    def __init__(self, time: str, label_drop: float):
        if time not in TIMES:
            raise unknown("objective.time", time, TIMES)
        self.time, self.label_drop = TIMES[time], label_drop

    def inputs(self, key: jax.Array, batch: dict) -> dict[str, jax.Array]:
        """x_t, t, label and, where the batch has it, text as the model takes them, and the velocity `target`.

        Images are uint8 or in [-1, 1]. One draw hides both the label and the text of an example.
        """
        k_offset, k_noise, k_drop = jax.random.split(key, 3)
        x0 = batch["image"]
        x0 = x0.astype(jnp.float32) / 127.5 - 1.0 if x0.dtype == jnp.uint8 else x0
        n = x0.shape[0]
        # one offset for evenly spaced quantiles: the batch covers all times, each example's time has the asked density
        u = jnp.mod(jax.random.uniform(k_offset) + (jnp.arange(n) + 0.5) / n, 1.0)
        t = self.time(jnp.clip(u, 1e-4, 1 - 1e-4))
        noise = jax.random.normal(k_noise, x0.shape)
        s = t.reshape(-1, *[1] * (x0.ndim - 1))
        given = conditions.drop(k_drop, batch, self.label_drop)
        return {"x": (1 - s) * x0 + s * noise, "t": t, **given, "target": noise - x0}

    def errors(self, model: Callable, key: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
        """Times [B], and predicted less true velocity, of the shape of the images."""
        given = self.inputs(key, batch)
        target = given.pop("target")
        return given["t"], model(given).astype(jnp.float32) - target

    def loss(self, model: Callable, key: jax.Array, batch: dict) -> jax.Array:
        """Mean squared velocity error of each example, [B]."""
        error = self.errors(model, key, batch)[1]
        return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))

    def sample(
        self,
        model: Callable,
        key: jax.Array,
        cond: dict,
        shape: tuple[int, ...],
        steps: int = 50,
        guidance: float = 1.0,
        method: str = "heun",
    ) -> jax.Array:
        """Images [B, *shape] for cond, label [B] and text [B, length] or one of them: the flow's ODE from noise (t=1) to data (t=0).

        Nothing is clipped.

        `method` is 'euler' or 'heun' (second order, two evaluations a step); `guidance` 1 is plain conditional sampling.
        """
        if method not in METHODS:
            raise unknown("sampler", method, METHODS)
        n, ask = conditions.count(cond), conditions.guided(model, cond, guidance)

        def velocity(x, t):
            return ask({"x": x, "t": jnp.full(n, t)})

        def step(x, ts):
            t, t_next = ts
            v = velocity(x, t)
            x_next = x + (t_next - t) * v
            if method == "heun":
                x_next = x + 0.5 * (t_next - t) * (v + velocity(x_next, t_next))
            return x_next, None

        grid = jnp.linspace(1.0, 0.0, steps + 1)
        x, _ = jax.lax.scan(step, jax.random.normal(key, (n, *shape)), (grid[:-1], grid[1:]))
        return x
