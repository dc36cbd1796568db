"""Intervals of what judges count."""

from scipy.stats import binomtest


def wilson(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval (low, high) of a share of which `hits` of `n` are seen (JASA 22(158), 1927)."""
    found = binomtest(int(hits), int(n)).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)
