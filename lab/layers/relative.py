"""Positions as a learned bias of attention's scores: a number for each head and each range of distances (T5, arXiv 1910.10683)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lab.axes import Dims, weight

BUCKETS, FURTHEST = 32, 128  # ranges of distances, and the distance from which on all are one


def buckets(both: bool, count: int = BUCKETS, furthest: int = FURTHEST) -> np.ndarray:
    """Range of a key at distance -furthest .. furthest after its query, int32 [2 furthest + 1]; without `both`, keys after it are at 0.

    Half of the ranges of a direction hold one distance each, the others grow by a constant factor.
    """
    distance = np.arange(-furthest, furthest + 1)
    n, first = (count // 2, count // 2 * (distance > 0)) if both else (count, 0)
    away = np.abs(distance) if both else np.maximum(-distance, 0)
    near = n // 2
    octaves = np.log(np.maximum(away, near).astype(np.float32) / near) / np.float32(math.log(furthest / near))
    far = near + (octaves * (n - near)).astype(np.int32)
    return (first + np.where(away < near, away, np.minimum(far, n - 1))).astype(np.int32)


class Bias(nnx.Module):
    """Of queries at places [T] and keys at places [S], what is added to the scores: [heads, T, S], of all layers of a stack alike."""

    def __init__(self, dims: Dims, both: bool):
        self.table = weight("buckets | -> heads", dims, fill=0.0)
        self.both = both

    def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        distance = jnp.clip(keys[None, :] - queries[:, None], -FURTHEST, FURTHEST)
        at = jnp.asarray(buckets(self.both))[distance + FURTHEST]
        return self.table.get_value()[at].transpose(2, 0, 1)
