"""Captions of any source as tokens: UTF-8 bytes, or the most frequent words of the training captions.

text = START, caption, END, then PAD (0) up to `length`. PAD alone is no caption, as an objective shows where it hides one; an empty
caption still has START and END.
"""

import hashlib
import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from rich.progress import track

from lab.data._inner import content, inner
from lab.data.world import check
from lab.errors import UserError, unknown
from lab.log import console

SPECIALS = {"PAD": 0, "START": 1, "END": 2}
UNKNOWN = 3  # a word outside the vocabulary
SEEN = 1 << 14  # most captions that are read to count words and lengths
MARKS = re.escape(string.punctuation)
WORD = re.compile(rf"[^\s{MARKS}]+|[{MARKS}]")  # not \w+, which splits words of scripts that write vowels as marks


class Bytes:
    """UTF-8 bytes, each a token of its own; any text can be said and comes back as it was."""

    size = len(SPECIALS) + 256
    about: dict[str, Any] = {"tokens": "bytes", "specials": SPECIALS}  # noqa: RUF012

    def numbers(self, text: str) -> list[int]:
        """Tokens of a text, without START and END; half a surrogate pair, which is no character, becomes '?'."""
        return [len(SPECIALS) + b for b in text.encode("utf-8", "replace")]

    def outside(self, text: str) -> list[str]:
        """What of a text has no token of its own: nothing."""
        return []

    def cut(self, numbers: list[int], room: int) -> list[int]:
        """The first tokens that fit `room` and end with a whole character."""
        while len(numbers) > room and (numbers[room] - len(SPECIALS)) & 0xC0 == 0x80:
            room -= 1
        return numbers[:room]

    def text(self, numbers: Iterable[int]) -> str:
        """The text of tokens, a model's too: bytes that are no UTF-8 are shown as U+FFFD."""
        return bytes(n - len(SPECIALS) for n in numbers).decode("utf-8", "replace")


class Words:
    """A closed vocabulary of lower-cased words and punctuation marks."""

    def __init__(self, words: list[str]):
        self.words = words
        self.index = {w: UNKNOWN + 1 + i for i, w in enumerate(words)}
        self.size = UNKNOWN + 1 + len(words)
        self.about = {"tokens": "words", "specials": {**SPECIALS, "UNKNOWN": UNKNOWN}, "words": words}

    @classmethod
    def of(cls, captions: Iterable[str], most: int) -> "Words":
        """The `most` frequent words of captions, by falling count and then by name, so that no order of captions matters."""
        counts = Counter(w for c in captions for w in words_of(c))
        return cls(sorted(counts, key=lambda w: (-counts[w], w))[:most])

    def numbers(self, text: str) -> list[int]:
        """Tokens of a text, without START and END."""
        return [self.index.get(w, UNKNOWN) for w in words_of(text)]

    def outside(self, text: str) -> list[str]:
        """What of a text has no token of its own: words outside the vocabulary."""
        return [w for w in words_of(text) if w not in self.index]

    def cut(self, numbers: list[int], room: int) -> list[int]:
        """The first tokens that fit `room`."""
        return numbers[:room]

    def text(self, numbers: Iterable[int]) -> str:
        """The words of tokens, '?' for an unknown one."""
        return " ".join("?" if n == UNKNOWN else self.words[n - UNKNOWN - 1] for n in numbers)


TOKENS = ("bytes", "words")
# what a source may know of its pictures, whatever is said of them
PICTURES = ("chance", "correct", "parts", "picture", "traits", "trait_names", "valid")


def words_of(text: str) -> list[str]:
    """Lower-cased words and punctuation marks of a text."""
    return WORD.findall(unicodedata.normalize("NFC", text).lower())


def _captions(source: Any) -> list[str]:
    """All captions of a source, or of one example drawn from each of SEEN equal parts of it."""
    n = len(source)
    rows = range(n)
    if n > SEEN:  # drawn, not every so many: a mixture repeats its pattern
        edges = np.array([n * k // SEEN for k in range(SEEN + 1)])
        rows = np.random.default_rng(0).integers(edges[:-1], edges[1:]).tolist()
    read = getattr(source, "caption", lambda i: source[i]["caption"])
    return [read(i) for i in track(rows, "reading captions", console=console, disable=len(rows) < 5000)]


class Source:
    """Another source and text int32 [length]: the tokens of its captions; `vocabulary` is in info.

    tokens: 'bytes', or 'words': the `words` most frequent ones of the training captions, others being UNKNOWN; beyond 16,384 examples
      a sample of them is counted. Captions that do not fit are cut between characters or words; info tells their share.
    """

    def __init__(self, split: str, data_dir: str, source: dict, tokens: str = "bytes", length: int = 64, words: int = 4096):
        check("length", length, 3, 1 << 16)
        check("words", words, 1, 1 << 20)
        if tokens not in TOKENS:
            raise unknown("config key data.tokens", tokens, TOKENS)
        self.source, self.length = inner("source", source, split, data_dir), length
        if "caption" not in (have := self.source[0]):
            raise UserError(
                f"config key data.source: source {source['name']!r} gives no caption here, only {', '.join(have)}; expected one that does, "
                "such as icons, folder with a column text, or shapes with extras=('caption',)"
            )
        captions = _captions(self.source)
        if tokens == "bytes":
            self.tokens = Bytes()
        else:
            self.tokens = Words.of(captions if split == "train" else _captions(inner("source", source, "train", data_dir)), words)
        kept = {k: v for k, v in self.source.dims.items() if k != "features"}  # tokens take the place of features
        self.dims = {**kept, "words": self.tokens.size, "length": length}
        made = [self.tokens.numbers(c) for c in captions]
        told: dict[str, Any] = {
            "seen": len(made),
            "longest": max(map(len, made)) + 2,
            "cut": float(np.mean([len(m) > length - 2 for m in made])),
        }
        if tokens == "words":
            told["unknown"] = sum(m.count(UNKNOWN) for m in made) / max(1, sum(map(len, made)))
        text = json.dumps([content(source, self.source), length, self.tokens.about])
        self.info = {
            **self.source.info,
            **{"fingerprint": hashlib.sha256(text.encode()).hexdigest()[:32], "origin": f"text of {self.source.info['origin']}"},
            # a caption says more than a label, so the inner source's floor is none here
            **{"best_loss": None, "vocabulary": self.tokens.about, "captions": told},
        }

    def __len__(self) -> int:
        return len(self.source)

    def __getattr__(self, name: str) -> Any:
        if name in PICTURES:
            return getattr(self.source, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __getitem__(self, i: int) -> dict:
        item = self.source[i]
        return {**item, "text": self.fitted(item["caption"])}

    def unique(self, examples: int) -> int:
        """How many different examples are among the first `examples` of training."""
        return self.source.unique(examples) if hasattr(self.source, "unique") else min(examples, len(self))

    def encode(self, caption: str) -> np.ndarray:
        """Tokens of a prompt, int32 [length]; UserError for a word outside the vocabulary, or more than there is room for."""
        numbers, room = self.tokens.numbers(caption), self.length - 2
        if odd := self.tokens.outside(caption):
            raise unknown("word", odd[0], self.tokens.words)
        if len(numbers) > room:
            kind = self.tokens.about["tokens"]
            raise UserError(f"text {caption!r} has {len(numbers)} {kind}; expected at most {room} (config key data.length={self.length})")
        return self.fitted(caption)

    def fitted(self, caption: str) -> np.ndarray:
        """Tokens of a caption of the data, int32 [length]: cut where it is too long, and UNKNOWN for a word outside the vocabulary."""
        kept = self.tokens.cut(self.tokens.numbers(caption), self.length - 2)
        out = np.full(self.length, SPECIALS["PAD"], np.int32)
        out[: len(kept) + 2] = [SPECIALS["START"], *kept, SPECIALS["END"]]
        return out

    def decode(self, text: np.ndarray) -> str:
        """What tokens [length] say, START, END and PAD left out."""
        return self.tokens.text(n for n in np.asarray(text).tolist() if n >= len(SPECIALS))
