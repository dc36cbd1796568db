"""PixArt of diffusers: its tensors come in and go out, and what has no place there is named."""

import json

import numpy as np
import pytest

from lab import axes, population
from lab.errors import UserError
from lab.experiment import DEFAULTS
from lab.formats import pixart as format
from lab.formats.rules import apply, invert

PUBLISHED = {
    **{"_class_name": "PixArtTransformer2DModel", "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "in_channels": 1},
    **{"out_channels": 2, "sample_size": 8, "patch_size": 4, "caption_channels": 6, "cross_attention_dim": 16},
}


def built(theirs, **model):
    """The complete config of a published PixArt, and its program."""
    sections = format.Format.config(theirs)
    config = {**json.loads(json.dumps(DEFAULTS)), **sections, "model": sections["model"] | model}
    return config, population.build(config, config["data"])


def test_published_tensors_come_in_and_go_out_again_and_what_does_not_fit_is_named():
    config, program = built(PUBLISHED)
    rng, described = np.random.default_rng(0), axes.weights(program.model)
    mine = {n: rng.normal(size=w.get_value().shape).astype(np.float32) for n, w in described.items()}
    mine |= {n: np.full_like(x, 8**-0.5) for n, x in mine.items() if n.endswith("logits")}
    rules = format.Format.rules(config)
    theirs = invert(rules, mine, program.model, program.dims)
    assert len(theirs) == 15 + 2 * 21
    again, left = apply(rules, theirs, program.model, program.dims)
    assert (again.keys(), left) == (mine.keys(), [])
    for name, x in mine.items():
        np.testing.assert_allclose(again[name], x, rtol=1e-6, err_msg=name)
    assert format.Format.config(format.Format.theirs(config)) == format.Format.config(PUBLISHED)
    theirs["more"] = theirs.pop("transformer_blocks.1.attn2.to_k.bias")
    with pytest.raises(UserError, match=r"missing transformer_blocks.1.attn2.to_k.bias \[16\]; extra more"):
        apply(rules, theirs, program.model, program.dims)


def test_what_diffusers_has_no_place_for_is_named():
    for changes, said in (
        ({"sample_size": 128}, "use_additional_conditions=True has no counterpart"),
        ({"cross_attention_dim": 32}, "cross_attention_dim=32 has no counterpart; expected 16"),
        ({"out_channels": 3, "in_channels": 2}, "out_channels=3 must be a multiple of in_channels=2"),
    ):
        with pytest.raises(UserError, match=said):
            format.Format.config(PUBLISHED | changes)
    for key, value in (("null_caption", True), ("kv_compress", 2), ("qk_norm", True)):
        with pytest.raises(UserError, match=f"key {key}={value} has no counterpart"):
            format.Format.theirs(built(PUBLISHED, **{key: value})[0])
    config = built(PUBLISHED)[0]
    with pytest.raises(UserError, match="reads features of text"):
        format.Format.theirs(config | {"data": dict(image=8, channels=1, words=9, length=5)})
