"""What a model is conditioned on, how it is hidden, and guidance by what the model says without it (arXiv 2207.12598)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lab.errors import UserError

NULL = {"label": -1, "text": 0, "pooled": 0}  # what a condition is filled with where it is hidden


def known(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The conditions of a batch: its label [B], its text, tokens [B, length] or features [B, length, width], and `pooled` [B, width]."""
    return {k: batch[k] for k in NULL if k in batch}


def given(objective: object, item: dict) -> dict:
    """What an objective's samples are drawn by, of one example: its conditions, and its picture as `original` where some of its samples look at one."""
    return known(item) | ({"original": item["image"]} if hasattr(objective, "looks") else {})


def stacked(objective: object, items: list[dict]) -> dict[str, np.ndarray]:
    """`given` of several examples, [n, ...]."""
    each = [given(objective, x) for x in items]
    return {k: np.stack([g[k] for g in each]) for k in each[0]}


def hidden(given: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The conditions of `given`, each one hidden."""
    return {k: jnp.full_like(v, NULL[k]) for k, v in known(given).items()}


def drop(key: jax.Array, batch: dict[str, jax.Array], share: float) -> dict[str, jax.Array]:
    """The conditions of a batch, all of them hidden in a random `share` of its examples."""
    given = known(batch)
    if not given:
        return {}
    dropped = jax.random.bernoulli(key, share, (count(given),))
    return {k: jnp.where(dropped.reshape(-1, *[1] * (given[k].ndim - 1)), v, given[k]) for k, v in hidden(given).items()}


def count(given: dict[str, jax.Array]) -> int:
    """How many examples conditions are of."""
    return jax.tree.leaves(given)[0].shape[0]


def guided(model: Callable, cond: dict[str, jax.Array], guidance: float) -> Callable:
    """inputs -> float32 output under the conditions, moved away from that without them: without + guidance (with - without).

    With `guidance` 1 the model is asked once, else for both in one batch of twice the size, which is faster than two calls.
    `f(inputs, scale)` takes another guidance at a call, traced or not.
    """
    given = known(cond)

    def f(inputs: dict[str, jax.Array], scale: jax.Array | float = guidance) -> jax.Array:
        if guidance == 1.0:
            return model({**inputs, **given}).astype(jnp.float32)
        twice = {k: jnp.concatenate([v, v]) for k, v in inputs.items()}
        both = {k: jnp.concatenate([given[k], v]) for k, v in hidden(given).items()}
        conditional, without = jnp.split(model({**twice, **both}).astype(jnp.float32), 2)
        return without + scale * (conditional - without)

    return f


def within(guidance: float, interval: tuple[float, float]) -> Callable:
    """time -> `guidance` within the closed `interval` of times, and 1, which is none, outside (arXiv 2404.07724).

    UserError unless the interval is two times, in order, within [0, 1].
    """
    if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
        raise UserError(f"config key sample.options.interval={interval!r} must be two times within [0, 1], the lower first")
    low, high = interval
    return lambda t: jnp.where((t >= low) & (t <= high), guidance, 1.0)
