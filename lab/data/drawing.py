"""Tokens as pictures, by what a source's `info` says of them, so that no data is read."""

from collections.abc import Callable

import numpy as np

from lab import find


def drawing(info: dict) -> Callable[[np.ndarray], np.ndarray] | None:
    """tokens [N, ...] -> their pictures uint8 [N, h, w, c]; None for a source that says nothing of them.

    Either `palette` has the colour [c] of every token, or `drawn` names the module of a source and the options of its function
    `drawn(tokens, **options)`.
    """
    if "drawn" in info:
        options = dict(info["drawn"])
        module = find.module("lab.data", options.pop("name"))
        return lambda tokens: module.drawn(tokens, **options)
    if "palette" in info:
        palette = np.asarray(info["palette"], np.uint8)
        return lambda tokens: palette[tokens]
    return None
