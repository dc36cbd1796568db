"""Rectified flow: x_t = (1 - t) data + t noise, and the model learns the velocity noise - data (arXiv 2209.03003).

Times follow a density of lab/objectives/times.py (Stable Diffusion 3, arXiv 2403.03206), stratified over the batch.
"""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from lab import find
from lab.errors import UserError, unknown
from lab.objectives import conditions, times
from lab.objectives.pictures import floats

METHODS = ("euler", "heun", "midpoint")


class Objective:
    """`time` is the density of times: 'uniform', 'logit_normal' (`location`, `scale`), 'mode' (`scale`) or 'cosmap'.

    `label_drop` is the share of examples whose label and text are hidden, for classifier-free guidance (arXiv 2207.12598);
    `shift` above 1 moves times towards noise, as larger pictures need.
    """

    dims: ClassVar[dict[str, int]] = {}
    makes = "image"

    def __init__(self, time: str, label_drop: float, location: float | None = None, scale: float | None = None, shift: float = 1.0):
        if time not in times.DENSITIES:
            raise unknown("objective.time", time, times.DENSITIES)
        self.time = find.make(times.DENSITIES[time], _given(location=location, scale=scale), "objective")
        self.shift, self.label_drop = times.shifted(shift), label_drop

    def inputs(self, key: jax.Array, batch: dict) -> dict[str, jax.Array]:
        """x_t, t, label and, where the batch has it, text as the model takes them, and the velocity `target`.

        Images are uint8 or in [-1, 1]. One draw hides both the label and the text of an example.
        """
        k_offset, k_noise, k_drop = jax.random.split(key, 3)
        x0 = floats(batch["image"])
        n = x0.shape[0]
        # one offset for evenly spaced quantiles: the batch covers all times, each example's time has the asked density
        u = jnp.mod(jax.random.uniform(k_offset) + (jnp.arange(n) + 0.5) / n, 1.0)
        t = self.shift(self.time(jnp.clip(u, 1e-4, 1 - 1e-4)))
        noise = jax.random.normal(k_noise, x0.shape)
        s = t.reshape(-1, *[1] * (x0.ndim - 1))
        given = conditions.drop(k_drop, batch, self.label_drop)
        return {"x": (1 - s) * x0 + s * noise, "t": t, **given, "target": noise - x0}

    def errors(self, model: Callable, key: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
        """Times [B], and predicted less true velocity, of the shape of the images."""
        given = self.inputs(key, batch)
        return given["t"], self._error(model, given)

    def _error(self, model: Callable, given: dict) -> jax.Array:
        given = {**given}
        target = given.pop("target")
        out = model(given).astype(jnp.float32)
        if out.shape != target.shape:
            raise UserError(f"objective flow got an output of shape {out.shape} for {target.shape}; expected the shape of its input")
        return out - target

    def losses(self, model: Callable, given: dict) -> jax.Array:
        """`loss` of what `inputs` gave, or of some of its examples."""
        error = self._error(model, given)
        return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))

    def loss(self, model: Callable, key: jax.Array, batch: dict) -> jax.Array:
        """Mean squared velocity error of each example, [B]."""
        return self.losses(model, self.inputs(key, batch))

    def sample(
        self,
        model: Callable,
        key: jax.Array,
        cond: dict,
        shape: tuple[int, ...],
        steps: int = 50,
        guidance: float = 1.0,
        method: str = "heun",
        grid: str = "uniform",
        shift: float | None = None,
        steepness: float | None = None,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> jax.Array:
        """Images [B, *shape] for cond, label [B] and text [B, length] or one of them: the flow's ODE from noise (t=1) to data (t=0).

        Nothing is clipped.

        `method` is 'euler', or of second order with two evaluations a step 'heun' or 'midpoint'; `guidance` 1 is plain conditional
        sampling, another holds at times within `interval` (arXiv 2404.07724). `grid` is 'uniform', 'sigmoid' (`steepness`) or
        'shifted' (`shift`).
        """
        if method not in METHODS:
            raise unknown("sampler", method, METHODS)
        if grid not in times.GRIDS:
            raise unknown("sample.options.grid", grid, times.GRIDS)
        bend = find.make(times.GRIDS[grid], _given(shift=shift, steepness=steepness), "sample.options")
        n, ask = conditions.count(cond), conditions.guided(model, cond, guidance)
        scale = conditions.within(guidance, interval)

        def velocity(x, t):
            return ask({"x": x, "t": jnp.full(n, t)}, scale(t))

        def step(x, ts):
            t, t_next = ts
            h, v = t_next - t, velocity(x, t)
            if method == "heun":
                return x + 0.5 * h * (v + velocity(x + h * v, t_next)), None
            if method == "midpoint":
                return x + h * velocity(x + 0.5 * h * v, t + 0.5 * h), None
            return x + h * v, None

        nodes = bend(jnp.linspace(1.0, 0.0, steps + 1))
        x, _ = jax.lax.scan(step, jax.random.normal(key, (n, *shape)), (nodes[:-1], nodes[1:]))
        return x


def _given(**options: float | None) -> dict[str, float]:
    """The options that were given."""
    return {k: v for k, v in options.items() if v is not None}
