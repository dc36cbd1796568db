"""Rectified flow of an image and its text together, each with a time of its own (UniDiffuser, arXiv 2303.06555).

One model that learns both velocities at all pairs of times draws both together, either by itself, or either given the other: what is
given stands at time 0, what is not asked for at time 1, where it is noise.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lab import find
from lab.errors import UserError, unknown
from lab.objectives import conditions, flow, times
from lab.objectives.pictures import floats

TASKS = ("image", "text", "pair", "image_alone", "text_alone")


def vectors(words: int, channels: int) -> np.ndarray:
    """A fixed vector [words, channels] for every word, of unit size a channel: normal numbers, the same for all studies."""
    drawn = np.random.default_rng(0).normal(size=(words, channels))
    return np.float32(drawn / np.sqrt(np.mean(drawn**2, axis=1, keepdims=True)))


class Objective:
    """`time` is the density of both times, drawn apart, as in `flow` (`location`, `scale`); the loss is the image's plus `text_weight` the text's.

    words, text_channels: with as many `words` as the source has, text is tokens, and what is noised is a fixed vector of
      `text_channels` numbers for each, whose nearest word is read back; without, text is features as they are.
    edges: share of examples in which one of the times, either, is set to 0 or 1, as draws of one given the other ask for; a density
      of both has no weight there.
    """

    makes = "image"

    def __init__(
        self,
        time: str,
        text_channels: int,
        words: int = 0,
        text_weight: float = 1.0,
        edges: float = 0.5,
        location: float | None = None,
        scale: float | None = None,
    ):
        if time not in times.DENSITIES:
            raise unknown("objective.time", time, times.DENSITIES)
        if not 0 <= edges <= 1:
            raise UserError(f"config key objective.edges={edges!r} is a share of examples; expected 0 to 1")
        if not text_weight > 0:
            raise UserError(f"config key objective.text_weight={text_weight!r} must be above 0")
        options = {k: v for k, v in {"location": location, "scale": scale}.items() if v is not None}
        self.time = find.make(times.DENSITIES[time], options, "objective")
        self.text_weight, self.edges = text_weight, edges
        self.dims = {"text_channels": text_channels, **({"words": words} if words else {})}
        self.vectors = vectors(words, text_channels) if words else None

    def written(self, text: jax.Array) -> jax.Array:
        """Text [B, length] or features as it is noised, float32 [B, length, text_channels]."""
        if self.vectors is None and text.ndim == 2:
            raise UserError("objective joint got tokens of text; give objective.words, the number of words of the source")
        return text.astype(jnp.float32) if text.ndim == 3 else jnp.asarray(self.vectors)[text]

    def read(self, text: jax.Array) -> jax.Array:
        """Vectors [B, length, text_channels] -> the nearest words, int32 [B, length], or without `words` as they are."""
        if self.vectors is None:
            return text
        return jnp.argmax(text @ jnp.asarray(self.vectors).T, axis=-1).astype(jnp.int32)  # all are of one length

    def inputs(self, key: jax.Array, batch: dict) -> dict[str, jax.Array]:
        """x, t, text and t_text as the model takes them, and the velocities `target` and `text_target`. Images are uint8 or in [-1, 1]."""
        keys = jax.random.split(key, 5)
        image, text = floats(batch["image"]), self.written(batch["text"])
        n = image.shape[0]
        t, t_text = (self._times(k, n) for k in keys[:2])
        if self.edges:  # one draw tells whether an edge, which of the two, and which end
            edge = jnp.floor(jax.random.uniform(keys[2], (n,)) * 4 / self.edges)
            t, t_text = jnp.where(edge < 2, edge, t), jnp.where((edge >= 2) & (edge < 4), edge - 2, t_text)
        noise, text_noise = (jax.random.normal(k, x.shape) for k, x in zip(keys[3:5], (image, text), strict=True))
        return {
            **{"x": _between(image, noise, t), "t": t, "target": noise - image},
            **{"text": _between(text, text_noise, t_text), "t_text": t_text, "text_target": text_noise - text},
        }

    def _times(self, key: jax.Array, n: int) -> jax.Array:
        """Times [n] that cover the density evenly, in random order, so that those of the two say nothing of each other."""
        k_offset, k_order = jax.random.split(key)
        u = jnp.mod(jax.random.uniform(k_offset) + (jnp.arange(n) + 0.5) / n, 1.0)
        return self.time(jnp.clip(jax.random.permutation(k_order, u), 1e-4, 1 - 1e-4))

    def errors(self, model: Callable, key: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
        """The images' times [B], and their predicted less true velocity, of the shape of the images."""
        given = self.inputs(key, batch)
        return given["t"], self._errors(model, given)[0]

    def _errors(self, model: Callable, given: dict) -> tuple[jax.Array, jax.Array]:
        given = {**given}
        targets = given.pop("target"), given.pop("text_target")
        outs = model(given)
        if not isinstance(outs, tuple) or [o.shape for o in outs] != [t.shape for t in targets]:
            raise UserError("objective joint needs a model that gives the velocities of image and text, such as 'unidiffuser'")
        return tuple(o.astype(jnp.float32) - t for o, t in zip(outs, targets, strict=True))

    def losses(self, model: Callable, given: dict) -> jax.Array:
        """`loss` of what `inputs` gave, or of some of its examples."""
        image, text = (jnp.mean(jnp.square(e), axis=tuple(range(1, e.ndim))) for e in self._errors(model, given))
        return image + self.text_weight * text

    def loss(self, model: Callable, key: jax.Array, batch: dict) -> jax.Array:
        """Mean squared velocity error of each example's image, and `text_weight` times its text's, [B]."""
        return self.losses(model, self.inputs(key, batch))

    def looks(self, options: dict) -> bool:
        """Whether samples are drawn by a picture, `original` beside the conditions."""
        return options.get("task") == "text"

    def sample(
        self,
        model: Callable,
        key: jax.Array,
        cond: dict,
        shape: tuple[int, ...],
        task: str = "image",
        steps: int = 50,
        guidance: float = 1.0,
        method: str = "heun",
    ) -> jax.Array | dict[str, jax.Array]:
        """What `task` asks for, as many as `cond` has examples, by the flow's ODE from noise to data; images have the `shape`.

        'image' gives images [B, *shape] for the text of cond, and 'image_alone' without. Others give {'words', 'image'} or one of these:
        'text' words for cond's original [B, *shape] (uint8, or as a model sees it), 'text_alone' without one, 'pair' both together; as
        long as cond's text, which they do not read. `guidance` moves each velocity away from that without the other of the two, which
        the same model gives; 1 does not. `method` is as in `flow`.
        """
        if task not in TASKS:
            raise unknown("sample.options.task", task, TASKS)
        if method not in flow.METHODS:
            raise unknown("sampler", method, flow.METHODS)
        if lacking := [k for k in ("text", *["original"] * (task == "text")) if k not in cond]:
            raise UserError(f"sample.options.task={task!r} needs the condition {lacking[0]!r}; given: {sorted(cond)}")
        text = self.written(cond["text"])
        n = conditions.count(cond)
        noise = [jax.random.normal(k, s) for k, s in zip(jax.random.split(key), ((n, *shape), text.shape), strict=True)]
        moves = task in ("image", "image_alone", "pair"), task in ("text", "text_alone", "pair")
        # what does not move is given, at time 0, or noise, at time 1
        given = {"image": (None, text), "text": (floats(cond["original"]) if task == "text" else None, None)}.get(task, (None, None))
        start = [z if g is None else g for z, g in zip(noise, given, strict=True)]
        still = [1.0 if g is None else 0.0 for g in given]

        def ask(image, text, t, t_text):
            told = {"x": image, "t": jnp.full(n, t), "text": text, "t_text": jnp.full(n, t_text)}
            return [v.astype(jnp.float32) for v in model(told)]

        def velocity(state, t):
            at = [t if m else s for m, s in zip(moves, still, strict=True)]
            found = ask(*state, *at)
            if guidance != 1.0:
                alone = (lambda: ask(state[0], noise[1], t, 1.0)[0], lambda: ask(noise[0], state[1], 1.0, t)[1])
                found = [(w := a()) + guidance * (v - w) if m else v for v, a, m in zip(found, alone, moves, strict=True)]
            return [v if m else jnp.zeros_like(v) for v, m in zip(found, moves, strict=True)]

        def along(state, h, v):
            return [x + h * d for x, d in zip(state, v, strict=True)]

        def step(state, ts):
            t, t_next = ts
            h, v = t_next - t, velocity(state, t)
            if method == "heun":
                v = [0.5 * (a + b) for a, b in zip(v, velocity(along(state, h, v), t_next), strict=True)]
            elif method == "midpoint":
                v = velocity(along(state, 0.5 * h, v), t + 0.5 * h)
            return along(state, h, v), None

        nodes = jnp.linspace(1.0, 0.0, steps + 1)
        (image, text), _ = jax.lax.scan(step, start, (nodes[:-1], nodes[1:]))
        if not moves[1]:
            return image
        return {"words": self.read(text), **({"image": image} if moves[0] else {})}


def _between(data: jax.Array, noise: jax.Array, t_B: jax.Array) -> jax.Array:
    s = t_B.reshape(-1, *[1] * (data.ndim - 1))
    return (1 - s) * data + s * noise
