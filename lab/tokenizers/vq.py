"""Vector quantization with codes that are running means (VQ-VAE, arXiv 1711.00937, appendix A.1) and restarts of dead ones.

With n_i vectors z of a batch nearest to code e_i: N_i <- g N_i + (1 - g) n_i, m_i <- g m_i + (1 - g) sum z, e_i = m_i / N_i. Here counts
are over a fair share, the vectors of a batch by the codes, so that N is about 1 whatever the batch; the codes are the same.
"""

import math

import jax
import jax.numpy as jnp

from lab.axes import Dims, state
from lab.errors import UserError
from lab.tokenizers import _vit


def nearest(z: jax.Array, codes: jax.Array) -> jax.Array:
    """The nearest code to each of z [N, code], int32 [N], of codes [codes, code]."""
    return jnp.argmin(jnp.sum(codes**2, -1) - 2 * z @ codes.T, -1).astype(jnp.int32)


def moved(codes: jax.Array, counts: jax.Array, z: jax.Array, tokens: jax.Array, decay: float) -> tuple[jax.Array, jax.Array]:
    """Codes [codes, code] and their counts [codes] after vectors z [N, code] nearest to `tokens` [N]; a code never met stays."""
    chosen = jax.nn.one_hot(tokens, len(codes), dtype=jnp.float32)
    share = len(codes) / len(z)
    new = decay * counts + (1 - decay) * share * jnp.sum(chosen, 0)
    total = decay * counts[:, None] * codes + (1 - decay) * share * chosen.T @ z
    return jnp.where(new[:, None] > 0, total / jnp.maximum(new, 1e-20)[:, None], codes), new


def restarted(codes: jax.Array, counts: jax.Array, z: jax.Array, key: jax.Array, dead: float) -> tuple[jax.Array, jax.Array]:
    """Codes and counts, those of a count below `dead` put where random vectors of z are (Jukebox, arXiv 2005.00341, section 3.1)."""
    rows = jax.random.randint(key, (len(codes),), 0, len(z))
    gone = counts < dead
    return jnp.where(gone[:, None], z[rows], codes), jnp.where(gone, 1.0, counts)


class Model(_vit.Tokenizer):
    """`codes` of size `code`, moved with `decay`; one that gets less than `dead` of a fair share is put elsewhere, with 0 none is.

    Counts begin at zero, so that the first batch counts whole, and with restarts the first codes are vectors of the data. The cost is
    the mean squared distance of z to its code, the commitment, whose gradient goes to the encoder alone.
    """

    name = "vq"

    @staticmethod
    def axes(width, depth, head_dim, mlp_ratio, patch, image, channels, codes, code) -> dict[str, int]:
        """Sizes of every axis; one width knob moves embed, heads and mlp together at a fixed head_dim."""
        return {**_vit.sizes(width, depth, head_dim, mlp_ratio, patch, image, channels), "codes": codes, "code": code}

    def __init__(self, dims: Dims, qk_norm: bool, decay: float = 0.99, dead: float = 0.05):
        if not 0 <= decay < 1 or not 0 <= dead < 1:
            raise UserError(f"config keys model.decay={decay} and model.dead={dead} must be at least 0 and below 1")
        super().__init__(dims, qk_norm)
        self.vocabulary, self.decay, self.dead = dims["codes"], decay, dead
        self.codes = state("codes | -> code", dims)
        self.counts = state("codes | ->", dims, fill=0.0)

    def bottleneck(self, z: jax.Array, keys: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The nearest codes, with a straight-through gradient; codes and counts have moved when it returns."""
        n, size = z.shape[0], z.shape[1] * math.log2(self.vocabulary)
        z, codes = z.astype(jnp.float32), self.codes.get_value()
        fixed = jax.lax.stop_gradient(z).reshape(-1, z.shape[-1])
        tokens = nearest(fixed, codes)
        chosen = codes[tokens].reshape(z.shape)
        new = moved(codes, self.counts.get_value(), fixed, tokens, self.decay)
        for variable, x in zip((self.codes, self.counts), restarted(*new, fixed, keys[0], self.dead), strict=True):
            variable.set_value(x)
        told = {"cost": jnp.mean((z - chosen) ** 2, (1, 2)), "bits": jnp.full(n, size), "tokens": tokens.reshape(z.shape[:2])}
        return z + jax.lax.stop_gradient(chosen - z), told

    def encode(self, image: jax.Array) -> dict[str, jax.Array]:
        """Tokens int32 [B, h, w] of pictures."""
        z = self.encoder(image).astype(jnp.float32)
        tokens = nearest(z.reshape(-1, z.shape[-1]), self.codes.get_value())
        return {"tokens": _vit.square(tokens.reshape(z.shape[:2]))}

    def decode(self, given: dict[str, jax.Array]) -> jax.Array:
        """Pictures of tokens."""
        return self.decoder(self.codes.get_value()[_vit.flat(given["tokens"])])
