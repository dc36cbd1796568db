"""LLaMA as transformers publishes it (LlamaForCausalLM; arXiv 2302.13971), over image tokens behind a class.

Their model reads tokens alone. Ours begins with a class: its table is one tensor more, `class_embedding.weight`, whose rows are given
to their model through inputs_embeds, and `num_classes` is one key more of config.json. Both turn the pair of features (i, i + head_dim / 2).
"""

from lab.axes import split
from lab.errors import UserError
from lab.formats.rules import Constant, Rule, expect

THEIRS = {
    **{"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False},
    **{"rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "rope_scaling": None},
}
ROPE = {"rope_theta": 10_000.0, "rope_type": "default"}
BLOCK = "model.layers.{i}."


class Format:
    """Reads and writes LlamaForCausalLM with a class embedding; positions on a line."""

    classes = ("LlamaForCausalLM",)
    model = "decoder"
    file = "model.safetensors"

    @staticmethod
    def config(theirs: dict) -> dict:
        """Our model, base, objective and sizes of the data from their config.json; the objective is not told by it."""
        expect(theirs, THEIRS, "config.json")
        expect(theirs.get("rope_parameters") or {}, ROPE, "config.json key rope_parameters,")
        width, heads = theirs["hidden_size"], theirs["num_attention_heads"]
        head_dim = split("config.json key hidden_size", width, "num_attention_heads", heads)
        expect(theirs, {"head_dim": head_dim}, "config.json")
        return {
            "model": {
                **{"name": "decoder", "width": width, "depth": theirs["num_hidden_layers"], "head_dim": head_dim},
                "kv_group": split("config.json key num_attention_heads", heads, "num_key_value_heads", theirs["num_key_value_heads"]),
                "mlp_ratio": split("config.json key intermediate_size", theirs["intermediate_size"], "hidden_size", width),
                **{"qk_norm": False, "rope": "line"},
            },
            "base": {"width": width},
            "objective": {"name": "next_token", "label_drop": 0.1},
            "data": {"vocabulary": theirs["vocab_size"], "tokens": theirs["max_position_embeddings"], "classes": theirs["num_classes"]},
        }

    @staticmethod
    def theirs(config: dict) -> dict:
        """Their config.json of our model and data; UserError for an option that they have not."""
        m, d = config["model"], config["data"]
        expect(m, {"qk_norm": False, "rope": "line"}, "config section model,")
        if texts := [k for k in ("words", "features") if d.get(k)]:
            raise UserError(
                f"data with {texts[0]}={d[texts[0]]}: LlamaForCausalLM has no place for an encoder of text; expected classes alone"
            )
        heads = m["width"] // m["head_dim"]
        return {
            **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", **THEIRS, "rope_parameters": ROPE},
            **{"hidden_size": m["width"], "intermediate_size": m["mlp_ratio"] * m["width"], "num_hidden_layers": m["depth"]},
            **{"num_attention_heads": heads, "num_key_value_heads": heads // m["kv_group"], "head_dim": m["head_dim"]},
            **{"vocab_size": d["vocabulary"], "max_position_embeddings": d["tokens"], "num_classes": d["classes"]},
            **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
        }

    @staticmethod
    def rules(config: dict) -> tuple[Rule | Constant, ...]:
        """Their linear layers keep [out, in]."""
        attention, mlp = f"{BLOCK}self_attn.", f"{BLOCK}mlp."
        keys = "(kv_heads head_dim) embed -> embed kv_heads head_dim"
        norms = (f"{BLOCK}input_layernorm.weight", f"{BLOCK}post_attention_layernorm.weight")
        return (
            Rule("table", "model.embed_tokens.weight"),
            Rule("label.table", "class_embedding.weight"),
            Rule("blocks.attention.query", f"{attention}q_proj.weight", "(heads head_dim) embed -> embed heads head_dim"),
            Rule("blocks.attention.key_value", (f"{attention}k_proj.weight", f"{attention}v_proj.weight"), keys),
            Rule("blocks.attention.out", f"{attention}o_proj.weight", "embed (heads head_dim) -> heads head_dim embed"),
            Rule("blocks.mlp.up", (f"{mlp}gate_proj.weight", f"{mlp}up_proj.weight"), "mlp embed -> embed mlp"),
            Rule("blocks.mlp.down", f"{mlp}down_proj.weight", "embed mlp -> mlp embed"),
            Rule("blocks.gains", norms),
            Rule("gain", "model.norm.weight"),
            Rule("readout", "lm_head.weight", "vocabulary embed -> embed vocabulary"),
        )
