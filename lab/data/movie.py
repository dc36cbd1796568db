"""World of movies: shapes that move by known dynamics, so that the next frame's distribution is known and an oracle can judge.

Every object has a zone to itself, moves by whole pixels, turns back at walls and, with probability `turn`, elsewhere. The label is
the motion with which all objects set off. Given two frames the next one's distribution is exact, and so are mean and entropy.
"""

import hashlib
import json
import zlib
from bisect import bisect

import jax
import numpy as np
from scipy.special import entr

from lab.data import _movie_device as device
from lab.data import _movie_oracle as oracle
from lab.data._movie_motion import stage
from lab.data._shapes_oracle import nearest
from lab.data._shapes_scene import COLOURS, PALETTE, PATTERNS, SHAPES, SIZES, TONES, Object, Scene
from lab.data._shapes_skills import Draws
from lab.data.shapes import LENGTH, SHARE, from_tokens, noise_curve
from lab.data.world import check, check_extras
from lab.errors import UserError, unknown

__all__ = ["Object", "Scene", "Source", "from_tokens", "noise_curve", "to_tokens"]

VERSION = 1  # of the movies: a change of them is another world
EXTRAS = ("caption", "tokens", "mask", "states")


def to_tokens(movies: np.ndarray) -> np.ndarray:
    """Palette index of every pixel of movies [..., size, size, 3], int32 [..., size, size]; of other colours the nearest one."""
    movies = np.asarray(movies)
    return nearest(movies.reshape(-1, *movies.shape[-3:])).reshape(movies.shape[:-1])


def _check(split: str, frames: int, seed: int, examples: int, extras: tuple[str, ...]) -> None:
    """UserError unless these options can be had."""
    if split not in LENGTH:
        raise unknown("split", split, LENGTH)
    for key, value, low, high in (("frames", frames, 2, 32), ("seed", seed, 0, 2**32 - 1), ("examples", examples, 0, LENGTH["train"])):
        check(key, value, low, high)
    check_extras(extras, EXTRAS)


class Source:
    """Movies: image uint8 [frames, size, size, 3], label = the motion that all objects start with, and the `extras` asked for.

    objects: 1, 2 (in the upper and lower half) or 4 (in the quarters). directions: 4, or 8 with the diagonals. speeds: 1, or 2 of
      one and two pixels a frame (times size // 16). turn: probability that an object turns, at every step but the first.
    extras: 'caption' (a string), 'tokens' (palette indices, int32 [frames, size, size]), 'mask' (uint8 [frames, size, size], k for
      the k-th object), 'states' (int32 [frames, objects, 5], as Object). `examples` bounds the training split (0: endless).
    `info['best_loss']` is the least mean loss of predicting the next frame given the earlier ones and the label, in nats a frame.
    No first frame of eval is ever one of train, whatever their seeds, so no movie is either.
    """

    def __init__(
        self,
        split: str,
        data_dir: str,
        size: int = 16,
        frames: int = 8,
        objects: int = 1,
        directions: int = 4,
        speeds: int = 2,
        turn: float = 0.0,
        extras: tuple[str, ...] = (),
        seed: int = 0,
        examples: int = 0,
    ):
        self.stage = stage(size, objects, directions, speeds, turn)
        _check(split, frames, seed, examples, extras)
        self.split, self.frames, self.objects, self.seed, self.extras = split, frames, objects, seed, tuple(extras)
        self._length = examples if examples and split == "train" else LENGTH[split]
        self.class_names = self.stage.names
        classes = len(self.class_names)
        self.chance = 1 / classes  # of a movie judged by a label drawn apart: it is right for one class
        self.dims = {"frames": frames, "side": size, "channels": 3, "classes": classes}
        if "tokens" in extras:
            self.dims |= {"tokens": frames * size * size, "vocabulary": len(PALETTE)}
        options = {"size": size, "frames": frames, "objects": objects, "directions": directions, "speeds": speeds}
        options |= {"turn": self.stage.turn, "seed": seed, "examples": examples}
        first = [
            zlib.crc32(np.stack([self.stage.canvas.indices(s) for s in self._draw(s, i)[1]]).tobytes()) for s in LENGTH for i in range(8)
        ]
        self.info = {
            **{"movie": [frames, size, size, 3], "classes": classes, "class_names": self.class_names, "examples": len(self)},
            **{"chance": self.chance, "origin": f"{__name__} {json.dumps(options)}"},
            "best_loss": float(self.stage.entropies(frames).mean()),
            "fingerprint": hashlib.sha256(json.dumps([VERSION, options, first]).encode()).hexdigest()[:32],
        }

    def _draw(self, split: str, i: int) -> tuple[int, list[Scene]]:
        """Label and scenes of an example: the first start whose checksum is of its split, and what follows it."""
        draws = Draws(self.seed, list(LENGTH).index(split), counter=i)
        label = draws(len(self.class_names))
        while True:
            draws.again()
            scene = self._start(label, draws)
            if (zlib.crc32(self.stage.canvas.indices(scene).tobytes()) % SHARE == 0) == (split == "eval"):
                break
        paths = [self._path(label, o, corner, draws) for o, corner in zip(scene.objects, self.stage.zones.tolist(), strict=True)]
        return label, [scene._replace(objects=objects) for objects in zip(*paths, strict=True)]

    def _start(self, label: int, draws: Draws) -> Scene:
        objects = []
        for top, left in self.stage.zones.tolist():
            shape, colour, size = draws(len(SHAPES)), draws(len(COLOURS)), draws(len(SIZES))
            low, count = self.stage.starts[size, label].tolist()
            objects.append(Object(shape, colour, size, top + low[0] + draws(count[0]), left + low[1] + draws(count[1])))
        tones, patterns, *phases = self.stage.canvas.textures.shape[:4]
        return Scene(tuple(objects), draws(tones), draws(patterns), (draws(phases[0]), draws(phases[1])))

    def _path(self, label: int, thing: Object, corner: list[int], draws: Draws) -> list[Object]:
        """An object in every frame."""
        draws.again()  # fresh bits for every object: more than its steps need
        motion, out, steps = label, [thing], self.stage.steps.tolist()
        for t in range(1, self.frames):
            if t > 1:
                row, col = thing.row - corner[0], thing.col - corner[1]
                motion = bisect(self.stage.cumulative[thing.size, motion, row, col].tolist(), draws(1 << 53) / (1 << 53))
            thing = thing._replace(row=thing.row + steps[motion][0], col=thing.col + steps[motion][1])
            out.append(thing)
        return out

    def _at(self, i: int) -> tuple[int, list[Scene]]:
        if not 0 <= i < self._length:
            raise IndexError(f"example {i} of {self._length}")
        return self._draw(self.split, int(i))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> dict:
        label, scenes = self._at(i)
        on = self.stage.canvas
        indices = np.stack([on.indices(s) for s in scenes])
        made = {
            "caption": lambda: self._caption(label, scenes[0]),
            "tokens": lambda: indices.astype(np.int32),
            "mask": lambda: np.stack([on.mask(s) for s in scenes]),
            "states": lambda: np.array([s.objects for s in scenes], np.int32),
        }
        return {"image": PALETTE[indices], "label": np.int32(label), **{k: made[k]() for k in self.extras}}

    def _caption(self, label: int, scene: Scene) -> str:
        things = [f"a {SIZES[o.size]} {COLOURS[o.colour]} {SHAPES[o.shape]}" for o in scene.objects]
        moves = f"moving {self.class_names[label]}" if label else "still"
        return ", ".join([*things, moves, f"on a {TONES[scene.tone]} {PATTERNS[scene.pattern]} background"])

    def scenes(self, i: int) -> list[Scene]:
        """What example `i` shows, frame by frame."""
        return self._at(i)[1]

    def picture(self, i: int) -> np.ndarray:
        """The film strip of example `i`, uint8 [size, frames size + gaps, 3], with white between frames."""
        gap = max(1, self.dims["side"] // 16)
        strip = np.pad(self[i]["image"], ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
        return np.concatenate(list(strip), 1)[:, :-gap]

    def track(self, movies: np.ndarray, least: int = 1) -> oracle.Track:
        """What movies [..., F, size, size, 3], F >= `least`, uint8 or floats in [-1, 1], show; exact on clean ones."""
        movies, size = np.asarray(movies), self.dims["side"]
        if movies.ndim < 4 or movies.shape[-3:] != (size, size, 3) or movies.shape[-4] < least:
            raise UserError(f"movies of shape {movies.shape} are not of this world; expected [..., frames >= {least}, {size}, {size}, 3]")
        return oracle.track(movies, self.stage)

    def consistent(self, movies: np.ndarray) -> np.ndarray:
        """Share of each movie's transitions that the dynamics can make, [...]."""
        return oracle.obeys(self.track(movies, 2), self.stage).mean(-1)

    def correct(self, movies: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Whether movies [..., F, size, size, 3] start with the motions their labels [...] ask for and obey the dynamics, bool [...]."""
        seen = self.track(movies, 2)
        return oracle.obeys(seen, self.stage).all(-1) & (seen.motion[..., 0, :] == np.asarray(labels)[..., None]).all(-1)

    def next_motions(self, movies: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        """Exact probability of every object's next motion given clean frames, [..., K, M]; labels matter after one frame alone, where
        the motion is the same for all objects. Later they are independent."""
        return oracle.ahead(self.track(np.asarray(movies)[..., -2:, :, :, :]), self.stage, labels)  # two frames tell all

    def entropy(self, movies: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        """Exact entropy of the next frame given clean frames [..., F, size, size, 3] and, where known, labels, in nats, [...]."""
        each = entr(self.next_motions(movies, labels)).sum(-1)
        return each[..., 0] if np.shape(movies)[-4] == 1 else each.sum(-1)

    def expected_next(self, movies: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        """Exact mean of the next frame given clean frames [..., F, size, size, 3] and, where known, labels: 0 to 255, [..., size, size, 3]."""
        seen = self.track(np.asarray(movies)[..., -2:, :, :, :])
        return oracle.mean(seen, self.stage, oracle.ahead(seen, self.stage, labels))

    def generate(self, key: jax.Array, n: int) -> dict[str, jax.Array]:
        """`n` new movies on the device: image uint8 [n, frames, size, size, 3], label int32 [n]; of neither split, with starts of both."""
        return device.movies(self.stage, self.frames, key, n)
