"""What a budget of FLOPs will buy: loss, compute-optimal size and data, the price of another size, and how far forms of law disagree."""

from typing import NamedTuple

import numpy as np

from lab.errors import UserError
from lab.laws import epochs
from lab.laws.allocation import best, price
from lab.laws.epochs import Limited, Repeats
from lab.laws.fits import DRAWN, Fit, Foretold, choose, fit, foretell, one_run, refusal, span
from lab.laws.points import Points, budgets

LEVELS = (0.5, 0.9)
WRONG = (0.25, 0.5, 2.0, 4.0)  # times the best size
COMPUTE = ("L(C) without a floor", "L(C)")
SCARCE = 15  # points of a law of N and D, up to which forecasts draw its exponents to published ones
FEW, HALF = 3, 0.5  # forecasts of larger budgets from which a law of compute may go before that of N and D, and its error over that one's
Spans = tuple[tuple[float, float], ...]  # intervals at LEVELS


class Laws(NamedTuple):
    """The laws that points tell: the one to go by first, the others to see how far forms disagree."""

    fits: tuple[Fit, ...]
    told: tuple[Foretold, ...]  # how forms foretold larger budgets; none where none could be held out
    refused: tuple[str, ...]  # forms the points do not tell, and why
    why: str = ""  # a law of compute goes before that of N and D
    repeats: Repeats | None = None  # the law of N, D and U, where the points tell one
    near: Fit | None = None  # the law of N and D whose exponents are drawn to published ones, of few points

    def limited(self, unique: float | np.ndarray | None = None) -> Limited | None:
        """The law by which forecasts go where repeats count less than new examples; `unique` distinct ones are to be had, as many as the points' if not told."""
        if self.repeats is None or not self.repeats.less:
            return None
        return Limited(self.repeats, self.repeats.points.unique.max() if unique is None else unique)

    def first(self, unique: float | np.ndarray | None = None) -> Fit | Limited:
        """The law that forecasts of a budget go by."""
        drawn = self.near if self.fits[0].form == "L(N, D)" else None
        return self.limited(unique) or drawn or self.fits[0]

    def of_sizes(self, unique: float | None = None) -> Fit | Limited | None:
        """The law that forecasts of a given size and horizon go by."""
        return self.limited(unique) or self.near or self.sizes

    @property
    def sizes(self) -> Fit | None:
        """The law of N and D, which alone knows sizes."""
        return next((f for f in self.fits if len(f.variables) == 2), None)


def frontier(p: Points) -> Points:
    """The cell of least loss at every budget: what a law of compute alone is of."""
    at = budgets(p.flops)
    keep = np.zeros(len(at), bool)
    for b in range(at.max() + 1):
        mine = np.flatnonzero(at == b)
        keep[mine[np.argmin(p.loss[mine])]] = True
    left = f"{(~keep).sum()} of {len(keep)} sizes and horizons that are not the best of their budget" if not keep.all() else ""
    return p.take(keep, left)


def laws(p: Points, floor: float | None = None) -> Laws:
    """Fit the law of N and D where the points tell one, and laws of compute through the best of each budget.

    The law of N and D goes first, for it uses all points, unless a law of compute foretold the best of larger budgets twice as well; among
    laws of compute the one that foretells them best. Where examples repeat the law of N, D and U is fitted, too; if they count less than new
    ones, forecasts go by it.

    Raises:
      UserError: the points tell no law.
    """
    best_of, refused, found, told = frontier(p), [], [], []
    if why := refusal(p, "L(N, D)", floor):
        refused.append(why)
    else:
        found.append(fit(p, "L(N, D)", floor))
        told += [t for t in (foretell(p, "L(N, D)", floor),) if t is not None]
    given = {"L(C)": floor}
    able = [n for n in COMPUTE if not (why := refusal(best_of, n, given.get(n))) or refused.append(why)]
    if not found and not able:
        raise UserError(refused[0] if len(set(refused)) == 1 else "; ".join(dict.fromkeys(refused)))
    if able:
        chosen, held = choose(best_of, tuple(able), floor)
        told += held
        by_compute = [fit(best_of, n, given.get(n)) for n in sorted(able, key=lambda n: n != chosen)]
        first, why = _before(p, best_of, able, floor) if found else ("", "")
        found = sorted([*found, *by_compute], key=lambda f: f.form != first)  # stable: the rest as they were
    repeats = None if not found or epochs.refused(p, floor) else epochs.fit(p, floor)
    near = fit(p, DRAWN, floor) if found and len(p.loss) <= SCARCE and not refusal(p, DRAWN, floor) else None
    return Laws(tuple(found), tuple(told), tuple(refused), why, repeats, near)


def _before(p: Points, best_of: Points, able: list[str], floor: float | None) -> tuple[str, str]:
    """The law of compute that foretold the best of larger budgets with less than HALF of the error of that of N and D by which forecasts go, on the same splits, and how; '' where none."""
    at, top = budgets(p.flops), budgets(best_of.flops)
    both = DRAWN if len(p.loss) <= SCARCE else "L(N, D)"

    def errors(form: str, n: int) -> np.ndarray | None:
        few, given = (p.take(at < n), floor) if form == both else (best_of.take(top < n), floor if form == "L(C)" else None)
        if refusal(few, form, given):
            return None
        large = best_of.take(top >= n)
        law = fit(few, form, given, draws=2)
        return np.log(law.loss(**{v: getattr(large, v) for v in law.variables}) / large.loss)

    sizes = {n: e for n in range(2, top.max() + 1) if (e := errors(both, n)) is not None}
    found = []
    for form in able:
        pairs = [(mine, e) for n, e in sizes.items() if (mine := errors(form, n)) is not None]
        if sum(len(e) for _, e in pairs) >= FEW:
            mine, other = (float(np.sqrt(np.mean(np.concatenate(v) ** 2))) for v in zip(*pairs, strict=True))
            said = f"{form} goes first, as it foretold the best of larger budgets to {mine:.2%} and {both} to {other:.2%} (root mean square, {len(pairs)} splits)"
            found.append((mine / other, form, said))
    ratio, form, said = min(found, default=(np.inf, "", ""))
    return (form, said) if ratio < HALF else ("", "")


class Forecast(NamedTuple):
    """What is foretold of a budget by the first of some laws; sizes are NaN where no law of N and D is told."""

    flops: float
    beyond: float  # times the largest budget that was fitted
    loss: float
    law: Spans  # of the law's loss
    run: Spans  # of one run's loss
    params: float
    params_spans: Spans
    examples: float
    examples_spans: Spans
    wrong: dict[float, tuple[float, Spans]]  # times the best size -> relative loss more than at it, at the same FLOPs
    forms: dict[str, tuple[float, Spans]]  # form -> its own forecast


def _spans(draws: np.ndarray) -> Spans:
    return tuple(span(draws, level) for level in LEVELS)


def forecast(told: Laws, flops: float, unique: float | None = None) -> Forecast:
    """Forecast of one budget; the size is that which the fitted law holds best, and every draw is asked what it loses there.

    Args:
      unique: distinct examples that there are, by default as many as the points have; of account where the points refute that repeats count as new.
    """
    forms, size, first = {}, np.nan, told.first(unique)
    every = (first, *(f for f in told.fits if f.form != first.form))
    for f in every:
        where = at_best(f, flops)
        if not where:
            continue
        if len(f.variables) == 2 and not np.isfinite(size):
            size = where["params"]
        forms[f.form] = float(f.loss(**where)[0]), _spans(f.losses(**where)[:, 0]), _spans(one_run(f, **where)[:, 0])
    if first.form not in forms:  # a term that is nothing leaves no best size
        raise UserError(f"{first.form} has a term of zero, so no size is best; its runs do not span enough sizes or horizons")
    loss, law, run = forms[first.form]
    most = float(first.points.flops.max())
    shown = {k: v[:2] for k, v in forms.items()}
    if not np.isfinite(size):
        nothing = tuple((np.nan, np.nan) for _ in LEVELS)
        return Forecast(flops, flops / most, loss, law, run, np.nan, nothing, np.nan, nothing, {}, shown)
    law_of = first if len(first.variables) == 2 else told.sizes
    cost = price(law_of.points)
    logs = _best(law_of, flops)[1]
    spent = cost.examples(flops, logs)
    data, wrong = float(np.exp(cost.examples(flops, np.log(size)))), {}
    at = law_of.losses(params=size, examples=data)[:, 0]
    for k in WRONG:
        other = {"params": size * k, "examples": float(np.exp(cost.examples(flops, np.log(size * k))))}
        wrong[k] = float(law_of.loss(**other)[0]) / forms[law_of.form][0] - 1, _spans(law_of.losses(**other)[:, 0] / at - 1)
    sizes, examples = (tuple((float(np.exp(a)), float(np.exp(b))) for a, b in _spans(v)) for v in (logs, spent))
    return Forecast(flops, flops / most, loss, law, run, size, sizes, data, examples, wrong, shown)


def _best(f: Fit | Limited, flops: float) -> tuple[float, np.ndarray]:
    """Log of the best size of a budget, and of every draw [draws]."""
    cost = price(f.points)
    if isinstance(f, Limited):
        return f.best(cost, flops)
    return float(best(f.value[None], f.centre, cost, flops)[0, 0]), best(f.draws, f.centre, cost, flops)[:, 0]


def at_best(f: Fit | Limited, flops: float) -> dict[str, float]:
    """The variables of a law at the size that it holds best for a budget; empty where a term that is nothing leaves no best size."""
    if len(f.variables) == 1:
        return {"flops": flops}
    log = _best(f, flops)[0]
    return {"params": float(np.exp(log)), "examples": float(np.exp(price(f.points).examples(flops, log)))} if np.isfinite(log) else {}


class Sized(NamedTuple):
    """What is foretold of a run of given size and horizon, beside the best allocation of its FLOPs."""

    params: float
    examples: float
    beyond: tuple[float, float, float]  # times the most FLOPs, parameters and examples that were fitted
    loss: float
    law: Spans
    run: Spans
    price: float  # relative loss more than at the best size of the same FLOPs
    price_spans: Spans
    best: Forecast


def sized(told: Laws, flops: float, params: float, examples: float, unique: float | None = None) -> Sized:
    """Forecast of a run of `params` and `examples` that takes `flops`; every draw is asked what it loses against the size that the law holds best.

    Raises:
      UserError: the points tell no law of N and D, which alone knows sizes.
    """
    f = told.of_sizes(unique)
    if f is None:
        raise UserError(
            f"a law of compute alone foretells no given size, but a budget at its best: --flops={flops:.3g} ({told.refused[0]})"
        )
    p, here, ideal = f.points, {"params": params, "examples": examples}, forecast(told, flops, unique)
    there = {"params": ideal.params, "examples": ideal.examples}
    loss, draws = float(f.loss(**here)[0]), f.losses(**here)[:, 0]
    beyond = tuple(float(v / w.max()) for v, w in ((flops, p.flops), (params, p.params), (examples, p.examples)))
    more = _spans(draws / f.losses(**there)[:, 0] - 1)
    return Sized(
        params, examples, beyond, loss, _spans(draws), _spans(one_run(f, **here)[:, 0]), loss / float(f.loss(**there)[0]) - 1, more, ideal
    )
