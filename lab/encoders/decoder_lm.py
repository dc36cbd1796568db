"""Hidden layers of decoder language models as transformers publishes them: LLaMA, Mistral, Qwen 2 and 3, Gemma.

Norms before each part, rotary positions, keys shared by groups of heads, gated MLPs; families differ in the options below.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lab.encoders._frozen import Frozen, Kept, linear
from lab.errors import UserError, unknown
from lab.layers.attention import rms_norm
from lab.layers.rope import rotate

# of a family: (whether queries, keys and values have biases, whether queries and keys are normalised, whether gains lack 1 and the table sqrt(width))
FAMILIES = {
    "llama": (False, False, False),
    "mistral": (False, False, False),
    "qwen2": (True, False, False),
    "qwen3": (False, True, False),
    "gemma": (False, False, True),
}
ACTIVATIONS = {"silu": jax.nn.silu, "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True)}


def rates(rope: dict, head_dim: int) -> np.ndarray:
    """By how much each pair of features [head_dim / 2] turns a position, of 'default' or LLaMA 3.1's ('llama3') positions; float32.

    LLaMA 3.1 lets those that turn less than `low_freq_factor` times over the length it was first trained on turn `factor` times slower,
    those of more than `high_freq_factor` turns as they did, and goes linearly, in turns, between.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    own = rope["rope_theta"] ** (-np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    if kind == "default":
        return own
    if kind != "llama3":
        raise unknown("config.json key rope_type", kind, ("default", "llama3"))
    turns = rope["original_max_position_embeddings"] * own / (2 * math.pi)
    share = np.clip((turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"]), 0, 1)
    return (own * (share + (1 - share) / rope["factor"])).astype(np.float32)


class Encoder(Frozen):
    """The hidden states of a causal language model."""

    kinds = tuple(FAMILIES)
    table = "embed_tokens.weight"

    @staticmethod
    def read(theirs: dict) -> dict[str, Any]:
        """Sizes and options from their config.json."""
        name = theirs.get("hidden_activation") or theirs.get("hidden_act", "silu")
        name = "gelu_pytorch_tanh" if theirs["model_type"] == "gemma" else name  # older ones say gelu and mean this
        if name not in ACTIVATIONS:
            raise unknown("config.json key hidden_act", name, ACTIVATIONS)
        for key in ("attention_bias", "mlp_bias"):
            if theirs.get(key):
                raise UserError(f"config.json key {key}={theirs[key]!r} is read by no code here; expected False")
        rope = theirs.get("rope_parameters") or {"rope_theta": theirs.get("rope_theta", 10_000.0), **(theirs.get("rope_scaling") or {})}
        head_dim = theirs.get("head_dim") or theirs["hidden_size"] // theirs["num_attention_heads"]
        window = theirs.get("sliding_window") if theirs.get("use_sliding_window", theirs["model_type"] == "mistral") else None
        return {
            **{"depth": theirs["num_hidden_layers"], "width": theirs["hidden_size"], "mlp": theirs["intermediate_size"]},
            **{"words": theirs["vocab_size"], "heads": theirs["num_attention_heads"], "groups": theirs["num_key_value_heads"]},
            **{"head_dim": head_dim, "rates": rates(rope, head_dim), "epsilon": theirs.get("rms_norm_eps", 1e-6), "activation": name},
            # within its window of positions, a model that looks no further back is one that does
            **{"longest": min(x for x in (theirs["max_position_embeddings"], window) if x), "family": FAMILIES[theirs["model_type"]]},
        }

    def weights(self, kept: Kept) -> dict[str, Any]:
        """Their tensors, layers stacked; gains are made such that they multiply."""
        s, block, (biased, normed, shifted) = self.sizes, "layers.{i}.", self.sizes["family"]
        width, mlp, head_dim = s["width"], s["mlp"], s["head_dim"]
        outs = {"q": s["heads"] * head_dim, "k": s["groups"] * head_dim, "v": s["groups"] * head_dim}
        own = f"{block}self_attn."

        def gain(name: str, size: int) -> np.ndarray:
            x = kept(name, size)
            return x + np.ones((), x.dtype) if shifted else x

        return {
            "table": kept(self.table, s["words"], width),
            "last": gain("norm.weight", width),
            "blocks": {
                "norms": [gain(f"{block}{k}_layernorm.weight", width) for k in ("input", "post_attention")],
                "looks": [gain(f"{own}{x}_norm.weight", head_dim) for x in "qk"] if normed else [],
                "qkv": [
                    [kept(f"{own}{x}_proj.weight", n, width), *([kept(f"{own}{x}_proj.bias", n)] if biased else [])]
                    for x, n in outs.items()
                ],
                "out": kept(f"{own}o_proj.weight", width, outs["q"]),
                "up": [kept(f"{block}mlp.{x}_proj.weight", mlp, width) for x in ("gate", "up")],
                "down": kept(f"{block}mlp.down_proj.weight", width, mlp),
            },
        }

    def encode(self, w: Any, ids: jax.Array, seen: jax.Array) -> dict[str, jax.Array]:
        """Every word reads itself and those before it, so padding is read by no word."""
        s, activation = self.sizes, ACTIVATIONS[self.sizes["activation"]]
        angles = np.arange(ids.shape[1], dtype=np.float32)[:, None] * s["rates"]

        def block(x, b):
            y = rms_norm(x, s["epsilon"]) * b["norms"][0]
            q, k, v = (linear(y, *m).reshape(*y.shape[:2], -1, s["head_dim"]) for m in b["qkv"])
            if b["looks"]:
                q, k = (rms_norm(z, s["epsilon"]) * g for z, g in zip((q, k), b["looks"], strict=True))
            mixed = jax.nn.dot_product_attention(rotate(q, angles), rotate(k, angles), v, is_causal=True)
            x = x + linear(mixed.reshape(*y.shape[:2], -1), b["out"])
            gate, up = (linear(rms_norm(x, s["epsilon"]) * b["norms"][1], m) for m in b["up"])
            return x + linear(activation(gate) * up, b["down"]), None

        x = w["table"][ids] * (jnp.asarray(s["width"] ** 0.5, w["table"].dtype) if s["family"][2] else 1)
        x, _ = jax.lax.scan(block, x, w["blocks"])
        return {"text": rms_norm(x, s["epsilon"]) * w["last"] if self.layers == s["depth"] else x}
