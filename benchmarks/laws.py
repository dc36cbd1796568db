"""Are the lab's laws fast, and do they foretell better than what notebooks do? `lab bench laws`.

Speed: CPU seconds of 1,000 bootstrap refits of L(N, D) to 240 points, beside scipy's least_squares from the same start (20 refits, times 50) and
PyPI's chinchilla (one fit from 16 starts near the truth, times 1,000) where `--peer` names a python that has it. Forecasts: simulated isoFLOP studies of published laws
(five budgets of seven sizes within a factor of four, relative noise a run of --noise), by each contestant at 10 and 100 times the largest budget: root mean
square error as a share of what the loss still falls from the largest budget to there, and the share of simulations in which the truth is
within its 90% interval. Notebooks' ways go by the best run of each budget: a line in log C and log loss, scipy's curve_fit of E + A C^-a, and the
same through the lowest points of parabolas.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit, least_squares
from scipy.stats import t as student

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import _common
import published

from lab.laws import allocation, fits, forecast, points, solve

BEYOND = (10.0, 100.0)
LEVEL = 0.9
TRUTHS = {"Hoffmann": published.HOFFMANN, "Besiroglu": published.BESIROGLU}
STARTS = {"E": [1.7], "A": [200.0, 1000.0], "B": [200.0, 1000.0], "alpha": [0.2, 0.5], "beta": [0.2, 0.5]}
PEER = """
import json, sys, tempfile, time
import numpy as np
from chinchilla import Chinchilla

asked, out = json.load(sys.stdin), []
for rows in asked["tables"]:
    grid = {k: np.array(v) for k, v in asked["starts"].items()}
    cc = Chinchilla(tempfile.mkdtemp(), param_grid=grid, seed_ranges=dict(C=(1e18, 1e22), N_to_D=(0.1, 1e4)), log_level=50)
    for n, d, y in zip(rows["params"], rows["examples"], rows["loss"]):
        cc.append(N=n, D=d, loss=y)
    began = time.process_time()
    cc.fit(parallel=False)
    out.append([time.process_time() - began, *(float(getattr(cc, k)) for k in ("E", "A", "B", "alpha", "beta"))])
print(json.dumps(out))
"""


def peer(python: str, tables: list[dict]) -> list[list[float]]:
    """CPU seconds and E, A, B, alpha, beta of chinchilla's fit to each table."""
    asked = {"starts": STARTS, "tables": [{k: list(map(float, t[k])) for k in ("params", "examples", "loss")} for t in tables]}
    done = subprocess.run([python, "-c", PEER], input=json.dumps(asked), capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def speed(python: str) -> dict:
    """CPU seconds of 1,000 refits of 240 points."""
    truth, rng = published.BESIROGLU, np.random.default_rng(0)
    flops, size = 10 ** rng.uniform(18, 21.8, 240), 10 ** rng.uniform(7.7, 10, 240)
    table = published.table(truth, {"flops": flops, "params": size, "examples": flops / 6 / size}, 1e-2, rng)
    f = fits.fit(points.points(table), draws=2)
    row = {"points": 240, "refits": 1000}
    for method in ("squares", "huber"):
        began = time.process_time()
        fits.bootstrap(f, 1000, method=method)
        row[f"lab_{method}_cpu_s"] = time.process_time() - began
    x, y = f.at(params=f.points.params, examples=f.points.examples), f.points.loss
    began = time.process_time()
    for _ in range(20):
        w = np.sqrt(rng.multinomial(len(y), np.full(len(y), 1 / len(y))))
        least_squares(
            lambda p, w=w: w * np.log(solve.losses(p[None], x)[0] / y), f.value, x_scale="jac", bounds=([0, 0, 0, 1e-3, 1e-3], np.inf)
        )
    row["scipy_cpu_s"] = 50 * (time.process_time() - began)
    if python:
        row["chinchilla_cpu_s"] = 1000 * peer(python, [table])[0][0]
    return row


def line(c: np.ndarray, y: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-log polyfit: forecasts, and half-widths of log loss."""
    x, middle = np.log(c), np.log(c).mean()
    slope, level = np.polyfit(x - middle, np.log(y), 1)
    left = np.log(y) - level - slope * (x - middle)
    sd = np.sqrt(left @ left / (len(x) - 2) * (1 / len(x) + (np.log(at) - middle) ** 2 / ((x - middle) ** 2).sum()))
    return np.exp(level + slope * (np.log(at) - middle)), student.ppf((1 + LEVEL) / 2, len(x) - 2) * sd


def floored(c: np.ndarray, y: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """scipy's curve_fit of E + A (C / C0)^-a from (half the least loss, the rest, 0.1): forecasts and half-widths of log loss by the delta method."""

    def law(x, e, a, g):
        return e + a * (x / c[0]) ** -g

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)
        try:
            p, cov = curve_fit(law, c, y, (y.min() / 2, y[0] - y.min() / 2, 0.1), maxfev=20_000)
        except RuntimeError:
            return np.full(len(at), np.nan), np.full(len(at), np.nan)
    told = law(at, *p)
    rise = np.stack([np.ones(len(at)), (at / c[0]) ** -p[2], -p[1] * np.log(at / c[0]) * (at / c[0]) ** -p[2]])
    return told, student.ppf((1 + LEVEL) / 2, len(c) - 3) * np.sqrt(np.einsum("in,ij,jn->n", rise, cov, rise)) / told


def contest(name: str, sims: int, noise: float, python: str, few: int) -> list[dict]:
    """One row a contestant and distance."""
    truth = TRUTHS[name]
    design = published.isoflop(truth, 5, 7, 4.0)
    most = design["flops"].max()
    at = most * np.array(BEYOND)
    size = published.best(truth, np.append(at, most))
    *wanted, last = truth(params=size, examples=np.append(at, most) / 6 / size)
    wanted, fall = np.array(wanted), last - np.array(wanted)
    tables = [published.table(truth, design, noise, np.random.default_rng(s)) for s in range(sims)]
    found: dict[str, list] = {k: [] for k in ("lab", "log-log line", "curve_fit", "parabolas, curve_fit", "chinchilla")}
    for table in tables:
        p = points.points(table)
        told = forecast.Laws((fits.fit(p, draws=400),), (), ())
        ours = [forecast.forecast(told, c) for c in at]
        found["lab"].append(([o.loss for o in ours], [o.law[-1][0] for o in ours], [o.law[-1][1] for o in ours]))
        front = forecast.frontier(p)
        c, y = (v[np.argsort(front.flops)] for v in (front.flops, front.loss))
        group = points.budgets(p.flops)
        low = np.array([_lowest(np.log(p.params[group == g]), p.loss[group == g]) for g in range(len(c))])
        for way, (mid, half) in {
            "log-log line": line(c, y, at),
            "curve_fit": floored(c, y, at),
            "parabolas, curve_fit": floored(c, low, at),
        }.items():
            found[way].append((mid, mid * np.exp(-half), mid * np.exp(half)))
    for _, e, a, b, alpha, beta in peer(python, tables[:few]) if python else []:
        law = np.array([[e, a, b, alpha, beta]])
        logs = allocation.best(law, np.zeros(2), allocation.Price(np.log(6), 1.0, 0.0), at)[0]
        mid = [
            allocation.along(law, np.zeros(2), allocation.Price(np.log(6), 1.0, 0.0), c, np.array([n]))[0]
            for c, n in zip(at, logs, strict=True)
        ]
        found["chinchilla"].append((mid, [np.nan] * len(at), [np.nan] * len(at)))
    rows = []
    for way, told in found.items():
        if not told:
            continue
        mid, low, high = np.moveaxis(np.array(told, float), 1, 0)
        for i, k in enumerate(BEYOND):
            off = (mid[:, i] - wanted[i]) / fall[i]
            inside = (low[:, i] <= wanted[i]) & (wanted[i] <= high[:, i])
            failed = np.isnan(mid[:, i])
            row = {"law": name, "by": way, "times": k, "noise": noise, "simulations": len(told), "failed": int(failed.sum())}
            row |= {"error": float(np.sqrt(np.mean(off[~failed] ** 2))), "median_error": float(np.median(abs(off[~failed])))}
            rows.append(row | {"covered": None if np.isnan(low[:, i]).all() else float(inside.mean())})
    return rows


def _lowest(x: np.ndarray, y: np.ndarray) -> float:
    a, b, c = np.polyfit(x - x.mean(), y, 2)
    return float(c - b**2 / (4 * a)) if a > 0 else float(y.min())


def main() -> None:
    parser = argparse.ArgumentParser(prog="lab bench laws", description=__doc__.splitlines()[0])
    parser.add_argument("--sims", type=int, default=100, help="simulated studies of each law (default: 100)")
    parser.add_argument("--noise", type=float, default=3e-3, help="relative, of a run (default: 0.003)")
    parser.add_argument("--peer", default="", help="a python in which PyPI's chinchilla is installed")
    parser.add_argument("--peer-sims", type=int, default=5, help="simulated studies that it fits (default: 5)")
    args = parser.parse_args()
    rows = [{"measure": "speed", **speed(args.peer)}]
    _common.say(f"speed: {rows[0]}")
    for name in TRUTHS:
        rows += [{"measure": "forecast", **r} for r in contest(name, args.sims, args.noise, args.peer, args.peer_sims)]
        for r in rows[-10:]:
            if r.get("law") == name:
                covered = "" if r["covered"] is None else f", covered {r['covered']:.0%}"
                _common.say(
                    f"{name} {r['times']:g}x {r['by']}: error {r['error']:.1%} of the fall (median {r['median_error']:.1%}){covered}, failed {r['failed']}"
                )
    print(_common.write("laws", rows))


if __name__ == "__main__":
    main()
