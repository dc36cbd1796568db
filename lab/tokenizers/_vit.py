"""The transformer encoder and decoder of a tokenizer (ViT-VQGAN, arXiv 2110.04627): a token a patch, a narrow code between them."""

import math

import jax
from flax import nnx

from lab.axes import Dims, split, stack, weight
from lab.layers import embed
from lab.layers.modulation import layer_norm
from lab.models.masked import Block
from lab.models.shared import need, patches, through, trunk


def sizes(width: int, depth: int, head_dim: int, mlp_ratio: int, patch: int, image: int, channels: int) -> dict[str, int]:
    """Sizes of the axes of both halves, each of `depth` blocks, but for those of the code."""
    grid = split("image size", image, "model.patch", patch)
    return {**trunk(width, depth, head_dim, mlp_ratio), **patches(image, channels, patch, 1), "grid": grid**2}


class Encoder(nnx.Module):
    """Pictures [B, side, side, channels] -> [B, T, code], a vector a patch, row by row; `out` is the axis of the code."""

    def __init__(self, dims: Dims, qk_norm: bool, out: str = "code"):
        self.patch, self.layers = dims["patch_side"], dims["layers"]
        self.patch_in = embed.Linear("patch -> embed", dims)
        self.positions = weight("grid | -> embed", dims)
        self.blocks = stack(Block(dims, qk_norm), self.layers, dims)
        self.out = embed.Linear(f"embed -> {out}", dims)

    def __call__(self, image: jax.Array) -> jax.Array:
        positions = self.positions.get_value()
        x = self.patch_in(embed.patchify(image.astype(positions.dtype), self.patch)) + positions
        return self.out(layer_norm(through(self.blocks, x, lambda block, x: block(x), self.layers)))


class Decoder(nnx.Module):
    """Codes [B, T, code] -> pictures [B, side, side, channels]."""

    def __init__(self, dims: Dims, qk_norm: bool):
        self.patch, self.side, self.layers = dims["patch_side"], dims["side"], dims["layers"]
        self.code_in = embed.Linear("code -> embed", dims)
        self.positions = weight("grid | -> embed", dims)
        self.blocks = stack(Block(dims, qk_norm), self.layers, dims)
        self.readout = weight("embed -> patch_out", dims, init=0.0)
        self.readout_bias = weight("-> patch_out", dims, fill=0.0)

    def __call__(self, codes: jax.Array) -> jax.Array:
        positions = self.positions.get_value()
        x = self.code_in(codes.astype(positions.dtype)) + positions
        x = layer_norm(through(self.blocks, x, lambda block, x: block(x), self.layers))
        return embed.unpatchify(embed.project(x, self.readout.get_value(), self.readout_bias.get_value()), self.patch, self.side)


class Tokenizer(nnx.Module):
    """Encoder, what a subclass makes of its codes, decoder.

    A subclass has `name`, and `bottleneck(codes, keys)`: [B, T, out] -> what is decoded [B, T, code], and {cost, bits, tokens [B, T]}.
    """

    takes = ("image", "keys")
    vocabulary = 0
    name = ""

    def __init__(self, dims: Dims, qk_norm: bool, out: str = "code"):
        self.encoder, self.decoder = Encoder(dims, qk_norm, out), Decoder(dims, qk_norm)

    def __call__(self, inputs: dict[str, jax.Array], cache: None = None) -> dict[str, jax.Array]:
        need(self.name, self.takes, inputs, cache)
        codes, told = self.bottleneck(self.encoder(inputs["image"]), inputs["keys"])
        told |= {"tokens": square(told["tokens"])} if "tokens" in told else {}
        return {"image": self.decoder(codes), **told}


def square(x: jax.Array) -> jax.Array:
    """[B, T, ...] as a square grid [B, side, side, ...]."""
    side = math.isqrt(x.shape[1])
    return x.reshape(x.shape[0], side, side, *x.shape[2:])


def flat(x: jax.Array) -> jax.Array:
    """The inverse of `square`."""
    return x.reshape(x.shape[0], -1, *x.shape[3:])
