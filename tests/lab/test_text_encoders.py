"""Frozen text encoders: which words read which, what is kept of a caption, and what a folder may lack."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lab import cli, encoders
from lab.data import encoded
from lab.errors import UserError
from lab.layers import relative

WORDS = ["a", "red", "star", "two", "blue", "rings"]
T5 = dict(model_type="t5", vocab_size=12, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, relative_attention_num_buckets=8)
LM = dict(model_type="llama", vocab_size=12, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2)
LM |= dict(num_key_value_heads=1, max_position_embeddings=16)


def folder(path, config):
    """Random weights of a config, and a tokenizer of whole words that begins a caption with 10 and ends it with 11."""
    tokenizers = pytest.importorskip("tokenizers")
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    rng, names = np.random.default_rng(0), {}

    class Asked:  # the tensors that a family asks for
        def __call__(self, name, *shape, prefixed=True):
            for i in range(2) if "{i}" in name else [0]:
                names[name.format(i=i)] = rng.normal(size=shape, scale=0.5).astype(np.float32)
            return names[name.format(i=0)]

        def has(self, name):
            return False

    kind = next(
        e
        for e in (encoders.find.module("lab.encoders", n).Encoder for n in encoders.find.names("lab.encoders"))
        if config["model_type"] in e.kinds
    )
    empty = object.__new__(kind)
    empty.sizes = kind.read(config)
    empty.weights(Asked())
    save_file(names, path / "model.safetensors")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({**{w: i for i, w in enumerate(["?", *WORDS])}, "<": 10, ">": 11}, "?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("< $A >", special_tokens=[("<", 10), (">", 11)])
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def features(where, captions, **options):
    return np.asarray(encoders.load(where, **{"length": 6, **options})(captions)["text"])


def test_a_bidirectional_encoder_reads_what_comes_and_a_causal_one_does_not(tmp_path):
    first = {}
    for name, config in (("t5", T5), ("llama", LM)):
        a, b = features(folder(tmp_path / name, config), ["red star", "red rings"])
        first[name] = np.abs(a[1] - b[1]).max()
        assert np.abs(a[2] - b[2]).max() > 0.1
    assert first["t5"] > 1e-3
    assert first["llama"] == 0


@pytest.mark.parametrize("config", [T5, LM])
def test_padding_changes_no_feature(config, tmp_path):
    where = folder(tmp_path / "x", config)
    short, long = features(where, ["red star"], length=4), features(where, ["red star"], length=9)
    np.testing.assert_allclose(short[0], long[0, :4], atol=1e-6)
    assert np.all(long[0, 4:] == 0)
    assert np.all(np.abs(long[0, :4]).max(-1) > 0)


def test_a_long_caption_keeps_its_mark_of_the_end(tmp_path):
    words = encoders.load(folder(tmp_path / "x", LM), length=4).words
    ids, seen, where, said = words([" ".join(WORDS), "red"])
    assert ids.tolist() == [[10, 1, 2, 11], [10, 2, 11, 0]]
    assert seen.sum(1).tolist() == [4, 3]
    assert where.tolist() == [[0, 1, 2, 3]] * 2
    assert said.tolist() == seen.tolist()


def test_an_instruction_is_read_and_left_out(tmp_path):
    where = folder(tmp_path / "x", LM)
    plain, told = features(where, ["red star"]), features(where, ["red star"], before="two blue ")
    whole = features(where, ["two blue red star"], length=9)
    np.testing.assert_allclose(told[0, :3], whole[0, 3:6], atol=1e-6)  # red, star and the mark of the end
    assert np.all(told[0, 3:] == 0)
    assert np.abs(told[0, 0] - plain[0, 1]).max() > 0.01


def test_layers_count_from_the_table_on(tmp_path):
    where = folder(tmp_path / "x", LM)
    encoder = encoders.load(where, length=6, layer=0)
    table = np.asarray(encoder._weights["table"])
    np.testing.assert_array_equal(np.asarray(encoder(["red star"])["text"])[0, :4], table[[10, 2, 3, 11]])
    assert len(encoders.load(where, length=6, layer=-2)._weights["blocks"]["out"]) == 1


def test_buckets_grow_with_the_way_and_tell_before_from_behind():
    found = relative.buckets(True, 32, 128)
    behind, before = found[128:], found[128::-1]
    assert behind[:9].tolist() == [0, 17, 18, 19, 20, 21, 22, 23, 24]
    assert before[:9].tolist() == list(range(9))
    assert (behind[127], behind[128], before[128]) == (31, 31, 15)
    assert np.all(np.diff(behind[1:]) >= 0)


def test_features_are_stored_once_and_read_as_text(tmp_path):
    where = folder(tmp_path / "x", T5)
    file = tmp_path / "features.py"
    file.write_text(
        f"from lab import encoders\nENCODER = encoders.load({str(where)!r}, length=7)\nNAME = 't5'\n"
        "def encode(batch):\n    return {'image': batch['image'] / 127.5 - 1.0, **ENCODER(batch['caption'])}\n"
    )
    asked = ["data", "encode", "shapes", "size=8", "examples=12", "extras=('caption',)"]
    assert cli.main([*asked, "--with", f"{file}:encode", "--to", str(tmp_path / "set"), "--eval-examples", "4"]) == 0
    source = encoded.Source("train", str(tmp_path), path=str(tmp_path / "set"))
    assert source.dims["features"] == 8
    assert source.dims["length"] == 7
    said = np.any(np.asarray(source[0]["text"], np.float32) != 0, axis=-1)
    assert said[0]
    assert np.all(np.diff(said.astype(int)) <= 0)


def test_mistakes_are_told(tmp_path):
    where = folder(tmp_path / "x", LM)
    for options, said in (
        (dict(dtype="float64"), "dtype 'float64' is unknown"),
        (dict(length=0), "length=0 must be"),
        (dict(layer=3), r"layer=3 must lie in -3\.\.2"),
        (dict(length=17), "length=17 with 0 words before it is over the 16"),
        (dict(tokenizer=tmp_path), "has no tokenizer.json"),
    ):
        with pytest.raises(UserError, match=said):
            encoders.load(where, **options)
    (where / "config.json").write_text(json.dumps({**LM, "model_type": "lama"}))
    with pytest.raises(UserError, match="nearest: 'llama'"):
        encoders.load(where)
