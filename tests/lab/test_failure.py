"""Updates that fail: by each policy what becomes of the trial, bit for bit, and that the rows tell."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from lab.errors import UserError
from lab.experiment import DEFAULTS
from lab.failure import Policy, policy
from lab.optim import at_step
from lab.trials import identity


def bad(n):
    """A batch whose pictures are so large that the loss is not finite."""
    b = small.batch(16, n)
    return {**b, "image": jnp.full(b["image"].shape, jnp.inf, jnp.float32)}


@pytest.fixture(scope="module")
def made():
    """{policy: (init, step, hyper)}, compiled once."""
    out = {}
    for p in (Policy(), Policy("skip", 0.0, 2), Policy("rollback", 0.0, 2, 3), Policy("skip", 2.0, 5)):
        prog = dataclasses.replace(small.program(depth=1, mlp_ratio=1, steps=40, name="cosine"), failure=p)
        out[p.name, p.spike] = (jax.jit(prog.init), jax.jit(prog.step), small.hyper(prog))
    return out


def train(made, batches, start=None):
    """(states after each step, values of each step)."""
    init, step, hyper = made
    states, values = [init(hyper) if start is None else start], []
    for b in batches:
        state, told = step(states[-1], hyper, b)
        states.append(state)
        values.append({k: np.asarray(v).item() for k, v in told.items()})
    return states, values


def same(a, b):
    """Whether two trees are equal bit for bit."""
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def close(a, b):
    """Whether two trees are equal but for rounding: a copy may be computed beside what it is of."""
    return all(np.allclose(x, y, rtol=1e-5, atol=1e-7) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def trained(s):
    """What updates change."""
    return s.params, s.opt, s.ema


def test_without_failures_every_policy_trains_alike(made):
    batches = [small.batch(16, n) for n in range(5)]
    ends = [train(made[k], batches)[0][-1] for k in made]
    assert all(same(e.params, ends[0].params) and same(e.ema, ends[0].ema) for e in ends[1:])
    assert ends[0].kept is None


def test_stop_freezes_the_trial(made):
    states, values = train(made["stop", 0.0], [small.batch(16, 0), bad(1), small.batch(16, 2)])
    assert [v["diverged"] for v in values] == [False, True, True]
    assert same(trained(states[1]), trained(states[3]))


def test_skip_leaves_the_update_out_and_goes_on_as_if_it_had_not_been(made):
    states, values = train(made["skip", 0.0], [small.batch(16, 0), bad(1), small.batch(16, 2)])
    assert [v["diverged"] for v in values] == [False] * 3
    assert [v["skipped"] for v in values] == [0, 1, 1]
    assert same((states[1].params, states[1].ema), (states[2].params, states[2].ema))
    # what follows is one step from the state before, at the step that it now is: its noise and its learning rate
    before = dataclasses.replace(states[1], step=jnp.int32(2), opt=at_step(states[1].opt, jnp.int32(2)))
    (_, after), _ = train(made["skip", 0.0], [small.batch(16, 2)], before)
    assert same(trained(after), trained(states[3]))
    assert not same(states[2].params, states[3].params)


def test_too_many_skipped_in_a_row_is_a_divergence(made):
    _, values = train(made["skip", 0.0], [small.batch(16, 0), bad(1), bad(2), small.batch(16, 3), bad(4), bad(5), bad(6)])
    assert [v["diverged"] for v in values] == [False] * 6 + [True]


def test_a_trial_may_fail_at_its_first_step(made):
    _, values = train(made["skip", 0.0], [bad(0), small.batch(16, 1), small.batch(16, 2)])
    assert [v["diverged"] for v in values] == [False] * 3
    assert np.isfinite(values[-1]["loss"])


def test_a_spike_of_the_gradient_is_skipped_once_the_mean_has_settled(made):
    loud = {**small.batch(16, 11), "image": 2.8 * (small.batch(16, 11)["image"] / 127.5 - 1)}  # its loss is no ten times the first
    quiet = [small.batch(16, n) for n in range(11)]
    _, early = train(made["skip", 2.0], [*quiet[:3], loud])
    assert early[-1]["skipped"] == 0
    states, values = train(made["skip", 2.0], [*quiet, loud])
    told = values[-1]
    assert (told["grad_norm"] > 2 * float(states[-2].kept["norm"])) == bool(told["skipped"])
    assert told["skipped"] == 1
    assert float(states[-1].kept["norm"]) == pytest.approx(np.mean([v["grad_norm"] for v in values[:-1]]), rel=1e-4)


def test_rollback_goes_back_to_the_copy_and_leaves_out_what_came_since(made):
    batches = [small.batch(16, n) for n in range(5)] + [bad(5), small.batch(16, 6)]
    states, values = train(made["rollback", 0.0], batches)
    assert [v["rollbacks"] for v in values] == [0] * 5 + [1, 1]
    assert close((states[6].params, states[6].ema), (states[3].params, states[3].ema))  # the copy after three sound updates
    assert not close(states[6].params, states[5].params)
    before = dataclasses.replace(states[3], step=jnp.int32(6), opt=at_step(states[3].opt, jnp.int32(6)), kept=states[6].kept)
    _, (after,) = train(made["rollback", 0.0], [small.batch(16, 6)], before)
    assert after["loss"] == pytest.approx(values[6]["loss"], rel=1e-5)  # the same weights, noise and batch
    assert after["loss"] != pytest.approx(train(made["rollback", 0.0], [small.batch(16, 6)], states[5])[1][0]["loss"], rel=1e-4)


def test_too_many_rollbacks_are_a_divergence(made):
    _, values = train(made["rollback", 0.0], [small.batch(16, 0), bad(1), small.batch(16, 2), bad(3), small.batch(16, 4), bad(5)])
    assert [v["diverged"] for v in values] == [False] * 5 + [True]


def test_the_default_keeps_identities_and_another_policy_has_its_own():
    config = small.config() | {"data": {"name": "shapes"}}
    old = {**config, "train": {k: v for k, v in config["train"].items() if k not in ("failure", "spike", "retries", "copy_every")}}
    assert identity(config, "x") == identity(old, "x")
    assert identity({**config, "train": {**config["train"], "failure": "skip"}}, "x") != identity(config, "x")


@pytest.mark.parametrize(
    "more, said",
    [
        ({"failure": "skp"}, "train.failure 'skp' is unknown (nearest: 'skip')"),
        ({"spike": 5.0}, "train.spike=5.0 is not read where train.failure='stop'"),
        ({"failure": "skip", "spike": 0.5}, "train.spike=0.5 must be above 1"),
        ({"failure": "skip", "retries": 0}, "train.retries=0 must be at least 1"),
    ],
)
def test_a_bad_policy_is_one_line(more, said):
    with pytest.raises(UserError) as e:
        policy({**DEFAULTS["train"], **more})
    assert said in str(e.value)
