"""Points to try, for an experiment's `sweep`: spread evenly at random, or proposed by what has been tried. No jax here.

A history is a list of {"point": ..., "seed": ..., "arm": ..., "state": "done", "stopped" or "diverged", "loss": ..., "step": ...}, a trial each:
the loss is that of its last evaluation, after `step` steps, and None where it diverged.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import qmc

from lab.errors import UserError, unknown

SAMPLERS = {"tpe": "TPESampler", "random": "RandomSampler"}  # Optuna's, by the names of their classes


class Interval(NamedTuple):
    """The values from `low` to `high`, even in their logarithm where `log`."""

    low: float
    high: float
    log: bool

    def at(self, u: float) -> float:
        """The value a share `u` of the way, to six digits: identities are hashes, and the last digit of a power is the machine's."""
        low, high = (np.log2(v) if self.log else v for v in (self.low, self.high))
        x = low + u * (high - low)
        return float(f"{2.0**x if self.log else x:.6g}")


class Choice(NamedTuple):
    """One of some values, each as likely."""

    values: tuple

    def at(self, u: float) -> Any:
        """The value whose share of [0, 1) holds `u`."""
        return self.values[min(int(u * len(self.values)), len(self.values) - 1)]


Space = dict[str, Interval | Choice]


def log(low: float, high: float) -> Interval:
    """Numbers from `low` to `high`, even in their logarithm."""
    if not 0 < low < high:
        raise UserError(f"search.log({low}, {high}): expected 0 < low < high")
    return Interval(float(low), float(high), True)


def linear(low: float, high: float) -> Interval:
    """Numbers from `low` to `high`."""
    if not low < high:
        raise UserError(f"search.linear({low}, {high}): expected low < high")
    return Interval(float(low), float(high), False)


def choice(*values: Any) -> Choice:
    """One of `values`."""
    if len(set(values)) < max(2, len(values)):
        raise UserError(f"search.choice{values}: expected two or more values, each once")
    return Choice(values)


def random(space: Space, n: int, seed: int = 0) -> list[dict[str, Any]]:
    """`n` points of a scrambled Sobol sequence (Owen, 1998); those of a smaller `n` come first, so that raising it adds points.

    They lie as if at random, but leave no gaps: every key alone is covered evenly, as a grid covers it, by n values in place of n^(1/keys).
    """
    if n < 1 or not space:
        raise UserError(f"search.random: n={n} points of {len(space)} keys; expected at least one of each")
    keys = sorted(space)
    unit = qmc.Sobol(len(keys), seed=seed).random_base2(max(0, int(n - 1).bit_length()))[:n]
    return [{k: space[k].at(u) for k, u in zip(keys, row, strict=True)} for row in unit]


class Tried(NamedTuple):
    """What became of one point of an arm, whatever its seeds."""

    arm: str
    values: dict[str, Any]
    state: str  # that of its worst seed
    loss: float | None  # mean over seeds
    step: int
    seeds: tuple[int, ...]


def tried(history: Iterable[dict], keys: Iterable[str] | None = None) -> list[Tried]:
    """The points of a history in the order they were tried, by arm and by their values of `keys` (default: all but the seed)."""
    keys, groups = None if keys is None else set(keys), {}
    for h in history:
        values = {k: v for k, v in h["point"].items() if (k in keys if keys is not None else k != "seed")}
        groups.setdefault((h["arm"], tuple(sorted(values.items(), key=lambda x: x[0]))), []).append(h)
    out = []
    for (arm, values), mine in groups.items():
        state = next(s for s in ("diverged", "stopped", "done") if any(h["state"] == s for h in mine))
        loss = None if state == "diverged" else float(np.mean([h["loss"] for h in mine]))
        out.append(Tried(arm, dict(values), state, loss, min(h["step"] for h in mine), tuple(sorted(h["seed"] for h in mine))))
    return out


def _inside(space: Space, values: dict[str, Any]) -> bool:
    """Whether a point has a value in the space of each of its keys."""
    return set(values) == set(space) and all(
        values[k] in s.values if isinstance(s, Choice) else s.low <= values[k] <= s.high for k, s in space.items()
    )


def propose(
    space: Space, history: Sequence[dict], each: int = 32, rounds: int = 4, sampler: str = "tpe", seed: int = 0
) -> list[dict[str, Any]]:
    """The next round of `each` points, by one of Optuna's samplers; after `rounds` of them none.

    The first round is `random`. A sampler is told the mean loss over the seeds of a point; one that halving stopped as pruned at its step, and one of
    which a seed diverged as pruned before any: TPE (Bergstra et al., 2011) ranks them below all that finished, in this order, so no loss need be made up.
    Points of a round are asked for together, each as if those before it had come out badly (a constant liar), so that they spread.
    """
    if each < 1 or rounds < 1:
        raise UserError(f"search.propose: each={each}, rounds={rounds}; expected at least 1 of each")
    if sampler not in SAMPLERS:
        raise unknown("search.propose: sampler", sampler, SAMPLERS)
    known = [t for t in tried(history, space) if _inside(space, t.values)]
    if len(several := dict.fromkeys(t.arm for t in known)) > 1:
        raise UserError(
            f"search.propose: the history has arms {', '.join(several)}; give it that of one, as [h for h in history if h['arm'] == ...]"
        )
    left = each * rounds - len(known)
    if not known or left <= 0:
        return random(space, each, seed) if not known else []
    try:
        import optuna
    except ModuleNotFoundError:
        raise UserError("search.propose needs optuna; install it by: pip install 'scaling-lab[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = optuna.distributions
    spread = {
        k: kinds.CategoricalDistribution(s.values) if isinstance(s, Choice) else kinds.FloatDistribution(*s[:2], log=s.log)
        for k, s in sorted(space.items())
    }
    study = optuna.create_study(sampler=getattr(optuna.samplers, SAMPLERS[sampler])(seed=seed + len(known)))
    for t in known:
        done = t.state == "done"
        between = {t.step: t.loss} if t.state == "stopped" else {}
        about = {"value": t.loss} if done else {"state": optuna.trial.TrialState.PRUNED, "intermediate_values": between}
        study.add_trial(optuna.trial.create_trial(params=t.values, distributions=spread, **about))
    points, seen = [], {tuple(t.values[k] for k in spread) for t in known}
    for _ in range(min(each, left)):
        params = study.ask(spread).params
        point = {
            k: v if isinstance(space[k], Choice) else min(max(float(f"{v:.6g}"), space[k].low), space[k].high) for k, v in params.items()
        }
        if (row := tuple(point[k] for k in spread)) not in seen:  # of a few choices some come twice
            seen.add(row)
            points.append(point)
    return points


def again(history: Sequence[dict], k: int, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The best `k` points of each arm, on further seeds: the best of many noisy losses is too good to be true, and fresh seeds are not.

    The best are told by other seeds than these, so that they stay the same once these are there.
    """
    first = sorted((t for t in tried(h for h in history if h["seed"] not in seeds) if t.state == "done"), key=lambda t: t.loss)
    arms = dict.fromkeys(t.arm for t in first)
    return [t.values | {"seed": s} for arm in arms for t in [t for t in first if t.arm == arm][:k] for s in seeds]
