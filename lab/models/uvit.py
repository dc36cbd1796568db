"""U-ViT: a transformer whose tokens are time, condition and patches, with long skips (Bao et al., arXiv 2209.12152)."""

import jax
import jax.numpy as jnp
from flax import nnx

from lab.axes import Dims, inside, split, stack, weight
from lab.errors import UserError
from lab.layers import attention, embed, mlp, text
from lab.layers.norm import LayerNorm
from lab.models.shared import collect, condition, need, patches, through, trunk


class Block(nnx.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, dims: Dims, qk_norm: bool):
        self.norm = LayerNorm(dims)
        self.attention = attention.Mixer(dims, qk_norm)
        self.mlp_norm = LayerNorm(dims)
        self.mlp = mlp.Mixer(dims)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm(x))
        return x + self.mlp(self.mlp_norm(x))


class TimeMLP(nnx.Module):
    """Two layers [B, embed] -> [B, embed], four times as wide between; both are hidden, since the sinusoid is as wide as the model."""

    def __init__(self, dims: Dims):
        self.up = embed.Linear("embed -> time", dims)
        self.out = embed.Linear("time -> embed", dims)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(jax.nn.silu(self.up(x)))


class Conv(nnx.Module):
    """3x3 convolution over the pixels that the readout writes: [B, side, side, pixel] -> the same."""

    def __init__(self, dims: Dims):
        self.kernel = weight("3 3 pixel -> pixel", dims)
        self.bias = weight("-> pixel", dims, fill=0.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        kinds = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, self.kernel.get_value(), (1, 1), "SAME", dimension_numbers=kinds) + self.bias.get_value()


def half(depth: int) -> int:
    """Blocks on either side of the middle one; UserError unless `depth` is odd and at least 3."""
    if depth < 3 or depth % 2 == 0:
        near = f"{depth - 1} or {depth + 1}" if depth > 3 else "3"
        raise UserError(f"model.depth={depth} must be odd and at least 3 (blocks in, one in the middle, as many out); nearest: {near}")
    return depth // 2


class LongSkips(nnx.Module):
    """Blocks in, one in the middle and as many out, of which the k-th from the end takes in what the k-th has made; and a norm."""

    def __init__(self, dims: Dims, qk_norm: bool):
        self.half = half(dims["layers"])
        # all blocks stand in one residual stream, so each is told the whole depth, not that of its half
        self.blocks_in = stack(Block(dims, qk_norm), self.half, dims)
        self.middle = inside(Block(dims, qk_norm), dims)
        self.blocks_out = stack(Block(dims, qk_norm), self.half, dims)
        # a skip's layer maps the stream itself and is in no branch: '->', not '=>', and outside the depth rule. With a fan-in of both
        # halves it keeps the stream's size at any depth, and weakens what earlier ones wrote, so that their steps do not add up with
        # depth. Its dim is `skips`, which has no size in `axes`, hence no ratio: 1/depth here would close the skips of deep models
        self.skips = stack(embed.Linear("skip -> embed", dims), self.half, dims, "skips")
        self.norm = LayerNorm(dims)

    def run(self, x: jax.Array) -> jax.Array:
        """Tokens [B, T, embed] -> the same, before the last norm."""
        x, kept = collect(self.blocks_in, x, lambda block, x: (y := block(x), y), self.half)
        x = self.middle(x)
        # the last that was kept is the first to be joined
        return through((self.skips, self.blocks_out, kept[::-1]), x, self.joined, self.half)

    @staticmethod
    def joined(part: tuple, x: jax.Array) -> jax.Array:
        """x after one block of the second half, which first takes in what its partner kept."""
        skip, block, kept = part
        return block(skip(jnp.concatenate([x, kept], axis=-1)))


class Model(LongSkips):
    """Inputs x [B, side, side, channels], t [B] in [0, 1] and a condition -> [B, side, side, channels * outputs].

    The condition is `text`, tokens [B, length] or features [B, length, width], one token a word, where the data has text; else `label`
    [B], one token (negative: none). Block i of the first half is joined to block depth - 1 - i by a long skip. `time_mlp` puts two layers
    on the sinusoid of time, `final_conv` a 3x3 convolution on the output; the paper uses the second, and the first not.
    """

    @staticmethod
    def axes(
        width, depth, head_dim, mlp_ratio, patch, image, channels, classes, outputs=1, words=0, length=0, features=0, text_depth=0
    ) -> dict[str, int]:
        """Sizes of every axis; one width knob moves embed, skip, time, heads and mlp together at a fixed head_dim."""
        split("model.width", width, "2 (sine and cosine of time)", 2)
        return {
            **trunk(width, depth, head_dim, mlp_ratio),
            "skip": 2 * width,
            "time": 4 * width,
            **patches(image, channels, patch, outputs),
            "pixel": channels * outputs,
            "patches": (image // patch) ** 2,
            "tokens": 1 + (length or 1) + (image // patch) ** 2,
            **condition(classes, words, length, features, text_depth),
        }

    def __init__(self, dims: Dims, qk_norm: bool, time_mlp: bool, final_conv: bool):
        super().__init__(dims, qk_norm)
        self.patch, self.side, self.patches = dims["patch_side"], dims["side"], dims["patches"]
        self.asks = "text" if "length" in dims else "label"
        self.takes = ("x", "t", self.asks)
        self.patch_in = embed.Linear("patch -> embed", dims)
        self.time = TimeMLP(dims) if time_mlp else None
        self.condition = text.Encoder(dims) if self.asks == "text" else embed.LabelEmbed(dims)
        self.positions = weight("tokens | -> embed", dims)
        self.readout = weight("embed -> patch_out", dims, init=0.0)
        self.readout_bias = weight("-> patch_out", dims, fill=0.0)
        self.conv = Conv(dims) if final_conv else None

    def __call__(self, inputs: dict[str, jax.Array], cache: None = None) -> jax.Array:
        need("uvit", self.takes, inputs, cache)
        x = self.norm(self.run(self.embedded(inputs))[:, -self.patches :])
        x = embed.project(x, self.readout.get_value(), self.readout_bias.get_value())
        x = embed.unpatchify(x, self.patch, self.side)
        return x if self.conv is None else self.conv(x)

    def embedded(self, inputs: dict[str, jax.Array]) -> jax.Array:
        """Tokens [B, T, embed] with their positions: time, then the condition, then patches row by row."""
        dtype, width = self.readout.get_value().dtype, self.positions.get_value().shape[-1]
        patches = self.patch_in(embed.patchify(inputs["x"].astype(dtype), self.patch))
        time = embed.sinusoid(inputs["t"], width).astype(dtype)
        time = time if self.time is None else self.time(time)
        condition = self.condition(inputs[self.asks])
        condition = condition if self.asks == "text" else condition[:, None]
        return jnp.concatenate([time[:, None], condition, patches], axis=1) + self.positions.get_value()
