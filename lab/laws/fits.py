"""Laws of loss with intervals: L(C), L(N) or L(D) with a floor and without, and L(N, D) = E + A N^-a + B D^-b (Hoffmann et al., arXiv 2203.15556).

Points are fitted in log residuals (lab/laws/solve.py). Intervals are quantiles of refits to the fitted law plus noise: of what the law leaves, whose
size is drawn too (Student's tails: few points know it badly), and of seeds' own levels, which all runs of a seed share. A form is chosen by what it
foretells of larger rungs than it saw, never by how well it fits.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import f as fisher

from lab.errors import UserError, unknown
from lab.laws.points import Points, budgets, code
from lab.laws.solve import LEAST, MOST, losses, solve

LEVEL = 0.9
DRAWS = 1000
DELTA = 1e-3  # of Huber's loss (arXiv 2203.15556)
SPLITS = 3  # fewer decide nothing between forms
NEAR = (
    0.3,
    0.2,
)  # mean and spread of published exponents: of N and D 0.34, 0.28 and 0.35, 0.37 (language), of C 0.10 to 0.19 (images), about half of those
LINED = 0.02  # least spread of log D about its line in log N: below, N and D are one variable


class Form(NamedTuple):
    """What a loss is a law of, and whether it has a floor."""

    variables: tuple[str, ...]
    floor: bool
    near: bool = False  # exponents are drawn to NEAR, as by a normal prior

    @property
    def free(self) -> int:
        """How many parameters are fitted."""
        return 2 * len(self.variables) + self.floor


FORMS = {
    "L(C) without a floor": Form(("flops",), False),
    "L(C)": Form(("flops",), True),
    "L(N)": Form(("params",), True),
    "L(D)": Form(("examples",), True),
    "L(N, D)": Form(("params", "examples"), True),
    (DRAWN := f"L(N, D) near {NEAR[0]:g}"): Form(("params", "examples"), True, True),
}


class Fit(NamedTuple):
    """A fitted law with draws of what else it may be, and what it was made of."""

    form: str
    value: np.ndarray  # [1 + 2k] floor, scales at the centre, exponents
    draws: np.ndarray  # [draws, 1 + 2k]
    centre: np.ndarray  # [k] logarithms of where scales are what they are
    sd: float  # relative: what the law leaves of one cell of weight 1
    weight: np.ndarray  # [cells]
    freedom: int  # with which it is known
    floor: float | None  # the floor that was given
    points: Points
    code: str

    @property
    def variables(self) -> tuple[str, ...]:
        """What it is a law of."""
        return FORMS[self.form].variables

    @property
    def exponents(self) -> np.ndarray:
        """[k]"""
        return self.value[1 + len(self.centre) :]

    @property
    def scales(self) -> np.ndarray:
        """[k] in loss = floor + sum scale variable^-exponent."""
        k = len(self.centre)
        return self.value[1 : 1 + k] * np.exp(self.exponents * self.centre)

    def at(self, **where: np.ndarray | float) -> np.ndarray:
        """[points, k] centred logarithms of the law's variables, as `losses` takes them."""
        return np.stack([np.log(np.atleast_1d(np.asarray(where[v], float))) for v in self.variables], 1) - self.centre

    def loss(self, **where: np.ndarray | float) -> np.ndarray:
        """Loss at values of the law's variables."""
        return losses(self.value[None], self.at(**where))[0]

    def losses(self, **where: np.ndarray | float) -> np.ndarray:
        """[draws, points] loss of every draw."""
        return losses(self.draws, self.at(**where))

    def interval(self, index: int, level: float = LEVEL) -> tuple[float, float]:
        """Of parameter `index`: 0 the floor, then scales at the centre, then exponents."""
        return span(self.draws[:, index], level)


def span(draws: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The central interval of draws."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def refusal(p: Points, form: str, floor: float | None = None) -> str | None:
    """Why these points do not tell a law of this form; None where they do."""
    f = FORMS[form]
    free = f.free - (f.floor and floor is not None)
    for v in f.variables:
        x = getattr(p, v)
        if not np.isfinite(x).all():
            return f"{form} needs the column {v!r}"
        rungs, least = len(np.unique(x)), 3 if f.floor and floor is None and len(f.variables) == 1 else 2
        if rungs == 1:
            return f"{form} needs several values of {v}, and there is one ({x[0]:g})"
        if rungs <= least:
            return f"{form} needs {least + 1} values of {v}, and there are {rungs}"
    if len(p.loss) <= free:
        return f"{form} has {free} parameters, and there are {len(p.loss)} points: nothing is left to tell the error"
    if len(f.variables) == 2:
        x, y = np.log(p.params), np.log(p.examples)
        left = y - np.polyval(np.polyfit(x, y, 1), x)
        if left.std() < LINED:
            return f"{form} needs sizes at several horizons each, and examples here are one power of params: N and D are not told apart"
    if floor is not None and floor >= p.loss.min():
        return f"the floor of {floor:g} is not below the least loss of {p.loss.min():g}"
    return None


def fit(
    p: Points,
    form: str = "L(N, D)",
    floor: float | None = None,
    method: str = "squares",
    draws: int = DRAWS,
    seed: int = 0,
    start: np.ndarray | None = None,
) -> Fit:
    """Fit a form to points.

    Args:
      floor: where it is known.
      method: 'squares' of log residuals, or 'huber' (delta 1e-3), which one bad point moves little.
      start: a law of the same points under another weighting, to descend from.

    Raises:
      UserError: the points do not tell such a law.
    """
    if form not in FORMS:
        raise unknown("form of a law", form, FORMS)
    if method not in ("squares", "huber"):
        raise unknown("method", method, ("squares", "huber"))
    if why := refusal(p, form, floor):
        raise UserError(why)
    f, delta, prior = FORMS[form], DELTA if method == "huber" else None, None
    if f.near and delta:
        raise UserError(f"{form} is fitted by squares, and method 'huber' was given")
    held = {0: 0.0 if not f.floor else floor} if floor is not None or not f.floor else {}
    log = np.stack([np.log(getattr(p, v)) for v in f.variables], 1)
    centre = log.mean(0)
    x, weight, free = log - centre, np.ones(len(p.loss)), f.free - len(held) * f.floor
    value = solve(x, p.loss, weight, start, held, delta)
    if np.isfinite(p.noise) and np.ptp(p.count):  # cells of more runs know more, up to what the form itself leaves
        for _ in range(2):
            weight = _weight(p, np.log(p.loss / losses(value, x)[0]), weight, free)
            value = solve(x, p.loss, weight, value, held, delta)
    left = len(p.loss) - free
    sd = float(np.sqrt(weight @ np.log(p.loss / losses(value, x)[0]) ** 2 / left))
    if f.near:
        pull = (sd / NEAR[1]) ** 2
        value = solve(x, p.loss, weight, value, held, delta, (np.full((1, 2), NEAR[0]), np.full((1, 1), pull)))
        sd = float(np.sqrt(weight @ np.log(p.loss / losses(value, x)[0]) ** 2 / left))
        tails = left / np.random.default_rng(seed).chisquare(
            left, (draws, 1)
        )  # the very ones of `noises`: a replicate of more noise leans more on it
        prior = value[:, 3:] + NEAR[1] * np.random.default_rng([seed, 1]).normal(size=(draws, 2)), pull * tails
    out = Fit(form, value[0], value, centre, sd, weight, left, floor, p, code())
    return out._replace(draws=solve(x, replicates(out, draws, seed), weight, value, held, delta, prior))


def replicates(f: Fit, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """[draws, cells] losses that the fitted law and the noise might have given: those that the fit's draws were fitted to."""
    fitted = losses(f.value[None], f.at(**{v: getattr(f.points, v) for v in f.variables}))[0]
    return fitted * np.exp(noises(f.points, f.sd / np.sqrt(f.weight), f.freedom, draws, seed))


def noises(p: Points, sd: float | np.ndarray, freedom: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """[draws, cells] log residuals that there might have been: of what a law leaves, `sd` of a cell known with `freedom`, and of seeds' own levels."""
    rng = np.random.default_rng(seed)
    tail = np.sqrt(freedom / rng.chisquare(freedom, (draws, 1)))
    noise = tail * sd * rng.normal(size=(draws, len(p.loss)))
    if p.offset:  # as few seeds tell it
        free = p.runs.shape[1] - 1
        noise += p.offset * np.sqrt(free / rng.chisquare(free, (draws, 1))) * rng.normal(size=(draws, free + 1)) @ p.runs.T
    return noise


def _weight(p: Points, left: np.ndarray, weight: np.ndarray, free: int) -> np.ndarray:
    """1 / (what the form leaves^2 + noise^2 / runs), of mean 1; what the form leaves is what the points' scatter has beyond their noise."""
    scatter = weight @ left**2 / (len(left) - free)
    form = max(scatter - p.noise**2 * np.mean(1 / p.count), 0.0)
    out = 1 / (form + p.noise**2 / p.count)
    return out / out.mean()


def bootstrap(f: Fit, draws: int = DRAWS, seed: int = 0, method: str = "squares") -> np.ndarray:
    """[draws, 1 + 2k] refits to points drawn with replacement: cells with many more points than parameters, whatever their noise."""
    p, rng = f.points, np.random.default_rng(seed)
    x = np.stack([np.log(getattr(p, v)) for v in f.variables], 1) - f.centre
    weight = rng.multinomial(len(x), np.full(len(x), 1 / len(x)), size=draws).astype(float)
    held = {0: f.floor or 0.0} if f.floor is not None or not FORMS[f.form].floor else {}
    return solve(x, p.loss, weight, f.value[None], held, DELTA if method == "huber" else None)


def cost_of_floor(p: Points, form: str, floor: float) -> float:
    """How many times as wide the interval of the (first) exponent is where the floor is fitted rather than given; infinite where it cannot be."""
    if refusal(p, form):
        return np.inf
    given, fitted = (fit(p, form, v) for v in (floor, None))
    index = 1 + len(given.centre)
    return float(np.ptp(fitted.interval(index)) / np.ptp(given.interval(index)))


class Foretold(NamedTuple):
    """How a form foretold budgets it had not seen, by fits to the smaller ones."""

    form: str
    error: float  # root mean square, relative
    covered: float  # share of larger cells within the 90% interval of one run
    splits: int


def splits(p: Points, form: str, floor: float | None = None) -> list[int]:
    """Numbers of smallest budgets that tell a law of this form, and leave larger ones to hold it against."""
    at = budgets(p.flops)
    return [n for n in range(1, at.max() + 1) if refusal(p.take(at < n), form, floor) is None]


def foretell(p: Points, form: str, floor: float | None = None, over: list[int] | None = None) -> Foretold | None:
    """Fit the smaller budgets and predict all larger ones, for each of `over` numbers of them (all that can be); None where none can."""
    at, errors, covered = budgets(p.flops), [], []
    over = splits(p, form, floor) if over is None else over
    for n in over:
        f, large = fit(p.take(at < n), form, floor, draws=200), p.take(at >= n)
        where = {v: getattr(large, v) for v in f.variables}
        told, one = f.loss(**where), one_run(f, **where)
        errors.append(np.log(told / large.loss))
        covered.append((np.quantile(one, 0.05, 0) <= large.loss) & (large.loss <= np.quantile(one, 0.95, 0)))
    if not over:
        return None
    return Foretold(form, float(np.sqrt(np.mean(np.concatenate(errors) ** 2))), float(np.mean(np.concatenate(covered))), len(over))


def one_run(f: Fit, seed: int = 1, **where: np.ndarray | float) -> np.ndarray:
    """[draws, points] loss that one more cell may have: the law's draws and what the law leaves of a cell."""
    told, rng = f.losses(**where), np.random.default_rng(seed)
    return told * np.exp(f.sd * rng.standard_t(f.freedom, size=told.shape))


def choose(p: Points, forms: tuple[str, ...], floor: float | None = None) -> tuple[str, list[Foretold]]:
    """The form that foretells larger budgets best, and what each did on the same splits; fewer parameters where that is within a tenth.

    With fewer than three splits, which chance decides, it is the form with most parameters, whose interval has the others' within it.

    Raises:
      UserError: no form can be fitted.
    """
    given = {n: floor if FORMS[n].floor else None for n in forms}
    able = sorted((n for n in forms if refusal(p, n, given[n]) is None), key=lambda n: FORMS[n].free)
    if not able:
        raise UserError(refusal(p, forms[0], given[forms[0]]))
    over = {n: s for n in able if (s := splits(p, n, given[n]))}
    shared = sorted(set.intersection(*map(set, over.values()))) if over else []
    told = [foretell(p, n, given[n], shared) for n in over] if shared else []
    if len(over) < len(able) or len(shared) < SPLITS:
        return able[-1], told
    best = min(t.error for t in told)
    return next(t.form for t in told if t.error <= 1.1 * best), told


def profile(f: Fit, index: int, level: float = LEVEL) -> tuple[float, float]:
    """Interval of parameter `index` by profile likelihood: where holding it costs no more squares than an F-test at `level` allows, all others refitted.

    It asks nothing of how estimates are distributed, so beside `interval` it tells how much that bootstrap can be believed; an end at a
    parameter's own bound is none. Seeds' own levels, which move the floor, are no part of it.

    Raises:
      UserError: the parameter was given.
    """
    k = len(f.centre)
    if index == 0 and (f.floor is not None or not FORMS[f.form].floor):
        raise UserError(f"the floor of {f.form} was not fitted, so nothing is to be profiled")
    p, held = f.points, {} if index == 0 or (FORMS[f.form].floor and f.floor is None) else {0: f.floor or 0.0}
    x = f.at(**{v: getattr(p, v) for v in f.variables})

    def over(values: np.ndarray) -> np.ndarray:
        """Signed root of the squares that each value costs, in those that the best leaves a degree of freedom."""
        start = np.repeat(f.value[None], len(values), 0)
        start[:, index] = values
        found = solve(x, np.tile(p.loss, (len(values), 1)), f.weight, start, held | {index: values})
        more = (np.log(p.loss / losses(found, x)) ** 2 @ f.weight) / f.sd**2 - f.freedom
        return np.sign(values - f.value[index]) * np.sqrt(np.maximum(more, 0.0))

    least, most = (0.0, np.inf) if index <= k else (LEAST, MOST)
    if index == 0:
        most = float(p.loss.min()) * (1 - 1e-9)
    reach, wide = fisher.ppf(level, 1, f.freedom) ** 0.5, f.draws[:, index].std() or 1e-3 * f.value[index]
    ends = []
    for side, bound in ((-1, least), (1, most)):
        steps = wide * np.geomspace(0.25, 64, 25)
        grid = np.clip(f.value[index] + side * steps, least, most)
        for _ in range(2):  # the second between the first's neighbours of the end
            far = abs(over(grid))
            if far.max() < reach:
                break
            at = int(np.argmax(far >= reach))
            before = grid[at - 1] if at else f.value[index]
            grid = np.linspace(before, grid[at], 9)
        ends.append(bound if far.max() < reach else float(np.interp(reach, np.maximum.accumulate(far), grid)))
    return ends[0], ends[1]
