"""A population is its trials, side by side: equal to single runs, blind to neighbours, whatever becomes of those."""

import dataclasses
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from lab import axes
from lab.data.loader import held_out
from lab.errors import UserError
from lab.population import Interrupt, Placement, Population, build, hypers
from lab.train import over_trials
from sharding import mesh as meshes

SIDES = {"image": 16, "channels": 1, "classes": 4}
SMALL = 2.0**-8  # at a small learning rate two programs that differ in rounding stay together


def points(*rows):
    """Points of a sweep from (learning rate, seed, rule)."""
    return [{"optim.lr": lr, "seed": seed, "parametrization.name": rule} for lr, seed, rule in rows]


def trials(rows):
    """Trials with their points in their configs, of a DiT twice as wide as its base."""
    return small.trials(points(*rows), base={"width": 16})


class Runner:
    """A population, compiled once and trained from its init as often as asked; each seed reads batches of its own."""

    def __init__(self, rows):
        self.source, group = small.Source(), trials(rows)
        self.pop = Population(group, self.source, held_out(group[0].config, self.source))
        self.pop.compile(self.pop.init())

    def train(self, rows, steps=20):
        """(state, losses [steps, trials], evaluation) of as many trials, by the same compiled program: all of a point is traced."""
        pop, seeds = self.pop, sorted({seed for _, seed, _ in rows})
        pop.hyper = pop.place(hypers(pop.program, trials(rows), seeds))
        carry, losses = pop.init(), []
        for n in range(steps):
            batches = [small.batch(16, 1000 * s + n, self.source) for s in seeds]
            carry, values = pop.step(carry, pop.hyper, pop.put({k: np.stack([b[k] for b in batches]) for k in batches[0]}))
            losses.append(np.asarray(values["loss"])[: len(rows)])
        return pop.state(carry), np.stack(losses), {k: np.asarray(v)[: len(rows)] for k, v in pop.evaluate(carry).items()}


def trial(state, i):
    """Every array of one trial."""
    return [np.asarray(x[i]) for x in jax.tree.leaves(state)]


MIXED = [(SMALL, 0, "mup"), (SMALL / 2, 0, "standard"), (SMALL, 1, "mup")]


@pytest.fixture(scope="module")
def runner():
    return Runner(MIXED)


@pytest.fixture(scope="module")
def mixed(runner):
    return runner.train(MIXED)


def test_a_population_equals_its_single_runs(mixed):
    state, losses, judged = mixed
    single = Runner(MIXED[:1])
    for i, row in enumerate(MIXED):
        alone, its_losses, its_judged = single.train([row])
        np.testing.assert_allclose(its_losses[:, 0], losses[:, i], rtol=1e-5, atol=1e-5)
        for (name, a), b in zip(axes.weights(alone.params).items(), axes.values(state.params), strict=True):
            if not name.endswith("qkv_bias"):  # softmax does not see a key's bias: its gradient is rounding, of which Adam makes steps
                np.testing.assert_allclose(a.get_value()[0], b[i], rtol=1e-4, atol=1e-5)
        for k in judged:
            np.testing.assert_allclose(its_judged[k][0], judged[k][i], rtol=1e-5)


def test_learning_rate_seed_and_rule_each_make_a_trial_of_their_own(mixed):
    losses = mixed[1]
    assert losses[-1].min() < losses[0].min()
    assert len(np.unique(losses[-1])) == len(MIXED)
    assert losses[0, 0] == losses[0, 1] != losses[0, 2]  # a readout of zero: the first loss is the data's, and seeds differ


def test_a_diverging_neighbour_changes_nothing_for_the_others(runner, mixed):
    wild, tame = runner.train([MIXED[0], (1e8, *MIXED[1][1:]), MIXED[2]]), mixed
    assert np.asarray(wild[0].alive).tolist() == [True, False, True]
    assert np.asarray(tame[0].alive).tolist() == [True, True, True]
    for i in (0, 2):
        np.testing.assert_array_equal(wild[1][:, i], tame[1][:, i])
        for a, b in zip(trial(wild[0], i), trial(tame[0], i), strict=True):
            np.testing.assert_array_equal(a, b)
        for k in wild[2]:
            assert wild[2][k][i] == tame[2][k][i]


@pytest.fixture(scope="module")
def plain():
    """A program, and its init and step compiled."""
    prog = small.program(depth=1, mlp_ratio=1)
    return prog, jax.jit(prog.init), jax.jit(prog.step)


def test_a_diverged_trial_is_flagged_and_frozen_at_its_last_sound_state(plain):
    prog, init, step = plain
    hyper, seen = small.hyper(prog, lr=1e8), []
    state = init(hyper)
    for n in range(8):
        before = state
        state, values = step(state, hyper, small.batch(16, n))
        seen.append(bool(values["diverged"]))
        if seen[-1]:
            for a, b in zip(*(jax.tree.leaves((s.params, s.opt, s.ema)) for s in (before, state)), strict=True):
                np.testing.assert_array_equal(a, b)
    assert seen == sorted(seen)  # once diverged, always
    assert not seen[0]
    assert seen[-1]
    assert all(np.all(np.isfinite(x)) for x in axes.values(state.params))
    assert int(state.step) == 8


def test_a_loss_that_is_not_finite_or_ten_times_the_first_counts_as_diverged(plain):
    prog, init, step = plain
    hyper, batch = small.hyper(prog), small.batch(16)
    start = init(hyper)
    later = lambda first: dataclasses.replace(start, step=jnp.int32(5), first=jnp.float32(first))  # noqa: E731
    loss = float(step(start, hyper, batch)[1]["loss"])
    for first, gone in ((loss, False), (loss / 8, False), (loss / 12, True), (float("nan"), True)):
        assert bool(step(later(first), hyper, batch)[1]["diverged"]) == gone, first
    assert not step(start, hyper, batch)[1]["diverged"]
    broken = dataclasses.replace(start, params=jax.tree.map(lambda x: x * jnp.nan, start.params))
    assert step(broken, hyper, batch)[1]["diverged"]


def test_a_population_of_one_is_a_plain_program():
    ranks = []

    def f(x, shared):
        ranks.append((x.ndim, type(x).__name__))
        return jnp.einsum("ab,bc->ac", x, shared)

    x, shared = jnp.ones((1, 2, 3)), jnp.ones((3, 4))
    run = over_trials(f, (0, None))
    one, many = jax.make_jaxpr(run)(x, shared), jax.make_jaxpr(run)(jnp.ones((5, 2, 3)), shared)

    def dot(closed):
        return next(e for e in closed.jaxpr.eqns if e.primitive.name == "dot_general").outvars[0].aval.shape

    assert dot(one) == (2, 4)
    assert dot(many) in [(5, 2, 4), (2, 4, 5), (2, 5, 4)]
    assert [n for _, n in ranks][1] == "BatchTracer" != ranks[0][1]
    assert run(x, shared).shape == (1, 2, 4)


def test_trials_beside_other_axes_are_not_gathered_by_what_is_placed_within():
    """As attention's kernels are, by a shard_map over the mesh."""
    mesh = meshes.mesh({"trials": 2, "data": 1}, jax.devices()[:2])
    beside = Placement(mesh, {"trials": ("trials",), "batch": ("data",)}).beside
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("trials"))
    x = jax.device_put(jnp.arange(12.0).reshape(2, 6), where)

    def f(x):
        spec = jax.sharding.PartitionSpec("data")
        return jax.shard_map(jnp.sin, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(x)

    kept, gathered = (jax.jit(over_trials(f, (0,), None, b), out_shardings=where).lower(x).compile() for b in (beside, None))
    assert "all-gather" in gathered.as_text()
    assert "all-gather" not in kept.as_text()
    assert jnp.allclose(kept(x), jnp.sin(x))


def test_bad_keys_and_sizes_are_named():
    def said(section, key, value):
        config = small.config()
        config[section][key] = value
        with pytest.raises(UserError) as e:
            build(config, SIDES)
        return str(e.value)

    assert "'qk_nrm' is unknown (nearest: 'qk_norm')" in said("model", "qk_nrm", True)
    assert "'tme' is unknown" in said("objective", "tme", 1)
    assert "model.width=40 is not a multiple of model.head_dim=16" in said("model", "width", 40)
    assert "model.width='32' must be a positive whole number" in said("model", "width", "32")
    assert "size 'image' is 32 in the config but 16 in the data" in said("model", "image", 32)
    assert "'float16' is unknown" in said("train", "dtype", "float16")
    assert "'ditt' is unknown (nearest: 'dit')" in said("model", "name", "ditt")


def test_horizons_share_a_compiled_program():
    """Steps, warm-up and decay are traced, so a longer run compiles nothing anew; another kind of schedule does."""

    def text(**optim):
        (t,) = small.trials(points((SMALL, 0, "mup")), **optim)
        program = build(t.config, SIDES)
        hyper = jax.tree.map(lambda x: x[0], hypers(program, [t], [0]))
        state = jax.eval_shape(program.init, hyper)
        return jax.jit(program.step).lower(state, hyper, small.batch(4)).as_text()

    first = text(**{"optim.schedule": "wsd"})
    assert first == text(**{"optim.schedule": "wsd", "train.steps": 30, "optim.warmup": 5, "optim.decay": 0.5})
    assert first != text(**{"optim.schedule": "cosine"})


def test_a_request_to_stop_that_comes_twice_within_a_second_is_one(monkeypatch):
    """A scheduler signals a whole group, and the parent of a run hands it on; whoever asks again later is in earnest."""
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.asked
        later = time.monotonic() + 2
        monkeypatch.setattr(time, "monotonic", lambda: later)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
