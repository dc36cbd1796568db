"""Finite scalar quantization (FSQ: Mentzer et al., arXiv 2309.15505): each number of a code is rounded to one of a few levels.

There is no table of codes, and nothing to be learned of them. The paper's levels: (8, 6, 5) for about 2^8 codes, (8, 5, 5, 5) for 2^10,
(7, 5, 5, 5, 5) for 2^12, (8, 8, 8, 6, 5) for 2^14, (8, 8, 8, 5, 5, 5) for 2^16.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from lab.axes import Dims
from lab.errors import UserError
from lab.tokenizers import _vit

EPSILON = 1e-3  # by which the outermost levels are kept off the bound's asymptotes, as in the paper's code


def bound(z: jax.Array, levels: np.ndarray) -> jax.Array:
    """z [..., code] squashed so that rounding gives levels[i] whole numbers: -floor(L / 2) .. ceil(L / 2) - 1."""
    half = (levels - 1) * (1 - EPSILON) / 2
    offset = np.where(levels % 2 == 1, 0.0, 0.5)
    return jnp.tanh(z + np.tan(offset / half)) * half - offset


def quantize(z: jax.Array, levels: np.ndarray) -> jax.Array:
    """Codes in [-1, 1] of z [..., code], with the gradient of `bound` (straight through)."""
    smooth = bound(z, levels)
    return (smooth + jax.lax.stop_gradient(jnp.round(smooth) - smooth)) / (levels // 2)


def numbers(codes: jax.Array, levels: np.ndarray) -> jax.Array:
    """Tokens int32 [...] of codes [..., code]: the first number counts ones, the next groups of levels[0], and so on."""
    basis = np.cumprod([1, *levels[:-1]])
    return jnp.sum(jnp.round((codes + 1) * (levels // 2)).astype(jnp.int32) * basis, axis=-1).astype(jnp.int32)


def codes(tokens: jax.Array, levels: np.ndarray) -> jax.Array:
    """The inverse of `numbers`: float32 [..., code]."""
    basis = np.cumprod([1, *levels[:-1]])
    return ((tokens[..., None] // basis) % levels / (levels // 2) - 1).astype(jnp.float32)


class Model(_vit.Tokenizer):
    """A code has one number for each of `levels`, so that there are as many codes as their product."""

    name = "fsq"

    @staticmethod
    def axes(width, depth, head_dim, mlp_ratio, patch, image, channels, levels: tuple) -> dict[str, int]:
        """Sizes of every axis; one width knob moves embed, heads and mlp together at a fixed head_dim."""
        if min(levels) < 2:
            raise UserError(f"config key model.levels={levels!r} must be whole numbers from 2, such as (8, 5, 5, 5)")
        return {**_vit.sizes(width, depth, head_dim, mlp_ratio, patch, image, channels), "code": len(levels), "levels": tuple(levels)}

    def __init__(self, dims: Dims, qk_norm: bool):
        super().__init__(dims, qk_norm)
        self.levels = dims["levels"]
        self.vocabulary = math.prod(self.levels)

    def bottleneck(self, z: jax.Array, keys: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Rounded codes with a straight-through gradient; they cost nothing in training."""
        n, levels = z.shape[0], np.array(self.levels)
        chosen = quantize(z.astype(jnp.float32), levels)
        bits = jnp.full(n, z.shape[1] * math.log2(self.vocabulary))
        return chosen, {"cost": jnp.zeros(n), "bits": bits, "tokens": numbers(chosen, levels)}

    def encode(self, image: jax.Array) -> dict[str, jax.Array]:
        """Tokens int32 [B, h, w] of pictures."""
        levels = np.array(self.levels)
        return {"tokens": _vit.square(numbers(quantize(self.encoder(image).astype(jnp.float32), levels), levels))}

    def decode(self, given: dict[str, jax.Array]) -> jax.Array:
        """Pictures of tokens."""
        return self.decoder(codes(_vit.flat(given["tokens"]), np.array(self.levels)))
