"""Weights of diffusers' models, imported, give the same outputs; exported again they are the same tensors."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lab import cli
from lab.sampling import restored

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
safetensors = pytest.importorskip("safetensors.numpy")


def published_dit(outputs):
    """A small DiT with random weights, none zero, and the embedders of all blocks equal."""
    sizes = dict(num_attention_heads=2, attention_head_dim=16, num_layers=2, sample_size=8, patch_size=2, num_embeds_ada_norm=10)
    model = diffusers.DiTTransformer2DModel(**sizes, in_channels=4, out_channels=4 * outputs).eval()
    generator = torch.Generator().manual_seed(outputs)
    for p in model.parameters():
        p.data.normal_(std=0.2, generator=generator)
    first, *rest = (b.norm1.emb for b in model.transformer_blocks)
    for other in rest:
        other.load_state_dict(first.state_dict())
    return model


def example():
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 4, 8, 8)).astype(np.float32), np.array([0, 251, 999]), np.array([0, 4, 10])


def theirs(model):
    x, step, label = example()
    with torch.no_grad():
        return model(torch.tensor(x), torch.tensor(step), torch.tensor(label)).sample.numpy()


def ours(folder):
    """Output of imported weights, channels first; label 10 of 0..9 is no label."""
    x, step, label = example()
    given = {"x": jnp.moveaxis(x, 1, -1), "t": step / np.float32(1000), "label": np.where(label == 10, -1, label)}
    return np.moveaxis(np.asarray(restored(folder).weights(given)), -1, 1)


def near(a, b, most):
    assert np.linalg.norm(a - b) <= most * np.linalg.norm(b)


@pytest.mark.parametrize("outputs", [1, 2])
def test_dit_of_diffusers_comes_in_and_goes_out(tmp_path, outputs):
    model = published_dit(outputs)
    published, folder, out = (tmp_path / n for n in ("published", "folder", "out"))
    model.save_pretrained(published)
    assert cli.main(["import", "weights", str(published), "--to", str(folder)]) == 0
    expected = theirs(model)
    near(ours(folder), expected, 1e-4)
    assert cli.main(["export", "weights", str(folder), "--to", str(out)]) == 0
    (before,), (after,) = (list(Path(p).glob("*.safetensors")) for p in (published, out))
    before, after = safetensors.load_file(before), safetensors.load_file(after)
    assert before.keys() == after.keys()
    for name, x in before.items():
        if name.endswith("timestep_embedder.linear_1.weight"):  # divided and multiplied by sqrt(2)
            np.testing.assert_array_max_ulp(x, after[name], 1)
        else:
            np.testing.assert_array_equal(x, after[name])
    again = diffusers.DiTTransformer2DModel.from_pretrained(out).eval()
    near(theirs(again), expected, 1e-6)
    told, kept = (json.loads((p / "config.json").read_text()) for p in (published, out))
    assert {k: v for k, v in told.items() if k != "_diffusers_version"} == kept


def test_dit_with_embedders_that_differ_is_refused(tmp_path, capsys):
    model = published_dit(1)
    model.transformer_blocks[1].norm1.emb.class_embedder.embedding_table.weight.data += 1
    model.save_pretrained(tmp_path / "published")
    assert cli.main(["import", "weights", str(tmp_path / "published"), "--to", str(tmp_path / "folder")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight differs from transformer_blocks.0" in line
