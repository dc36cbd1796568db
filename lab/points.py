"""Records -> the points of a search at one size: which is best, how sure that is, and which hyperparameter matters. No jax here."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata, t

from lab import ladder, record
from lab.errors import UserError

LEVEL = 0.9  # coverage of intervals
TOP = 10  # points whose noise is pooled, and that a table shows: noise grows with the loss, so the worst say nothing of the best


class Point(NamedTuple):
    """One set of hyperparameters, whatever its seeds."""

    arm: str
    values: dict[str, Any]
    state: str  # of its worst seed: done, stopped, diverged, or another of record.STATES
    step: int  # of its last evaluation
    losses: dict[int, float]  # seed -> loss at that step; empty where a seed diverged or is not at its end

    @property
    def loss(self) -> float:
        """The mean over seeds, of a stopped point at its mark; NaN where it has none."""
        return float(np.mean(list(self.losses.values()))) if self.losses else np.nan


class Search(NamedTuple):
    """The points of a study at one size."""

    study: dict
    metric: str
    keys: tuple[str, ...]  # what was searched
    trials: list[dict]  # one row a trial, as ladder.trials gives it
    points: list[Point]  # best first: finished, stopped (the later the better), diverged, unfinished


class Best(NamedTuple):
    """The best point of an arm and what is known of it."""

    point: Point
    interval: tuple[float, float] | None  # of its mean loss, over its seeds
    tied: list[Point] | None  # others that it cannot be told apart from; None where no seed repeats
    compared: int  # points that have as many seeds as it


def searched(study: dict) -> tuple[str, ...]:
    """The swept keys, beside seed and arm, that have several values within an arm."""
    values: dict[tuple[str, str], set] = {}
    for trial in study["trials"].values():
        for k, v in trial["point"].items():
            values.setdefault((k, trial["arm"]), set()).add(str(v))
    return tuple(sorted({k for (k, _), v in values.items() if len(v) > 1 and k not in ("seed", "arm")}))


def is_search(study: dict) -> bool:
    """Whether a study has one size and several hyperparameters that lie on no grid, so that no curve against one of them can be drawn."""
    keys = searched(study)
    if ladder.ladder(study) is not None or len(keys) < 2:
        return False
    for arm in {x["arm"] for x in study["trials"].values()}:
        points = {tuple(str(x["point"].get(k)) for k in keys) for x in study["trials"].values() if x["arm"] == arm}
        if len(points) < np.prod([len({p[i] for p in points}) for i in range(len(keys))]):
            return True
    return False


def read(folder: Path) -> Search:
    """The points of a study's folder; UserError where its records hold several sizes, or nothing that varies."""
    folder, study = Path(folder), record.read_study(folder)
    metric, keys = study["config"]["eval"]["metric"], searched(study)
    if (over := ladder.ladder(study)) is not None or not keys:
        why = f"the study has several sizes of {over}" if over else "nothing varies within an arm"
        raise UserError(f"no search at one size in {str(folder)!r}: {why}")
    trials, ends = ladder.trials(folder, study, None, keys), {r["trial"]: r for r in record.ends(folder).to_pylist()}
    groups: dict[tuple, list[dict]] = {}
    for r in trials:
        values = {k: ladder.value(study, r["trial"], k) for k in keys}
        lost = r["finished"] and ends[r["trial"]][metric] is None
        groups.setdefault((r["arm"], *map(str, values.values())), []).append(
            r | {"values": values} | ({"state": "diverged"} if lost else {})
        )
    order, points = ("done", "stopped", "diverged"), []
    for mine in groups.values():
        state = max((r["state"] for r in mine), key=lambda s: order.index(s) if s in order else len(order))
        losses = {r["seed"]: ends[r["trial"]][metric] for r in mine} if state in order[:2] else {}
        step = min(r["step"] or 0 for r in mine)
        points.append(Point(mine[0]["arm"], mine[0]["values"], state, step, losses))
    points.sort(key=lambda p: (order.index(p.state) if p.state in order else len(order), -p.step, p.loss if p.losses else np.inf))
    return Search(study, metric, keys, trials, points)


def best(search: Search, arm: str) -> Best | None:
    """The best finished point of an arm among those with the most seeds; None where none is finished.

    Where some points were trained on further seeds, only these are compared: the others had lost to them before. Points of equal seeds share init, data
    and noise seed by seed, so they are compared by differences; the noise of these is pooled over the TOP, and 'tied' are those whose mean lies
    no higher than Student's t at LEVEL allows for the best of all compared (Bonferroni).
    """
    done = [p for p in search.points if p.arm == arm and p.state == "done"]
    if not done:
        return None
    most = max(len(p.losses) for p in done)
    full = sorted((p for p in done if len(p.losses) == most), key=lambda p: p.loss)
    first = full[0]
    full = [p for p in full if set(p.losses) == set(first.losses)]
    if most == 1:
        return Best(first, None, None, len(full))
    seeds = sorted(first.losses)
    own = np.array([first.losses[s] for s in seeds])
    half = t.ppf((1 + LEVEL) / 2, most - 1) * own.std(ddof=1) / np.sqrt(most)
    table = np.array([[p.losses[s] for s in seeds] for p in full[:TOP]])
    tied = []
    if len(full) > 1:
        rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
        freedom = (len(table) - 1) * (most - 1)
        noise = np.sqrt(2 * (rest**2).sum() / freedom / most)
        reach = t.ppf(1 - (1 - LEVEL) / (len(full) - 1), freedom) * noise
        tied = [p for p in full[1:] if p.loss - first.loss <= reach]
    return Best(first, (first.loss - half, first.loss + half), tied, len(full))


def arms(search: Search) -> list[str]:
    """Arms that have a finished point, the best first."""
    return list(dict.fromkeys(p.arm for p in search.points if p.state == "done"))


def importance(search: Search, arm: str, draws: int = 200) -> dict[str, tuple[float, float, float]]:
    """Key -> share of the ranks of an arm's points that a parabola in the key's own rank explains, and its interval over resampled points.

    Adjusted for the parabola's freedom, so a key that does nothing has 0. Ranks go by how long a point was kept, then by its loss, diverged ones last. A
    key of names has as many levels as names.
    """
    mine = [p for p in search.points if p.arm == arm and p.state in ("done", "stopped", "diverged")]
    height = rankdata([i if p.losses else len(mine) for i, p in enumerate(mine)])
    rng = np.random.default_rng(0)
    samples = [np.arange(len(mine))] + [rng.integers(0, len(mine), len(mine)) for _ in range(draws)]
    out = {}
    for key in search.keys:
        x = [p.values[key] for p in mine]
        if all(isinstance(v, int | float) for v in x):
            u = (rankdata(x) - 0.5) / len(x) - 0.5
            design = np.stack([np.ones(len(u)), u, u**2], 1)
        else:
            design = np.array([[str(v) == name for name in sorted(set(map(str, x)))] for v in x], float)
        shares = [_explained(design[rows], height[rows]) for rows in samples]
        out[key] = shares[0], *np.quantile(shares[1:], ((1 - LEVEL) / 2, (1 + LEVEL) / 2)).tolist()
    return out


def _explained(design: np.ndarray, y: np.ndarray) -> float:
    free = len(y) - np.linalg.matrix_rank(design)
    total = ((y - y.mean()) ** 2).sum() / max(len(y) - 1, 1)
    if free < 1 or not total:
        return 0.0
    rest = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return float(max(0.0, 1 - (rest @ rest) / free / total))


def named(values: dict[str, Any]) -> str:
    """'lr 0.01, b2 0.95' of a point."""
    return ", ".join(f"{ladder.leaf(k)} {v:.4g}" if isinstance(v, float) else f"{ladder.leaf(k)} {v}" for k, v in values.items())


def sentences(search: Search, arm: str) -> list[str]:
    """What a search found in an arm, and how sure that is."""
    mine = [p for p in search.points if p.arm == arm]
    found = best(search, arm)
    counts = {s: sum(p.state == s for p in mine) for s in record.STATES}
    of = f"{len(mine)} points ({', '.join(f'{n} {s}' for s, n in counts.items() if n)})"
    if found is None:
        return [f"{arm}: none of {of} has reached its last step."]
    p, known = found.point, "one seed, so no interval"
    if found.interval:
        low, high = found.interval
        known = f"{LEVEL:.0%} interval {low:.4f} to {high:.4f} over {len(p.losses)} seeds, those that chose it among them"
    said = [f"{arm}: best {search.metric} {p.loss:.4f} ({known}) of {of}: {named(p.values)}."]
    if found.tied is None:
        return [
            *said,
            f"It is the lowest of {counts['done']} single losses, so lower than it would come out again, and what is as good is not known: {AGAIN}.",
        ]
    if not found.tied:
        return [*said, f"None of the {found.compared - 1} others with as many seeds is as good, as far as these tell."]
    spread = []
    for k in search.keys:
        values = [q.values[k] for q in (p, *found.tied)]
        if all(isinstance(v, int | float) for v in values):
            spread.append(f"{ladder.leaf(k)} {min(values):.4g} to {max(values):.4g}")
    more = f", within {', '.join(spread)}" if spread else ""
    return [*said, f"{len(found.tied)} of the {found.compared - 1} others with as many seeds cannot be told apart from it{more}."]


AGAIN = "train the best ones on further seeds (search.again)"


def table(search: Search) -> list[dict[str, Any]]:
    """The best TOP points of each arm, a row each."""
    out = []
    for arm in arms(search):
        found = best(search, arm)
        ahead = [found.point, *sorted((p for p in search.points if p.arm == arm and p.state == "done" and p != found.point), key=_order)]
        for p in ahead[:TOP]:
            row = {"arm": arm} | {ladder.leaf(k): p.values[k] for k in search.keys} | {search.metric: p.loss, "seeds": len(p.losses)}
            apart = "best" if p == found.point else "" if found.tied is None or len(p.losses) < len(found.point.losses) else None
            out.append(row | {"beside_the_best": apart if apart is not None else "not told apart" if p in found.tied else "worse"})
    return out


def _order(p: Point) -> tuple[int, float]:
    """Points of more seeds first, as they were the best of those with fewer."""
    return -len(p.losses), p.loss
