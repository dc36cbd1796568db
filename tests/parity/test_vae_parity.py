"""AutoencoderKL of diffusers with random weights: imported, moments and pictures are the same; exported, it is the same model."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from lab import cli, coded, sampling
from lab.data.loader import open_source

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
safetensors = pytest.importorskip("safetensors.numpy")

# SD's in small; SD3's and Flux's, which have no convolution around the code, and no attention; one level and one block
SHAPES = {
    "sd": dict(block_out_channels=(8, 16, 32, 32), layers_per_block=2, latent_channels=4, norm_num_groups=4),
    "flux": dict(
        block_out_channels=(8, 24), layers_per_block=2, latent_channels=16, norm_num_groups=8,
        use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False, shift_factor=0.1159, scaling_factor=0.3611,
    ),
    "one": dict(block_out_channels=(16,), layers_per_block=1, latent_channels=3, norm_num_groups=2, in_channels=1, out_channels=1),
}  # fmt: skip


def published(shape):
    """A small AutoencoderKL with random weights, none zero."""
    sizes, n = {"sample_size": 16, **SHAPES[shape]}, len(SHAPES[shape]["block_out_channels"])
    model = diffusers.AutoencoderKL(**sizes, down_block_types=("DownEncoderBlock2D",) * n, up_block_types=("UpDecoderBlock2D",) * n).eval()
    generator = torch.Generator().manual_seed(n)
    for p in model.parameters():
        p.data.copy_(p.data + 0.1 * torch.randn(p.shape, generator=generator))
    return model


def near(a, b, most=1e-4):
    assert a.shape == b.shape
    assert np.linalg.norm(a - b) <= most * np.linalg.norm(b)


def ours(x):
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


def theirs(x):
    return np.moveaxis(np.asarray(x), -1, 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_moments_and_pictures_are_theirs_and_weights_go_out_again(shape, tmp_path):
    model = published(shape)
    there, folder, out = (tmp_path / n for n in ("published", "folder", "out"))
    model.save_pretrained(there)
    assert cli.main(["import", "weights", str(there), "--to", str(folder)]) == 0
    found = sampling.restored(folder).weights
    rng = np.random.default_rng(0)
    channels, side = model.config.in_channels, 16
    for size in (side, 2 * side):  # it is of no one size
        image = rng.normal(size=(2, channels, size, size)).astype(np.float32)
        with torch.no_grad():
            said = model.encode(torch.tensor(image)).latent_dist
            latents = said.mean.numpy()
            restored = model.decode(torch.tensor(latents)).sample.numpy()
        near(theirs(found.moments(ours(image))), said.parameters.numpy())
        near(theirs(found.encode(ours(image))["image"]), latents)
        near(theirs(found.decode({"image": ours(latents)})), restored)
    assert np.linalg.norm(theirs(found.decode({"image": ours(latents[:, ::-1].copy())})) - restored) > 0.01 * np.linalg.norm(restored)
    assert cli.main(["export", "weights", str(folder), "--to", str(out)]) == 0
    again = diffusers.AutoencoderKL.from_pretrained(out)
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for key in ("scaling_factor", "shift_factor", "latent_channels"):
        assert again.config[key] == pytest.approx(model.config[key])


def test_older_names_of_attention_are_read(tmp_path):
    model = published("sd")
    there, folder, old = tmp_path / "published", tmp_path / "folder", tmp_path / "old"
    model.save_pretrained(there)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = safetensors.load_file(there / "diffusion_pytorch_model.safetensors")
    renamed = {}
    for name, x in tensors.items():
        for new, before in names.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        renamed[name] = x
    assert renamed.keys() != tensors.keys()
    old.mkdir()
    safetensors.save_file(renamed, old / "diffusion_pytorch_model.safetensors")
    (old / "config.json").write_text((there / "config.json").read_text())
    for source, to in ((there, folder), (old, tmp_path / "again")):
        assert cli.main(["import", "weights", str(source), "--to", str(to)]) == 0
    one, two = (sampling.restored(f).weights.encoder.middle.attention.key.kernel.get_value() for f in (folder, tmp_path / "again"))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("key, value", [("act_fn", "gelu"), ("down_block_types", ["AttnDownEncoderBlock2D"]), ("latents_mean", [0.0] * 3)])
def test_what_has_no_counterpart_is_named(key, value, tmp_path, capsys):
    published("one").save_pretrained(tmp_path / "published")
    config = tmp_path / "published" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {key: value}))
    assert cli.main(["import", "weights", str(tmp_path / "published"), "--to", str(tmp_path / "to")]) == 2
    assert f"{key}=" in capsys.readouterr().err


def test_a_published_folder_encodes_a_source_and_its_latents_become_pictures_again(tmp_path, capsys):
    model = published("sd")
    model.save_pretrained(tmp_path / "vae")
    source = dict(name="shapes", size=16, grid=1, examples=8)
    given = [
        "shapes",
        "size=16",
        "grid=1",
        "examples=8",
        "--with",
        str(tmp_path / "vae"),
        "--to",
        "set",
        "--data-dir",
        str(tmp_path),
        "--eval-examples",
        "4",
    ]
    assert cli.main(["data", "encode", *given, "--batch", "4"]) == 0
    train, real = (open_source(s, "train", str(tmp_path)) for s in (dict(name="encoded", path="set"), source))
    latents, images = (np.stack([x[i]["image"] for i in range(8)]) for x in (train, real))
    with torch.no_grad():
        said = model.encode(torch.tensor(theirs(images / np.float32(127.5) - 1))).latent_dist.mean
        restored = model.decode(said).sample.clamp(-1, 1).numpy()
    near(theirs(latents), model.config.scaling_factor * said.numpy(), 0.01)  # kept as bfloat16
    tokenizer = coded.of(dict(name="encoded", path="set"), train.info, str(tmp_path))
    near(theirs(tokenizer.pictures({"image": latents})), restored, 0.02)
    given[given.index("set")] = "other"
    assert cli.main(["data", "encode", "shapes", "size=20", *given[2:]]) == 2
    assert "the tokenizer is of image=16, channels=3" in capsys.readouterr().err
