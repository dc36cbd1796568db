"""Published laws of loss, as truths to simulate: constants of ../docs/laws.md's sources, with the range of compute that each was fitted over."""

from typing import NamedTuple

import numpy as np


class Truth(NamedTuple):
    """loss = floor + sum scale variable^-exponent over `variables`, over FLOPs (or PF-days) from low to high."""

    variables: tuple[str, ...]
    floor: float
    scales: tuple[float, ...]
    exponents: tuple[float, ...]
    low: float
    high: float

    def __call__(self, **at):
        return self.floor + sum(s * np.asarray(at[v]) ** -e for v, s, e in zip(self.variables, self.scales, self.exponents, strict=True))


def _compute(floor, unit, exponent, low, high):
    """floor + (C / unit)^-exponent"""
    return Truth(("flops",), floor, (unit**exponent,), (exponent,), low, high)


BESIROGLU = Truth(("params", "examples"), 1.817, (482.0, 2085.4), (0.3478, 0.3658), 1e18, 1e22)  # arXiv 2404.10102
HOFFMANN = Truth(("params", "examples"), 1.69, (406.4, 410.7), (0.34, 0.28), 1e18, 1e22)  # arXiv 2203.15556
COMPUTE = {
    "Henighan 8x8": _compute(3.13, 1.8e-8, 0.19, 1e-6, 1e1),  # arXiv 2010.14701, table 1, PF-days
    "Henighan 16x16": _compute(2.64, 1.6e-8, 0.16, 1e-6, 1e1),
    "Henighan 32x32": _compute(2.21, 3.6e-9, 0.10, 1e-6, 1e1),
    "Henighan VQ 16x16": _compute(4.09, 6.1e-7, 0.11, 1e-5, 1e2),
    "Henighan VQ 32x32": _compute(3.17, 2.6e-6, 0.12, 1e-5, 1e2),
    "Henighan text to image": _compute(1.93, 1.5e-6, 0.15, 1e-5, 1e2),
    "Liang DiT": Truth(("flops",), 0.0, (2.3943,), (0.0273,), 1e17, 6e18),  # arXiv 2410.08184
    "GIDD masked": Truth(("flops",), 2.153, (10**2.347,), (0.131,), 1e18, 1e21),  # arXiv 2512.10858
    "GIDD uniform": Truth(("flops",), 1.940, (10**2.018,), (0.107,), 1e18, 1e21),
}


def best(truth, flops):
    """Compute-optimal params of a law of params and examples, at 6 FLOPs a param and example."""
    (a, b), (p, q) = truth.scales, truth.exponents
    return (p * a / (q * b)) ** (1 / (p + q)) * (np.asarray(flops) / 6) ** (q / (p + q))


def isoflop(truth, budgets=5, sizes=5, width=4.0):
    """flops, params, examples of a design: sizes up to `width` times the best on either side of it, at each budget."""
    flops = np.repeat(np.geomspace(truth.low, truth.high / 10, budgets), sizes)
    params = best(truth, flops) * np.tile(np.geomspace(1 / width, width, sizes), budgets)
    return {"flops": flops, "params": params, "examples": flops / 6 / params}


def ladder(truth, rungs=8):
    """flops of a design over the truth's range."""
    return {"flops": np.geomspace(truth.low, truth.high, rungs)}


def table(truth, design, noise, rng, seeds=1, offset=0.0):
    """Columns of a table of runs: relative noise a run, and of each seed's own level."""
    n = len(design["flops"])
    rows = {k: np.tile(v, seeds) for k, v in design.items()}
    rows["seed"] = np.repeat(np.arange(seeds), n)
    level = np.repeat(offset * rng.normal(size=seeds), n)
    rows["loss"] = truth(**rows) * np.exp(noise * rng.normal(size=n * seeds) + level)
    return rows
