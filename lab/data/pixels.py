"""A stored image -> uint8 [size, size, channels]: upright, flattened on white, cropped to its centred square, resized."""

from typing import IO

import numpy as np
from PIL import Image, ImageOps

from lab.errors import UserError

MODES = {1: "L", 3: "RGB"}


def check(size: int, channels: int) -> None:
    """UserError unless `size` and `channels` can be made."""
    if type(size) is not int or not 1 <= size <= 4096:
        raise UserError(f"config key data.size={size!r} must be a whole number from 1 to 4096")
    if channels not in MODES:
        raise UserError(f"config key data.channels={channels!r} must be 1 (grey) or 3 (colour)")


def square(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """The largest centred square of an image, antialiased down (or up) to uint8 [size, size, channels]."""
    if image.mode.startswith("I"):  # 16 bits a pixel: pillow's own conversion clips them to white
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:  # what lies under a transparent pixel is arbitrary
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert(MODES[channels])
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # cropped first: a box given to resize bounds where it samples, not what its filter reaches
    small = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(small, np.uint8).reshape(size, size, channels)


def decode(file: str | IO[bytes], size: int, channels: int, name: str) -> np.ndarray:
    """`square` of an encoded image file; UserError with its `name` where it cannot be decoded."""
    try:
        with Image.open(file) as image:
            image.draft(None, (2 * size, 2 * size))  # lets the JPEG decoder skip detail that the resize would average away
            ImageOps.exif_transpose(image, in_place=True)
            return square(image, size, channels)
    except Exception as e:  # damage surfaces as whatever the format's decoder stumbles on
        raise UserError(f"image {name!r} cannot be decoded: {str(e).splitlines()[0] if str(e) else type(e).__name__}") from e
