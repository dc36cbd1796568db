"""The table that laws of loss are fitted to: one row a run, columns declared here, pooled into one point a size and horizon.

flops     training FLOPs of the run, by one convention          (always)
loss      its final loss; not finite where it diverged          (always)
params    trained parameters                                    (for laws of N and D, and allocations)
examples  examples seen                                         (for laws of N and D, and allocations)
arm       the variant: laws are of one                          ('' where not given)
seed      runs of one seed may share what the seed does to them (0 where not given)
convention, device, precision, data: how FLOPs are counted, and what must be alike for losses to be compared
seconds   device-seconds of training                            (for multipliers by them; NaN where not timed)
unique    distinct examples among those seen                    (to tell how often they repeat)
rate      learning rate                                         (for a law of it: then a point is of one rate)
"""

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab.errors import UserError, unknown
from lab.laws.seeds import level

NUMBERS = ("flops", "loss", "params", "examples")
ALIKE = {"convention": "conventions of counting FLOPs", "data": "sets of data", "precision": "precisions", "device": "kinds of device"}
COLUMNS = (*NUMBERS, "arm", "seed", *ALIKE)
MORE = ("seconds", "unique", "rate")  # numbers that a study's records tell
APART = np.log(1.25)  # of FLOPs within one budget


class Points(NamedTuple):
    """Cells (one size and horizon) of one arm: mean log loss over seeds, and what repeated seeds tell of the noise."""

    flops: np.ndarray  # [cells]
    params: np.ndarray  # [cells] NaN where not given
    examples: np.ndarray  # [cells] NaN where not given
    loss: np.ndarray  # [cells] geometric mean over seeds
    count: np.ndarray  # [cells] runs
    runs: np.ndarray  # [cells, seeds] share of each seed in a cell's mean
    noise: float  # relative, of one run about its seed's own level; NaN where no seed repeats
    offset: float  # relative, spread of seeds' levels that all their runs share
    convention: str
    data: str  # SHA-256 of the rows
    left_out: tuple[str, ...]  # what and why
    seconds: np.ndarray  # [cells] device-seconds, mean over seeds; NaN where not given, as the next
    unique: np.ndarray  # [cells]
    rate: np.ndarray  # [cells]

    def take(self, mask: np.ndarray, why: str = "") -> "Points":
        """The cells of a mask."""
        per = {k: getattr(self, k)[mask] for k in ("flops", "params", "examples", "loss", "count", "runs", *MORE)}
        return self._replace(**per, left_out=(*self.left_out, why) if why else self.left_out)


def points(table: Mapping[str, Sequence], arm: str | None = None) -> Points:
    """Check a table's columns and pool its rows, those of `arm` alone where given.

    Runs that diverged are censored: a cell with one is left out, as its other seeds are the lucky ones.

    Raises:
      UserError: a column that is missing, unknown or of another length; several arms, conventions, devices, precisions or data.
    """
    for name in table:
        if name not in (*COLUMNS, *MORE):
            raise unknown("column of the table", name, (*COLUMNS, *MORE))
    for name in ("flops", "loss"):
        if name not in table:
            raise UserError(f"the table has no column {name!r}; a law of loss needs flops and loss")
    n = len(table["loss"])
    if wrong := [k for k in table if len(table[k]) != n]:
        raise UserError(f"column {wrong[0]!r} has {len(table[wrong[0]])} entries and 'loss' {n}")
    rows = {k: np.asarray(table[k], float) if k in (*NUMBERS, *MORE) else np.asarray(table[k]) for k in table}
    nothing = {k: np.full(n, np.nan) for k in ("params", "examples", *MORE)}
    rows = nothing | {"arm": np.full(n, ""), "seed": np.zeros(n, int)} | rows
    if arm is not None:
        if arm not in (known := sorted(set(map(str, rows["arm"])))):
            raise unknown("arm", arm, known)
        rows = {k: v[rows["arm"].astype(str) == arm] for k, v in rows.items()}
    elif len(several := sorted(set(map(str, rows["arm"])))) > 1:
        raise UserError(f"the table has {len(several)} arms ({', '.join(several)}); a law is of one")
    for key, what in ALIKE.items():
        if key in rows and len(several := sorted(set(map(str, rows[key])))) > 1:
            raise UserError(f"the table mixes {what} ({'; '.join(s[:60] for s in several)}): their losses are not of one law")
    good = np.isfinite(rows["loss"])
    if not good.any():
        raise UserError("no run of the table has a finite loss")
    for key in (*NUMBERS, *MORE):
        if (bad := rows[key][good] <= 0).any() or (key == "flops" and not np.isfinite(rows[key]).all()):
            raise UserError(f"column {key!r} has {rows[key][good][bad][0] if bad.any() else 'no number'}; a law needs values above 0")
    # how long runs took is no part of what they found, and a table that tells no more keeps its digest
    told = {k: v for k, v in rows.items() if k not in MORE or (k in table and k != "seconds")}
    return _pooled(rows, good, digest(told))


def _pooled(rows: dict[str, np.ndarray], good: np.ndarray, data: str) -> Points:
    at = np.stack([rows["flops"], *(np.nan_to_num(rows[k]) for k in ("params", "examples", "unique", "rate"))], 1)
    cells, cell = np.unique(at, axis=0, return_inverse=True)
    gone = np.zeros(len(cells), bool)
    np.logical_or.at(gone, cell, ~good)
    left = ()
    if gone.any():
        of = "sizes, horizons and rates" if np.isfinite(rows["rate"]).any() else "sizes and horizons"
        left = (f"{gone.sum()} of {len(cells)} {of}, in which {(~good).sum()} runs diverged",)
    keep = ~gone[cell]
    if not keep.any():
        raise UserError("every size and horizon of the table has a run that diverged")
    _, cell = np.unique(cell[keep], return_inverse=True)
    log, seed, first = np.log(rows["loss"][keep]), rows["seed"][keep], np.unique(cell, return_index=True)[1]
    seeds = np.unique(seed)
    of = np.zeros((cell.max() + 1, len(seeds)))
    np.add.at(of, (cell, np.searchsorted(seeds, seed)), 1.0)
    count = of.sum(1)
    mean = np.bincount(cell, log) / count
    noise, offset = np.nan, 0.0
    if (of.sum(0) > 0).sum() > 1 and count.max() > 1:
        split = level(cell, log, seed)  # here of logs, whose differences are relative
        free = np.trace(split.to_rest)
        if free > 1e-9:
            noise = float(np.sqrt((split.rest**2).sum() / free)) * split.scale
            spread = np.var(split.offset * split.scale, ddof=1) - noise**2 / np.mean(of.sum(0))
            offset = float(np.sqrt(max(spread, 0.0)))
    per = {k: rows[k][keep][first] for k in ("flops", "params", "examples", "unique", "rate")}
    per["seconds"] = np.bincount(cell, rows["seconds"][keep]) / count
    told = str(rows["convention"][0]) if "convention" in rows else ""
    return Points(
        **per,
        loss=np.exp(mean),
        count=count,
        runs=of / count[:, None],
        noise=noise,
        offset=offset,
        convention=told,
        data=data,
        left_out=left,
    )


def digest(rows: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of a table, whatever the order of its rows."""
    lines = zip(*(map(str, rows[k].tolist()) for k in sorted(rows)), strict=True)
    return hashlib.sha256("\n".join([",".join(sorted(rows)), *sorted(map("\t".join, lines))]).encode()).hexdigest()


@cache
def code() -> str:
    """Version of the package and digest of the files that fit laws."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return f"{importlib.metadata.version('scaling-lab')} {hashlib.sha256(b''.join(f.read_bytes() for f in files)).hexdigest()[:12]}"


def budgets(flops: np.ndarray) -> np.ndarray:
    """[cells] the budget of each, from 0, smallest first: FLOPs less than a quarter above a budget's least are of it."""
    out, least, at = np.empty(len(flops), int), -np.inf, -1
    for i in np.argsort(flops, kind="stable"):
        if np.log(flops[i]) - least > APART:
            least, at = np.log(flops[i]), at + 1
        out[i] = at
    return out
