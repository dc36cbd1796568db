"""What judges share: pictures of sources and of samples in one range, and checks of what they are given."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lab.data import world
from lab.errors import UserError


def check(key: str, value: Any, low: int, high: int) -> None:
    """UserError unless the judge's option `key` (such as 'novelty.n_train') is a whole number within [low, high]."""
    world.check(key, value, low, high, section="judge.options")


def need_pictures(judge: str, source: Any) -> None:
    """UserError unless a source has pictures."""
    if "image" not in source.info:
        raise UserError(f"judge {judge!r} judges pictures, which source {name(source)!r} has not; its keys: {', '.join(source[0])}")


def name(source: Any) -> str:
    """What the lab calls a source: the name of its module."""
    return type(source).__module__.removeprefix("lab.data.")


def pictures(source: Any, rows: np.ndarray) -> np.ndarray:
    """Examples `rows` of a source in the range a model sees, float32 [N, h, w, c]: uint8 in [-1, 1], floats as they are."""
    images = np.stack([source[int(i)]["image"] for i in rows])
    return images.astype(np.float32) / 127.5 - 1 if images.dtype == np.uint8 else images.astype(np.float32)


def in_chunks(call: Callable[[np.ndarray], Any], x: np.ndarray, size: int) -> np.ndarray:
    """`call` of x [N, ...], `size` rows at a time, the last ones filled up: one shape is one compile; float64."""
    padded = np.resize(x, (-(-len(x) // size) * size, *x.shape[1:]))
    return np.concatenate([np.asarray(call(padded[i : i + size])) for i in range(0, len(padded), size)])[: len(x)].astype(float)


def subset(source: Any, n: int) -> np.ndarray:
    """At most `n` distinct examples, always the same ones; a source may be too long to permute."""
    return np.random.default_rng(0).choice(len(source), min(n, len(source)), replace=False)


def sampled(judge: str, subject: Any, source: Any, least: int = 1) -> np.ndarray:
    """The samples' pictures [N, h, w, c]; UserError unless they are at least `least`, finite and of the source's shape."""
    images = np.asarray(subject.samples["image"], np.float32)
    if list(images.shape[1:]) != list(source.info["image"]):
        raise UserError(f"judge {judge!r}: samples are of shape {list(images.shape[1:])}, pictures of the source {source.info['image']}")
    if len(images) < least:
        raise UserError(f"judge {judge!r} needs at least {least} samples; there are {len(images)}")
    if not np.isfinite(images).all():
        raise UserError(f"judge {judge!r}: {int((~np.isfinite(images)).any((1, 2, 3)).sum())} of {len(images)} samples are not finite")
    return images
