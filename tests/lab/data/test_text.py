"""Captions as tokens: bytes come back as they were, words are counted the same in any order, and both reach a batch."""

import json
import pickle
import random
from collections import Counter

import mistakes
import numpy as np
import pytest
from PIL import Image

from lab.data import text
from lab.data.loader import Loader, decode, open_source
from lab.errors import UserError

SHAPES = {"name": "shapes", "extras": ("caption",), "examples": 200}


@pytest.fixture
def photos(tmp_path):
    """60 pictures whose captions are 'word w', w of 0 to 9, and one long one of two-byte characters."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = []
    for i in range(60):
        Image.new("RGB", (6, 6), (i, i, i)).save(folder / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": "é" * 100 if i == 0 else f"Word w{i % 10}"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def opened(data_dir, split="train", **options):
    """A text source over the folder of pictures."""
    inner = {"name": "folder", "path": "photos", "size": 4, "eval_share": 0.3}
    return open_source({"name": "text", "source": inner, **options}, split, str(data_dir))


def any_text(rng, n):
    """A string of n characters of every length in UTF-8, no surrogates."""
    planes = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    return "".join(chr(rng.randrange(*rng.choice(planes))) for _ in range(n))


def test_bytes_come_back_as_they_were(photos):
    source, rng = opened(photos, length=512), random.Random(0)
    for said in ["", " ", "\0\x01\x02", "naïve 日本語 🙂‍↔️ e\u0301", *(any_text(rng, rng.randrange(100)) for _ in range(200))]:
        row = source.encode(said)
        assert row.dtype == np.int32
        assert row.shape == (512,)
        assert source.decode(row) == said
        n = len(said.encode())
        assert row[0] == text.SPECIALS["START"]
        assert row[n + 1] == text.SPECIALS["END"]
        assert (row[1 : n + 1] > 2).all()
        assert (row[n + 2 :] == 0).all()
        assert row.max() < source.dims["words"] == 259


@pytest.mark.parametrize("length", range(3, 20))
def test_a_cut_keeps_the_longest_part_that_ends_with_a_whole_character(photos, length):
    source, rng = opened(photos, length=length), random.Random(length)
    for _ in range(200):
        said = any_text(rng, rng.randrange(12))
        fits = max((said[:k] for k in range(len(said) + 1) if len(said[:k].encode()) <= length - 2), key=len)
        row = source.fitted(said)
        assert source.decode(row) == fits
        assert (row == text.SPECIALS["END"]).sum() == 1


def test_half_a_surrogate_pair_and_a_models_own_bytes_are_no_reason_to_stop(photos):
    source = opened(photos)
    assert source.decode(source.encode("a\ud83d!")) == "a?!"
    assert source.decode([1, 3 + 0xC3, 3 + ord("x"), 2]) == "\ufffdx"


def test_vocabulary_is_the_most_frequent_words_whatever_the_order():
    rng = random.Random(1)
    captions = [" ".join(rng.choices("abcdefgh", range(1, 9), k=9)) + ", Z z." for _ in range(300)]
    want = Counter(w for c in captions for w in c.lower().replace(",", " ,").replace(".", " .").split())
    kept = text.Words.of(captions, 6).words
    assert len(kept) == 6
    assert min(want[w] for w in kept) >= max(want[w] for w in want.keys() - set(kept))
    assert [want[w] for w in kept] == sorted((want[w] for w in kept), reverse=True)
    for _ in range(5):
        rng.shuffle(captions)
        assert text.Words.of(captions, 6).words == kept
    assert text.Words.of(["b a", "c"], 9).words == ["a", "b", "c"]  # equally frequent: by name


def test_words_are_lower_case_composed_and_apart_from_punctuation():
    assert text.words_of("A red-ish Fox, isn't_it?") == ["a", "red", "-", "ish", "fox", ",", "isn", "'", "t", "_", "it", "?"]
    assert text.words_of("Cafe\u0301 हिन्दी") == ["café", "हिन्दी"]
    tokens = text.Words(["a", "fox"])
    assert tokens.numbers("A fox ran a") == [4, 5, 3, 4]
    assert tokens.text([4, 3, 5]) == "a ? fox"
    assert tokens.size == 6


def test_words_are_those_of_training_in_both_splits(photos):
    train, held = (opened(photos, s, tokens="words", words=5, length=6) for s in ("train", "eval"))
    assert train.info["vocabulary"] == held.info["vocabulary"]
    assert train.info["vocabulary"]["words"] == text.Words.of([train[i]["caption"] for i in range(len(train))], 5).words
    assert train.dims["words"] == 9
    assert train.dims["length"] == 6
    item = next(train[i] for i in range(len(train)) if train[i]["caption"].startswith("Word"))
    assert item["text"][:2].tolist() == [1, 4]  # 'word' is the most frequent
    assert 0 < train.info["captions"]["unknown"] < 1
    json.dumps(train.info)


def test_a_prompt_says_all_of_its_words_or_is_refused_in_one_line(photos):
    """Where a caption of the data is cut or has an UNKNOWN word, a prompt is a mistake."""
    source = opened(photos, tokens="words", words=5, length=6)
    known = source.info["vocabulary"]["words"]
    assert known[0] == "word"
    row = source.encode(f"WORD {known[1]}")
    assert row.tolist() == [1, 4, 5, 2, 0, 0]
    for said, why in (("wrod", "word 'wrod' is unknown (nearest: 'word')"), ("word " * 5, "has 5 words; expected at most 4")):
        with pytest.raises(UserError) as e:
            source.encode(said)
        assert why in str(e.value)
        assert "\n" not in str(e.value)
        assert source.fitted(said).shape == (6,)
    assert text.UNKNOWN in source.fitted("wrod")
    with pytest.raises(UserError, match="has 7 bytes; expected at most 6"):
        opened(photos, length=8).encode("Word w0")


def test_what_is_cut_is_counted(photos):
    sources = [opened(photos, s, length=32) for s in ("train", "eval")]
    for source in sources:
        cut = [len(source[i]["caption"].encode()) > 30 for i in range(len(source))]
        assert source.info["captions"]["cut"] == np.mean(cut)
        assert source.info["captions"]["seen"] == len(source)
        assert source.info["captions"]["longest"] == 2 + max(len(source[i]["caption"].encode()) for i in range(len(source)))
    assert sum(s.info["captions"]["cut"] for s in sources) > 0
    assert opened(photos, length=8).info["captions"]["cut"] == 1  # 'Word w0' has 7 bytes
    assert opened(photos, length=9).info["captions"]["cut"] < 0.1


@pytest.mark.parametrize("memory", [2 << 30, 1000])
def test_text_joins_the_batch(photos, monkeypatch, memory):
    source = pickle.loads(pickle.dumps(opened(photos, length=40)))
    monkeypatch.setattr("lab.data.loader.decode", lambda s: decode(s, memory))
    loader = Loader(source, batch=8, seeds=[0, 1])
    batch = next(loader)
    loader.close()
    assert batch.keys() == {"image", "label", "text"}
    assert batch["text"].shape == (2, 8, 40)
    assert batch["text"].dtype == np.int32
    caption = {source[i]["image"][0, 0, 0]: source[i]["caption"] for i in range(len(source))}
    for image, row in zip(batch["image"].reshape(16, 4, 4, 3), batch["text"].reshape(16, 40), strict=True):
        assert caption[image[0, 0, 0]].startswith(source.decode(row))


def test_composes_with_a_world_and_samples_an_endless_one(monkeypatch, tmp_path):
    source = open_source({"name": "text", "source": SHAPES, "tokens": "words", "length": 48}, "train", str(tmp_path))
    for i in range(20):
        assert source.decode(source[i]["text"]) == source[i]["caption"].replace(",", " ,")
    assert source.info["captions"] == {"seen": 200, "longest": source.info["captions"]["longest"], "cut": 0.0, "unknown": 0.0}
    held = [open_source(s, "eval", "") for s in ({"name": "text", "source": SHAPES}, SHAPES)]
    images, labels = (np.stack([held[0][i][k] for i in range(8)]) for k in ("image", "label"))
    for asked in (labels, np.roll(labels, 1)):  # what is known of its pictures is known
        np.testing.assert_array_equal(*(s.correct(images, asked) for s in held))
    assert not hasattr(held[0], "said")  # its words are others
    monkeypatch.setattr(text, "SEEN", 64)
    asked = []

    class Endless:
        def __len__(self):
            return 2**62

        def caption(self, i):
            asked.append(i)
            return str(i)

    text._captions(Endless())
    first = list(asked)
    assert [i * 64 // 2**62 for i in first] == list(range(64))  # one from each part
    assert len({i % 2 for i in first}) == 2
    text._captions(Endless())
    assert asked[64:] == first


def test_fingerprint_tells_captions_tokens_and_length_apart(photos):
    prints = [opened(photos, **o).info["fingerprint"] for o in ({}, {"length": 63}, {"tokens": "words"}, {"tokens": "words", "words": 3})]
    assert len(set(prints)) == 4
    assert opened(photos).info["fingerprint"] == prints[0]
    table = photos / "photos" / "metadata.jsonl"
    table.write_text(table.read_text().replace("w9", "w8"))
    assert opened(photos).info["fingerprint"] != prints[0]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"tokens": "byte"}, "data.tokens 'byte' is unknown (nearest: 'bytes')"),
        ({"length": 2}, "data.length=2 must be a whole number from 3"),
        ({"words": 0}, "data.words=0"),
        ({"source": "icons"}, "data.source='icons' must be the section of a source"),
        ({"source": {"size": 4}}, "data.source={'size': 4} must be"),
        ({"source": {"name": "folderr"}}, "data.source: source name 'folderr' is unknown (nearest: 'folder')"),
        ({"source": {**SHAPES, "extras": ()}}, "source 'shapes' gives no caption here, only image, label"),
    ],
)
def test_mistakes_are_one_line(photos, options, said):
    assert said in mistakes.said(opened, photos, **options)
