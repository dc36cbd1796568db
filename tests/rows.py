"""A source of numbers to stream, in a file that worker processes import in no time."""

import numpy as np

from lab.errors import UserError


class Rows:
    """A source without arrays, to stream: each example is its own number."""

    def __init__(self, n=24, broken=None):
        self.n, self.broken = n, broken

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i == self.broken:
            raise UserError(f"example {i} is damaged")
        return {"row": np.int32(i), "caption": str(i)}
