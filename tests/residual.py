"""A user's own model: a residual MLP over all pixels, with a fused, a stacked, a looked-up and a closing weight."""

import jax
import jax.numpy as jnp
from flax import nnx

from lab.axes import stack, weight
from lab.models.shared import through


def norm(x):
    """x over its root mean square."""
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


class Block(nnx.Module):
    """A gated MLP: up and gate are one fused weight."""

    def __init__(self, dims):
        self.up = weight("2 | embed -> mlp", dims)
        self.bias = weight("2 | -> mlp", dims, fill=0.0)
        self.down = weight("mlp => embed", dims)

    def __call__(self, x):
        up, gate = (norm(x) @ w + b for w, b in zip(self.up.get_value(), self.bias.get_value(), strict=True))
        return x + (up * jax.nn.silu(gate)) @ self.down.get_value()


class Model(nnx.Module):
    """Inputs x [B, side, side, channels] and label [B] -> like x."""

    takes = ("x", "label")

    @staticmethod
    def axes(width, depth, image, channels, classes):
        """Twice as wide inside a block."""
        return {"embed": width, "mlp": 2 * width, "layers": depth, "pixels": image * image * channels, "labels": classes + 1}

    def __init__(self, dims):
        self.layers = dims["layers"]
        self.read = weight("pixels -> embed", dims)
        self.table = weight("labels | -> embed", dims)
        self.blocks = stack(Block(dims), self.layers, dims)
        self.write = weight("embed -> pixels", dims, init=0.0)

    def __call__(self, inputs, cache=None):
        x = inputs["x"]
        y = x.reshape(len(x), -1) @ self.read.get_value() + self.table.get_value()[inputs["label"]]
        y = through(self.blocks, y, lambda block, y: block(y), self.layers)
        return (norm(y) @ self.write.get_value()).reshape(x.shape)
