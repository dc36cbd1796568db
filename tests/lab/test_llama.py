"""The format of LLaMA: what is written is read back as it was, and what it has no place for is named."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import small

from lab import axes, parametrization
from lab.errors import UserError
from lab.formats import rules
from lab.formats.llama import Format
from lab.population import build

DIMS = {"vocabulary": 11, "tokens": 9, "classes": 4}
MODEL = dict(name="decoder", width=32, depth=2, head_dim=8, mlp_ratio=2, kv_group=2, qk_norm=False, rope="line")
CONFIG = {"model": MODEL, "data": DIMS}


def test_weights_and_config_come_back_as_they_were():
    program = build(small.config(model=MODEL, objective=dict(name="next_token", label_drop=0.1)), DIMS)
    drawn = axes.draw(jax.random.key(0), program.model, axes.scales(program.model, parametrization.standard))
    rng = np.random.default_rng(0)
    mine = {n: np.asarray(w.get_value()) for n, w in axes.weights(drawn).items()}
    mine = {n: x if n.endswith("logits") else x + rng.normal(size=x.shape).astype(np.float32) for n, x in mine.items()}
    theirs = rules.invert(Format.rules(CONFIG), mine, program.model, program.dims)
    assert len(theirs) == 4 + 2 * 9
    assert theirs["model.layers.1.self_attn.k_proj.weight"].shape == (16, 32)
    np.testing.assert_array_equal(theirs["model.layers.1.mlp.gate_proj.weight"].T, mine["blocks.mlp.up"][1, 0])
    back, extra = rules.apply(Format.rules(CONFIG), theirs, program.model, program.dims)
    assert not extra
    assert back.keys() == mine.keys()
    for name, x in back.items():
        np.testing.assert_array_equal(x, mine[name], err_msg=name)
    found = Format.config(json.loads(json.dumps(Format.theirs(CONFIG))))
    assert found["model"] == MODEL
    assert found["data"] == DIMS
    arrows = [
        dataclasses.asdict(w.arrow) for w in axes.weights(build(small.config(**found | {"base": {"width": 32}}), DIMS).model).values()
    ]
    assert arrows == [dataclasses.asdict(w.arrow) for w in axes.weights(program.model).values()]


@pytest.mark.parametrize(
    "theirs, said",
    [
        (dict(hidden_act="gelu"), "key hidden_act='gelu' has no counterpart; expected 'silu'"),
        (dict(rope_parameters=dict(rope_theta=5e5)), "rope_theta=500000.0 has no counterpart"),
        (dict(head_dim=16), "key head_dim=16 has no counterpart; expected 8"),
        (dict(num_key_value_heads=3), "num_attention_heads=4 is not a multiple of num_key_value_heads=3"),
        (dict(intermediate_size=80), "intermediate_size=80 is not a multiple of hidden_size=32; nearest: 64 or 96"),
    ],
)
def test_what_the_model_cannot_be_is_named(theirs, said):
    with pytest.raises(UserError, match=said):
        Format.config({**Format.theirs(CONFIG), **theirs})


@pytest.mark.parametrize(
    "ours, said",
    [
        (dict(model=MODEL | {"rope": "grid"}), "rope='grid' has no counterpart"),
        (dict(data=DIMS | {"words": 9, "length": 3}), "words=9: LlamaForCausalLM has no place"),
    ],
)
def test_what_the_format_cannot_hold_is_named(ours, said):
    with pytest.raises(UserError, match=said):
        Format.theirs(CONFIG | ours)
