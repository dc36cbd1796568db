"""MMDiT equals diffusers' SD3Transformer2DModel with the same weights, which come in and go out through the command."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import cli
from lab.sampling import restored

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
safetensors = pytest.importorskip("safetensors.numpy")
LAST = "transformer_blocks.2.attn."
DEAD = {f"{LAST}{n}" for n in ("add_q_proj.weight", "add_q_proj.bias", "norm_added_q.weight")}


def published(qk_norm, table):
    """Their model with random weights, none of them zero or one."""
    sizes = dict(sample_size=8, patch_size=2, in_channels=3, out_channels=3, num_layers=3, attention_head_dim=16, num_attention_heads=2)
    text = dict(joint_attention_dim=12, caption_projection_dim=32, pooled_projection_dim=10)
    model = diffusers.SD3Transformer2DModel(**sizes, **text, pos_embed_max_size=table, qk_norm=qk_norm).eval()
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data += 0.2 * torch.randn(p.shape, generator=generator)
    return model


def example():
    rng = np.random.default_rng(1)
    shapes = dict(x=(3, 3, 8, 8), text=(3, 5, 12), pooled=(3, 10))
    return {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()} | {"t": np.array([0.0, 0.31, 1.0], np.float32)}


def theirs(model):
    x, words, pooled, t = (torch.tensor(example()[k]) for k in ("x", "text", "pooled", "t"))
    with torch.no_grad():
        return model(x, encoder_hidden_states=words, pooled_projections=pooled, timestep=1000 * t).sample.numpy()


def ours(folder):
    """Output of imported weights, channels first."""
    given = {k: jnp.asarray(v) for k, v in example().items()}
    out = jax.jit(lambda m, given: m(given))(restored(folder).weights, {**given, "x": jnp.moveaxis(given["x"], 1, -1)})
    return np.moveaxis(np.asarray(out), -1, 1)


def distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("qk_norm, table", [("rms_norm", 4), (None, 9)])
def test_sd3_of_diffusers_comes_in_and_goes_out(tmp_path, qk_norm, table):
    model = published(qk_norm, table)
    given, folder, out = (tmp_path / n for n in ("published", "folder", "out"))
    model.save_pretrained(given)
    assert cli.main(["import", "weights", str(given), "--to", str(folder)]) == 0
    expected = theirs(model)
    assert distance(ours(folder), expected) < 1e-4
    assert cli.main(["export", "weights", str(folder), "--to", str(out)]) == 0
    (before,), (after,) = (list(Path(p).glob("*.safetensors")) for p in (given, out))
    before, after = safetensors.load_file(before), safetensors.load_file(after)
    assert before.keys() == after.keys()
    for name, x in before.items():
        if name in DEAD:  # what these do is thrown away
            assert not after[name].any()
        else:
            np.testing.assert_allclose(after[name], x, rtol=2e-7, atol=1e-5 if name == "pos_embed.pos_embed" else 0)
    again = diffusers.SD3Transformer2DModel.from_pretrained(out).eval()
    assert distance(theirs(again), expected) < 1e-4
    told, kept = (json.loads((p / "config.json").read_text()) for p in (given, out))
    assert {k: v for k, v in told.items() if k != "_diffusers_version"} == kept
