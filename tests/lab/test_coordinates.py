"""The coordinate check: under muP no weight's own contribution drifts with width; under the standard rule it does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from lab import axes, parametrization
from lab.models import shared
from lab.population import turns
from lab.probe import probe
from lab.train import over_trials

WIDTHS, SEEDS, STEPS, LR = (32, 64, 128, 256), 4, 12, 2.0**-7


def forgetful(arrow):
    """muP with one fault: the step of hidden weights does not shrink with width."""
    s = parametrization.mup(arrow)
    return s._replace(step=1.0) if arrow.role == "hidden" else s


RULES = {"mup": parametrization.mup, "standard": parametrization.standard, "forgetful": forgetful}


def changes(width, zero_gates):
    """{weight: rms of (W_t - W_0) x_t, [rule, seed, layer]} after STEPS steps; rules are data, so one program has them all."""
    prog = small.program(steps=1000, width=width, depth=2, zero_gates=zero_gates, mlp_ratio=2)
    rows = [
        small.hyper(prog, LR, "mup", seed)._replace(scales=[jax.tree.map(jnp.float32, s) for s in axes.scales(prog.model, rule)])
        for rule in RULES.values()
        for seed in range(SEEDS)
    ]
    batches = small.stack([small.batch(16, seed) for seed in range(STEPS)])

    def run(hyper):
        state = prog.init(hyper)
        end, _ = jax.lax.scan(lambda s, batch: (prog.step(s, hyper, batch)[0], None), state, batches)
        key, last = jax.random.key(7), jax.tree.map(lambda x: x[-1], batches)
        return probe(lambda p: jnp.mean(prog.loss(p, key, last)), end.params, state.params)[1]

    found = jax.jit(over_trials(run, (0,), turns(len(rows))))(small.stack(rows))
    return {name: np.asarray(own).reshape(len(RULES), SEEDS, -1) for name, (_, own) in found.items()}


@functools.cache
def slopes(zero_gates):
    """{rule: {weight: (slope of log change in log width, half-width of its 95% interval)}}, worst layer of each weight."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "UNROLL", 0)  # a scanned stack compiles faster
        found = [changes(w, zero_gates) for w in WIDTHS]
    x = np.log(np.array(WIDTHS) / WIDTHS[0])
    out = {rule: {} for rule in RULES}
    for name in found[0]:
        y = np.log(np.stack([f[name] for f in found]) + 1e-12)  # [width, rule, seed, layer]
        if np.all(y < -20):
            continue  # an untrained scale does not move
        per_seed = np.einsum("w,wrsl->rsl", x - x.mean(), y) / np.sum((x - x.mean()) ** 2)
        mean, half = per_seed.mean(1), 3.18 * per_seed.std(1, ddof=1) / np.sqrt(SEEDS)  # Student t, 3 degrees of freedom
        for i, rule in enumerate(RULES):
            worst = np.argmax(np.abs(mean[i]))
            out[rule][name] = (float(mean[i, worst]), float(half[i, worst]))
    return out


# with zero gates a block starts to learn at the third step, and what grows from zero is not yet settled at the twelfth: two of 21
# weights, the bias of queries and keys and the modulation, have slopes of 0.25 and 0.20 under muP
BOUND = {False: 0.2, True: 0.3}


def drifting(found, bound=0.2):
    """Weights whose slope is beyond a bound and whose interval does not hold 0."""
    return {name: s for name, s in found.items() if abs(s[0]) > bound and abs(s[0]) > s[1]}


def scaled(found):
    """Slopes of the weights whose step muP scales with width."""
    prog = small.program(width=2 * WIDTHS[0])
    steps = {name: parametrization.mup(w.arrow).step for name, w in axes.weights(prog.model).items()}
    return [s for name, (s, _) in found.items() if steps[name.rstrip("'")] not in (0.0, 1.0)]


zero_gates = pytest.mark.parametrize("zero_gates", [False, pytest.param(True, marks=pytest.mark.slow)])


@zero_gates
def test_mup_changes_do_not_drift_with_width(zero_gates):
    found = slopes(zero_gates)["mup"]
    assert len({name.rstrip("'") for name in found}) == 21  # every trained weight of the model, none overlooked
    assert not drifting(found, BOUND[zero_gates])


@zero_gates
def test_standard_changes_drift_with_width(zero_gates):
    found = scaled(slopes(zero_gates)["standard"])
    assert np.median(found) >= 0.3, found
    assert max(found) >= 1.0, found


@zero_gates
def test_a_table_that_forgets_the_hidden_step_is_caught(zero_gates):
    found = slopes(zero_gates)["forgetful"]
    assert drifting(found, BOUND[zero_gates])
    assert max(scaled(found)) > 0.5
