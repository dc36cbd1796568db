"""T5 1.1 as transformers publishes it (T5ForConditionalGeneration; arXiv 1910.10683, 2002.05202), its decoder over image tokens.

Theirs has one table of words for both halves. Ours has image tokens and what stands before the first of them beside the text's words:
two tensors more, `image_embedding.weight` and `image_start.weight`, whose rows are given to their model through decoder_inputs_embeds, and
two keys more of config.json. Theirs has one width, one number of heads and as many logits as words; its scores are not divided.
"""

from lab.axes import split
from lab.errors import UserError
from lab.formats.rules import Rule, expect
from lab.layers.relative import BUCKETS, FURTHEST

THEIRS = {
    **{"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "layer_norm_epsilon": 1e-6, "is_encoder_decoder": True},
    **{"relative_attention_num_buckets": BUCKETS, "relative_attention_max_distance": FURTHEST},
}
OURS = {"qk_norm": False, "positions": "relative", "channel_mixer": "geglu", "kv_group": 1}


class Format:
    """Reads and writes T5ForConditionalGeneration with tables of image tokens."""

    classes = ("T5ForConditionalGeneration",)
    model = "encoder_decoder"
    file = "model.safetensors"

    @staticmethod
    def config(theirs: dict) -> dict:
        """Our model, base, objective and sizes of the data from their config.json; the objective is not told by it."""
        # what is left out is the first T5's; newer files say True of ties, and tell of untied logits by another key
        untied = theirs.get("scale_decoder_outputs") is False or theirs.get("tie_word_embeddings") is False
        expect({"feed_forward_proj": "relu", **theirs, "tie_word_embeddings": not untied}, THEIRS, "config.json")
        width, heads, head_dim, vocabulary = (theirs[k] for k in ("d_model", "num_heads", "d_kv", "vocab_size"))
        expect(theirs, {"d_model": heads * head_dim}, "config.json")
        return {
            "model": {
                **{"name": "encoder_decoder", "width": width, "head_dim": head_dim, "text_width": width},
                **{"depth": theirs.get("num_decoder_layers") or theirs["num_layers"], "text_depth": theirs["num_layers"]},
                **{"mlp_ratio": split("config.json key d_ff", theirs["d_ff"], "d_model", width), **OURS},
            },
            "base": {"width": width, "text_width": width},
            "objective": {"name": "next_token", "label_drop": 0.1},
            "data": {
                **{"vocabulary": vocabulary, "tokens": theirs["num_image_tokens"]},
                **{"words": vocabulary, "length": theirs["num_text_tokens"]},
            },
        }

    @staticmethod
    def theirs(config: dict) -> dict:
        """Their config.json of our model and data; UserError for an option that they have not."""
        m, d = config["model"], config["data"]
        expect(m, OURS, "config section model,")
        expect({"text_width": m["text_width"] or m["width"]}, {"text_width": m["width"]}, "config section model,")
        if d.get("features"):
            raise UserError("T5ForConditionalGeneration reads tokens of text, and the model was trained on features; --format native")
        if d["words"] != d["vocabulary"]:
            raise UserError(f"data with words={d['words']} and vocabulary={d['vocabulary']}: T5 has one number for both; --format native")
        width = m["width"]
        return {
            **{"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", **THEIRS},
            **{"d_model": width, "d_kv": m["head_dim"], "num_heads": width // m["head_dim"], "d_ff": m["mlp_ratio"] * width},
            **{"num_layers": m["text_depth"], "num_decoder_layers": m["depth"], "vocab_size": d["vocabulary"]},
            **{"num_image_tokens": d["tokens"], "num_text_tokens": d["length"]},
            **{"pad_token_id": 0, "eos_token_id": None, "decoder_start_token_id": 0},
        }

    @staticmethod
    def rules(config: dict) -> tuple[Rule, ...]:
        """Their linear layers keep [out, in]."""
        asks = config["model"]["head_dim"] ** 0.5
        keys, out = "(kv_heads head_dim) embed -> embed kv_heads head_dim", "embed (heads head_dim) -> heads head_dim embed"

        def half(ours: str, theirs: str, mlp: int) -> tuple[Rule, ...]:
            block, final, at = (
                f"{theirs}.block.{{i}}.layer.",
                ours.removesuffix("blocks"),
                f"{theirs}.block.{{i}}.layer.{mlp}.DenseReluDense.",
            )
            first = f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            return (
                Rule(f"{final}bias.table", first),
                Rule(f"{ours}.attention.query", f"{block}0.SelfAttention.q.weight", keys.replace("kv_", ""), asks),
                Rule(f"{ours}.attention.out", f"{block}0.SelfAttention.o.weight", out),
                Rule(f"{ours}.mlp.up", (f"{at}wi_0.weight", f"{at}wi_1.weight"), "mlp embed -> embed mlp"),
                Rule(f"{ours}.mlp.down", f"{at}wo.weight", "embed mlp -> mlp embed"),
                Rule(f"{ours}.gains", tuple(f"{block}{k}.layer_norm.weight" for k in range(mlp + 1))),
                Rule(f"{final}gain", f"{theirs}.final_layer_norm.weight"),
            )

        def looks(name: str) -> tuple[str, str]:
            return tuple(f"{name}.{x}.weight" for x in "kv")

        cross = "decoder.block.{i}.layer.1.EncDecAttention"
        return (
            Rule("encoder.table", "shared.weight"),
            *half("encoder.blocks", "encoder", 1),
            Rule("encoder.blocks.attention.key_value", looks("encoder.block.{i}.layer.0.SelfAttention"), keys.replace("kv_", "")),
            Rule("start", "image_start.weight"),
            Rule("table", "image_embedding.weight"),
            *half("blocks", "decoder", 2),
            Rule("blocks.attention.key_value", looks("decoder.block.{i}.layer.0.SelfAttention"), keys),
            Rule("blocks.cross.query", f"{cross}.q.weight", keys.replace("kv_", ""), asks),
            Rule("blocks.cross.key_value", looks(cross), "(heads head_dim) text_embed -> text_embed heads head_dim"),
            Rule("blocks.cross.out", f"{cross}.o.weight", out),
            Rule("readout", "lm_head.weight", "vocabulary embed -> embed vocabulary"),
        )
