"""PixArt as diffusers publishes it (PixArtTransformer2DModel, such as PixArt-XL-2-512x512 and PixArt-Sigma; arXiv 2310.00426).

Conditions on resolution and aspect ratio, which the 1024-pixel weights of PixArt-alpha have, are not read.
"""

from typing import ClassVar

from lab.errors import UserError
from lab.formats.rules import Rule, expect

LENGTH = 120  # words that PixArt-alpha was trained on; their config.json tells no length, and no weight of theirs depends on it
THEIRS = {
    **{"activation_fn": "gelu-approximate", "attention_bias": True, "norm_elementwise_affine": False},
    **{"norm_type": "ada_norm_single", "upcast_attention": False, "attention_type": "default"},
}
OBJECTIVE = {"name": "diffusion", "schedule": "linear", "prediction": "eps", "label_drop": 0.1}
OURS = {"qk_norm": False, "mlp_ratio": 4, "kv_compress": 1, "refiner": 0, "null_caption": False, "position_width": 0}
BLOCK = "transformer_blocks.{i}."
TIME = "adaln_single.emb.timestep_embedder."


class Format:
    """Reads and writes PixArtTransformer2DModel; images are square, text is features of a frozen encoder."""

    classes = ("PixArtTransformer2DModel", "Transformer2DModel")  # the second in older files
    only: ClassVar[dict] = {"norm_type": "ada_norm_single"}
    model = "pixart"
    file = "diffusion_pytorch_model.safetensors"

    @staticmethod
    def config(theirs: dict) -> dict:
        """Our model, base, objective and sizes of the data from their config.json; the objective, which it does not tell, is the paper's."""
        heads, head_dim, channels, side = (theirs[k] for k in ("num_attention_heads", "attention_head_dim", "in_channels", "sample_size"))
        width, out = heads * head_dim, theirs.get("out_channels") or channels
        sized = theirs.get("use_additional_conditions")
        asked = {**theirs, "use_additional_conditions": side == 128 if sized is None else sized}
        expect(asked, {**THEIRS, "cross_attention_dim": width, "use_additional_conditions": False}, "config.json")
        if out % channels:
            raise UserError(f"config.json key out_channels={out} must be a multiple of in_channels={channels}")
        return {
            "model": {
                **{"name": "pixart", "width": width, "depth": theirs["num_layers"], "head_dim": head_dim, "patch": theirs["patch_size"]},
                **{**OURS, "zero_gates": True, "outputs": out // channels},
                "interpolation": float(theirs.get("interpolation_scale") or max(side // 64, 1)),
            },
            "base": {"width": width},
            "objective": {**OBJECTIVE, "learned_variance": out == 2 * channels},
            "data": {"image": side, "channels": channels, "features": theirs["caption_channels"], "length": LENGTH},
        }

    @staticmethod
    def theirs(config: dict) -> dict:
        """Their config.json of our model and data; UserError for an option that they have not."""
        m, d = config["model"], config["data"]
        expect(m, OURS, "config section model,")
        if not d.get("features"):
            raise UserError("PixArtTransformer2DModel reads features of text, and the model was trained on tokens; --format native")
        width = m["width"]
        return {
            **{"_class_name": "PixArtTransformer2DModel", **THEIRS, "norm_eps": 1e-6, "dropout": 0.0, "norm_num_groups": 32},
            **{"num_attention_heads": width // m["head_dim"], "attention_head_dim": m["head_dim"], "num_layers": m["depth"]},
            **{"in_channels": d["channels"], "out_channels": d["channels"] * m["outputs"], "patch_size": m["patch"]},
            **{"sample_size": d["image"], "interpolation_scale": m["interpolation"], "use_additional_conditions": False},
            **{"cross_attention_dim": width, "caption_channels": d["features"]},
        }

    @staticmethod
    def rules(config: dict) -> tuple[Rule, ...]:
        """Their linear layers keep [out, in]; the patch's convolution keeps [embed, channels, p, q]."""
        p, channels = config["model"]["patch"], config["data"]["channels"]
        square = {"out": config["model"]["width"]}
        own, words = (
            tuple(f"{BLOCK}{x}." for x in xs) for xs in (("attn1.to_q", "attn1.to_k", "attn1.to_v"), ("attn2.to_k", "attn2.to_v"))
        )
        heads, heads_bias = "(heads head_dim) embed -> embed heads head_dim", "(heads head_dim) -> heads head_dim"
        out = "embed (heads head_dim) -> heads head_dim embed"
        return (
            Rule("patch_in.kernel", "pos_embed.proj.weight", "embed c p q -> (p q c) embed", sizes={"p": p, "q": p, "c": channels}),
            Rule("patch_in.bias", "pos_embed.proj.bias"),
            # our features of time are sqrt(2) as large
            Rule("time.up.kernel", f"{TIME}linear_1.weight", "embed frequencies -> frequencies embed", 0.5**0.5),
            Rule("time.up.bias", f"{TIME}linear_1.bias"),
            Rule("time.out.kernel", f"{TIME}linear_2.weight", "out embed -> embed out", sizes=square),
            Rule("time.out.bias", f"{TIME}linear_2.bias"),
            Rule("words.up.kernel", "caption_projection.linear_1.weight", "embed text_features -> text_features embed"),
            Rule("words.up.bias", "caption_projection.linear_1.bias"),
            Rule("words.out.kernel", "caption_projection.linear_2.weight", "out embed -> embed out", sizes=square),
            Rule("words.out.bias", "caption_projection.linear_2.bias"),
            Rule("modulation.kernel", "adaln_single.linear.weight", "(n out) embed -> n embed out", sizes=square | {"n": 6}),
            Rule("modulation.bias", "adaln_single.linear.bias", "(n embed) -> n embed", sizes={"n": 6}),
            Rule("blocks.table", f"{BLOCK}scale_shift_table"),
            Rule("blocks.attention.qkv", tuple(f"{n}weight" for n in own), heads),
            Rule("blocks.attention.qkv_bias", tuple(f"{n}bias" for n in own), heads_bias),
            Rule("blocks.attention.out", f"{BLOCK}attn1.to_out.0.weight", out),
            Rule("blocks.attention.out_bias", f"{BLOCK}attn1.to_out.0.bias"),
            Rule("blocks.cross.q", f"{BLOCK}attn2.to_q.weight", heads),
            Rule("blocks.cross.q_bias", f"{BLOCK}attn2.to_q.bias", heads_bias),
            Rule("blocks.cross.kv", tuple(f"{n}weight" for n in words), heads),
            Rule("blocks.cross.kv_bias", tuple(f"{n}bias" for n in words), heads_bias),
            Rule("blocks.cross.out", f"{BLOCK}attn2.to_out.0.weight", out),
            Rule("blocks.cross.out_bias", f"{BLOCK}attn2.to_out.0.bias"),
            Rule("blocks.mlp.up.kernel", f"{BLOCK}ff.net.0.proj.weight", "mlp embed -> embed mlp"),
            Rule("blocks.mlp.up.bias", f"{BLOCK}ff.net.0.proj.bias"),
            Rule("blocks.mlp.down.kernel", f"{BLOCK}ff.net.2.weight", "embed mlp -> mlp embed"),
            Rule("blocks.mlp.down.bias", f"{BLOCK}ff.net.2.bias"),
            Rule("table", "scale_shift_table"),
            Rule("readout", "proj_out.weight", "patch_out embed -> embed patch_out"),
            Rule("readout_bias", "proj_out.bias"),
        )
