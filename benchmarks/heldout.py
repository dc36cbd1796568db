"""Do laws of real studies foretell what they were not fitted to? `lab bench heldout runs/compute runs/compute_tokens`.

The smallest budgets of an arm are fitted, three or more, and budgets at least eight times beyond the largest of them are foretold: the loss of the best run there, at its size
and horizon. Errors are shares of what the best loss fell from the last fitted budget to the foretold one, so 'no change' is off by 100%; beside it a line on log axes and scipy's
curve_fit of E + A C^-a through the best run of each budget, and, where examples of the fitted budgets repeat, L(N, D, U). Covered: how many of all runs of the foretold budgets lie within the lab's 90% interval of one.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import _common
from laws import floored, line

from lab import fit
from lab.laws import fits, forecast, points

BEYOND = 8.0  # times the largest budget that is fitted
LEAST = 3  # budgets that are fitted
SHOWN = ("lab", "with repeats", "log-log line", "curve_fit")


def splits(p: points.Points) -> list[tuple[int, int]]:
    """(how many of the smallest budgets are fitted, the budget that is foretold)."""
    at = points.budgets(p.flops)
    level = np.array([np.median(p.flops[at == b]) for b in range(at.max() + 1)])
    return [(n, t) for n in range(LEAST, len(level)) for t in range(n, len(level)) if level[t] > 0.97 * BEYOND * level[n - 1]]


def held_out(p: points.Points, n: int, target: int) -> dict:
    """One split: errors as shares of the fall, and runs within their interval."""
    at = points.budgets(p.flops)
    few, large = p.take(at < n), p.take(at == target)
    laws = forecast.laws(few)
    law = laws.first(large.unique)
    where = {v: getattr(large, v) for v in law.variables}
    told, one = law.loss(**where), fits.one_run(law, **where)
    best, front = int(np.argmin(large.loss)), forecast.frontier(few)
    order = np.argsort(front.flops)
    c, y = front.flops[order], front.loss[order]
    fall, there = y[-1] - large.loss[best], large.flops[[best]]
    row = {
        "fitted": n,
        "times": float(there[0] / c[-1]),
        "form": law.form,
        "last": float(y[-1]),
        "loss": float(large.loss[best]),
        "told": float(told[best]),
    }
    row |= {"lab": float((told[best] - large.loss[best]) / fall), "no change": 1.0}
    for way, ask in {"log-log line": line, "curve_fit": floored}.items():
        row[way] = float((ask(c, y, there)[0][0] - large.loss[best]) / fall) if len(c) > 3 or way != "curve_fit" else None
    if (r := laws.repeats) is not None:
        row["with repeats"] = float(
            (r.loss(*(v[[best]] for v in (large.params, large.examples, large.unique)))[0] - large.loss[best]) / fall
        )
    low, high = np.quantile(one, [0.05, 0.95], axis=0)
    return row | {"inside": int(((low <= large.loss) & (large.loss <= high)).sum()), "of": len(large.loss)}


def summary(rows: list[dict]) -> str:
    """Root mean squares of all ways, and the lab's on the same splits for those that not all splits have."""

    def rms(k: str, of: list[dict]) -> str:
        return f"{np.sqrt(np.mean([r[k] ** 2 for r in of])):.1%}"

    have = {k: [r for r in rows if r.get(k) is not None] for k in SHOWN}
    fewer = {k: f" ({len(of)} splits; there lab {rms('lab', of)})" if len(of) < len(rows) else "" for k, of in have.items() if of}
    return ", ".join(f"{k} {rms(k, have[k])}{more}" for k, more in fewer.items())


def main() -> None:
    parser = argparse.ArgumentParser(prog="lab bench heldout", description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="+", type=Path, metavar="DIR", help="folders of studies with several budgets")
    rows = []
    for folder in parser.parse_args().studies:
        for arm, told in fit.read(folder).arms.items():
            if told.points is None:
                print(f"{folder.name} {arm}: {told.refused}")
                continue
            mine = [{"study": folder.name, "arm": arm, **held_out(told.points, *s)} for s in splits(told.points)]
            rows += mine
            for r in mine:
                others = ", ".join(f"{k} {r[k]:+.0%}" for k in SHOWN if r.get(k) is not None)
                print(
                    f"{folder.name} {arm}: {r['fitted']} budgets -> {r['times']:.3g}x by {r['form']}: {r['last']:.4f} -> {r['loss']:.4f}, told {r['told']:.4f}; off by {others}; {r['inside']} of {r['of']} inside"
                )
            if mine:
                print(
                    f"{folder.name} {arm}: {len(mine)} splits, off by {summary(mine)} of the fall; covered {sum(r['inside'] for r in mine) / sum(r['of'] for r in mine):.0%}"
                )
    print(_common.write("heldout", rows))


if __name__ == "__main__":
    main()
