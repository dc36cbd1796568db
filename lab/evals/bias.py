"""Does a model favour some values of an attribute? Mean absolute deviation from a reference (MAD: DALL-Eval, arXiv 2202.04053)."""

from typing import Any

import numpy as np
from scipy.stats import binom, norm

from lab import find
from lab.errors import UserError, unknown
from lab.evals._pictures import check, name, sampled

TAIL = 1e-15  # of a binomial, that sums leave out


def mad(p: np.ndarray, q: np.ndarray) -> float:
    """mean_k |p_k - q_k| of two distributions [K]."""
    return float(np.mean(np.abs(np.asarray(p) - q)))


def most(q: np.ndarray) -> float:
    """The largest `mad` that any distribution has from q, 2 (1 - min q) / K: all on the rarest value (uniform q: 2 (K - 1) / K^2)."""
    return float(2 * (1 - np.min(q)) / len(q))


def _counts(share: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Every share that `n` draws may have, and its probability."""
    k = np.arange(max(binom.ppf(TAIL, n, share), 0), min(binom.isf(TAIL, n, share), n) + 1)
    return k / n, binom.pmf(k, n, share)


def floor(q: np.ndarray, n: int, m: int = 0) -> float:
    """Expected `mad` of `n` draws from q itself: from q, or from `m` other draws of it where m is not 0; exact, by binomial sums."""
    total = 0.0
    for share in q:
        x, mass_x = _counts(share, n)
        y, mass_y = _counts(share, m) if m else (np.array([share]), np.ones(1))
        total += mass_x @ np.abs(x[:, None] - y) @ mass_y
    return float(total / len(q))


def variance(p: np.ndarray, q: np.ndarray, n: int, m: int = 0) -> float:
    """Variance of `mad` by the delta method, for p from `n` draws and q from `m` (0: known); it holds well above the floor."""
    sign = np.sign(p - q) / len(q)
    spread = [sign**2 @ v - (sign @ v) ** 2 for v in (p, q)]
    return float(max(spread[0], 0.0) / n + (max(spread[1], 0.0) / m if m else 0.0))


class Judge:
    """Mean absolute deviation of each trait that a source's own oracle reads, from held-out pictures or from uniform.

    reference: 'real' (the traits of `n` held-out pictures, read by the same oracle) or 'uniform'.
    by_label: a mean over labels of the deviation within each, as DALL-Eval averages over prompts, instead of that of all samples:
      it sees a trait that goes wrongly with the label, and is blind to how often each label is asked for.
    """

    def __init__(self, real: Any, train: Any, reference: str = "real", by_label: bool = False, n: int = 4096):
        if not hasattr(real, "traits"):
            able = [s for s in find.names("lab.data") if hasattr(find.module("lab.data", s).Source, "traits")]
            raise UserError(
                f"judge 'bias' cannot judge source {name(real)!r}, which has no method traits; sources that have: {', '.join(able)}"
            )
        if reference not in ("real", "uniform"):
            raise unknown("config key judge.options.bias.reference", reference, ("real", "uniform"))
        if not isinstance(by_label, bool):
            raise UserError(f"config key judge.options.bias.by_label={by_label!r} must be True or False")
        check("bias.n", n, 1, 1 << 20)
        self._source, self._by_label, self._reference = real, by_label, None
        if reference == "real":
            items = [real[int(i)] for i in np.random.default_rng(0).permutation(len(real))[:n]]
            self._reference = real.traits(np.stack([x["image"] for x in items])), np.array([x["label"] for x in items])

    def __call__(self, subject: Any) -> dict[str, float]:
        """For each trait bias_TRAIT, its 95% interval (_low, _high), finite-sample _floor, possible _max, and the share _unread.

        Where the deviation is near its floor the interval says nothing: the floor is then what is to be compared with. A trait that
        nothing was read of has only its share unread.
        """
        images, labels = sampled("bias", subject, self._source), np.asarray(subject.samples["label"])
        out = {}
        for trait, values in self._source.traits(images).items():
            out[f"bias_{trait}_unread"] = float(np.mean(values < 0))
            if parts := self._parts(trait, values, labels):
                value, high, least = np.mean([p[:3] for p in parts], 0).tolist()
                half = float(norm.ppf(0.975) * np.sqrt(sum(p[3] for p in parts))) / len(parts)
                out |= {f"bias_{trait}": value, f"bias_{trait}_floor": least, f"bias_{trait}_max": high}
                out |= {f"bias_{trait}_low": max(value - half, 0.0), f"bias_{trait}_high": min(value + half, high)}
        return out

    def _parts(self, trait: str, values: np.ndarray, labels: np.ndarray) -> list[tuple[float, float, float, float]]:
        """Deviation, maximum, floor and variance in each group of samples that has something to be compared with."""
        k, parts = len(self._source.trait_names[trait]), []
        for label in np.unique(labels) if self._by_label else [None]:
            mine = values[(values >= 0) & ((labels == label) | (label is None))]
            q, m = np.full(k, 1 / k), 0
            if self._reference:
                theirs, theirs_of = self._reference[0][trait], self._reference[1]
                theirs = theirs[(theirs >= 0) & ((theirs_of == label) | (label is None))]
                q, m = np.bincount(theirs, minlength=k) / max(len(theirs), 1), len(theirs)
            if len(mine) and (m or not self._reference):
                p = np.bincount(mine, minlength=k) / len(mine)
                parts.append((mad(p, q), most(q), floor(q, len(mine), m), variance(p, q, len(mine), m)))
        return parts
