"""PixArt of diffusers, imported, gives the same outputs; exported again, it is the same tensors."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from lab import cli
from lab.sampling import restored

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
safetensors = pytest.importorskip("safetensors.numpy")
FILE = "diffusion_pytorch_model.safetensors"


def published(outputs, interpolation):
    """A small PixArt with random weights, none zero."""
    sizes = dict(num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32, num_layers=2, sample_size=8, patch_size=2)
    more = dict(
        interpolation_scale=interpolation, in_channels=4, out_channels=4 * outputs, caption_channels=24, use_additional_conditions=False
    )
    model = diffusers.PixArtTransformer2DModel(**sizes, **more).eval()
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.normal_(std=0.2, generator=generator)
    return model


def example():
    """Images, steps of 1000, and features of texts: a whole one, one that ends in padding, one that is hidden."""
    rng = np.random.default_rng(0)
    text = rng.normal(size=(3, 7, 24)).astype(np.float32)
    text[1, 4:], text[2] = 0, 0
    return rng.normal(size=(3, 4, 8, 8)).astype(np.float32), np.array([0, 251, 999]), text


def theirs(model):
    """Their output; padding is masked, and nothing of a text that is padding alone."""
    x, step, text = example()
    said = (text != 0).any(-1)
    mask = said | ~said.any(1, keepdims=True)
    with torch.no_grad():
        x, step, text, mask = (torch.tensor(a) for a in (x, step, text, mask.astype(np.int64)))
        return model(x, encoder_hidden_states=text, timestep=step, encoder_attention_mask=mask).sample.numpy()


def ours(folder):
    """Output of imported weights, channels first."""
    x, step, text = example()
    given = {"x": jnp.moveaxis(x, 1, -1), "t": jnp.asarray(step / 1000, jnp.float32), "text": jnp.asarray(text)}
    return np.moveaxis(np.asarray(restored(folder).weights(given)), -1, 1)


@pytest.mark.parametrize("outputs, interpolation, name", [(1, None, "PixArtTransformer2DModel"), (2, 2, "Transformer2DModel")])
def test_outputs_agree_and_tensors_come_back(outputs, interpolation, name, tmp_path):
    model, folder, out = published(outputs, interpolation), tmp_path / "folder", tmp_path / "out"
    model.save_pretrained(tmp_path / "published")
    file = tmp_path / "published" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": name}))
    expected = theirs(model)
    assert cli.main(["import", "weights", str(tmp_path / "published"), "--to", str(folder)]) == 0
    error = np.linalg.norm(ours(folder) - expected) / np.linalg.norm(expected)
    assert error < 1e-4, error
    assert cli.main(["export", "weights", str(folder), "--to", str(out)]) == 0
    before, after = (safetensors.load_file(p / FILE) for p in (tmp_path / "published", out))
    assert before.keys() == after.keys()
    for name, x in before.items():
        np.testing.assert_array_max_ulp(x, after[name], 1 if name.endswith("timestep_embedder.linear_1.weight") else 0)
    again = diffusers.PixArtTransformer2DModel.from_pretrained(out).eval()
    np.testing.assert_allclose(theirs(again), expected, atol=1e-5 * np.abs(expected).max())
    told, kept = (json.loads((p / "config.json").read_text()) for p in (tmp_path / "published", out))
    changed = {"_class_name", "_diffusers_version", "interpolation_scale", "num_embeds_ada_norm"}
    assert {k: v for k, v in told.items() if k not in changed} == {k: v for k, v in kept.items() if k not in changed}
