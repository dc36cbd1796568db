"""CLIP's text tower (Radford et al., arXiv 2103.00020), as transformers publishes it: OpenAI's, OpenCLIP's, those of SD, SDXL and Flux."""

from typing import Any

import jax
import jax.numpy as jnp

from lab.encoders._frozen import Frozen, Kept, linear
from lab.errors import unknown
from lab.layers.modulation import layer_norm

ACTIVATIONS = {"quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x), "gelu": lambda x: jax.nn.gelu(x, approximate=False)}
OLD_END = 2  # what older configs say of the mark of the end, which is another: the largest number of a caption


def normal(x: jax.Array, norm: list[jax.Array], epsilon: float) -> jax.Array:
    """Layer norm of x [..., width] with its gain and bias."""
    return layer_norm(x, epsilon) * norm[0] + norm[1]


class Encoder(Frozen):
    """A causal transformer with learned positions; gives also 'pooled' [B, width or projection]: the last layer's at the mark of the end.

    Every caption has such a mark, since its length includes it.
    """

    kinds = ("clip_text_model", "clip")
    table = "embeddings.token_embedding.weight"

    @staticmethod
    def read(theirs: dict) -> dict[str, Any]:
        """Sizes and options from their config.json, of a text tower or of both."""
        theirs = {**theirs, **theirs.get("text_config", {})}
        name = theirs.get("hidden_act", "quick_gelu")
        if name not in ACTIVATIONS:
            raise unknown("config.json key hidden_act", name, ACTIVATIONS)
        return {
            **{"depth": theirs["num_hidden_layers"], "width": theirs["hidden_size"], "mlp": theirs["intermediate_size"]},
            **{"words": theirs["vocab_size"], "heads": theirs["num_attention_heads"], "longest": theirs["max_position_embeddings"]},
            **{"epsilon": theirs.get("layer_norm_eps", 1e-5), "end": theirs.get("eos_token_id", OLD_END), "activation": name},
            "projection": theirs.get("projection_dim", 0),
        }

    def weights(self, kept: Kept) -> dict[str, Any]:
        """Their tensors, layers stacked; without the last layer there is nothing to pool."""
        s, block, kinds = self.sizes, "encoder.layers.{i}.", ("weight", "bias")
        width, mlp = s["width"], s["mlp"]

        def both(name: str, out: int, into: int) -> list:
            return [kept(f"{block}{name}.weight", out, into), kept(f"{block}{name}.bias", out)]

        found = {
            "table": kept(self.table, s["words"], width),
            "positions": kept("embeddings.position_embedding.weight", s["longest"], width),
            "last": [kept(f"final_layer_norm.{k}", width) for k in kinds],
            "blocks": {
                "norms": [[kept(f"{block}layer_norm{i}.{k}", width) for k in kinds] for i in (1, 2)],
                "qkv": [both(f"self_attn.{x}_proj", width, width) for x in "qkv"],
                "out": both("self_attn.out_proj", width, width),
                "up": both("mlp.fc1", mlp, width),
                "down": both("mlp.fc2", width, mlp),
            },
        }
        if kept.has("text_projection.weight"):
            found["projection"] = kept("text_projection.weight", s["projection"], width, prefixed=False)
        return found

    def encode(self, w: Any, ids: jax.Array, seen: jax.Array) -> dict[str, jax.Array]:
        """Every word reads itself and those before it, so padding is read by no word."""
        s, activation, length = self.sizes, ACTIVATIONS[self.sizes["activation"]], ids.shape[1]
        heads = s["heads"]

        def block(x, b):
            y = normal(x, b["norms"][0], s["epsilon"])
            q, k, v = (linear(y, *m).reshape(*y.shape[:2], heads, -1) for m in b["qkv"])
            x = x + linear(jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(y.shape), *b["out"])
            return x + linear(activation(linear(normal(x, b["norms"][1], s["epsilon"]), *b["up"])), *b["down"]), None

        x, _ = jax.lax.scan(block, w["table"][ids] + w["positions"][:length], w["blocks"])
        if self.layers < s["depth"]:
            return {"text": x}
        x = normal(x, w["last"], s["epsilon"])
        marks = jnp.where(seen, ids, -1) if s["end"] == OLD_END else (ids == s["end"]) & seen
        pooled = jnp.take_along_axis(x, jnp.argmax(marks, axis=1)[:, None, None], 1)[:, 0]
        return {"text": x, "pooled": linear(pooled, w["projection"]) if "projection" in w else pooled}
