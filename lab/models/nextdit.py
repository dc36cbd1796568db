"""Next-DiT: a text-conditioned DiT with norms before and after every branch and rotary positions (Lumina-Next, arXiv 2406.18583)."""

import jax
import jax.numpy as jnp
from flax import nnx

from lab.axes import Dims, scale, split, stack, weight
from lab.errors import unknown
from lab.layers import embed, text
from lab.layers.attention import attend, rms_norm
from lab.layers.modulation import layer_norm
from lab.layers.rope import rotate
from lab.layers.stretch import KINDS, grid
from lab.models.shared import need, patches, through, trunk

EPSILON = 1e-5  # of all norms but the last
CLOCKS = ("noise", "data")


class Norms(nnx.Module):
    """LayerNorm with gain and bias over all heads together, of what asks the image and of what asks the words, or of the two's keys."""

    def __init__(self, heads: str, dims: Dims):
        self.gains = weight(f"2 | -> {heads} head_dim", dims, fill=1.0)
        self.biases = weight(f"2 | -> {heads} head_dim", dims, fill=0.0)

    def __call__(self, *looks: jax.Array) -> tuple[jax.Array, ...]:
        flat = (layer_norm(y.reshape(*y.shape[:2], -1), EPSILON).reshape(y.shape) for y in looks)
        return tuple(y * g + b for y, g, b in zip(flat, self.gains.get_value(), self.biases.get_value(), strict=True))


class Attention(nnx.Module):
    """Tokens [B, T, embed] to themselves and to words [B, S, source], each with queries of its own, -> [B, T, embed].

    What is read of words is gated by head, by the tanh of a number that starts at zero, and added before the one projection. Neighbouring
    heads share keys and values (arXiv 2305.13245). `angles` turn the queries and the tokens' keys; words have no place.
    """

    def __init__(self, dims: Dims, source: str, qk_norm: bool, zero_gates: bool):
        self.query = weight("2 | embed -> heads head_dim", dims)
        self.key_value = weight("2 | embed -> kv_heads head_dim", dims)
        self.words = weight(f"2 | {source} -> kv_heads head_dim", dims)
        self.gate = weight("-> heads", dims, init=0.0 if zero_gates else 1.0)
        self.out = weight("heads head_dim -> embed", dims)  # a norm follows: it closes nothing
        self.logits = scale("head_dim ->", dims)
        self.query_norm = Norms("heads", dims) if qk_norm else None
        self.key_norm = Norms("kv_heads", dims) if qk_norm else None

    def __call__(self, x: jax.Array, words: jax.Array, seen: jax.Array, angles: jax.Array) -> jax.Array:
        q, ask = (embed.project(x, w, 0.0) for w in self.query.get_value())
        k, v = (embed.project(x, w, 0.0) for w in self.key_value.get_value())
        said_k, said_v = (embed.project(words, w, 0.0) for w in self.words.get_value())
        if self.query_norm is not None:
            (q, ask), (k, said_k) = self.query_norm(q, ask), self.key_norm(k, said_k)
        q, ask = (rotate(y, angles) * self.logits.get_value() for y in (q, ask))
        read = attend(ask, said_k, said_v, seen[:, None, None, :])
        y = attend(q, rotate(k, angles), v) + jnp.tanh(self.gate.get_value())[:, None] * read
        return embed.project(y, self.out.get_value(), 0.0, 2)


class Block(nnx.Module):
    """x + tanh(gate) norm attention((1 + gain) norm x, words), then x + tanh(gate) norm mlp((1 + gain) norm x): sandwich norms.

    Gates and gains are made of a condition [B, condition]; norms are RMSNorm with gains of their own, and the MLP is gated (SwiGLU).
    """

    def __init__(self, dims: Dims, source: str, qk_norm: bool, zero_gates: bool):
        self.modulation = weight("4 | condition -> embed", dims, init=0.0 if zero_gates else 1.0)
        self.modulation_bias = weight("4 | -> embed", dims, fill=0.0)
        self.gains = weight("2 | -> embed", dims, fill=1.0)
        self.word_gain = weight(f"-> {source}", dims, fill=1.0)
        self.attention = Attention(dims, source, qk_norm, zero_gates)
        self.up = weight("2 | embed -> mlp", dims)
        self.down = weight("mlp -> embed", dims)
        # a norm undoes the size of what is before it, so its gain ends the branch
        self.closer = weight("=> embed", dims, fill=1.0)
        self.mlp_closer = weight("=> embed", dims, fill=1.0)

    def __call__(self, x: jax.Array, c_BxD: jax.Array, words: jax.Array, seen: jax.Array, angles: jax.Array) -> jax.Array:
        c = jax.nn.silu(c_BxD)
        pairs = zip(self.modulation.get_value(), self.modulation_bias.get_value(), strict=True)
        scale, gate, scale_mlp, gate_mlp = (embed.project(c, k, b)[:, None, :] for k, b in pairs)
        gain, gain_mlp = self.gains.get_value()
        y = rms_norm(x, EPSILON) * gain * (1 + scale)
        y = self.attention(y, rms_norm(words, EPSILON) * self.word_gain.get_value(), seen, angles)
        x = x + jnp.tanh(gate) * (rms_norm(y, EPSILON) * self.closer.get_value())
        opened, value = (embed.project(rms_norm(x, EPSILON) * gain_mlp * (1 + scale_mlp), w, 0.0) for w in self.up.get_value())
        y = embed.project(jax.nn.silu(opened) * value, self.down.get_value(), 0.0)
        return x + jnp.tanh(gate_mlp) * (rms_norm(y, EPSILON) * self.mlp_closer.get_value())


class Condition(nnx.Module):
    """Time [B] and the mean of a text's words [B, source] -> [B, condition]: a two-layer MLP, plus one layer of the normalised mean."""

    def __init__(self, dims: Dims, source: str, zero_gates: bool):
        self.features = dims["frequencies"]
        self.up = embed.Linear("frequencies -> condition", dims)
        self.out = embed.Linear("condition -> condition", dims)
        self.gain = weight(f"-> {source}", dims, fill=1.0)
        self.bias = weight(f"-> {source}", dims, fill=0.0)
        self.text = embed.Linear(f"{source} -> condition", dims, init=0.0 if zero_gates else 1.0)

    def __call__(self, t_B: jax.Array, said: jax.Array) -> jax.Array:
        time = embed.sinusoid(t_B, self.features).astype(said.dtype)
        normed = layer_norm(said, EPSILON) * self.gain.get_value() + self.bias.get_value()
        return self.out(jax.nn.silu(self.up(time))) + self.text(normed)


class Model(nnx.Module):
    """Inputs x [B, side, side, channels], t [B] in [0, 1], text -> [B, side, side, channels * outputs].

    `text` is tokens [B, length], read by an encoder that is learned with the model, or the features [B, length, text_features] of a
    frozen one, whose keys and values every block makes for itself. Padding (token 0, features all zero) is not read, but where it is
    all there is. No weight depends on the size of images: larger ones than the model was made for have their positions stretched by
    `stretch`, a kind of lab/layers/stretch.py. `zero_gates` starts every block as the identity. Published weights have `clock` 'data':
    time is 1 - t, in sines of at most one turn in 2 pi; and, with `mean_only`, write two values a channel of which the first is given.
    """

    takes = ("x", "t", "text")

    @staticmethod
    def axes(
        width,
        depth,
        head_dim,
        mlp_ratio,
        patch,
        image,
        channels,
        mlp_divisor=1,
        kv_group=1,
        condition=0,
        words=0,
        length=0,
        features=0,
        text_depth=1,
        outputs=1,
    ) -> dict[str, int]:
        """Sizes of every axis; one width knob moves embed, heads, kv_heads and mlp, and the condition if it has no size of its own.

        The MLP is as wide as mlp_ratio / mlp_divisor times the model (8/3 in the paper).
        """
        split("model.head_dim", head_dim, "4 (rotary pairs by row and column)", 4)
        sizes = trunk(width, depth, head_dim, mlp_ratio)
        return {
            **sizes,
            "mlp": split("model.mlp_ratio * model.width", sizes["mlp"], "model.mlp_divisor", mlp_divisor),
            "kv_heads": split("heads (model.width / model.head_dim)", sizes["heads"], "model.kv_group", kv_group),
            "condition": condition or width,
            **patches(image, channels, patch, outputs),
            "frequencies": 256,
            **text.axes(words, length, features, text_depth),
        }

    def __init__(self, dims: Dims, qk_norm: bool, zero_gates: bool, stretch: str = "time", clock: str = "noise", mean_only: bool = False):
        for key, value, known in (("stretch", stretch, KINDS), ("clock", clock, CLOCKS)):
            if value not in known:
                raise unknown(f"model.{key}", value, known)
        self.stretch, self.clock, self.mean_only = stretch, clock, mean_only
        self.patch, self.side, self.layers, self.head_dim = dims["patch_side"], dims["side"], dims["layers"], dims["head_dim"]
        source = "text_features" if "text_features" in dims else "embed"
        self.patch_in = embed.Linear("patch -> embed", dims)
        self.words = text.Encoder(dims) if source == "embed" else None
        self.condition = Condition(dims, source, zero_gates)
        self.blocks = stack(Block(dims, source, qk_norm, zero_gates), self.layers, dims)
        self.modulation = embed.Linear("condition -> embed", dims, init=0.0 if zero_gates else 1.0)
        self.readout = weight("embed -> patch_out", dims, init=0.0)
        self.readout_bias = weight("-> patch_out", dims, fill=0.0)

    def __call__(self, inputs: dict[str, jax.Array], cache: None = None) -> jax.Array:
        need("nextdit", self.takes, inputs, cache)
        dtype, side, channels = self.readout.get_value().dtype, *inputs["x"].shape[2:]
        split("image size", side, "model.patch", self.patch)
        x = self.patch_in(embed.patchify(inputs["x"].astype(dtype), self.patch))
        words = inputs["text"].astype(dtype) if self.words is None else self.words(inputs["text"])
        said = text.said(inputs["text"])
        seen = said | ~jnp.any(said, axis=1, keepdims=True)
        # the sinusoid is of 1000 times a time
        c = self.condition(inputs["t"] if self.clock == "noise" else (1 - inputs["t"]) / 1000, text.pooled(words, inputs["text"]))
        angles = grid(self.stretch, side // self.patch, self.side // self.patch, self.head_dim, inputs["t"])
        x = through(self.blocks, x, lambda block, x: block(x, c, words, seen, angles), self.layers)
        x = layer_norm(x) * (1 + self.modulation(jax.nn.silu(c)))[:, None, :]
        x = embed.unpatchify(embed.project(x, self.readout.get_value(), self.readout_bias.get_value()), self.patch, side)
        return x[..., :channels] if self.mean_only else x
