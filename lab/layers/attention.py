"""Attention and the token mixers made of it; the key of a config names one by module or path."""

import jax
import jax.numpy as jnp
from flax import nnx

from lab.axes import Dims, Weight, scale, weight
from lab.layers import kernels
from lab.layers.embed import project
from lab.layers.rope import rotate


def rms_norm(x: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """x / rms(x) over the last axis, in float32."""
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon)).astype(x.dtype)


def normalised(gain: Weight | None, *looks: jax.Array) -> tuple[jax.Array, ...]:
    """Queries and keys [..., head_dim], each normalised and times its row of a gain (arXiv 2302.05442); without a gain as they are."""
    return looks if gain is None else tuple(rms_norm(y) * g for y, g in zip(looks, gain.get_value(), strict=True))


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None, causal: bool = False, bias: jax.Array | None = None
) -> jax.Array:
    """softmax(q k) v by head, in float32 where shares are made: q [B, T, heads, E], k and v [B, S, groups, E] -> [B, T, heads, E].

    `q` comes scaled. With fewer groups than heads, neighbouring heads share keys and values (grouped-query attention, arXiv
    2305.13245). `mask`, which broadcasts to [B, heads, T, S], is True where a query may look; `causal` says that it lets each look at
    itself and those before it. `bias`, which broadcasts likewise, is added to the scores. Where it is compiled for a device with a
    kernel of its own, that is taken (lab/layers/kernels.py), but with a bias.
    """
    if bias is None and (kernel := kernels.chosen(q, k, mask is not None, causal)) is not None:
        return kernel(q, k, v)
    groups = k.shape[2]
    if groups < q.shape[2]:
        k, v = (jnp.repeat(x, q.shape[2] // groups, axis=2) for x in (k, v))
    scores = jnp.einsum("bthe,bshe->bhts", q, k).astype(jnp.float32)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, -1e30)
    odds = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    # divided after the product, which has fewer numbers: divided before, the division and its gradient are a tenth of a step on a CPU
    mixed = jnp.einsum("bhts,bshe->bthe", odds.astype(v.dtype), v)
    return (mixed / jnp.sum(odds, axis=-1).swapaxes(1, 2)[..., None]).astype(v.dtype)


class Mixer(nnx.Module):
    """Multi-head self-attention over all tokens: [B, T, embed] -> [B, T, embed].

    `qk_norm` normalises queries and keys and gives each a gain over head_dim (arXiv 2302.05442); `angles` turn them by rotary
    positions [T, head_dim / 2].
    """

    def __init__(self, dims: Dims, qk_norm: bool = False):
        self.qkv = weight("3 | embed -> heads head_dim", dims)
        self.qkv_bias = weight("3 | -> heads head_dim", dims, fill=0.0)
        self.out = weight("heads head_dim => embed", dims)
        self.out_bias = weight("=> embed", dims, fill=0.0)
        self.logits = scale("head_dim ->", dims)
        self.gain = weight("2 | -> head_dim", dims, fill=1.0) if qk_norm else None

    def __call__(self, x: jax.Array, angles: jax.Array | None = None) -> jax.Array:
        q, k, v = (project(x, w, b) for w, b in zip(self.qkv.get_value(), self.qkv_bias.get_value(), strict=True))
        q, k = normalised(self.gain, q, k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return project(attend(q * self.logits.get_value(), k, v), self.out.get_value(), self.out_bias.get_value(), 2)
