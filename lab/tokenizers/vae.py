"""The convolutional autoencoder of latent diffusion (arXiv 2112.10752), as diffusers has it (AutoencoderKL: SD, SDXL, SD3, Flux).

Its code is Gaussian as that of `kl`. Latents are read as (z - shift) scale; a scale of 0 is measured when a set is encoded.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from lab.axes import Dims, scale, split, weight
from lab.layers.attention import attend
from lab.layers.embed import Linear
from lab.models.shared import need
from lab.tokenizers import kl

KINDS = ("NHWC", "HWIO", "NHWC")


class Conv(nnx.Module):
    """A square convolution over [B, h, w, into]; `arrow` is '->', or '=>' where it closes a residual branch."""

    def __init__(self, into: str, out: str, dims: Dims, size: int = 3, arrow: str = "->", init: float = 1.0):
        self.kernel = weight(f"{size} {size} {into} {arrow} {out}", dims, init=init)
        self.bias = weight(f"{arrow} {out}", dims, fill=0.0)

    def __call__(self, x: jax.Array, stride: int = 1, padding: tuple[int, int] | None = None) -> jax.Array:
        kernel = self.kernel.get_value()
        around = padding or (kernel.shape[0] // 2,) * 2
        y = jax.lax.conv_general_dilated(x, kernel, (stride, stride), (around, around), dimension_numbers=KINDS)
        return y + self.bias.get_value()


class GroupNorm(nnx.Module):
    """Normalisation of groups of channels over the whole picture (arXiv 1803.08494), in float32, then gain and bias."""

    def __init__(self, axis: str, dims: Dims, groups: int):
        split("model.width times a multiple", dims[axis], "model.groups", groups)
        self.groups, self.gain, self.bias = groups, weight(f"-> {axis}", dims, fill=1.0), weight(f"-> {axis}", dims, fill=0.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32).reshape(x.shape[0], -1, self.groups, x.shape[-1] // self.groups)
        y = y - jnp.mean(y, (1, 3), keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, (1, 3), keepdims=True) + 1e-6)
        return y.reshape(x.shape).astype(x.dtype) * self.gain.get_value() + self.bias.get_value()


class Block(nnx.Module):
    """x + two normalised convolutions of it; where the number of channels changes, x goes through one of size 1."""

    def __init__(self, into: str, out: str, dims: Dims, groups: int):
        self.norm1, self.conv1 = GroupNorm(into, dims, groups), Conv(into, out, dims)
        self.norm2, self.conv2 = GroupNorm(out, dims, groups), Conv(out, out, dims, arrow="=>")
        self.shortcut = Conv(into, out, dims, 1) if dims[into] != dims[out] else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv2(jax.nn.silu(self.norm2(self.conv1(jax.nn.silu(self.norm1(x))))))
        return y + (x if self.shortcut is None else self.shortcut(x))


class Attention(nnx.Module):
    """x + one head of attention over all places; the head is as wide as the stream, so its logits shrink as its width."""

    def __init__(self, axis: str, dims: Dims, groups: int):
        self.norm = GroupNorm(axis, dims, groups)
        self.query, self.key, self.value = (Linear(f"{axis} -> {axis}", dims) for _ in range(3))
        self.out, self.logits = Linear(f"{axis} => {axis}", dims), scale(f"{axis} ->", dims)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.norm(x).reshape(x.shape[0], -1, x.shape[-1])
        q, k, v = (part(y)[:, :, None] for part in (self.query, self.key, self.value))
        return x + self.out(attend(q * self.logits.get_value(), k, v)[:, :, 0]).reshape(x.shape)


class Middle(nnx.Module):
    """Block, attention where there is any, block."""

    def __init__(self, axis: str, dims: Dims, groups: int, attention: bool):
        self.first, self.last = (Block(axis, axis, dims, groups) for _ in range(2))
        self.attention = Attention(axis, dims, groups) if attention else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.first(x)
        return self.last(x if self.attention is None else self.attention(x))


class Level(nnx.Module):
    """Blocks of one size, and the convolution that halves or doubles it after them, but for the last."""

    def __init__(self, into: str, out: str, dims: Dims, groups: int, n: int, resize: bool):
        self.blocks = nnx.List([Block(out if i else into, out, dims, groups) for i in range(n)])
        self.resize = Conv(out, out, dims) if resize else None

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return x


class Encoder(nnx.Module):
    """Pictures [B, side, side, channels] -> moments [B, h, w, moments]."""

    def __init__(self, dims: Dims, groups: int, attention: bool):
        axes = [f"level{i}" for i in range(dims["levels"])]
        self.conv_in = Conv("channels", axes[0], dims)
        pairs = zip([axes[0], *axes], axes, strict=False)
        self.levels = nnx.List([Level(a, b, dims, groups, dims["blocks"], b != axes[-1]) for a, b in pairs])
        self.middle, self.norm = Middle(axes[-1], dims, groups, attention), GroupNorm(axes[-1], dims, groups)
        self.conv_out = Conv(axes[-1], "moments", dims)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv_in(x)
        for level in self.levels:
            x = level(x)
            x = x if level.resize is None else level.resize(x, 2, (0, 1))  # theirs are padded on the far sides alone
        return self.conv_out(jax.nn.silu(self.norm(self.middle(x))))


class Decoder(nnx.Module):
    """Latents [B, h, w, code] -> pictures [B, side, side, channels]."""

    def __init__(self, dims: Dims, groups: int, attention: bool):
        axes = [f"level{i}" for i in reversed(range(dims["levels"]))]
        self.conv_in = Conv("code", axes[0], dims)
        self.middle = Middle(axes[0], dims, groups, attention)
        pairs = zip([axes[0], *axes], axes, strict=False)
        self.levels = nnx.List([Level(a, b, dims, groups, dims["blocks"] + 1, b != axes[-1]) for a, b in pairs])
        self.norm, self.conv_out = GroupNorm(axes[-1], dims, groups), Conv(axes[-1], "channels", dims, init=0.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.middle(self.conv_in(x))
        for level in self.levels:
            x = level(x)
            x = x if level.resize is None else level.resize(jnp.repeat(jnp.repeat(x, 2, 1), 2, 2))
        return self.conv_out(jax.nn.silu(self.norm(x)))


class Model(nnx.Module):
    """A level of width * multiples[i] channels for each of `multiples`, each but the first at half the size, with `blocks` blocks.

    Where `quant` and `post_quant`, moments and latents go through a convolution of size 1 more. Pictures may be of any size that the
    levels divide.
    """

    takes = ("image", "keys")
    vocabulary = 0

    @staticmethod
    def axes(width, multiples: tuple, blocks, image, channels, code) -> dict[str, int]:
        """Sizes of every axis; one width knob moves all levels together."""
        split("image size", image, "2^(levels of model.multiples - 1)", 2 ** (len(multiples) - 1))
        levels = {f"level{i}": width * m for i, m in enumerate(multiples)}
        about = {"levels": len(multiples), "blocks": blocks, "numbers": image * image * channels}
        return {**levels, "channels": channels, "code": code, "moments": 2 * code, **about}

    def __init__(
        self,
        dims: Dims,
        groups: int = 32,
        attention: bool = True,
        quant: bool = True,
        post_quant: bool = True,
        scale: float = 0.0,
        shift: float = 0.0,
    ):
        self.numbers, self.scale, self.shift = dims["numbers"], scale, shift
        self.encoder, self.decoder = Encoder(dims, groups, attention), Decoder(dims, groups, attention)
        self.quant = Conv("moments", "moments", dims, 1) if quant else None
        self.post_quant = Conv("code", "code", dims, 1) if post_quant else None

    def __call__(self, inputs: dict[str, jax.Array], cache: None = None) -> dict[str, jax.Array]:
        need("vae", self.takes, inputs, cache)
        z, nats = kl.drawn(self.moments(inputs["image"]), inputs["keys"])
        return {"image": self.decode({"image": z}), "cost": nats / self.numbers, "bits": nats / math.log(2)}

    def moments(self, image: jax.Array) -> jax.Array:
        """Means and log-variances [B, h, w, 2 code] of pictures."""
        x = self.encoder(image.astype(self.encoder.conv_in.bias.get_value().dtype))
        return x if self.quant is None else self.quant(x)

    def encode(self, image: jax.Array) -> dict[str, jax.Array]:
        """Latents float32 [B, h, w, code] of pictures: the means."""
        return {"image": kl.split(self.moments(image))[0]}

    def decode(self, given: dict[str, jax.Array]) -> jax.Array:
        """Pictures of latents."""
        x = given["image"].astype(self.decoder.conv_in.bias.get_value().dtype)
        return self.decoder(x if self.post_quant is None else self.post_quant(x))
