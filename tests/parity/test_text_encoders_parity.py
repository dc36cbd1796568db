"""Frozen text encoders give the hidden states that transformers gives, from the files that transformers writes."""

import json

import jax
import numpy as np
import pytest

from lab import encoders
from lab.encoders._frozen import Words
from lab.errors import UserError

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
CAPTIONS = ["a red star", "two blue rings on green", "", "one one one one one one one one one"]
LENGTH = 8
LM = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
LLAMA3 = dict(
    rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
)
T5 = dict(vocab_size=40, d_model=24, d_kv=8, d_ff=40, num_layers=3, num_heads=4, relative_attention_num_buckets=8)
CLIP = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=10)


def families():
    """(name, model of transformers with its config)."""
    t = transformers
    yield "t5", t.T5EncoderModel(t.T5Config(**T5, feed_forward_proj="relu", relative_attention_max_distance=6))
    yield "flan-t5", t.T5ForConditionalGeneration(t.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False))
    yield "mt5", t.MT5EncoderModel(t.MT5Config(**T5))
    yield "clip", t.CLIPTextModel(t.CLIPTextConfig(**CLIP, bos_token_id=38, eos_token_id=39))
    old = t.CLIPTextConfig(**CLIP, hidden_act="gelu", projection_dim=16, eos_token_id=2)
    yield "clip-projected", t.CLIPTextModelWithProjection(old)
    both = t.CLIPConfig(
        text_config={**CLIP, "eos_token_id": 39}, vision_config=dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    )
    yield "clip-both", t.CLIPModel(both)
    yield "llama", t.LlamaForCausalLM(t.LlamaConfig(**LM))
    yield "llama-3.1", t.LlamaModel(t.LlamaConfig(**LM, rope_parameters=LLAMA3))
    yield "mistral", t.MistralForCausalLM(t.MistralConfig(**LM, head_dim=16, sliding_window=None))
    yield "qwen2", t.Qwen2ForCausalLM(t.Qwen2Config(**LM))
    yield "qwen3", t.Qwen3ForCausalLM(t.Qwen3Config(**LM, head_dim=16))
    yield "gemma", t.GemmaForCausalLM(t.GemmaConfig(**LM, head_dim=8))


def published(model, folder):
    """Random weights, none zero, as transformers writes them, beside a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.normal_(std=0.3, generator=generator)
    model.eval().save_pretrained(folder)
    words = {w: i for i, w in enumerate(["<unk>", *["a", "red", "star", "two", "blue", "rings", "on", "green", "one"]], 3)}
    tokenizer = Tokenizer(models.WordLevel({**words, "<s>": 38, "</s>": 39}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 38), ("</s>", 39)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def theirs(model, tokenizer):
    """Their hidden states, last ones first, which of them are words, and what they pool."""
    tokenizer.enable_padding(length=LENGTH)
    tokenizer.enable_truncation(LENGTH)
    found = tokenizer.encode_batch(CAPTIONS)
    ids, mask = (torch.tensor([getattr(f, k) for f in found]) for k in ("ids", "attention_mask"))
    call = {"T5ForConditionalGeneration": lambda m: m.get_encoder(), "CLIPModel": lambda m: m.text_model}.get(
        type(model).__name__, lambda m: m
    )
    with torch.no_grad():
        out = call(model)(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        pooled = out.text_embeds if "text_embeds" in out else out.get("pooler_output")
        pooled = model.text_projection(pooled) if type(model).__name__ == "CLIPModel" else pooled
    states = list(out.hidden_states)
    if (last := out.get("last_hidden_state")) is not None and type(model).__name__.startswith("CLIP"):
        states[-1] = last
    return [s.numpy() for s in states], mask.numpy().astype(bool), None if pooled is None else pooled.numpy()


@pytest.mark.parametrize("name", [name for name, _ in families()])
def test_hidden_states_are_those_of_transformers(name, tmp_path):
    model = dict(families())[name]
    states, said, pooled = theirs(model, published(model, tmp_path))
    assert said.sum(1).tolist() == [5, 7, 2, 8]
    for layer in range(-len(states), 0):
        with jax.default_matmul_precision("highest"):
            mine = encoders.load(tmp_path, length=LENGTH, layer=layer)(CAPTIONS)
        text = np.asarray(mine["text"])
        assert np.all(text[~said] == 0)
        np.testing.assert_allclose(text[said], states[layer][said], atol=2e-5 * np.abs(states[layer]).max())
        if layer == -1 and pooled is not None:
            np.testing.assert_allclose(mine["pooled"], pooled, atol=2e-5 * np.abs(pooled).max())


def test_sizes_that_the_weights_have_not_are_told(tmp_path):
    model = dict(families())["qwen2"]
    published(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 50}))
    with pytest.raises(UserError, match=r"model\.layers\.0\.mlp\.gate_proj\.weight' has shape \[48, 32\], expected \[50, 32\]"):
        encoders.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "qwen"}))
    with pytest.raises(UserError, match="qwen2"):
        encoders.load(tmp_path)


def test_clips_words_are_those_of_transformers(tmp_path):
    """Of vocab.json and merges.txt alone, as folders of SD, SDXL and Flux have them."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d</w>"), ("s", "t"), ("st", "a"), ("sta", "r</w>"), ("'", "s</w>"), ("Ã", "©</w>")]
    vocab = [*letters, *[c + "</w>" for c in letters], *["".join(m) for m in merges], "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(vocab)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)))
    captions = ["A red  Star", "it's 42 reds", "café, né\n", "", "<|endoftext|>!", "x" * 90]
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)(captions, padding="max_length", max_length=12, truncation=True)
    ids, seen, *_ = Words(tmp_path, 12, "")(captions)
    assert seen.tolist() == np.array(theirs["attention_mask"], bool).tolist()
    assert ids[seen].tolist() == np.array(theirs["input_ids"])[seen].tolist()
