"""A classifier of pictures: a transformer over patches, without a class token (ViT, arXiv 2010.11929; mean over tokens, arXiv 2205.01580)."""

import jax
import jax.numpy as jnp
from flax import nnx

from lab.axes import Dims, split, stack, weight
from lab.layers import embed
from lab.layers.modulation import layer_norm
from lab.models.masked import Block
from lab.models.shared import need, patches, through, trunk


def sizes(width: int, depth: int, head_dim: int, mlp_ratio: int, patch: int, image: int, channels: int) -> dict[str, int]:
    """Sizes of the axes of a Tower; one width knob moves embed, heads and mlp together at a fixed head_dim."""
    split("model.width", width, "4 (sine-cosine positions)", 4)
    return {**trunk(width, depth, head_dim, mlp_ratio), **patches(image, channels, patch, 1)}


class Tower(nnx.Module):
    """Pictures [B, side, side, channels] -> features [B, embed], the mean of all tokens, each of unit size."""

    def __init__(self, dims: Dims, qk_norm: bool):
        self.patch, self.side, self.layers = dims["patch_side"], dims["side"], dims["layers"]
        self.patch_in = embed.Linear("patch -> embed", dims)
        self.blocks = stack(Block(dims, qk_norm), self.layers, dims)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.patch_in(embed.patchify(x.astype(self.patch_in.kernel.get_value().dtype), self.patch))
        x = x + jnp.asarray(embed.sincos_2d(self.side // self.patch, x.shape[-1]), x.dtype)
        x = through(self.blocks, x, lambda block, x: block(x), self.layers)
        return jnp.mean(layer_norm(x), axis=1)


class Model(nnx.Module):
    """Inputs x [B, side, side, channels] in [-1, 1] -> logits [B, classes]; `features` are what these are read from."""

    takes = ("x",)

    @staticmethod
    def axes(width, depth, head_dim, mlp_ratio, patch, image, channels, classes) -> dict[str, int]:
        """Sizes of every axis."""
        return {**sizes(width, depth, head_dim, mlp_ratio, patch, image, channels), "classes": classes}

    def __init__(self, dims: Dims, qk_norm: bool):
        self.tower = Tower(dims, qk_norm)
        self.readout = weight("embed -> classes", dims, init=0.0)
        self.readout_bias = weight("-> classes", dims, fill=0.0)

    def features(self, x: jax.Array) -> jax.Array:
        """Features [B, embed] of pictures."""
        return self.tower(x)

    def __call__(self, inputs: dict[str, jax.Array], cache: None = None) -> jax.Array:
        need("classifier", self.takes, inputs, cache)
        return embed.project(self.features(inputs["x"]), self.readout.get_value(), self.readout_bias.get_value())
