"""The learning rate's factor at another batch and horizon, and where it goes."""

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import small

from lab import record, restore, study
from lab.data.loader import held_out
from lab.errors import UserError
from lab.experiment import load
from lab.parametrization import DECAY, EPS, TABLES, table
from lab.population import Interrupt, Population, build, hyper, peak
from lab.rates import BATCH, HORIZON, factor
from lab.trials import identity, shape_key, transferred

BASE = dict(base_batch=32, base_steps=1000)


def rules(batch="none", horizon="none", **base):
    return {"batch_rule": batch, "horizon_rule": horizon, **BASE, **base}


def slope(f, xs=(16, 32, 64, 128)):
    """d log f / d log x, which must be the same everywhere."""
    steps = np.diff(np.log([f(x) for x in xs])) / np.diff(np.log(xs))
    np.testing.assert_allclose(steps, steps[0], atol=1e-12)
    return steps[0]


@pytest.mark.parametrize("batch, in_batch", [("none", 0), ("sqrt", 0.5), ("linear", 1)])
@pytest.mark.parametrize("horizon, in_data", [("none", 0), ("inverse_sqrt", -0.5), ("power", -0.32)])
def test_factors_are_powers_of_the_batch_and_of_the_data_and_one_at_the_base(batch, in_batch, horizon, in_data):
    assert {batch, horizon} <= BATCH.keys() | HORIZON.keys()
    c = rules(batch, horizon)
    assert factor(c, 32, 1000) == 1.0
    np.testing.assert_allclose(slope(lambda b: factor(c, b, 1000)), in_batch + in_data, atol=1e-12)  # at as many steps
    np.testing.assert_allclose(slope(lambda t: factor(c, 32, t)), in_data, atol=1e-12)  # at one batch
    data = 32 * 1024
    np.testing.assert_allclose(slope(lambda b: factor(c, b, data // b)) - slope(lambda b: factor(rules(batch), b, 1)), 0, atol=1e-12)


def test_data_that_grows_by_its_batch_alone_changes_nothing():
    """Complete(d)P (arXiv 2512.22382): rate (batch / data)^1/2."""
    for k in (2, 8):
        assert factor(rules("sqrt", "inverse_sqrt"), 32 * k, 1000) == pytest.approx(1.0)
        assert factor(rules("sqrt", "power"), 32 * k, 1000) != pytest.approx(1.0)


@pytest.mark.parametrize(
    "section, said",
    [
        (rules("sqr"), "transfer.batch_rule 'sqr' is unknown.*nearest: 'sqrt'"),
        (rules(horizon="powr"), "transfer.horizon_rule 'powr' is unknown.*nearest: 'power'"),
        (rules("sqrt", base_batch=0), "transfer.base_batch=0 must be at least 1 for transfer.batch_rule='sqrt'"),
        (rules(horizon="power", base_batch=0), "transfer.base_batch=0 must be at least 1 for transfer.horizon_rule='power'"),
        (rules(horizon="power", base_steps=0), "transfer.base_steps=0 must be at least 1 for transfer.horizon_rule='power'"),
    ],
)
def test_a_rule_without_its_base_is_one_line(section, said):
    with pytest.raises(UserError, match=said):
        factor(section, 64, 1000)


def at(batch, **changes):
    dotted = {"optim.lr": 2.0**-7, "optim.weight_decay": 0.1, "train.batch": batch, "train.steps": 1000, **changes}
    return small.config(**dotted)


def test_the_factor_multiplies_the_traced_rate_and_no_independent_decay():
    named = {f"transfer.{k}": v for k, v in rules("sqrt").items()}
    assert peak(at(32)) == peak(at(128)) == peak(at(32, **named)) == (2.0**-7, 0.1)
    assert peak(at(128, **named)) == (2.0**-6, 0.1)
    for decay in DECAY:
        lr, wd = peak(at(128, **named, **{"parametrization.decay": decay}))
        assert lr * wd == pytest.approx(0.1 if decay in ("independent", "inverse_width") else 0.1 * 2.0**-6)
    with pytest.raises(UserError, match=r"optim.lr=0.0 must be above 0 where parametrization.decay='independent'"):
        peak(at(32, **{"optim.lr": 0.0, "parametrization.decay": "independent"}))
    config = at(128, **named)
    program = build(config, {"image": 16, "channels": 1, "classes": 4})
    assert hyper(program, config, table("mup"))[:2] == (2.0**-6, 0.1)


def sweep(points):
    """Trials of a DiT twice as wide as its base."""
    return small.trials(points, base={"width": 16}, data={"name": "mixture"})


def points():
    for name, eps, decay in itertools.product(TABLES, EPS, DECAY):
        yield {"parametrization.name": name, "parametrization.eps": eps, "parametrization.decay": decay}
    for batch, horizon in itertools.product(BATCH, HORIZON):
        yield {f"transfer.{k}": v for k, v in rules(batch, horizon).items()}


def test_all_rules_are_trials_of_one_population_and_each_is_a_trial_of_its_own():
    trials = sweep(points())
    assert len({shape_key(t) for t in trials}) == 1
    assert len({identity(t.config, "") for t in trials}) == len(trials)
    few = sweep([{"parametrization.decay": d, "optim.weight_decay": 0.1} for d in DECAY])
    source = small.Source()
    pop = Population(few, source, held_out(few[0].config, source))
    traced = {float(pop.hyper.weight_decay[i]) for i in range(len(few))}
    assert len(traced) == 2  # as it is, and over the learning rate
    assert len({str([float(s.decay[i]) for s in pop.hyper.scales]) for i in range(len(few))}) == 3


def test_a_trial_of_before_keeps_its_identity():
    changes = ({}, {"transfer.base_batch": 32}, {"parametrization.eps": "fixed"}, {"parametrization.decay": "sqrt"})
    configs = [small.config(data={"name": "mixture"}, **c) for c in changes]
    older = {k: v for k, v in configs[0].items() if k not in ("transfer", "init", "run", "sample", "judge")}
    older["parametrization"] = {"name": "mup", "alpha": 1.0}
    older["optim"] = {k: v for k, v in older["optim"].items() if k != "name"}
    older["eval"] = {k: v for k, v in older["eval"].items() if k != "metric"}
    older["train"] = {k: older["train"][k] for k in ("steps", "batch", "log_every", "dtype", "precision")}
    # the lab's own parts have no digest
    text = json.dumps([restore.NUMBERS, older, "print", [None] * 3], sort_keys=True, default=list)
    ids = [identity(c, "print") for c in configs]
    assert ids[0] == hashlib.sha256(text.encode()).hexdigest()[:12]
    assert len(set(ids)) == len(ids)


def test_the_card_tells_base_rule_and_factor_of_each_trial():
    named = {f"transfer.{k}": v for k, v in rules("sqrt", "inverse_sqrt").items()}
    assert transferred(at(128)) == {}
    assert transferred(at(128, **named, **{"train.steps": 250})) == {**rules("sqrt", "inverse_sqrt"), "factor": 2.0}


TEXT = '''"""Is a rate at another batch the rate times its factor?"""
from ml_collections import ConfigDict
def get_config():
    c = ConfigDict()
    c.model = dict(name="dit", width=32, depth=1, head_dim=16, mlp_ratio=2, patch=4, qk_norm=False, zero_gates=True)
    c.base = dict(width=16)
    c.objective = dict(name="flow", time="logit_normal", label_drop=0.1)
    c.data = dict(name={source!r}, n=128)
    c.optim = dict(weight_decay=2.0**-10)
    c.transfer = dict(base_batch=4)
    c.train = dict(steps=4, batch=16, log_every=1)
    c.eval = dict(examples=32, batch=16, every=4)
    c.sample = dict(n=0)
    return c
def sweep():
    yield {{"arm": "told", "optim.lr": 2.0**-6}}
    yield {{"arm": "by rule", "optim.lr": 2.0**-7, "transfer.batch_rule": "sqrt", "optim.weight_decay": 2.0**-10}}
    yield {{"arm": "decayed as told", "optim.lr": 2.0**-6, "optim.weight_decay": 2.0**-4}}
    yield {{"arm": "independent", "optim.lr": 2.0**-6, "parametrization.decay": "independent"}}
'''


def test_a_study_trains_at_the_rate_of_its_rule_and_its_card_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    (tmp_path / "batch.py").write_text(TEXT.format(source=str(Path(__file__).parents[1] / "waves.py")))
    with Interrupt() as interrupt:
        folder = study.Study(load(str(tmp_path / "batch.py")), tmp_path / "runs").run(interrupt)
    (population,) = record.read_study(folder)["populations"]
    card = record.read_json(folder / population / "card.json")["transfer"]
    arms = {t: a["arm"] for t, a in record.read_study(folder)["trials"].items()}
    assert {arms[t]: told for t, told in card.items()} == {"by rule": {**rules("sqrt", base_batch=4, base_steps=0), "factor": 2.0}}
    losses = {}
    for row in record.table(folder).to_pylist():
        losses.setdefault(row["arm"], []).append((row["step"], row["loss"], row["eval_loss"]))
    assert losses["by rule"] == losses["told"]
    assert losses["independent"] == losses["decayed as told"] != losses["told"]
