"""The decoder equals transformers' LlamaForCausalLM with the same weights, read from its folder and written to one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lab import axes, parametrization, population, weights
from lab.experiment import DEFAULTS
from lab.formats.llama import Format
from lab.sampling import restored

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
SIZES = dict(vocab_size=11, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=9)


def llama(kv_heads):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=kv_heads, tie_word_embeddings=False, initializer_range=0.3)
    peer = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, p in peer.named_parameters():
            if "norm" in name:
                p += 0.3 * torch.randn(p.shape)
    return peer


def published(peer, folder, classes):
    """The folder of a published model, with a table of 4 classes and none."""
    peer.save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file({**load_file(file), "class_embedding.weight": classes}, file, {"format": "pt"})
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_classes": 4}))


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_logits_agree_with_and_without_a_cache(kv_heads, tmp_path):
    peer, rng = llama(kv_heads), np.random.default_rng(0)
    classes = rng.normal(size=(5, 32)).astype(np.float32)
    published(peer, tmp_path / "theirs", classes)
    weights.import_weights(tmp_path / "theirs", tmp_path / "ours")
    params = restored(tmp_path / "ours").weights
    tokens, label = rng.integers(0, 11, (3, 9)), np.array([2, 0, -1])
    with torch.no_grad():
        embedded = peer.model.embed_tokens(torch.tensor(tokens[:, :-1]))
        first = torch.tensor(classes[label])[:, None]  # the last row is of no label
        theirs = peer(inputs_embeds=torch.cat([first, embedded], 1)).logits.numpy()
    mine = params({"tokens": jnp.asarray(tokens), "label": jnp.asarray(label)})
    np.testing.assert_allclose(mine, theirs, atol=1e-4 * np.abs(theirs).max())
    logits, cache = params({"label": jnp.asarray(label)}, params.init_cache(3))
    for i in range(3):
        np.testing.assert_allclose(logits[:, 0], theirs[:, i], atol=1e-4 * np.abs(theirs).max())
        logits, cache = params({"tokens": jnp.asarray(tokens[:, i : i + 1])}, cache)


def test_transformers_reads_what_the_format_writes(tmp_path):
    dims = {"vocabulary": 11, "tokens": 9, "classes": 4}
    config = {**json.loads(json.dumps(DEFAULTS)), "base": {"width": 32}, "objective": {"name": "next_token", "label_drop": 0.1}}
    config["model"] = dict(name="decoder", width=32, depth=2, head_dim=8, mlp_ratio=2, kv_group=2, qk_norm=False, rope="line")
    program = population.build(config, dims)
    drawn = axes.draw(jax.random.key(0), program.model, axes.scales(program.model, parametrization.standard))
    drawn = axes.map_weights(lambda a, x: x if a.fixed else x + 0.1, drawn)
    arrays = {n: np.asarray(w.get_value()) for n, w in axes.weights(drawn).items()}
    full = {**config, "data": dims}
    made = weights.rules.invert(Format.rules(full), arrays, program.model, program.dims)
    classes = made["class_embedding.weight"]
    save_file(made, tmp_path / Format.file, {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(Format.theirs(full)))
    peer = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    tokens = np.random.default_rng(0).integers(0, 11, (2, 9))
    with torch.no_grad():
        x = torch.cat([torch.tensor(classes[[1, 3]])[:, None], peer.model.embed_tokens(torch.tensor(tokens[:, :-1]))], 1)
        theirs = peer(inputs_embeds=x).logits.numpy()
    mine = drawn({"tokens": jnp.asarray(tokens), "label": jnp.array([1, 3])})
    np.testing.assert_allclose(mine, theirs, atol=1e-4 * np.abs(theirs).max())
