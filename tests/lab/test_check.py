"""The coordinate check: under muP no weight's own contribution drifts with width; under the standard rule it does."""

import functools

import families
import numpy as np
import pytest
import small

from lab import cli, parametrization
from lab.check import BOUND, RULES, Setting, Slope, scaled, slopes
from lab.population import build

# a check of few seeds and widths always runs for every family; the full one is `lab check --all`
SHORT, FULL = Setting((32, 64, 128), 3), Setting((32, 64, 128, 256), 4, lr=2.0**-7)


def forgetful(arrow):
    """muP with one fault: the step of hidden weights does not shrink with width."""
    s = parametrization.mup(arrow)
    return s._replace(step=1.0) if arrow.role == "hidden" else s


@functools.cache
def found(family, setting, rules=("mup", "standard"), **model):
    """Slopes of a family of the tests' own size."""
    tables = {r: RULES.get(r, forgetful) for r in rules}
    batches = small.stack([families.batch(16, seed) for seed in range(setting.steps)])
    return slopes(families.config(family, **model), families.dims(family), batches, setting, tables, said=lambda _: None)


def trained(family, **model):
    """The model at twice its base width."""
    config = families.config(family, width=64, **model)
    return build(config, families.dims(family)).model


def drifting(by_weight, bound=BOUND):
    return {name: s for name, s in by_weight.items() if s.drifts(bound)}


# meissonic is made of mmdit's blocks
@pytest.mark.parametrize("family", [pytest.param(f, marks=[pytest.mark.slow] * (f == "meissonic")) for f in families.FAMILIES])
def test_mup_changes_do_not_drift_with_width_and_standard_ones_do(family):
    by_rule = found(family, SHORT)
    assert not drifting(by_rule["mup"])
    control = scaled(by_rule["standard"], trained(family))
    assert np.median(control) >= 0.15, control
    assert max(control) >= 0.5, control
    assert drifting(by_rule["standard"])


# with zero gates a block starts to learn at the third step, and what grows from zero is not yet settled at the twelfth: two of DiT's 21
# weights, the bias of queries and keys and the modulation, have slopes of 0.25 and 0.20 under muP
@pytest.mark.slow
@pytest.mark.parametrize("zero_gates, bound", [(False, 0.2), (True, 0.3)])
def test_four_widths_and_a_table_that_forgets_the_hidden_step(zero_gates, bound):
    by_rule = found("dit", FULL, ("mup", "standard", "forgetful"), zero_gates=zero_gates)
    assert len({name.rstrip("'") for name in by_rule["mup"]}) == 21  # every trained weight of the model, none overlooked
    assert not drifting(by_rule["mup"], bound)
    model = trained("dit", zero_gates=zero_gates)
    assert np.median(scaled(by_rule["standard"], model)) >= 0.3
    assert drifting(by_rule["forgetful"], bound)
    assert max(scaled(by_rule["forgetful"], model)) > 0.5


@pytest.mark.parametrize(
    "value, half, bound, said", [(0.4, 0.1, 0.2, True), (-0.4, 0.1, 0.2, True), (0.4, 0.3, 0.2, False), (0.1, 0, 0.2, False)]
)
def test_a_slope_drifts_beyond_its_bound_and_its_interval(value, half, bound, said):
    assert Slope(value, half).drifts(bound) == said


@pytest.mark.parametrize("arguments", [[], ["x.py", "--all"], ["x.py", "--widths", "64,32"], ["x.py", "--seeds", "1"], ["x.py"]])
def test_a_bad_command_is_one_line(arguments, capsys):
    assert cli.main(["check", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
