"""Intervals of what judges count."""

from collections.abc import Iterable

from scipy.stats import binomtest


def wilson(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval (low, high) of a share of which `hits` of `n` are seen (JASA 22(158), 1927)."""
    found = binomtest(int(hits), int(n)).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


def share(column: str, hits: Iterable[bool], level: float = 0.95) -> dict[str, float]:
    """A share of hits and its Wilson interval, by their columns: `column`, with _low and with _high."""
    hits = [bool(h) for h in hits]
    low, high = wilson(sum(hits), len(hits), level)
    return {column: sum(hits) / len(hits), f"{column}_low": low, f"{column}_high": high}
