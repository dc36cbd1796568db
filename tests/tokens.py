"""What tests of token worlds share."""

import itertools

import numpy as np


def grids(source):
    """Every grid there is, [V^N, side, side]."""
    cells = itertools.product(range(source.vocabulary), repeat=source.cells)
    return np.array(list(cells)).reshape(-1, source.side, source.side)


def read(source, n):
    """The first `n` examples: tokens and labels."""
    items = [source[i] for i in range(n)]
    return np.stack([x["tokens"] for x in items]), np.stack([x["label"] for x in items])
