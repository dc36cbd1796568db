"""Many horizons from one trunk: under warm-up, stable, decay, runs that differ in train.steps alone are one run until the first of them decays.

So a longer horizon begins from the state that a shorter one had there, and trains the rest: of horizons T with decays of a share d of them, the last
decay's start and d sum(T) steps are computed in place of sum(T) (Hu et al., arXiv 2404.06395; Haegele et al., 2405.18392). It is a way of execution and
no other run: a trial's identity, rows and FLOPs are those it would have alone.
"""

from lab.errors import UserError
from lab.optim import decays


def check(config: dict) -> None:
    """UserError where `run.trunk` is set and a config's steps before its decay are not those of a longer horizon, or are not trained whole."""
    if not config["run"]["trunk"]:
        return
    for key, shared, why in (
        ("optim.schedule", "wsd", "is that of the whole run"),
        ("transfer.horizon_rule", "none", "changes the learning rate with train.steps"),
    ):
        section, leaf = key.split(".")
        if (value := config[section][leaf]) != shared:
            raise UserError(f"config key {key}={value!r} {why}, so horizons share no steps; expected {shared!r} where run.trunk=True")
    if config["run"]["halving"]["at"]:
        raise UserError(f"config key run.halving.at={config['run']['halving']['at']!r} stops trials; expected () where run.trunk=True")


def leaves(config: dict) -> int:
    """The step at which a config's trials leave their states for longer horizons, that at which their decay begins; 0 where they leave none."""
    c = config["optim"]
    return max(0, decays(config["train"]["steps"], c["warmup"], c["decay"])) if config["run"]["trunk"] else 0


def start(mine: list[str], until: int, left: dict[str, tuple[int, list[str]]]) -> dict:
    """{"start": step, "from": [populations]}: the last step up to `until` at which all of `mine` were left; {} where at none.

    `mine` are trials but for their horizon, and `left` has {population: (step, its trials, so)}.
    """
    for step in sorted({s for s, _ in left.values() if 0 < s <= until}, reverse=True):
        holder = {trial: name for name, (s, trials) in left.items() if s == step for trial in trials}
        if all(trial in holder for trial in mine):
            return {"start": step, "from": sorted({holder[trial] for trial in mine})}
    return {}
