"""A variational autoencoder (arXiv 1312.6114): codes are Gaussian around what the encoder says, and their KL to a standard normal costs.

With `objective.weight` beta the optimum lies where a nat more buys beta less error a number: for Gaussian data on the rate-distortion
function, by reverse water-filling to the level beta / 2 (arXiv 1711.00464).
"""

import math

import jax
import jax.numpy as jnp

from lab.axes import Dims
from lab.tokenizers import _vit

LOW, HIGH = -30.0, 20.0  # log-variances are kept within, as in latent diffusion's code


def divergence(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """KL to a standard normal in nats, [B], of Gaussians [B, ...]."""
    each = 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance)
    return jnp.sum(each, axis=tuple(range(1, mean.ndim)))


def split(moments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and log-variance, float32 [..., code], of moments [..., 2 code]."""
    mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(log_variance, LOW, HIGH)


def drawn(moments: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A code [B, ..., code] of moments [B, ..., 2 code] by a key an example, and its KL in nats, [B]."""
    mean, log_variance = split(moments)
    noise = jax.vmap(lambda k: jax.random.normal(k, mean.shape[1:]))(keys)
    return mean + jnp.exp(0.5 * log_variance) * noise, divergence(mean, log_variance)


class Model(_vit.Tokenizer):
    """A code has `code` numbers a patch; the cost is the KL over the numbers of the picture."""

    name = "kl"

    @staticmethod
    def axes(width, depth, head_dim, mlp_ratio, patch, image, channels, code) -> dict[str, int]:
        """Sizes of every axis; one width knob moves embed, heads and mlp together at a fixed head_dim."""
        return {**_vit.sizes(width, depth, head_dim, mlp_ratio, patch, image, channels), "code": code, "moments": 2 * code}

    def __init__(self, dims: Dims, qk_norm: bool):
        super().__init__(dims, qk_norm, out="moments")
        self.numbers = dims["grid"] * dims["patch"]

    def bottleneck(self, moments: jax.Array, keys: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Codes drawn around their means."""
        z, nats = drawn(moments, keys)
        return z, {"cost": nats / self.numbers, "bits": nats / math.log(2)}

    def encode(self, image: jax.Array) -> dict[str, jax.Array]:
        """Latents float32 [B, h, w, code] of pictures: the means."""
        return {"image": _vit.square(split(self.encoder(image))[0])}

    def decode(self, given: dict[str, jax.Array]) -> jax.Array:
        """Pictures of latents."""
        return self.decoder(_vit.flat(given["image"]))
