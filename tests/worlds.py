"""What tests of sources and judges share."""

import functools

import numpy as np

from lab.data.loader import open_source


def within(estimates, truth, sigmas=4.0):
    """Whether the mean of independent estimates lies within some standard errors of the truth, in every column."""
    e = np.asarray(estimates, float)
    return np.all(np.abs(e.mean(0) - truth) < sigmas * e.std(0, ddof=1) / np.sqrt(len(e)))


def take(given, n=64):
    """Its first examples, stacked; strings stay behind."""
    items = [given[i] for i in range(n)]
    return {k: np.stack([x[k] for x in items]) for k in items[0] if k != "caption"}


@functools.cache
def splits(name="field", **options):
    """Held-out and training split of a world."""
    return tuple(open_source({"name": name, **options}, split, "") for split in ("eval", "train"))
