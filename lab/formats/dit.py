"""DiT as diffusers publishes it (DiTTransformer2DModel, such as DiT-XL/2; arXiv 2212.09748).

Their time has frequencies 10000^(-k / 127) for k = 0..127, where the paper's code and the lab divide by 128: a `period` of its own.
They keep one embedder of time and label in every block; those of published weights are copies of one.
"""

import math
from typing import ClassVar

from lab.errors import UserError
from lab.formats.rules import Constant, Rule, expect

PERIOD = 10_000.0 ** (128 / 127)
OBJECTIVE = {"name": "diffusion", "schedule": "linear", "prediction": "eps", "label_drop": 0.1}
THEIRS = {
    **{"activation_fn": "gelu-approximate", "attention_bias": True, "norm_elementwise_affine": False},
    **{"norm_type": "ada_norm_zero", "upcast_attention": False},
}
BLOCK = "transformer_blocks.{i}."
TIME = f"{BLOCK}norm1.emb.timestep_embedder."


class Format:
    """Reads and writes DiTTransformer2DModel; images are square, the latents of a VAE for published weights."""

    classes = ("DiTTransformer2DModel", "Transformer2DModel")  # the second in older files
    only: ClassVar[dict] = {"norm_type": "ada_norm_zero"}
    model = "dit"
    file = "diffusion_pytorch_model.safetensors"

    @staticmethod
    def config(theirs: dict) -> dict:
        """Our model, base, objective and sizes of the data from their config.json; the objective, which it does not tell, is the DiT paper's."""
        expect(theirs, THEIRS, "config.json")
        heads, head_dim, channels = theirs["num_attention_heads"], theirs["attention_head_dim"], theirs["in_channels"]
        out = theirs.get("out_channels") or channels
        if out % channels:
            raise UserError(f"config.json key out_channels={out} must be a multiple of in_channels={channels}")
        model = {"name": "dit", "width": heads * head_dim, "depth": theirs["num_layers"], "head_dim": head_dim, "mlp_ratio": 4}
        model |= {
            "patch": theirs["patch_size"],
            "outputs": out // channels,
            "qk_norm": False,
            "zero_gates": True,
            "frequencies": 256,
            "period": PERIOD,
        }
        return {
            "model": model,
            "base": {"width": heads * head_dim},
            "objective": {**OBJECTIVE, "learned_variance": out == 2 * channels},
            "data": {"image": theirs["sample_size"], "channels": channels, "classes": theirs["num_embeds_ada_norm"]},
        }

    @staticmethod
    def theirs(config: dict) -> dict:
        """Their config.json of our model and data; UserError for an option that they have not."""
        m, d = config["model"], config["data"]
        expect(
            m,
            {
                **{"qk_norm": False, "mlp_ratio": 4, "frequencies": 256, "mixer": "attention", "channel_mixer": "mlp"},
                "position_width": 0,
            },
            "config section model,",
        )
        if not math.isclose(m["period"], PERIOD, rel_tol=1e-6):
            raise UserError(
                f"config key model.period={m['period']} has no counterpart in DiTTransformer2DModel, whose times have {PERIOD!r}; "
                "train with that"
            )
        return {
            **{"_class_name": "DiTTransformer2DModel", **THEIRS, "norm_eps": 1e-5, "dropout": 0.0, "norm_num_groups": 32},
            **{"num_attention_heads": m["width"] // m["head_dim"], "attention_head_dim": m["head_dim"], "num_layers": m["depth"]},
            **{"in_channels": d["channels"], "out_channels": d["channels"] * m["outputs"], "patch_size": m["patch"]},
            **{"sample_size": d["image"], "num_embeds_ada_norm": d["classes"]},
        }

    @staticmethod
    def rules(config: dict) -> tuple[Rule | Constant, ...]:
        """Their linear layers keep [out, in]; the patch's convolution keeps [embed, channels, p, q]."""
        p, channels = config["model"]["patch"], config["data"]["channels"]
        grid = {"p": p, "q": p, "c": channels}
        heads = "(heads head_dim) embed -> embed heads head_dim"
        qkv = tuple(f"{BLOCK}attn1.to_{x}." for x in "qkv")
        return (
            Rule("patch_in.kernel", "pos_embed.proj.weight", "embed c p q -> (p q c) embed", sizes=grid),
            Rule("patch_in.bias", "pos_embed.proj.bias"),
            # our features of time are sqrt(2) as large
            Rule("time.up.kernel", f"{TIME}linear_1.weight", "embed frequencies -> frequencies embed", 0.5**0.5, copies="layers"),
            Rule("time.up.bias", f"{TIME}linear_1.bias", copies="layers"),
            Rule("time.out.kernel", f"{TIME}linear_2.weight", "out embed -> embed out", sizes=_square(config), copies="layers"),
            Rule("time.out.bias", f"{TIME}linear_2.bias", copies="layers"),
            Rule("label.table", f"{BLOCK}norm1.emb.class_embedder.embedding_table.weight", copies="layers"),
            Rule("blocks.modulation.kernel", f"{BLOCK}norm1.linear.weight", "(n out) embed -> n embed out", sizes=_square(config, 6)),
            Rule("blocks.modulation.bias", f"{BLOCK}norm1.linear.bias", "(n embed) -> n embed", sizes={"n": 6}),
            Rule("blocks.attention.qkv", tuple(f"{n}weight" for n in qkv), heads),
            Rule("blocks.attention.qkv_bias", tuple(f"{n}bias" for n in qkv), "(heads head_dim) -> heads head_dim"),
            Rule("blocks.attention.out", f"{BLOCK}attn1.to_out.0.weight", "embed (heads head_dim) -> heads head_dim embed"),
            Rule("blocks.attention.out_bias", f"{BLOCK}attn1.to_out.0.bias"),
            Rule("blocks.mlp.up.kernel", f"{BLOCK}ff.net.0.proj.weight", "mlp embed -> embed mlp"),
            Rule("blocks.mlp.up.bias", f"{BLOCK}ff.net.0.proj.bias"),
            Rule("blocks.mlp.down.kernel", f"{BLOCK}ff.net.2.weight", "embed mlp -> mlp embed"),
            Rule("blocks.mlp.down.bias", f"{BLOCK}ff.net.2.bias"),
            Rule("modulation.kernel", "proj_out_1.weight", "(n out) embed -> n embed out", sizes=_square(config, 2)),
            Rule("modulation.bias", "proj_out_1.bias", "(n embed) -> n embed", sizes={"n": 2}),
            Rule("readout", "proj_out_2.weight", "patch_out embed -> embed patch_out"),
            Rule("readout_bias", "proj_out_2.bias"),
        )


def _square(config: dict, n: int = 1) -> dict[str, int]:
    """Sizes of a matrix from embed to embed, of which the second axis needs a name of its own."""
    return {"out": config["model"]["width"], "n": n}
