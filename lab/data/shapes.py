"""World of drawn scenes: one to four shapes on a textured ground, with captions, masks, palette tokens and an exact oracle.

`parse` reads a picture back without error where it is clean, so what a model paints can be judged without a learned metric.
"""

import hashlib
import json
import zlib

import numpy as np

from lab.data import _shapes_text as words
from lab.data._shapes_oracle import attributes, find, grounds, nearest, parse
from lab.data._shapes_scene import COLOURS, PALETTE, SHAPES, SIZES, Object, Scene, canvas
from lab.data._shapes_skills import PARTS, SKILLS, Draws
from lab.data.world import check, check_extras
from lab.errors import UserError, unknown

__all__ = ["PALETTE", "Object", "Scene", "Source", "attributes", "find", "from_tokens", "grounds", "noise_curve", "parse", "to_tokens"]

VERSION = 1  # of the pictures: a change of them is another world
# train is too long to be decoded as a whole, whatever the size of an item; eval's permutation is quick to draw
LENGTH = {"train": 1 << 27, "eval": 1 << 20}
EXTRAS = ("caption", "text", "tokens", "mask")
SHARE = 8  # one picture in so many, by its checksum, belongs to eval


def to_tokens(images: np.ndarray) -> np.ndarray:
    """Palette index of every pixel, int32 [N, size, size]: a token a pixel, exact for pictures of this world.

    Pixels of other colours, such as a model's (uint8, or floats in [-1, 1]), take the nearest one.
    """
    return nearest(images)


def from_tokens(tokens: np.ndarray) -> np.ndarray:
    """The pictures of palette indices [..., size, size], uint8 [..., size, size, 3]; UserError for an index that is no colour."""
    tokens = np.asarray(tokens)
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < len(PALETTE):
        raise UserError(f"tokens from {tokens.min()} to {tokens.max()} are not all palette indices; expected 0 to {len(PALETTE) - 1}")
    return PALETTE[tokens]


def noise_curve(source: "Source", levels: list[float], n: int = 256, seed: int = 0) -> np.ndarray:
    """Share of a source's first `n` pictures that the oracle judges right under Gaussian noise, one value a level.

    A level is the noise's standard deviation where pixels lie in [-1, 1].
    """
    items = [source[i] for i in range(n)]
    images, labels = np.stack([x["image"] for x in items]), np.array([x["label"] for x in items])
    noise = np.random.default_rng(seed).standard_normal(images.shape, np.float32)
    clean = images.astype(np.float32) / 127.5 - 1
    return np.array([source.correct(clean + level * noise, labels).mean() for level in levels])


def _check(options: dict, split: str) -> None:
    """UserError unless every option can be had."""
    if split not in LENGTH:
        raise unknown("split", split, LENGTH)
    for key, known in (("skill", SKILLS), ("combinations", PARTS), ("density", words.DENSITIES)):
        if options[key] not in known:
            raise unknown(f"config key data.{key}", options[key], known)
    for key, high in (("seed", 2**32 - 1), ("examples", LENGTH["train"])):
        check(key, options[key], 0, high)
    check_extras(options["extras"], EXTRAS)


class Source:
    """Pictures of a skill: image uint8 [size, size, 3], label = class of the skill, and the `extras` that are asked for.

    skill: 'object' (class = colour and shape of the one object), 'count' (number and shape), 'relation' (shape, relation, shape) or
      'scene' (number of objects).
    combinations: 'all' in both splits; 'seen' leaves those set aside out of both; 'unseen' leaves them out of train and shows only
      them in eval. No picture of eval is ever in train, whatever their seeds.
    extras: 'caption' (a string, of the density), 'text' (its words as int32 [length]), 'tokens' (palette indices, int32
      [size, size]), 'mask' (uint8 [size, size], k for the k-th object). `examples` bounds the training split (0: endless).
    """

    def __init__(
        self,
        split: str,
        data_dir: str,
        size: int = 16,
        grid: int = 2,
        skill: str = "object",
        combinations: str = "all",
        extras: tuple[str, ...] = (),
        density: str = "dense",
        seed: int = 0,
        examples: int = 0,
    ):
        self.canvas = canvas(size, grid)
        if grid == 1 and skill != "object":
            raise UserError(f"config key data.grid=1 has room for one object; data.skill={skill!r} needs 2 or 3")
        shown = {"skill": skill, "combinations": combinations, "seed": seed, "examples": examples}
        _check({**shown, "density": density, "extras": extras}, split)
        self.skill, self.seed, self.split, self.density, self.extras = SKILLS[skill](self.canvas), seed, split, density, tuple(extras)
        self._parts = {"train": "seen" if combinations == "unseen" else combinations, "eval": combinations}
        self._labels = {s: self.skill.labels(part) for s, part in self._parts.items()}
        self._length = examples if examples and split == "train" else LENGTH[split]
        self._words = words.length(density, self.skill.most, self.skill.prompts)
        names = self.skill.names
        self.dims = {"image": size, "channels": 3, "classes": len(names)}
        if "tokens" in extras:
            self.dims |= {"side": size, "tokens": size * size, "vocabulary": len(PALETTE)}
        if "text" in extras:
            self.dims |= {"words": len(words.VOCABULARY), "length": self._words}
        options = {"size": size, "grid": grid, **shown}
        first = [zlib.crc32(self._draw(s, i)[2].tobytes()) for s in LENGTH for i in range(16)]
        self.info = {
            **{"image": [size, size, 3], "classes": len(names), "class_names": names, "examples": len(self)},
            **{"chance": self.chance, "origin": f"{__name__} {json.dumps(options)}", "best_loss": None},
            "palette": PALETTE.tolist(),
            "fingerprint": hashlib.sha256(json.dumps([VERSION, options, first]).encode()).hexdigest()[:32],
        }

    @property
    def chance(self) -> float:
        """Share that `correct` finds right when this source's pictures are judged by labels drawn apart from them."""
        return self.skill.ways / len(self._labels[self.split])

    def _draw(self, split: str, i: int) -> tuple[int, Scene, np.ndarray]:
        """Label, scene and palette indices of an example: the first draw whose checksum is of its split."""
        draws = Draws(self.seed, list(LENGTH).index(split), counter=i)
        while True:
            label = draws.pick(self._labels[split])
            scene = self._scene(self.skill.draw(label, draws, self._parts[split]), draws)
            indices = self.canvas.indices(scene)
            if (zlib.crc32(indices.tobytes()) % SHARE == 0) == (split == "eval"):
                return label, scene, indices
            draws.again()

    def _scene(self, wants: list, draws: Draws) -> Scene:
        on, objects = self.canvas, []
        for w in wants:
            size = draws(len(SIZES))
            room = on.slack(size) + 1
            objects.append(on.place(w.cell, w.shape, w.colour, size, draws(room), draws(room)))
        tones, patterns, *phases = on.textures.shape[:4]
        return Scene(tuple(objects), draws(tones), draws(patterns), (draws(phases[0]), draws(phases[1])))

    def _at(self, i: int) -> tuple[int, Scene, np.ndarray]:
        if not 0 <= i < self._length:
            raise IndexError(f"example {i} of {self._length}")
        return self._draw(self.split, int(i))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> dict:
        label, scene, indices = self._at(i)
        made = {
            "caption": lambda: self._caption(label, scene, self.density),
            "text": lambda: self.encode(self._caption(label, scene, self.density)),
            "tokens": lambda: indices.astype(np.int32),
            "mask": lambda: self.canvas.mask(scene),
        }
        return {"image": PALETTE[indices], "label": np.int32(label), **{k: made[k]() for k in self.extras}}

    def encode(self, caption: str) -> np.ndarray:
        """Numbers of a caption's words, int32 [length]; UserError for a word that is not of the grammar, or too many."""
        return words.encode(caption, self._words)

    def decode(self, text: np.ndarray) -> str:
        """What words [length] say, in whatever order they are."""
        return words.decode(text)

    def _caption(self, label: int, scene: Scene, density: str) -> str:
        return self.skill.prompts[label] if density == "short" else words.caption(scene, self.canvas, density)

    def scene(self, i: int) -> Scene:
        """What example `i` shows."""
        return self._at(i)[1]

    def describe(self, i: int, density: str = "dense") -> str:
        """A caption of example `i`: 'short' is what its class asks for, 'medium' and 'dense' say what it shows."""
        if density not in words.DENSITIES:
            raise unknown("density", density, words.DENSITIES)
        label, scene, _ = self._at(i)
        return self._caption(label, scene, density)

    def mask(self, i: int) -> np.ndarray:
        """Which object each pixel of example `i` shows, uint8 [size, size], 0 for the ground."""
        return self.canvas.mask(self._at(i)[1])

    def correct(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Whether pictures [N, size, size, 3], uint8 or floats in [-1, 1], show what their labels [N] ask for, bool [N]."""
        return self.skill.correct(find(images, self.canvas.grid), np.asarray(labels))

    def parts(self, images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """What `correct` is made of, where a class has several attributes: whether each is right, bool [N]."""
        return self.skill.parts(find(images, self.canvas.grid), np.asarray(labels))

    def said(self, text: np.ndarray) -> np.ndarray:
        """The class that each of the texts [N, length] says, int [N]; -1 of what is no caption of the grammar, or tells no class."""
        return np.array([self._class(t) for t in text])

    def _class(self, text: np.ndarray) -> int:
        n = np.count_nonzero(text)
        caption = words.decode(text)
        if text[n:].any() or not caption:
            return -1
        if caption in self.skill.prompts:
            return self.skill.prompts.index(caption)
        try:
            return self.skill.said(words.read(caption, self.canvas.grid)["objects"])
        except UserError:
            return -1

    @property
    def trait_names(self) -> dict[str, tuple[str, ...]]:
        """The values of each of `traits`; cells are numbered in reading order."""
        cells = tuple(str(k) for k in range(self.canvas.cells))
        return {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "cell": cells}

    def traits(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Shape, colour, size and cell of the surest object of each picture, int [N], -1 where none is found; images as of `correct`."""
        f = find(images, self.canvas.grid)
        at = np.arange(len(images)), f.score.argmin(1)
        values = {"shape": f.shape[at], "colour": f.colour[at], "size": f.size[at], "cell": at[1]}
        return {k: np.where(f.present[at], v, -1) for k, v in values.items()}
