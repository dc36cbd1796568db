"""Pictures as models see them."""

import jax
import jax.numpy as jnp


def floats(image: jax.Array) -> jax.Array:
    """Images in [-1, 1]: those of bytes are scaled to it, floats are as they are."""
    return image.astype(jnp.float32) / 127.5 - 1.0 if image.dtype == jnp.uint8 else image
