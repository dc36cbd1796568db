"""A stored image -> uint8 [h, w, channels]: upright, flattened on white, cropped about its centre as little as the shape asks, resized.

Buckets are shapes of about one area, so that a set of many aspect ratios is cropped little (NovelAI's aspect ratio bucketing;
SDXL, arXiv 2307.01952).
"""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps
from rich.progress import track

from lab.data import world
from lab.errors import UserError
from lab.log import console

MODES = {1: "L", 3: "RGB"}
ORIENTATION = 0x0112  # EXIF's tag; from 5 to 8 the stored image lies on its side


def check(size: int, channels: int) -> None:
    """UserError unless `size` and `channels` can be made."""
    if type(size) is not int or not 1 <= size <= 4096:
        raise UserError(f"config key data.size={size!r} must be a whole number from 1 to 4096")
    if channels not in MODES:
        raise UserError(f"config key data.channels={channels!r} must be 1 (grey) or 3 (colour)")


def buckets(area: int, ratio_max: float, step: int) -> list[tuple[int, int]]:
    """Shapes (h, w) in multiples of `step` with h w <= area and sides within ratio_max, from the tallest to the widest.

    Each is as wide as its height allows, or as tall as its width does; the shapes of one are those of the other, turned.
    """
    tall = [(h, area // h // step * step) for h in range(step, area // step + 1, step)]
    found = {s for h, w in tall for s in ((h, w), (w, h)) if w and max(s) <= ratio_max * min(s)}
    return sorted(found, key=lambda s: s[1] / s[0])


def cropped(width: int, height: int, bucket: tuple[int, int]) -> float:
    """Share of an image's area that is cut off where it covers a bucket (h, w)."""
    return 1 - math.exp(-abs(math.log(width / height * bucket[0] / bucket[1])))


def nearest(shapes: Iterable[tuple[int, int]], width: int, height: int) -> tuple[int, int]:
    """The bucket (h, w) whose aspect ratio is nearest in its logarithm: the one that cuts the least off."""
    return min(shapes, key=lambda s: cropped(width, height, s))


def shapes_of(bucket: tuple[int, int], size: int, ratio_max: float, step: int) -> list[tuple[int, int]]:
    """The buckets of size x size pixels, of which a config's `bucket` must be one; UserError where it is not."""
    world.check("bucket_ratio", ratio_max, 1.0, 64.0)
    world.check("bucket_step", step, 1, size)
    found = buckets(size * size, ratio_max, step)
    if not isinstance(bucket, (tuple, list)) or tuple(bucket) not in found:
        raise UserError(
            f"config key data.bucket={bucket!r} is no shape (h, w) of at most {size} x {size} pixels in multiples of data.bucket_step={step} "
            f"within data.bucket_ratio={ratio_max}; expected one of: {', '.join(map(str, found)) or 'none'}"
        )
    return found


def square(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """The largest centred square of an image, as uint8 [size, size, channels]."""
    return fit(image, size, size, channels)


def fit(image: Image.Image, h: int, w: int, channels: int) -> np.ndarray:
    """The largest centred part of an image that has the shape of h x w, antialiased down (or up) to uint8 [h, w, channels]."""
    if image.mode.startswith("I"):  # 16 bits a pixel: pillow's own conversion clips them to white
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:  # what lies under a transparent pixel is arbitrary
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert(MODES[channels])
    width = min(image.width, max(1, round(image.height * w / h)))
    height = min(image.height, max(1, round(image.width * h / w)))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    # cropped first: a box given to resize bounds where it samples, not what its filter reaches
    small = image.crop((left, top, left + width, top + height)).resize((w, h), Image.Resampling.LANCZOS)
    return np.asarray(small, np.uint8).reshape(h, w, channels)


def decode(file: str | IO[bytes], size: int | tuple[int, int], channels: int, name: str) -> np.ndarray:
    """`fit` of an encoded image file to a square of `size`, or to (h, w); UserError with its `name` where it cannot be decoded."""
    h, w = (size, size) if isinstance(size, int) else size
    try:
        with Image.open(file) as image:
            image.draft(None, (2 * max(h, w),) * 2)  # lets the JPEG decoder skip detail that the resize would average away
            ImageOps.exif_transpose(image, in_place=True)
            return fit(image, h, w, channels)
    except Exception as e:  # damage surfaces as whatever the format's decoder stumbles on
        raise _undecodable(name, e) from e


def _undecodable(name: str, e: Exception) -> UserError:
    return UserError(f"image {name!r} cannot be decoded: {str(e).splitlines()[0] if str(e) else type(e).__name__}")


def shape(path: Path) -> tuple[int, int]:
    """(width, height) of an image file as it is shown, from its header alone."""
    try:
        with Image.open(path) as image:
            # pillow gives a TIFF's size as it is shown, and looks for a PNG's EXIF behind its pixels, too, which it decodes for that
            stored = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
            on_side = stored and image.getexif().get(ORIENTATION, 1) >= 5
            return image.size[::-1] if on_side else image.size
    except Exception as e:
        raise _undecodable(str(path), e) from e


def shapes(folder: Path, sums: dict[str, str], data_dir: str) -> dict[str, tuple[int, int]]:
    """`shape` of each file of `folder` in `sums` (name -> digest), kept in `data_dir` by digest."""
    tag = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    cache, known = Path(data_dir) / ".digests" / f"{tag}-shapes.json", {}
    with suppress(OSError, ValueError):
        known = json.loads(cache.read_text())
    todo = [n for n in sums if sums[n] not in known]
    for n in track(todo, f"sizes of {folder.name}", console=console, disable=len(todo) < 5000):
        known[sums[n]] = shape(folder / n)
    if todo:
        with suppress(OSError):  # a data_dir that cannot be written costs time, not the answer
            cache.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=cache.parent, suffix=".tmp", delete=False) as f:
                json.dump({s: known[s] for s in sums.values()}, f)
            os.replace(f.name, cache)
    return {n: tuple(known[s]) for n, s in sums.items()}
