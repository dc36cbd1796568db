"""Next-DiT of diffusers, imported, gives the same outputs; exported again, it is the same tensors; its stretched positions are ours."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from lab import cli
from lab.layers import stretch
from lab.sampling import restored

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
safetensors = pytest.importorskip("safetensors.numpy")
embeddings = pytest.importorskip("diffusers.models.embeddings")
FILE = "diffusion_pytorch_model.safetensors"
HEAD = 16


def published(**changes):
    """A small Next-DiT with random weights, none zero."""
    sizes = dict(sample_size=8, patch_size=2, in_channels=4, hidden_size=64, num_layers=2, num_attention_heads=4, num_kv_heads=2)
    model = diffusers.LuminaNextDiT2DModel(**sizes | dict(multiple_of=32, cross_attention_dim=24) | changes).eval()
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.normal_(std=0.3, generator=generator)
    return model


def example(side=8):
    """Images, times of theirs, and features of texts: a whole one, one that ends in padding, one that is hidden."""
    rng = np.random.default_rng(0)
    text = rng.normal(size=(3, 7, 24)).astype(np.float32)
    text[1, 4:], text[2] = 0, 0
    return rng.normal(size=(3, 4, side, side)).astype(np.float32), np.array([0, 0.25, 0.97], np.float32), text


def theirs(model, side=8, **stretched):
    """Their output, of which a pipeline takes the first half of the channels; padding is masked, and nothing of a text of padding alone."""
    x, t, text = example(side)
    said = (text != 0).any(-1)
    mask = said | ~said.any(1, keepdims=True)
    turned = embeddings.get_2d_rotary_pos_embed_lumina(HEAD, side, side, **stretched)
    with torch.no_grad():
        x, t, text, mask = (torch.tensor(a) for a in (x, t, text, mask.astype(np.int64)))
        out = model(x, t, text, mask, turned, cross_attention_kwargs={}).sample.numpy()
    return -out[:, :4]


def ours(folder, side=8, **options):
    """Output of imported weights, channels first."""
    x, t, text = example(side)
    model = restored(folder).weights
    for k, v in options.items():
        setattr(model, k, v)
    given = {"x": jnp.moveaxis(x, 1, -1), "t": jnp.asarray(1 - t), "text": jnp.asarray(text)}
    return np.moveaxis(np.asarray(model(given)), -1, 1)


def near(a, b, most=1e-4):
    assert np.linalg.norm(a - b) / np.linalg.norm(b) < most, np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("changes", [{}, dict(learn_sigma=False, qk_norm=False, num_kv_heads=4, multiple_of=256, ffn_dim_multiplier=0.5)])
def test_outputs_agree_and_tensors_come_back(changes, tmp_path):
    model, folder, out = published(**changes), tmp_path / "folder", tmp_path / "out"
    model.save_pretrained(tmp_path / "published")
    expected = theirs(model)
    assert cli.main(["import", "weights", str(tmp_path / "published"), "--to", str(folder)]) == 0
    near(ours(folder), expected)
    for kind, told in (("interpolation", {"linear_factor": 2.0}), ("ntk", {"ntk_factor": 2.0})):
        near(ours(folder, 16, stretch=kind), theirs(model, 16, **told))
        with pytest.raises(AssertionError):
            near(ours(folder, 16, stretch="none"), theirs(model, 16, **told))
    assert cli.main(["export", "weights", str(folder), "--to", str(out)]) == 0
    before, after = (safetensors.load_file(p / FILE) for p in (tmp_path / "published", out))
    assert before.keys() == after.keys()
    for name, x in before.items():
        if name != "pad_token":
            np.testing.assert_array_max_ulp(x, after[name], 1 if name.endswith("timestep_embedder.linear_1.weight") else 0)
    again = diffusers.LuminaNextDiT2DModel.from_pretrained(out).eval()
    near(theirs(again), expected, 1e-5)
    told, kept = (json.loads((p / "config.json").read_text()) for p in (tmp_path / "published", out))
    changed = {"_diffusers_version", "multiple_of", "ffn_dim_multiplier"}
    assert {k: v for k, v in told.items() if k not in changed} == {k: v for k, v in kept.items() if k not in changed}


@pytest.mark.parametrize("kind, told", [("none", {}), ("interpolation", {"linear_factor": 3.0}), ("ntk", {"ntk_factor": 3.0})])
def test_stretched_angles_are_theirs_in_another_order(kind, told):
    turned = embeddings.get_2d_rotary_pos_embed_lumina(HEAD, 12, 12, **told).reshape(144, HEAD // 4, 2).numpy()
    mine = np.asarray(stretch.grid(kind, 12, 4, HEAD)).reshape(144, 2, HEAD // 4).swapaxes(1, 2)
    np.testing.assert_allclose(np.exp(1j * mine), turned, atol=1e-5)
