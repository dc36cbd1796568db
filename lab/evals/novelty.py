"""Are samples new? Repeats among samples, copies of training pictures, and how near samples lie to those."""

import hashlib
from collections import Counter
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import bootstrap, mannwhitneyu

from lab.evals._pictures import check, need_pictures, pictures, sampled, subset
from lab.evals.intervals import share

SEARCH = 1 << 20  # training pictures that are looked through for copies
ROWS = 512  # whose distances to all training pictures are held at a time


def stored(images: np.ndarray, eight_bit: bool) -> np.ndarray:
    """Pictures of the model's range as whole steps of 8 bits: uint8, or int32 that goes on beyond [-1, 1] where not `eight_bit`."""
    if images.dtype == np.uint8:
        return images
    steps = np.rint((images.astype(np.float32) + 1) * 127.5)
    return steps.clip(0, 255).astype(np.uint8) if eight_bit else steps.clip(-(2**31), 2**31 - 128).astype(np.int32)


def prints(images: np.ndarray, eight_bit: bool) -> list[bytes]:
    """A digest of every picture as it is `stored`."""
    return [hashlib.blake2b(x.tobytes(), digest_size=16).digest() for x in stored(images, eight_bit)]


def nearest(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Root mean squared difference of every picture of x [N, ...] to the nearest of y [M, ...], [N], exactly 0 for a copy."""
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    wide = y.astype(float)
    half, out = np.sum(wide**2, 1) / 2, np.empty(len(x))
    for at in range(0, len(x), ROWS):
        part = x[at : at + ROWS].astype(float)
        out[at : at + ROWS] = np.sqrt(np.mean((part - wide[(half - part @ wide.T).argmin(1)]) ** 2, 1))
    return out


def ratio(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
    """Ratio of two medians."""
    return np.median(a, axis) / np.median(b, axis)


class Judge:
    """Shares of samples that are unique and that are no training picture, and nearness to training pictures against held-out ones.

    n_train: training pictures that nearness is measured to; as many held-out ones are measured beside the samples. Copies are
    looked for in the whole training set where it has at most 2^20 pictures, else among those `n_train` (`novelty_searched` of them).
    """

    def __init__(self, real: Any, train: Any, n_train: int = 4096):
        need_pictures("novelty", real)
        check("novelty.n_train", n_train, 2, SEARCH)
        self._real, self._train = real, train
        self._eight_bit = train[0]["image"].dtype == np.uint8
        self._rows = subset(train, n_train)
        self._near = pictures(train, self._rows)
        self._held = nearest(pictures(real, np.random.default_rng(0).permutation(len(real))[:n_train]), self._near)

    @cached_property
    def _seen(self) -> tuple[set[bytes], int]:
        """Digests of training pictures, and how many pictures were read."""
        rows = range(len(self._train)) if len(self._train) <= SEARCH else self._rows
        return {prints(self._train[int(i)]["image"][None], self._eight_bit)[0] for i in rows}, len(rows)

    def __call__(self, subject: Any) -> dict[str, float]:
        """Columns, of which shares have Wilson intervals (_low, _high).

        Returns:
          novelty_unique: share of samples that occur once among the samples, after rounding to 8 bits.
          novelty_new: share that are no training picture, after rounding; `novelty_searched` pictures were compared with.
          novelty_ratio: median distance of samples to their nearest training picture over that of held-out pictures: 1 where samples
            are as fresh as held-out pictures, 0 where most are copies, above 1 where they lie off the data. With a bootstrap interval;
            left out where held-out pictures are themselves copies.
          novelty_closer: chance that a sample lies nearer to training pictures than a held-out picture does, ties counted half: 1/2
            where samples are as fresh, 1 where all are copies (after authenticity, arXiv 2102.08921).
          novelty_valid: share that the source's `valid` or `correct` accepts, where it has one: garbage is unique and new too.
        """
        images = sampled("novelty", subject, self._real)
        mine, (seen, searched) = prints(images, self._eight_bit), self._seen
        out = {"novelty_unique": sum(c == 1 for c in Counter(mine).values()) / len(mine), "novelty_searched": float(searched)}
        out |= share("novelty_new", [p not in seen for p in mine])
        if self._eight_bit:  # as held-out pictures are
            images = stored(images, True).astype(np.float32) / 127.5 - 1
        near = nearest(images, self._near)
        out["novelty_closer"] = float(mannwhitneyu(self._held, near).statistic) / (len(near) * len(self._held))
        if np.median(self._held) > 0:
            out |= _ratio(near, self._held)
        if hasattr(self._real, "valid"):
            out |= share("novelty_valid", self._real.valid(images))
        elif hasattr(self._real, "correct"):
            out |= share("novelty_valid", self._real.correct(images, subject.samples["label"]))
        return out


def _ratio(near: np.ndarray, held: np.ndarray) -> dict[str, float]:
    found = bootstrap((near, held), ratio, n_resamples=499, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return {"novelty_ratio": float(ratio(near, held)), "novelty_ratio_low": float(found.low), "novelty_ratio_high": float(found.high)}
