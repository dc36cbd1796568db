"""Rotary positions: pairs of features turn by an angle that grows with the position (RoFormer, arXiv 2104.09864)."""

import jax
import jax.numpy as jnp
import numpy as np


def line(length: int, head_dim: int, period: float = 10_000.0) -> np.ndarray:
    """Angles float32 [length, head_dim / 2] of positions 0, 1, .. on a line."""
    rates = period ** (-np.arange(head_dim // 2) / (head_dim // 2))
    return (np.arange(length)[:, None] * rates).astype(np.float32)


def grid(side: int, head_dim: int, period: float = 10_000.0) -> np.ndarray:
    """Angles float32 [side * side, head_dim / 2] on a square, row by row: half of them turn with the row, half with the column."""
    one = line(side, head_dim // 2, period)
    rows, columns = (x.reshape(-1) for x in np.meshgrid(np.arange(side), np.arange(side), indexing="ij"))
    return np.concatenate([one[rows], one[columns]], axis=1)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """x [B, T, heads, head_dim] with the pair of features (i, i + head_dim / 2) turned by angles [T, head_dim / 2] or [B, T, ..], in float32."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)
