"""Laws of a bounded score (a skill, an accuracy) against log compute and against loss, each with intervals; which of the two foretells larger budgets.

With chance the score of guessing, top the most there is and e the share of what lies between that is still missing,

    logistic   e = 1 / (1 + exp(u))        u = k (x - half)
    broken     e = (1 + exp(u))^-g         u = k (x - half) + log(2^(1/g) - 1)

in x = log FLOPs or x = -loss; half is where half is missing. The broken law is a smoothly broken power law with one break (Caballero et al., arXiv 2210.14891)
whose first segment is flat, at chance: beyond the break e falls as FLOPs^-(k g). With g = 1 it is the logistic law.

Scores are compared as arcsin(sqrt(score)), in which a share of so many samples has the same noise wherever it lies. Intervals are quantiles of refits to the
fitted law plus noise of what it leaves, whose size is drawn too. Without a rise that chance would show in one of a hundred tables there is no law.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from lab.errors import UserError, unknown
from lab.laws.fits import DRAWS, SPLITS, span
from lab.laws.points import budgets

FORMS = {"logistic": 2, "broken": 3}  # fitted parameters of each
PREDICTORS = ("compute", "loss")
MORE = 2  # points, and values of x, beyond the parameters
CHANCE = 0.01  # of a rise where there is none
NEAR = 1.1  # times the least error in foretelling: as good
STEEP, TAIL = (0.05, 60.0), (0.05, 20.0)  # bounds of k, a standard deviation of x, and of g
FAR = 12.0  # standard deviations of x from their mean: bound of half
ROUNDS = 80


class Table(NamedTuple):
    """Sizes and horizons of one arm, each with the mean over its runs."""

    flops: np.ndarray  # [cells]
    loss: np.ndarray  # [cells]
    score: np.ndarray  # [cells] in [0, 1]
    count: np.ndarray  # [cells] runs
    chance: float
    top: float

    def take(self, mask: np.ndarray) -> "Table":
        """The cells of a mask."""
        return self._replace(**{k: getattr(self, k)[mask] for k in ("flops", "loss", "score", "count")})

    @property
    def best(self) -> np.ndarray:
        """[cells] whether it has the least loss of its budget."""
        at = budgets(self.flops)
        return np.array([self.loss[i] == self.loss[at == at[i]].min() for i in range(len(at))])

    def of(self, predictor: str) -> "Table":
        """What a law against the predictor is fitted to: all cells by their loss, and of compute the best of each budget."""
        return self.take(self.best) if predictor == "compute" else self

    def x(self, predictor: str) -> np.ndarray:
        """[cells] in which the score rises."""
        return np.log(self.flops) if predictor == "compute" else -self.loss


class Law(NamedTuple):
    """A fitted law of a score."""

    predictor: str
    form: str
    value: np.ndarray  # [2 or 3] half (standard deviations from the mean), log k, log g
    draws: np.ndarray  # [draws, 2 or 3]
    centre: float
    scale: float
    sd: float  # of arcsin(sqrt(score)) of one cell of weight 1
    freedom: int
    table: Table

    def _angles(self, p: np.ndarray, x: np.ndarray) -> np.ndarray:
        return angles(p, (x - self.centre) / self.scale, self.table.chance, self.table.top)

    def score(self, x: np.ndarray | float) -> np.ndarray:
        """[points] by the law, at log FLOPs or -loss."""
        return np.sin(self._angles(self.value[None], np.atleast_1d(np.asarray(x, float)))[0]) ** 2

    def scores(self, x: np.ndarray | float, seed: int | None = None) -> np.ndarray:
        """[draws, points] of every draw, x [points] or [draws, points]; with a seed, of one run: with what the law leaves of a cell."""
        z = self._angles(self.draws, np.atleast_1d(np.asarray(x, float)))
        if seed is not None:
            z = z + self.sd * np.random.default_rng(seed).standard_t(self.freedom, size=z.shape)
        return np.sin(np.clip(z, 0, np.pi / 2)) ** 2

    @property
    def half(self) -> np.ndarray:
        """[1 + draws] x at which half is missing, of the law and of every draw."""
        return self.centre + self.scale * np.concatenate([self.value[:1], self.draws[:, 0]])

    @property
    def left(self) -> float:
        """Root mean square distance of the cells from the law, in score."""
        return float(np.sqrt(np.mean((self.score(self.table.x(self.predictor)) - self.table.score) ** 2)))


def angles(p: np.ndarray, x: np.ndarray, chance: float, top: float) -> np.ndarray:
    """[replicates, points] arcsin(sqrt(score)) of laws p [replicates, 2 or 3] at x [points] or [replicates, points]."""
    return _angles(p, x, chance, top)[0]


def _angles(p: np.ndarray, x: np.ndarray, chance: float, top: float) -> tuple[np.ndarray, np.ndarray]:
    """`angles`, and their derivatives [replicates, 2 or 3, points] by half, log k and log g."""
    k, g = np.exp(p[:, 1:2]), np.exp(p[:, 2:3]) if p.shape[1] == 3 else np.ones((len(p), 1))
    rise, ratio = k * (x - p[:, :1]), np.log(2) / g
    u = rise + np.log(np.expm1(ratio))
    over = np.logaddexp(0, u)
    missing = (top - chance) * np.exp(-g * over)
    score, rest = np.maximum(top - missing, 0), 1 - top + missing
    by_u = g * np.exp(u - over)  # what lowers log(missing)
    moved = [-k * by_u, rise * by_u]
    if p.shape[1] == 3:
        moved.append(g * over + by_u * ratio / np.expm1(-ratio))
    slope = missing / (2 * np.sqrt(np.maximum(score * rest, 1e-12)))
    return np.arctan2(np.sqrt(score), np.sqrt(rest)), np.stack(moved, 1) * slope[:, None]


def rising(x: np.ndarray, z: np.ndarray, weight: np.ndarray) -> float:
    """Chance of a rise of z in x as steep as this where there is none: Student's test of the slope, one-sided."""
    x, mean = x - np.average(x, weights=weight), np.average(z, weights=weight)
    square = weight @ x**2
    slope = weight @ (x * z) / square
    if np.ptp(z) < 1e-12:
        return 1.0  # all alike: what is left of them is rounding
    rest = weight @ (z - mean - slope * x) ** 2 / (len(x) - 2)
    return float(student.sf(slope * np.sqrt(square / max(rest, 1e-300)), len(x) - 2))


def refusal(table: Table, predictor: str, form: str = "logistic") -> str | None:
    """Why a table tells no law of this form against this predictor; None where it does."""
    t, name = table.of(predictor), {"compute": "budgets", "loss": "sizes and horizons"}[predictor]
    many, wanted = len(np.unique(t.x(predictor))), FORMS[form] + MORE
    if many < wanted:
        return f"a {form} law against {predictor} needs {wanted} {name}, and there {'is' if many == 1 else 'are'} {many}"
    if (p := rising(t.x(predictor), np.arcsin(np.sqrt(t.score)), t.count)) > CHANCE:
        return f"the score does not rise with {'compute' if predictor == 'compute' else 'falling loss'} beyond chance (p = {p:.2g})"
    return None


def checked(table: Table) -> None:
    """UserError where the scores are none between 0 and 1, or chance lies not below the top."""
    if not 0 <= table.chance < table.top <= 1:
        raise UserError(f"chance {table.chance:g} and top {table.top:g} of a score must be 0 <= chance < top <= 1")
    if bad := [v for v in table.score if not 0 <= v <= 1]:
        raise UserError(f"a score of {bad[0]:.4g} is not within 0 and 1; a skill law is of a share, such as oracle")


def fit(table: Table, predictor: str, form: str = "logistic", draws: int = DRAWS, seed: int = 0) -> Law:
    """Fit a form to a table.

    Raises:
      UserError: the table tells no such law.
    """
    for what, name, names in (("form of a skill law", form, FORMS), ("predictor", predictor, PREDICTORS)):
        if name not in names:
            raise unknown(what, name, names)
    checked(table)
    if why := refusal(table, predictor, form):
        raise UserError(why)
    t, rng = table.of(predictor), np.random.default_rng(seed)
    x, z, weight, free = t.x(predictor), np.arcsin(np.sqrt(t.score)), t.count / t.count.mean(), FORMS[form]
    centre, scale, freedom = float(x.mean()), float(x.std()), len(x) - free
    u = (x - centre) / scale
    value = _descend(_start(u, z, weight, free, t), u, z[None], weight, t)
    fitted = angles(value, u, t.chance, t.top)[0]
    sd = float(np.sqrt(weight @ (z - fitted) ** 2 / freedom))
    tail = np.sqrt(freedom / rng.chisquare(freedom, (draws, 1)))
    noisy = np.clip(fitted + tail * sd / np.sqrt(weight) * rng.normal(size=(draws, len(x))), 0, np.pi / 2)
    again = _descend(np.repeat(value, draws, 0), u, noisy, weight, t)
    return Law(predictor, form, value[0], again, centre, scale, sd, freedom, t)


def _bounds(free: int) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.array([far, np.log(k), np.log(g)])[:free] for far, k, g in zip((-FAR, FAR), STEEP, TAIL, strict=True))


def _start(x: np.ndarray, z: np.ndarray, weight: np.ndarray, free: int, t: Table) -> np.ndarray:
    """[1, free] the best of a grid."""
    low, high = _bounds(free)
    axes = [np.linspace(a, b, n) for a, b, n in zip(low, high, (49, 25, 9), strict=False)]
    grid = np.stack([v.ravel() for v in np.meshgrid(*axes)], 1)
    return grid[[np.argmin((weight * (angles(grid, x, t.chance, t.top) - z) ** 2).sum(1))]]


def _descend(p: np.ndarray, x: np.ndarray, z: np.ndarray, weight: np.ndarray, t: Table) -> np.ndarray:
    """Levenberg-Marquardt within bounds, all replicates at once; those that are done drop out."""
    low, high = _bounds(p.shape[1])
    out, live, damp, eye = p.copy(), np.arange(len(p)), np.full(len(p), 1e-3), np.eye(p.shape[1])
    there, jacobian = _angles(p, x, t.chance, t.top)
    rest = there - z
    cost = (weight * rest**2).sum(1)
    for _ in range(ROUNDS):
        slope = (jacobian * (weight * rest)[:, None]).sum(-1)
        curve = (jacobian * weight) @ jacobian.transpose(0, 2, 1)
        frozen = ((p <= low) & (slope > 0)) | ((p >= high) & (slope < 0))
        curve = curve + (damp[:, None] * np.einsum("rii->ri", curve) + 1e-12)[..., None] * eye
        curve = np.where(frozen[:, :, None] | frozen[:, None, :], eye, curve)
        tried = np.clip(p - np.linalg.solve(curve, np.where(frozen, 0, slope)[..., None])[..., 0], low, high)
        there, moved = _angles(tried, x, t.chance, t.top)
        new = there - z[live]
        lower = (weight * new**2).sum(1)
        better = lower <= cost
        keep = (abs(cost - lower) > 1e-8 * cost + 1e-300) & (damp < 1e10)
        p, rest, cost = np.where(better[:, None], tried, p), np.where(better[:, None], new, rest), np.where(better, lower, cost)
        jacobian, damp = np.where(better[:, None, None], moved, jacobian), np.clip(np.where(better, damp / 5, damp * 4), 1e-12, 1e12)
        out[live] = p
        if not keep.any():
            break
        live, p, rest, cost, jacobian, damp = (v[keep] for v in (live, p, rest, cost, jacobian, damp))
    return out


class Foretold(NamedTuple):
    """How a law foretold the best of larger budgets by fits to the smaller ones; against loss, given the loss that they came to."""

    predictor: str
    form: str
    error: float  # root mean square, of score
    covered: float  # share within the 90% interval of one run
    splits: int


def splits(table: Table, predictor: str, form: str) -> list[int]:
    """Numbers of smallest budgets that tell such a law, and leave larger ones."""
    at = budgets(table.flops)
    return [n for n in range(1, at.max() + 1) if refusal(table.take(at < n), predictor, form) is None]


def foretell(table: Table, predictor: str, form: str, over: list[int]) -> Foretold:
    """Fit the smaller budgets and predict the best of all larger ones, for each of `over` numbers of smaller ones."""
    at, best, errors, covered = budgets(table.flops), table.best, [], []
    for n in over:
        law, large = fit(table.take(at < n), predictor, form, draws=200), table.take((at >= n) & best)
        x = large.x(predictor)
        low, high = np.quantile(law.scores(x, seed=1), [0.05, 0.95], axis=0)
        errors.append(law.score(x) - large.score)
        covered.append((low <= large.score) & (large.score <= high))
    return Foretold(
        predictor, form, float(np.sqrt(np.mean(np.concatenate(errors) ** 2))), float(np.mean(np.concatenate(covered))), len(over)
    )


class Laws(NamedTuple):
    """What a table tells of a score: of each predictor the form to go by first."""

    fits: dict[str, tuple[Law, ...]]  # predictor -> laws
    told: tuple[Foretold, ...]  # of each law that could be held against larger budgets, on the same splits
    refused: tuple[str, ...]

    @property
    def better(self) -> str:
        """The predictor whose first law foretold larger budgets with less error; '' where there are too few splits, or they are alike."""
        errors = {p: t.error for p, laws in self.fits.items() for t in self.told if (t.predictor, t.form) == (p, laws[0].form)}
        if len(errors) < 2 or min(t.splits for t in self.told) < SPLITS:
            return ""
        least = min(errors, key=errors.get)
        return least if all(v > NEAR * errors[least] for p, v in errors.items() if p != least) else ""


def laws(table: Table) -> Laws:
    """Fit all laws that a table tells. Of each predictor the form that foretold larger budgets best goes first, the logistic where they are alike.

    With fewer than three splits, which chance decides, it is the one with most parameters, whose interval has the other's within it.

    Raises:
      UserError: the table tells none.
    """
    checked(table)
    refused = {(p, f): why for p in PREDICTORS for f in FORMS if (why := refusal(table, p, f))}
    able = [(p, f) for p in PREDICTORS for f in FORMS if (p, f) not in refused]
    if not able:
        raise UserError("; ".join(dict.fromkeys(refused[p, "logistic"] for p in PREDICTORS)))
    over = {key: s for key in able if (s := splits(table, *key))}
    shared = sorted(set.intersection(*map(set, over.values()))) if over else []
    told = [foretell(table, *key, shared) for key in over] if shared else []
    found = {}
    for p in PREDICTORS:
        forms = [f for q, f in able if q == p]
        errors = {t.form: t.error for t in told if t.predictor == p}
        if len(shared) < SPLITS or len(errors) < len(forms):
            order = forms[::-1]
        else:
            first = next(f for f in forms if errors[f] <= NEAR * min(errors.values()))
            order = sorted(forms, key=lambda f: f != first)
        if order:
            found[p] = tuple(fit(table, p, f) for f in order)
    return Laws(found, tuple(told), tuple(dict.fromkeys(refused.values())))


def ahead(told: Laws, flops: float, losses: np.ndarray | None) -> dict[str, dict[str, tuple[float, tuple, tuple]]]:
    """Predictor -> form -> score at a target, and the intervals at 50 and 90%.

    Args:
      losses: [1 + draws] that the law of loss foretells there, itself first; None where none does.
    """
    out = {}
    for predictor, found in told.fits.items():
        if predictor == "loss" and losses is None:
            continue
        for law in found:
            if predictor == "compute":
                value, draws = law.score(np.log(flops))[0], law.scores(np.log(flops))[:, 0]
            else:  # the draws of two fits are independent
                value, draws = law.score(-losses[0])[0], law.scores(-np.resize(losses[1:], len(law.draws))[:, None])[:, 0]
            out.setdefault(predictor, {})[law.form] = float(value), span(draws, 0.5), span(draws, 0.9)
    return out
