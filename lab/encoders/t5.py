"""The encoder of T5, its 1.1 and Flan forms (Raffel et al., arXiv 1910.10683), as transformers publishes it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lab.encoders._frozen import Frozen, Kept, linear
from lab.errors import unknown
from lab.layers import relative
from lab.layers.attention import rms_norm

ACTIVATIONS = {
    "relu": (("wi",), jax.nn.relu),
    "gated-gelu": (("wi_0", "wi_1"), lambda gate, up: jax.nn.gelu(gate, approximate=True) * up),
}


class Encoder(Frozen):
    """T5's encoder: norms before each part, no biases, no scale of the products of queries and keys, one table of relative positions for all."""

    kinds = ("t5", "mt5")
    table = "shared.weight"

    @staticmethod
    def read(theirs: dict) -> dict[str, Any]:
        """Sizes and options from their config.json."""
        name = theirs.get("feed_forward_proj", "relu")
        if name not in ACTIVATIONS:
            raise unknown("config.json key feed_forward_proj", name, ACTIVATIONS)
        return {
            **{"depth": theirs["num_layers"], "width": theirs["d_model"], "mlp": theirs["d_ff"], "words": theirs["vocab_size"]},
            **{"heads": theirs["num_heads"], "head_dim": theirs["d_kv"], "epsilon": theirs.get("layer_norm_epsilon", 1e-6)},
            **{"buckets": theirs.get("relative_attention_num_buckets", 32), "distance": theirs.get("relative_attention_max_distance", 128)},
            "activation": name,
        }

    def weights(self, kept: Kept) -> dict[str, Any]:
        """Their tensors, layers stacked."""
        s, block = self.sizes, "encoder.block.{i}.layer."
        width, mlp, inner = s["width"], s["mlp"], s["heads"] * s["head_dim"]
        return {
            "table": kept(self.table, s["words"], width),
            "ways": kept("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", s["buckets"], s["heads"]),
            "last": kept("encoder.final_layer_norm.weight", width),
            "blocks": {
                "norms": [kept(f"{block}{k}.layer_norm.weight", width) for k in (0, 1)],
                "qkv": [kept(f"{block}0.SelfAttention.{x}.weight", inner, width) for x in "qkv"],
                "out": kept(f"{block}0.SelfAttention.o.weight", width, inner),
                "up": [kept(f"{block}1.DenseReluDense.{x}.weight", mlp, width) for x in ACTIVATIONS[s["activation"]][0]],
                "down": kept(f"{block}1.DenseReluDense.wo.weight", width, mlp),
            },
        }

    def encode(self, w: Any, ids: jax.Array, seen: jax.Array) -> dict[str, jax.Array]:
        """Every word reads every word."""
        s, activation = self.sizes, ACTIVATIONS[self.sizes["activation"]][1]
        at = np.arange(ids.shape[1])
        far = np.clip(at[None] - at[:, None], -s["distance"], s["distance"])  # of a key (column) behind a query (row)
        ways = jnp.moveaxis(w["ways"][relative.buckets(True, s["buckets"], s["distance"])[far + s["distance"]]], 2, 0)[None]

        def block(x, b):
            y = rms_norm(x, s["epsilon"]) * b["norms"][0]
            q, k, v = (linear(y, m).reshape(*y.shape[:2], s["heads"], s["head_dim"]) for m in b["qkv"])
            mixed = jax.nn.dot_product_attention(q, k, v, bias=ways, mask=seen[:, None, None], scale=1.0)
            x = x + linear(mixed.reshape(*y.shape[:2], -1), b["out"])
            y = rms_norm(x, s["epsilon"]) * b["norms"][1]
            return x + linear(activation(*(linear(y, m) for m in b["up"])), b["down"]), None

        x, _ = jax.lax.scan(block, w["table"][ids], w["blocks"])
        return {"text": rms_norm(x, s["epsilon"]) * w["last"] if self.layers == s["depth"] else x}
