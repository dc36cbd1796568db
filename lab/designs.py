"""A design of runs from which a law of loss can be fitted: sizes, budgets and horizons, and how wide its intervals will be, told before it is paid.

    isoflop   at each of several budgets, three or more sizes about the best (Hoffmann et al., arXiv 2203.15556, approach 2)
    grid      sizes crossed with horizons (approach 3)

Sizes are those of one ladder, about half again as large each (1, 2, 3, 4, 6, 8, 12, ... heads), so budgets share them. What an example costs is counted in the
traced program of each. Which sizes are about the best is what a prior law says: a study's own, or Chinchilla's as fitted again (arXiv 2404.10102).
Interval widths are those that `lab fit` would tell of a study that came out as the prior says, with the noise that is given.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lab import cost, fit, population, target, written
from lab.data.loader import held_out, open_source
from lab.errors import UserError, unknown
from lab.experiment import Experiment
from lab.laws import allocation
from lab.laws.fits import LEVEL, Fit, refusal, replicates, span
from lab.laws.points import Points, code, points
from lab.laws.solve import losses, solve

LEAST_SIZES, LEAST_BUDGETS = 3, 2  # a parabola has three parameters, and one budget is no law of budgets
APART = (4, 3, 2)  # times the FLOPs from one budget to the next, the widest that can be
SPAN = 10  # times the fewest examples that three sizes of a budget may want, whatever it is: a size takes up to 2.3 times the FLOPs of the one below
AHEAD = 10.0  # times the largest budget, at which the forecast's interval is told
PUBLISHED = np.array([1.817, 482.0, 2085.4, 0.3478, 0.3658])  # E, A, B, a, b over positions, C = 6 N D (arXiv 2404.10102)
MIDDLE = 1e20  # FLOPs in the middle of the runs that it was fitted to


class Size(NamedTuple):
    """A size, its trained parameters, and training FLOPs of an example."""

    size: int
    params: int
    flops: float


class Cell(NamedTuple):
    """A size and horizon; `group` is the budget, or of a grid the horizon, smallest first."""

    size: Size
    steps: int
    group: int


class Prior(NamedTuple):
    """loss = E + A N^-a + B D^-b over parameters and examples, and where it is from."""

    law: np.ndarray  # [5] E, A, B, a, b
    source: str

    def loss(self, params: Any, examples: Any) -> np.ndarray:
        """[points] loss of sizes and examples."""
        return losses(self.law[None], np.log(np.stack([np.atleast_1d(params), np.atleast_1d(examples)], 1).astype(float)))[0]


class Asked(NamedTuple):
    """What a design may take; `batch` and how many `examples` there are come from the experiment."""

    budget: float  # training FLOPs of all its runs
    points: int  # sizes and horizons
    seeds: int
    epochs: float  # most
    steps: int  # fewest
    batch: int = 0
    examples: int = 0


class Sizes:
    """The sizes that a config's model can have, smallest first, each counted when it is first asked for."""

    def __init__(self, count: Callable[[int], tuple[int, float]], unit: int):
        self.known: list[Size] = []
        self._count, self._next = count, (unit * n for n in _rungs())

    def upto(self, flops: float, least: int = 0) -> list[Size]:
        """All sizes whose example takes at most `flops`, and `least` of them at least; UserError where none can be built."""
        while not self.known or self.known[-1].flops <= flops or len(self.known) < least:
            self.known.append(self._following())
        return [s for i, s in enumerate(self.known) if s.flops <= flops or i < least]

    def _following(self) -> Size:
        for tried in itertools.count(1):
            size = next(self._next)
            try:
                return Size(size, *self._count(size))
            except UserError:  # such as heads that no group of keys divides
                if tried == 6:
                    raise


def _rungs() -> Iterator[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, ..."""
    yield 1
    for k in itertools.count(1):
        yield from (2**k, 3 * 2 ** (k - 1))


def counted(config: dict, over: str) -> tuple[Sizes, Size, int]:
    """The sizes of a config over a key of its model, the config's own, and how many examples its data has.

    Raises:
      UserError: a key that is no number of the model or has no base, or data that is not there.
    """
    leaf = over.removeprefix("model.")
    numbers = [f"model.{k}" for k, v in config["model"].items() if type(v) is int]
    if over not in numbers:
        raise unknown("--over", over, numbers)
    if leaf not in config["base"]:
        raise UserError(f"--over={over} has no base, so no rule would scale weights from size to size; give config.base an entry {leaf!r}")
    train, held = (open_source({**config["data"]}, s, config["run"]["data_dir"]) for s in ("train", "eval"))
    one = held_out({**config, "eval": {**config["eval"], "examples": 1, "batch": 1}}, held)

    def count(size: int) -> tuple[int, float]:
        program = population.build({**config, "model": {**config["model"], leaf: size}}, train.dims)
        return sum(cost.parameters(program.model).values()), population.flops_per_example(program, one)

    own = config["model"][leaf]
    return Sizes(count, config["model"].get("head_dim", 1) if leaf == "width" else 1), Size(own, *count(own)), len(train)


def published(own: Size, flops: float) -> Prior:
    """Chinchilla's law: sizes best for a budget as it has them, and at `flops` as large a share above its floor as in the middle of its own runs.

    Its D counts positions, of which an example has F / 6N at the size `own`.
    """
    cost_ = allocation.Price(float(np.log(6)), 1.0, 0.0)

    def above(c: float) -> float:
        log = allocation.best(PUBLISHED[None], np.zeros(2), cost_, c)[0, 0]
        return float(losses(PUBLISHED[None], np.array([[log, cost_.examples(c, log)]]))[0, 0]) - PUBLISHED[0]

    law, positions = PUBLISHED.copy(), own.flops / 6 / own.params
    law[1:3] *= above(MIDDLE) / above(flops)
    law[2] *= positions ** -law[4]
    return Prior(law, "exponents and floor's share of Chinchilla as fitted again (arXiv 2404.10102), which may not be this data's")


def of_study(folder: Path, arm: str) -> Prior:
    """The law of N and D of a study's arm; of one arm alone, whatever its name.

    Raises:
      UserError: there is no such arm, or it tells no law of N and D.
    """
    told = fit.read(folder).arms
    if arm not in told and len(told) > 1:
        raise unknown("--prior: arm (the experiment's parametrization)", arm, told)
    name = arm if arm in told else next(iter(told))
    t = told[name]
    first = t.laws and t.laws.sizes
    if not first:
        raise UserError(f"--prior: arm {name!r} of {str(folder)!r} tells no law of N and D: {t.refused or t.laws.refused[0]}")
    return Prior(
        np.concatenate([first.value[:1], first.scales, first.exponents]), f"L(N, D) = {fit.formula(first)} of {folder}, arm {name}"
    )


def _side(a: Asked) -> int:
    """Sizes of a budget or horizon: as many as there are of these, or fewer."""
    return max(LEAST_SIZES, int(np.sqrt(a.points)))


def isoflop(a: Asked, sizes: Sizes, prior: Prior) -> list[Cell]:
    """Budgets the widest apart that can be, each with the sizes about its best that are feasible; empty where fewer than three are at any."""
    most = _side(a)
    budgets = a.points // most
    for apart in APART:
        shares = float(apart) ** np.arange(1 - budgets, 1)
        low, high = (a.budget / a.seeds / shares.sum() / n for n in (most, LEAST_SIZES))
        for largest in np.geomspace(high, low, 1 if most == LEAST_SIZES else 12):
            found = [_about(a, sizes, prior, c, most) for c in largest * shares]
            if all(len(mine) >= LEAST_SIZES for mine in found):
                cells = [Cell(s, _steps(a, s, c), g) for g, (mine, c) in enumerate(zip(found, largest * shares, strict=True)) for s in mine]
                if spent(a, cells) <= a.budget:
                    return cells
    return []


def _steps(a: Asked, s: Size, flops: float) -> int:
    return int(flops / (s.flops * a.batch))


def _feasible(a: Asked, steps: float) -> bool:
    return a.steps <= steps and steps * a.batch <= a.epochs * a.examples


def _best(sizes: Sizes, prior: Prior, flops: float, batch: int, steps: int) -> int:
    """Which size the prior holds best at a budget, of those that can be trained `steps` steps."""
    known = sizes.upto(flops / (batch * steps), LEAST_SIZES)
    return int(np.argmin(prior.loss([s.params for s in known], [flops / s.flops for s in known])))


def _about(a: Asked, sizes: Sizes, prior: Prior, flops: float, most: int) -> list[Size]:
    """Of the sizes feasible at a budget, `most` about the one that the prior holds best."""
    best = _best(sizes, prior, flops, a.batch, a.steps)
    able = [i for i, s in enumerate(sizes.known) if _feasible(a, _steps(a, s, flops))]
    if not able:
        return []
    start = int(np.clip(best - (most - 1) // 2, able[0], max(able[0], able[-1] - most + 1)))
    return sizes.known[start : min(start + most, able[-1] + 1)]


def grid(a: Asked, sizes: Sizes, prior: Prior) -> list[Cell]:
    """Sizes crossed with horizons the widest apart that can be, the middle size near the best of the middle budget; empty where none is feasible."""
    many = _side(a)
    horizons = a.points // many
    for apart in APART:
        shares = float(apart) ** np.arange(1 - horizons, 1)
        able = []
        for start in itertools.count():
            sizes.upto(0, start + many)
            mine = sizes.known[start : start + many]
            longest = a.budget / (a.seeds * a.batch * shares.sum() * sum(s.flops for s in mine))
            if longest * shares[0] < a.steps:
                break
            if _feasible(a, int(longest)):
                middle = start + many // 2
                flops = sizes.known[middle].flops * a.batch * longest * np.sqrt(shares[0])
                able.append((abs(_best(sizes, prior, flops, a.batch, a.steps) - middle), start, longest))
        if able:
            _, start, longest = min(able)
            return [Cell(s, int(longest * share), g) for g, share in enumerate(shares) for s in sizes.known[start : start + many]]
    return []


DESIGNS = {"isoflop": isoflop, "grid": grid}


def spent(a: Asked, cells: list[Cell]) -> float:
    """Training FLOPs of a design's runs."""
    return a.seeds * sum(c.size.flops * a.batch * c.steps for c in cells)


def design(kind: str, a: Asked, sizes: Sizes, prior: Callable[[float], Prior]) -> tuple[list[Cell], Prior]:
    """The cells of a design and the prior law at its budgets; `prior` is of the FLOPs of a run.

    Raises:
      UserError: too few points, data that is seen too often, or a budget that is too small: the least that would do is named.
    """
    if kind not in DESIGNS:
        raise unknown("--design", kind, DESIGNS)
    if a.points < LEAST_SIZES * LEAST_BUDGETS:
        raise UserError(f"--points={a.points} is too few: a law wants {LEAST_BUDGETS} budgets of {LEAST_SIZES} sizes at least, 6 points")
    reach = SPAN if kind == "isoflop" else APART[-1] ** (a.points // _side(a) - 1)
    if a.epochs * a.examples < reach * a.steps * a.batch:
        raise UserError(
            f"--epochs={a.epochs:g} of {a.examples:,} examples are fewer than the {reach * a.steps * a.batch:,} of the longest run, {reach} times "
            f"{a.steps} steps of {a.batch}; raise --epochs, or lower --steps or the batch"
        )

    def made(budget: float) -> list[Cell]:
        return DESIGNS[kind](a._replace(budget=budget), sizes, prior(budget / a.points / a.seeds))

    if cells := made(a.budget):
        return cells, prior(a.budget / a.points / a.seeds)
    least = a.seeds * a.batch * a.steps * sum(s.flops for s in sizes.upto(0, LEAST_SIZES)[:LEAST_SIZES])
    least = float(f"{max(a.budget, least):.1e}")
    while not made(least):
        least = float(f"{1.1 * least:.1e}")
    raise UserError(
        f"--budget={a.budget:.3g} is too small for {LEAST_SIZES} sizes of {a.steps} steps or more at every budget of {a.points} points; "
        f"expected {least:.2g} or more"
    )


def table(a: Asked, cells: list[Cell], prior: Prior) -> dict[str, np.ndarray]:
    """Columns of a table of runs (lab.laws.points): every cell with the loss that the prior foretells."""
    params, examples = np.array([c.size.params for c in cells], float), np.array([a.batch * c.steps for c in cells], float)
    flops = examples * [c.size.flops for c in cells]
    return {"flops": flops, "params": params, "examples": examples, "loss": prior.loss(params, examples)}


class Expected(NamedTuple):
    """A law as the prior has it, with the draws that `lab fit` would make of it, and its forecast."""

    fit: Fit
    cost: allocation.Price
    flops: float  # of the forecast
    loss: float
    draws: np.ndarray  # [draws] of that loss

    def grows(self, law: np.ndarray) -> np.ndarray:
        """[laws] exponent of C of laws [laws, 5], each at its best sizes: a b / (a + power b)."""
        return law[:, 3] * law[:, 4] / (law[:, 3] + self.cost.power * law[:, 4])

    def told(self) -> dict[str, tuple[float, tuple[float, float]]]:
        """What is told -> its value by the prior, and the interval to be expected."""
        value, draws = self.fit.value, self.fit.draws
        out = {name: (float(value[i]), span(draws[:, i])) for name, i in (("floor", 0), ("exponent of N", 3), ("exponent of D", 4))}
        out["exponent of C"] = float(self.grows(value[None])[0]), span(self.grows(draws))
        return out | {f"loss at {self.flops:.2g} FLOPs": (self.loss, span(self.draws))}


def expected(a: Asked, cells: list[Cell], prior: Prior, noise: float) -> Expected:
    """What `lab fit` would tell of a study of these cells that came out as the prior says; `noise` is of one run, relative.

    Raises:
      UserError: the cells tell no law of N and D.
    """
    p = points(table(a, cells, prior))
    if why := refusal(p, "L(N, D)"):
        raise UserError(f"no interval can be told: {why}")
    f = as_prior(p, prior, noise / np.sqrt(a.seeds))
    x = f.at(params=p.params, examples=p.examples)
    f = f._replace(draws=solve(x, replicates(f), f.weight, f.value[None]))
    price, ahead = allocation.price(p), AHEAD * float(p.flops.max())
    log = allocation.best(f.value[None], f.centre, price, ahead)[0, 0]
    where = {"params": np.exp(log), "examples": np.exp(price.examples(ahead, log))}
    return Expected(f, price, ahead, float(f.loss(**where)[0]), f.losses(**where)[:, 0])


def as_prior(p: Points, prior: Prior, sd: float) -> Fit:
    """The prior as a law that was fitted to points which lie `sd` from it."""
    centre = np.log(np.stack([p.params, p.examples], 1)).mean(0)
    value = prior.law.copy()
    value[1:3] *= np.exp(-value[3:] * centre)
    free = len(p.loss) - len(value)
    return Fit("L(N, D)", value, value[None], centre, sd, np.ones(len(p.loss)), free, None, p, code())


def rows(a: Asked, cells: list[Cell], over: str) -> str:
    """The cells as text."""
    whole = spent(a, cells)
    lines = [(over, "parameters", "FLOPs a run", "steps", "epochs", "share")]
    for c in cells:
        flops = c.size.flops * a.batch * c.steps
        epochs = a.batch * c.steps / a.examples
        lines.append(
            (str(c.size.size), f"{c.size.params:,}", f"{flops:.3g}", f"{c.steps:,}", f"{epochs:.2g}", f"{a.seeds * flops / whole:.1%}")
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(v.rjust(w) for v, w in zip(line, widths, strict=True)) for line in lines)


def notes(a: Asked, cells: list[Cell], sizes: Sizes, prior: Prior, kind: str) -> list[str]:
    """What is to be known of a design: sizes that were left out, and budgets whose best lies beyond theirs."""
    said, groups = [], max(c.group for c in cells) + 1
    if len(cells) < a.points:
        said.append(
            f"{len(cells)} points of {a.points}: the rest makes no whole budget, or has under {a.steps} steps or over {a.epochs:g} epochs"
        )
    for g in range(groups if kind == "isoflop" else 0):
        mine = [c for c in cells if c.group == g]
        flops = mine[0].size.flops * a.batch * mine[0].steps
        best = sizes.known[_best(sizes, prior, flops, a.batch, a.steps)]
        if not mine[0].size.params < best.params < mine[-1].size.params:
            said.append(f"budget {flops:.3g}: the prior's best has {best.params:,} parameters, and is at the edge of its sizes or beyond")
    return said


def ladder(
    experiment: Experiment,
    asked: Asked,
    kind: str,
    over: str,
    prior: Path | None,
    noise: float,
    lr: float | None,
    out: Path,
) -> str:
    """Write the experiment file of a design to `out`; returns what it holds and the intervals to expect.

    Args:
      prior: study whose law of N and D is the prior; published exponents where None.
      noise: of one run's loss, relative. lr: in place of the experiment's own.
    """
    config = experiment.config.to_dict()
    if lr is not None:
        config["optim"]["lr"] = lr
    sizes, own, examples = counted(config, over)
    asked = asked._replace(batch=config["train"]["batch"], examples=examples)
    asked = asked._replace(steps=max(asked.steps, 2 * config["optim"]["warmup"]))  # half of a run at most is warm-up
    known = None if prior is None else of_study(prior, config["parametrization"]["name"])
    cells, law = design(kind, asked, sizes, lambda flops: known or published(own, flops))
    told = expected(asked, cells, law, noise).told()
    config = {k: v for k, v in config.items() if k != "run"}
    config["train"]["steps"] = max(c.steps for c in cells)
    whole = spent(asked, cells)
    said = [
        f"{kind}: {len(cells)} sizes and horizons, {asked.seeds} seed{'s' * (asked.seeds > 1)} each, {whole:.4g} of {asked.budget:.4g} training FLOPs",
        f"optim.lr = {config['optim']['lr']:.4g}: {target.by_rule('optim.lr', config, {over: 0, 'train.steps': 0})}",
        f"batch {asked.batch} at every size and horizon",
        *notes(asked, cells, sizes, law, kind),
    ]
    ahead = [f"{k} {v:.4g}: {low:.4g} to {high:.4g}, {high - low:.2g} wide" for k, (v, (low, high)) in told.items()]
    wide = [f"{LEVEL:.0%} intervals to expect, with {noise:.2%} of noise a run; prior: {law.source}", *(f"  {line}" for line in ahead)]
    body = "\n".join(f"    ({c.size.size}, {c.steps}),  # {c.size.flops * asked.batch * c.steps:.3g} FLOPs" for c in cells)
    swept = f'def sweep():\n    for size, steps in CELLS:\n        for seed in range({asked.seeds}):\n            yield {{"{over}": size, "train.steps": steps, "seed": seed}}'
    question = f"What law of size, data and FLOPs does the loss of {config['model']['name']} on {config['data']['name']} follow?"
    rules = [*said, "; ".join([wide[0], *ahead])]
    written.save(out, written.experiment(question, "lab ladder", rules, config, f"CELLS = (  # {over}, train.steps\n{body}\n)", swept))
    return "\n".join([rows(asked, cells, over), "", *said, *wide, f"experiment: {out}"])
