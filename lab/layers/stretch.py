"""Rotary positions on a square grid that is larger than the one trained on: which of their frequencies slow down, and by how much.

A pair of features turns by position * period^-share, its share running from 0 to 1. A grid `scale` times as long along each side may
slow all pairs alike, or those alone whose wave is longer than what was trained on (Lumina-Next, arXiv 2406.18583, section 2.2).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

KINDS = ("none", "interpolation", "ntk", "frequency", "time")
PERIOD = 10_000.0


def rates(kind: str, pairs: int, scale: float, trained: int, t: jax.Array | None = None, period: float = PERIOD) -> jax.Array:
    """Turns a step of `pairs` pairs of features along one axis of a grid `scale` times as long as `trained`: [pairs], with `time` [B, pairs].

    'interpolation' divides all by the scale; 'ntk' multiplies the period by it; 'frequency' lets no wave that is as long as the trained
    grid go on where it was not trained, and bends the faster ones less; 'time' begins at the noise, t = 1, with interpolation of all
    but the fastest and ends at the data with 'ntk'. A grid that is not larger has all as they are.
    """
    share = np.arange(pairs, dtype=np.float32) / pairs
    plain = jnp.asarray(period**-share)
    if kind == "none" or scale <= 1:
        return plain
    if kind == "interpolation":
        return plain / scale
    if kind == "ntk":
        return jnp.asarray((period * scale) ** -share)
    if kind == "frequency":
        seen = math.log(trained / (2 * math.pi)) / math.log(period)  # share of the pair whose wave is as long as the trained grid
        if seen <= 0:
            return plain / scale  # all waves are longer
    else:
        features = 2 * pairs
        seen = (((features - 1) * (1 - t) + 1) / features)[:, None]
    return jnp.maximum(plain * scale ** (-share / seen), plain / scale)


def grid(kind: str, side: int, trained: int, head_dim: int, t: jax.Array | None = None) -> jax.Array:
    """Angles [side * side, head_dim / 2], with 'time' [B, side * side, head_dim / 2], row by row: half turn with the row, half with the column.

    `trained` is the side of the grid that was trained on, in positions; `t` [B] the times, 1 at the noise.
    """
    turns = rates(kind, head_dim // 4, side / trained, trained, t)
    along = jnp.arange(side, dtype=jnp.float32)[:, None] * turns[..., None, :]
    rows, columns = jnp.repeat(along, side, axis=-2), jnp.concatenate([along] * side, axis=-2)
    return jnp.concatenate([rows, columns], axis=-1)
