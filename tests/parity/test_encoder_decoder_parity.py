"""The encoder-decoder equals transformers' T5 1.1 with the same weights, read from its folder and written to one."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lab import cli
from lab.formats.t5 import Format
from lab.layers import relative
from lab.sampling import restored

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
SIZES = dict(vocab_size=11, d_model=32, d_kv=8, num_heads=4, d_ff=64, num_layers=2, num_decoder_layers=3)
MORE = {"num_image_tokens": 40, "num_text_tokens": 45}


def peer():
    """A small T5 1.1 with random weights, none zero, its logits' matrix apart from its table."""
    torch.manual_seed(0)
    config = transformers.T5Config(**SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0)
    model = transformers.T5ForConditionalGeneration(config).eval()
    model.lm_head.weight = torch.nn.Parameter(torch.empty(11, 32))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(std=1.0 if "shared" in name or "bias" in name else 0.25)
            p += 1.0 if "layer_norm" in name else 0.0
    assert not config.scale_decoder_outputs
    return model


def example():
    """Text, a whole one, one that ends in padding, one that is hidden; and image tokens."""
    rng = np.random.default_rng(0)
    text = rng.integers(1, 11, (3, 45))
    text[1, 30:], text[2] = 0, 0
    return text, rng.integers(0, 11, (3, 40))


def published(model, folder, image, start):
    tensors = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    folder.mkdir()
    save_file({**tensors, "image_embedding.weight": image, "image_start.weight": start}, folder / "model.safetensors", {"format": "pt"})
    told = {**SIZES, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "architectures": ["T5ForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps({**told, **MORE, "layer_norm_epsilon": 1e-6, "relative_attention_num_buckets": 32}))


def theirs(model, image, start):
    text, tokens = example()
    said = text != 0
    mask = said | ~said.any(1, keepdims=True)
    rows = np.concatenate([np.broadcast_to(start, (3, 1, 32)), image[tokens[:, :-1]]], 1)
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(text), attention_mask=torch.tensor(mask).long(), decoder_inputs_embeds=torch.tensor(rows)
        ).logits.numpy()


def test_ranges_of_distances_are_theirs():
    distance = torch.arange(-300, 301)
    for both in (True, False):
        want = t5.T5Attention._relative_position_bucket(distance, bidirectional=both, num_buckets=32, max_distance=128).numpy()
        mine = relative.buckets(both)[np.clip(np.arange(-300, 301), -128, 128) + 128]
        np.testing.assert_array_equal(mine, want)


def test_logits_agree_with_and_without_a_cache_and_tensors_come_back(tmp_path):
    model, rng = peer(), np.random.default_rng(1)
    image, start = (rng.normal(size=s).astype(np.float32) for s in ((11, 32), (1, 32)))
    published(model, tmp_path / "theirs", image, start)
    want = theirs(model, image, start)
    assert cli.main(["import", "weights", str(tmp_path / "theirs"), "--to", str(tmp_path / "ours")]) == 0
    params, (text, tokens) = restored(tmp_path / "ours").weights, example()
    mine = params({"tokens": jnp.asarray(tokens), "text": jnp.asarray(text)})
    error = np.linalg.norm(mine - want) / np.linalg.norm(want)
    assert error < 1e-4, error
    logits, cache = params({"text": jnp.asarray(text)}, params.init_cache(3))
    for i in range(4):
        np.testing.assert_allclose(logits[:, 0], want[:, i], atol=1e-4 * np.abs(want).max())
        logits, cache = params({"tokens": jnp.asarray(tokens[:, i : i + 1])}, cache)
    assert cli.main(["export", "weights", str(tmp_path / "ours"), "--to", str(tmp_path / "out")]) == 0
    before, after = (load_file(tmp_path / p / Format.file) for p in ("theirs", "out"))
    assert before.keys() == after.keys()
    for name, x in before.items():
        np.testing.assert_array_max_ulp(x, after[name], 1 if name.endswith(".q.weight") else 0)
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert transformers.T5Config(**told).scale_decoder_outputs is False
