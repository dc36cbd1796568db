"""Grey pictures as tokens: a pixel's token is the nearest of a few greys, so that tokens need no learned tokenizer.

The greys lie evenly from black to white. Where pixels take any value alike, the error of n of them has the root mean square
255 / (n - 1) / sqrt(12) (Bennett 1948); what it is on a set is measured there.
"""

import numpy as np

from lab.data.world import check


class Greys:
    """A palette of `levels` greys, uint8 [levels, 1], from black (0) to white, and tokens of it."""

    def __init__(self, levels: int):
        check("levels", levels, 2, 256)
        self.palette = np.rint(np.linspace(0, 255, levels)).astype(np.uint8)[:, None]
        self._nearest = np.abs(np.arange(256)[:, None] - self.palette[:, 0].astype(int)).argmin(1).astype(np.int32)

    def dims(self, side: int) -> dict[str, int]:
        """Sizes for models of square pictures' tokens."""
        return {"side": side, "tokens": side * side, "vocabulary": len(self.palette)}

    def tokens(self, images: np.ndarray) -> np.ndarray:
        """Tokens int32 [..., h, w] of pictures uint8 [..., h, w, 1]."""
        return self._nearest[images[..., 0]]

    def rms(self, images: np.ndarray) -> float:
        """Root mean square error, in steps of 255, of the pictures that the tokens of `images` make."""
        counts = np.bincount(images.ravel(), minlength=256)
        error = self.palette[self._nearest, 0] - np.arange(256.0)
        return float(np.sqrt(np.sum(counts * error**2) / images.size))
