"""Tokenizers: published formulas, worlds whose rate and distortion are known, states without a gradient, and the coordinate check."""

import math

import bottlenecks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from bottlenecks import MODELS, PICTURES, patterns, trained

from lab import audit, axes, cli, cost, find, record, study
from lab.check import Sizes, examine
from lab.coordinates import Setting
from lab.data.loader import held_out
from lab.digests import digests
from lab.errors import UserError
from lab.evals.rate import usage
from lab.experiment import load
from lab.parametrization import mup, standard
from lab.population import Interrupt, Population, Preempted, build, parted
from lab.sampling import restored
from lab.tokenizers import fsq, kl, vq

# ---- published formulas


@pytest.mark.parametrize(
    "levels, codes",
    [((8, 6, 5), 240), ((8, 5, 5, 5), 1000), ((7, 5, 5, 5, 5), 4375), ((8, 8, 8, 6, 5), 15360), ((8, 8, 8, 5, 5, 5), 64000)],
)
def test_fsq_has_the_papers_table_and_its_tokens_go_there_and_back(levels, codes):
    levels = np.array(levels)
    tokens = jnp.arange(np.prod(levels))
    assert len(tokens) == codes
    every = fsq.codes(tokens, levels)
    np.testing.assert_array_equal(fsq.numbers(every, levels), tokens)
    assert len(np.unique(np.asarray(every), axis=0)) == codes
    assert np.abs(every).max() <= 1
    # the paper's: numbers of a code times half of the levels, shifted to begin at 0, in the base of the levels
    half = levels // 2
    digits = np.rint(np.asarray(every) * half + half)
    np.testing.assert_array_equal(digits @ np.concatenate([[1], np.cumprod(levels[:-1])]), tokens)


def test_fsq_is_the_papers_formula_reaches_every_level_and_its_gradient_is_the_bounds():
    levels = np.array((8, 5, 2, 3))
    z = np.linspace(-9, 9, 4001)[:, None] * np.ones(4)
    half = (levels - 1) * (1 - 1e-3) / 2
    offset = np.where(levels % 2 == 1, 0.0, 0.5)
    expected = np.rint(np.tanh(z + np.tan(offset / half)) * half - offset) / (levels // 2)
    found = np.asarray(fsq.quantize(jnp.asarray(z, jnp.float32), levels))
    assert np.mean(found == np.float32(expected)) > 0.999  # a rounding of float32 may fall on the other side of an edge
    assert [len(np.unique(x)) for x in found.T] == levels.tolist()
    without = np.rint(np.tanh(z) * half)  # without the offset an even number of levels has one less
    assert [len(np.unique(x)) for x in without.T] == [7, 5, 1, 3]
    slope = jax.grad(lambda x: jnp.sum(fsq.quantize(x, levels)))(jnp.asarray(z, jnp.float32))
    smooth = jax.grad(lambda x: jnp.sum(fsq.bound(x, levels) / (levels // 2)))(jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(slope, smooth)
    assert float(jnp.abs(slope).max()) > 0.5


def published(codes, batches, decay):
    """Codes after the updates of VQ-VAE's appendix A.1 in float64, and their N; N and m begin at 0, a code never met stays."""
    codes, count, total = codes.astype(float), np.zeros(len(codes)), np.zeros_like(codes, dtype=float)
    for z in batches:
        near = np.argmin(((z[:, None] - codes) ** 2).sum(-1), 1)
        n = np.bincount(near, minlength=len(codes))
        sums = np.zeros_like(total)
        np.add.at(sums, near, z)
        count, total = decay * count + (1 - decay) * n, decay * total + (1 - decay) * sums
        codes = np.where(count[:, None] > 0, total / np.maximum(count, 1e-12)[:, None], codes)
    return codes, count


def test_codes_move_by_the_published_running_means():
    rng = np.random.default_rng(0)
    first, batches = rng.normal(size=(12, 3)), rng.normal(size=(6, 40, 3))
    codes, counts = jnp.asarray(first, jnp.float32), jnp.zeros(12)
    for z in jnp.asarray(batches, jnp.float32):
        codes, counts = vq.moved(codes, counts, z, vq.nearest(z, codes), 0.9)
    expected, count = published(first, batches, 0.9)
    np.testing.assert_allclose(codes, expected, atol=1e-5)
    np.testing.assert_allclose(counts, count * 12 / 40, atol=1e-5)
    assert np.abs(codes - published(first, batches, 0.8)[0]).max() > 1e-2  # another decay is told apart


def test_nearest_is_nearest_and_restarts_go_to_data_and_leave_the_living():
    rng = np.random.default_rng(1)
    z, codes = rng.normal(size=(50, 3)).astype(np.float32), rng.normal(size=(8, 3)).astype(np.float32)
    np.testing.assert_array_equal(vq.nearest(jnp.asarray(z), jnp.asarray(codes)), np.argmin(((z[:, None] - codes) ** 2).sum(-1), 1))
    counts = jnp.asarray([1.0, 0.04, 0.06, 0.0, 2.0, 1.0, 1.0, 1.0])
    new, now = vq.restarted(jnp.asarray(codes), counts, jnp.asarray(z), jax.random.key(0), 0.05)
    gone = np.array([False, True, False, True, False, False, False, False])
    np.testing.assert_array_equal(new[~gone], codes[~gone])
    np.testing.assert_array_equal(now, np.where(gone, 1.0, counts))
    assert all(np.any(np.all(x == z, axis=1)) for x in np.asarray(new)[gone])
    np.testing.assert_array_equal(vq.restarted(jnp.asarray(codes), counts, jnp.asarray(z), jax.random.key(0), 0.0)[0], codes)


def test_the_kl_is_that_of_gaussians_and_draws_have_their_moments():
    mean, log_variance = jnp.asarray([[0.5, -1.0]]), jnp.asarray([[-1.0, 0.3]])
    x = np.random.default_rng(0).normal(size=(200_000, 2)) * np.exp(0.5 * np.asarray(log_variance)) + np.asarray(mean)
    log_q = -0.5 * ((x - mean) ** 2 / np.exp(log_variance) + log_variance)
    assert float(kl.divergence(mean, log_variance)[0]) == pytest.approx(float(np.mean(np.sum(log_q + 0.5 * x**2, 1))), abs=0.02)
    moments = jnp.broadcast_to(jnp.concatenate([mean, log_variance], -1), (4000, 4))
    z, _ = kl.drawn(moments, jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(z.mean(0), mean[0], atol=0.06)
    np.testing.assert_allclose(jnp.log(z.var(0)), log_variance[0], atol=0.1)


# ---- worlds whose answer is known

WHOLE = dict(name="vq", **{**bottlenecks.SIZE, "patch": 8}, code=4, decay=0.9)  # one token a picture
WORLD = {"image": 8, "channels": 1, "classes": 1}


def of_patterns(k, codes, steps=300, **more):
    """(mean squared error, tokens that the k pictures have) of a tokenizer of `codes` trained on k equally frequent pictures."""
    every, batch = patterns(k)
    _, state, _ = trained(bottlenecks.config({**WHOLE, "codes": codes, **more}), WORLD, batch, steps, 2.0**-7)
    seen, image = axes.view(state.params, jnp.float32), jnp.asarray(every, jnp.float32) / 127.5 - 1
    tokens = seen.encode(image)["tokens"]
    return float(jnp.mean((seen.decode({"tokens": tokens}) - image) ** 2)), np.asarray(tokens).ravel()


def test_as_many_codes_as_pictures_lose_nothing_at_their_entropy_and_fewer_must_lose():
    error, tokens = of_patterns(8, 8)
    assert error < 1e-3
    assert usage(tokens) == (3.0, 8)
    every, _ = patterns(8)
    x = every.reshape(8, -1) / 127.5 - 1
    # two pictures that share a code are both restored as one: at best the nearest pair's mean
    least = min(np.mean((a - b) ** 2) / 4 for i, a in enumerate(x) for b in x[:i]) * 2 / 8
    error, tokens = of_patterns(8, 7)
    assert error > least > 0.03
    assert usage(tokens)[1] <= 7


def test_without_restarts_dead_codes_stay_dead():
    """All codes begin far from the data but one, so that it takes all of it."""
    every, batch = patterns(8)
    found = {}
    for dead in (0.05, 0.0):
        program = build(bottlenecks.config({**WHOLE, "codes": 8, "dead": dead}), WORLD)
        given = bottlenecks.hyper(program, 2.0**-7)
        state = jax.jit(program.init)(given)
        state.params.codes.set_value(state.params.codes.get_value() + 100.0 * jnp.arange(8)[:, None])
        step = jax.jit(lambda s, program=program, given=given: program.step(s, given, jax.tree.map(lambda x: x[0], batch))[0])
        for _ in range(300):
            state = step(state)
        image = jnp.asarray(every, jnp.float32) / 127.5 - 1
        found[dead] = usage(np.asarray(axes.view(state.params, jnp.float32).encode(image)["tokens"]))[1]
    assert found[0.05] >= 7
    assert found[0.0] == 1


def test_a_linear_tokenizer_of_gaussians_meets_reverse_water_filling():
    """Where a nat a number costs beta, each component above beta / 2 keeps an error of beta / 2 and costs half the log of its excess."""
    beta, variances = 0.2, np.array([2.0, 1.0, 0.5, 0.25, 0.05, 0.02])
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    x = np.random.default_rng(1).normal(size=(50, 512, 6)) * np.sqrt(variances) @ turn
    batches = {"image": jnp.asarray(x, jnp.float32).reshape(50, 512, 1, 6, 1), "label": jnp.zeros((50, 512), jnp.int32)}
    model = dict(name=str(bottlenecks.__file__).replace("bottlenecks", "linear_kl"), width=6)
    _, state, _ = trained(
        bottlenecks.config(model, weight=beta, **{"optim.schedule": "linear", "train.steps": 1500}),
        {"image": 6, "channels": 1},
        batches,
        1500,
        2.0**-6,
    )
    seen = axes.view(state.ema, jnp.float32)
    given = {"image": batches["image"][:10].reshape(-1, 1, 6, 1), "keys": jax.random.split(jax.random.key(5), 5120)}
    out = seen(given)
    covariance = np.linalg.eigvalsh(np.cov(np.asarray(given["image"]).reshape(-1, 6).T, bias=True))
    level = beta / 2
    distortion = np.mean(np.minimum(covariance, level))
    rate = np.sum(np.maximum(0, 0.5 * np.log2(covariance / level)))
    assert float(jnp.mean((out["image"] - given["image"]) ** 2)) == pytest.approx(distortion, rel=0.03)
    assert float(jnp.mean(out["bits"])) == pytest.approx(rate, rel=0.03)
    wrong = np.mean(np.minimum(covariance, beta))  # the level is half of beta
    assert abs(wrong / distortion - 1) > 0.3


# ---- states without a gradient


def one_batch(seed=0):
    """A batch of waves, [1, B, ...]."""
    return jax.tree.map(lambda x: x[None], small.batch(16, seed))


SLOW = pytest.mark.slow


@pytest.mark.parametrize("optim", ["adamw", "muon", *(pytest.param(o, marks=SLOW) for o in ("sgd", "lion", "adafactor", "adam_atan2"))])
def test_a_state_becomes_what_the_model_sets_whatever_the_optimizer(optim):
    changes = {"optim.name": optim, "optim.weight_decay": 0.5}
    program, state, _ = trained(bottlenecks.config("vq", **changes), PICTURES, one_batch(), 1, weight_decay=0.5, lr=2.0**-6)
    start = jax.jit(program.init)(bottlenecks.hyper(program, 2.0**-6))
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), 0)
    given = program.objective.inputs(key, small.batch(16))
    seen = axes.view(start.params, jnp.float32)
    z = seen.encoder(given["image"]).reshape(-1, 4)
    moved = vq.moved(seen.codes.get_value(), seen.counts.get_value(), z, vq.nearest(z, seen.codes.get_value()), 0.99)
    codes, counts = vq.restarted(*moved, z, given["keys"][0], 0.05)
    np.testing.assert_allclose(state.params.codes.get_value(), codes, atol=1e-5)
    np.testing.assert_allclose(state.params.counts.get_value(), counts, atol=1e-5)
    mean = 0.9 * np.asarray(start.params.codes.get_value()) + 0.1 * np.asarray(codes)
    np.testing.assert_allclose(state.ema.codes.get_value(), mean, atol=1e-5)
    before, after = (np.asarray(s.params.encoder.out.kernel.get_value()) for s in (start, state))
    assert not np.array_equal(before, after)


def test_evaluating_moves_no_state_and_a_diverged_trial_keeps_its_own():
    program, state, _ = trained(bottlenecks.config("vq"), PICTURES, one_batch(), 2)
    batches = one_batch()
    said = [jax.jit(program.evaluate)(state, jax.random.key(0), batches) for _ in range(2)]
    assert said[0] == said[1]
    gone = jax.jit(
        lambda s: program.step(s, bottlenecks.hyper(program, 2.0**-6), {**small.batch(16), "image": jnp.full((16, 16, 16, 1), jnp.nan)})
    )
    after, values = gone(state)
    assert bool(values["diverged"])
    for a, b in zip(axes.states(after.params), axes.states(state.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_states_of_a_population_are_those_of_its_trials_alone():
    points = [{"seed": 0, "optim.lr": 2.0**-8}, {"seed": 1, "optim.lr": 2.0**-9}]
    group = small.trials(points, model=MODELS["vq"], objective=dict(name="reconstruct"))
    source = small.Source()

    def states(trials):
        pop = Population(trials, source, held_out(trials[0].config, source))
        pop.compile(carry := pop.init())
        for n in range(3):
            batches = [small.batch(16, 10 * s + n, source) for s in pop.seeds]
            carry, _ = pop.step(carry, pop.hyper, pop.put({k: np.stack([b[k] for b in batches]) for k in batches[0]}))
        return [np.asarray(x) for x in axes.states(pop.state(carry).params)]

    both = states(group)
    for i, trial in enumerate(group):
        for mine, alone in zip(both, states([trial]), strict=True):
            np.testing.assert_allclose(mine[i], alone[0], atol=0.02)  # programs of their own, which round otherwise
    assert np.abs(both[0][0] - both[0][1]).max() > 0.5


def test_a_state_is_float32_counts_as_no_parameter_and_is_refused_where_it_would_be_lost():
    program = build(bottlenecks.config("vq", **{"train.dtype": "bfloat16"}), PICTURES)
    seen = jax.eval_shape(
        lambda k: axes.view(axes.draw(k, program.model, axes.scales(program.model, mup)), program.dtype), jax.random.key(0)
    )
    assert {w.get_value().dtype.name for w in jax.tree.leaves(seen, is_leaf=axes.is_weight)} == {"float32", "bfloat16"}
    assert seen.codes.get_value().dtype == jnp.float32
    total = sum(w.get_value().size for w in axes.weights(program.model).values() if w.arrow.trained)
    assert sum(cost.parameters(program.model).values()) == total
    with pytest.raises(UserError, match="stack of blocks"):
        axes.stack(program.model, 2, program.dims)
    config = bottlenecks.config("vq")
    config["run"]["accumulate"] = 2
    with pytest.raises(UserError, match=r"run.accumulate=2: model 'vq' has states"):
        parted(build(config, PICTURES), config)
    assert parted(build({**config, "model": MODELS["fsq"]}, PICTURES), config).parts == 2


# ---- muP, studies


@pytest.mark.parametrize("name", [pytest.param(n, marks=[SLOW] * (n != "vq")) for n in MODELS])
def test_arrows_are_true_and_own_changes_do_not_drift_with_width(name):
    config, setting = bottlenecks.config(name, weight=0.01 if name == "kl" else 0.25), Setting(seeds=5)
    assert audit.truth(config, PICTURES, small.batch(2)) == {}
    batches = small.stack([small.batch(16, seed) for seed in range(setting.steps)])
    result = examine(config, PICTURES, batches, Sizes((32, 128), ()), setting, {"mup": mup, "standard": standard}, lambda _: None)
    assert not result.wrong
    assert result.verdicts["standard"].faults


TEXT = '''"""Does it run?"""
from ml_collections import ConfigDict
def get_config():
    c = ConfigDict()
    c.model = dict({model})
    c.base = dict(width=32)
    c.objective = dict(name="reconstruct")
    c.data = dict(name="shapes", size=8, grid=1)
    c.train = dict(steps=6, batch=8, log_every=1)
    c.eval = dict(examples=16, batch=8, every=3)
    c.sample = dict(n=3)
    c.judge = dict(names=("rate", "spectrum"), every=3, n=8)
    return c
'''


def file(folder, name):
    """An experiment of a tokenizer."""
    path = folder / "tok.py"
    path.write_text(TEXT.format(model=", ".join(f"{k}={v!r}" for k, v in MODELS[name].items())))
    return path


@pytest.mark.parametrize("name", [pytest.param(n, marks=[SLOW] * (n != "vq")) for n in MODELS])
def test_a_study_of_a_tokenizer_is_judged_and_shows_what_it_restores(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", str(file(tmp_path, name))]) == 0
    last = record.table("runs/tok").to_pylist()[-1]
    assert last["rate_psnr"] == pytest.approx(10 * math.log10(4 / last["rate_mse"]))
    if name != "kl":
        assert last["rate_bits"] == 4 * math.log2(16)
        assert last["rate_entropy"] <= last["rate_bits"]
    (npz,) = tmp_path.glob("runs/tok/*/samples.npz")
    with np.load(npz) as z:
        assert z["samples"].shape == z["real"].shape == (3, 8, 8, 3)
    assert cli.main(["sample", "runs/tok", "-n", "2", "--out", "s.png"]) == 0
    assert (tmp_path / "s.png").stat().st_size > 1000
    assert cli.main(["sample", "runs/tok", "--judge", "rate", "-n", "8"]) == 0
    assert f"{last['rate_mse']:.6g}"[:6] in capsys.readouterr().out


class Asked(Interrupt):
    """An interrupt that has been asked for before the first step."""

    def __enter__(self):
        self.asked = True
        return self

    def __exit__(self, *exc):
        pass


@pytest.mark.slow
def test_a_stopped_study_goes_on_bitwise_with_its_states(tmp_path):
    path = file(tmp_path, "vq")
    assert cli.main(["run", str(path), "--workdir", str(tmp_path / "whole")]) == 0
    for _ in range(3):  # one step an attempt
        with Asked() as asked, pytest.raises(Preempted):
            study.Study(load(str(path)), tmp_path / "parts" / "tok").run(asked)
    assert cli.main(["run", str(path), "--workdir", str(tmp_path / "parts")]) == 0
    whole, parts = (restored(tmp_path / f / "tok").weights for f in ("whole", "parts"))
    assert digests(whole) == digests(parts)
    assert record.results(tmp_path / "whole" / "tok").equals(record.results(tmp_path / "parts" / "tok"))


def test_an_encoder_of_convolutions_has_true_arrows_and_learns():
    model = dict(name="vae", width=8, multiples=(1, 2), blocks=1, code=2, groups=4)
    config = bottlenecks.config(model, weight=1e-3, base={"width": 8})
    assert audit.truth(config, PICTURES, small.batch(2)) == {}
    roles = {n: w.arrow.role for n, w in axes.weights(build({**config, "base": {"width": 4}}, PICTURES).model).items()}
    assert roles["encoder.conv_in.kernel"] == "input"
    assert roles["encoder.conv_out.kernel"] == roles["decoder.conv_out.kernel"] == "output"
    assert roles["encoder.levels.1.blocks.0.conv1.kernel"] == roles["decoder.middle.attention.query.kernel"] == "hidden"
    _, _, said = trained(config, PICTURES, one_batch(), 30, 2.0**-7)
    assert float(said["loss"]) < 0.5


def test_the_entropy_of_tokens_is_that_of_their_shares():
    assert usage(np.arange(8).repeat(5)) == (3.0, 8)
    assert usage(np.array([0, 0, 0, 1]))[0] == pytest.approx(0.25 * 2 + 0.75 * math.log2(4 / 3))


def test_tokenizers_are_found_where_models_are_and_mistakes_are_named():
    assert {"fsq", "vq", "kl"} <= set(find.names("lab.tokenizers"))
    assert find.module("lab.models", "vq").__name__ == "lab.tokenizers.vq"
    with pytest.raises(UserError, match="nearest: 'fsq'"):
        find.module("lab.models", "fsqq")
    for levels in ((4, 1), 4, (), (4.0,)):
        with pytest.raises(UserError, match=r"model\.levels="):
            build(bottlenecks.config({**MODELS["fsq"], "levels": levels}), PICTURES)
    with pytest.raises(UserError, match="must be a positive whole number"):
        build(bottlenecks.config({**MODELS["fsq"], "width": (32,)}), PICTURES)
    program = build(small.config(objective=dict(name="reconstruct")), PICTURES)
    with pytest.raises(UserError, match=r"wants a tokenizer|takes x"):
        jax.eval_shape(program.loss, program.model, jax.eval_shape(lambda: jax.random.key(0)), small.batch(2))
