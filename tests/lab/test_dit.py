"""DiT: what its closers, gates, labels and attention promise, and how it fails."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import branches
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from lab import axes
from lab.axes import Dims, inside
from lab.errors import UserError
from lab.layers import attention, embed
from lab.models import dit, shared

DIMS = Dims.of(dit.Model.axes, small.KNOBS, {"width": 32})


def inputs(n=3, seed=0):
    """What the model takes."""
    rng = np.random.default_rng(seed)
    return {
        "x": jnp.asarray(rng.normal(size=(n, 16, 16, 1)), jnp.float32),
        "t": jnp.asarray(rng.uniform(size=n), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 4, n)),
    }


CLOSERS = {"attention.out", "attention.out_bias", "mlp.down.kernel", "mlp.down.bias"}


def added(block):
    """What a block adds to random tokens."""
    x, c = (jnp.asarray(np.random.default_rng(1).normal(size=s), jnp.float32) for s in ((2, 5, 32), (2, 32)))
    return block(x, c) - x


@pytest.mark.parametrize("qk_norm", [False, True])
def test_with_all_closers_but_one_at_zero_the_branch_is_linear_in_that_one(qk_norm):
    branches.check(small.drawn(inside(dit.Block(DIMS, qk_norm, False), DIMS)), added, CLOSERS)


@pytest.mark.parametrize("name, closes", [("mlp.up.kernel", True), ("mlp.down.kernel", False)])
def test_a_closer_marked_wrongly_is_caught(name, closes):
    block = small.drawn(inside(dit.Block(DIMS, False, False), DIMS))
    part, kernel = name.split(".")[1], axes.weights(block)[name]
    getattr(block.mlp, part).kernel = axes.Weight(kernel.get_value(), arrow=dataclasses.replace(kernel.arrow, closes=closes))
    with pytest.raises(AssertionError):
        branches.check(block, added, CLOSERS ^ {name})


def test_at_init_the_output_is_zero_and_every_block_the_identity():
    model = small.drawn(small.model(), more=0)
    assert np.all(jax.jit(lambda m: m(inputs()))(model) == 0)
    x, c = jnp.ones((2, 5, 32)), jnp.ones((2, 32))
    block = jax.tree.map(lambda v: v[0], model.blocks)
    np.testing.assert_array_equal(block(x, c), x)
    moving = jax.tree.map(lambda v: v[0], small.drawn(small.model(zero_gates=False), more=0).blocks)
    assert float(jnp.abs(moving(x * jnp.arange(32), c) - x * jnp.arange(32)).max()) > 1e-2


def test_a_negative_label_reads_the_last_row_and_no_other():
    model, given = small.drawn(small.model(depth=1)), inputs()

    def out(m, label):
        return m({**given, "label": label})

    call, slope = jax.jit(out), jax.jit(jax.grad(lambda m, label: jnp.sum(out(m, label) ** 2)))

    def run(label):
        return call(model, jnp.asarray(label))

    none = run([-1, -1, -1])
    np.testing.assert_array_equal(run([-7, -1, 4]), none)
    for label, rows in (([-1, -1, -1], [4]), ([0, 2, 2], [0, 2])):
        moved = jnp.abs(slope(model, jnp.asarray(label)).label.table.get_value()).sum(1)
        assert np.flatnonzero(moved).tolist() == rows
    assert float(jnp.abs(run([0, 0, 0]) - none).max()) > 1e-3


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_does_not_know_the_order_of_tokens_and_mixes_them_all(qk_norm):
    mixer = small.drawn(attention.Mixer(DIMS, qk_norm))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 7, 32)), jnp.float32)
    order = rng.permutation(7)
    np.testing.assert_allclose(mixer(x[:, order]), mixer(x)[:, order], rtol=1e-4, atol=1e-5)
    one = jnp.broadcast_to(x[:, :1], x.shape)  # equal tokens attend to themselves: the value, whatever the scores
    v = jnp.einsum("btd,dhe->bthe", one, mixer.qkv.get_value()[2]) + mixer.qkv_bias.get_value()[2]
    want = jnp.einsum("bthe,hed->btd", v, mixer.out.get_value()) + mixer.out_bias.get_value()
    np.testing.assert_allclose(mixer(one), want, rtol=1e-4, atol=1e-5)
    assert np.all(np.abs(jax.grad(lambda x: mixer(x)[0, 3].sum())(x)[0]).max(-1) > 1e-4)
    assert np.all(jax.grad(lambda x: mixer(x)[0].sum())(x)[1] == 0)  # and no other example


def test_qk_norm_makes_the_scores_blind_to_the_size_of_the_input():
    mixer = small.drawn(attention.Mixer(DIMS, True), more=0)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 32)), jnp.float32)
    np.testing.assert_allclose(mixer(10 * x), 10 * mixer(x), rtol=1e-3, atol=1e-4)  # without bias only the value grows
    plain = small.drawn(attention.Mixer(DIMS, False), more=0)
    assert float(jnp.abs(plain(10 * x) - 10 * plain(x)).max()) > 0.1


def test_tokens_are_patches_row_by_row_and_back():
    x = jnp.arange(2 * 8 * 8 * 3.0).reshape(2, 8, 8, 3)
    tokens = embed.patchify(x, 4)
    assert tokens.shape == (2, 4, 48)
    np.testing.assert_array_equal(tokens[1, 1].reshape(4, 4, 3), x[1, :4, 4:])
    np.testing.assert_array_equal(embed.unpatchify(tokens, 4, 8), x)


def test_time_features_have_unit_size_whatever_the_time():
    t = jnp.linspace(0, 1, 50)
    for n in (32, 128):
        np.testing.assert_allclose(jnp.mean(embed.sinusoid(t, n) ** 2, axis=1), 1.0, rtol=1e-4)


def test_positions_are_distinct():
    table = embed.sincos_2d(8, 32)
    gaps = np.linalg.norm(table[:, None] - table[None], axis=-1) + 9 * np.eye(64)
    assert gaps.min() > 0.1


def test_bf16_compute_keeps_f32_weights_and_is_near_f32():
    full, half = (small.program(qk_norm=True, depth=1, dtype=d) for d in (jnp.float32, jnp.bfloat16))
    params = small.drawn(full.model)
    batch, key = small.batch(8), jax.random.key(0)
    a, b = (jax.jit(p.loss)(params, key, batch) for p in (full, half))
    assert b.dtype == jnp.float32
    assert float(jnp.abs(a - b).max()) > 0
    np.testing.assert_allclose(a, b, rtol=0.05)
    hyper = small.hyper(half)
    state, _ = jax.eval_shape(half.step, jax.eval_shape(half.init, hyper), hyper, batch)
    assert {x.dtype.name for x in axes.values(state.params)} == {"float32"}
    run = jax.jit(lambda m: m(inputs()))
    out, want = run(axes.view(params, jnp.bfloat16)), run(params)
    assert out.dtype == jnp.bfloat16
    assert float(jnp.linalg.norm(out - want) / jnp.linalg.norm(want)) < 0.05


def test_a_rolled_and_an_unrolled_stack_agree(monkeypatch):
    model = small.drawn(small.model(depth=3))
    want = jax.jit(lambda m: m(inputs()))(model)
    monkeypatch.setattr(shared, "UNROLL", 0)
    np.testing.assert_allclose(jax.jit(lambda m: m(inputs()))(model), want, rtol=1e-4, atol=1e-4)


def test_a_stack_is_rolled_within_its_block_and_for_no_other_thread():
    blocks = jnp.ones((3, 2))

    def unrolled():
        (scan,) = jax.make_jaxpr(lambda b, x: shared.through(b, x, lambda w, y: w * y, 3))(blocks, jnp.ones(2)).eqns
        return scan.params["unroll"]

    with ThreadPoolExecutor(1) as beside, shared.rolled():
        assert unrolled() == 1
        assert beside.submit(unrolled).result() == 3
    assert unrolled() == 3


def test_a_missing_input_is_named():
    model, given = small.drawn(small.model(), more=0), inputs()
    for key in given:
        with pytest.raises(UserError, match=rf"missing: {key},"):
            model({k: v for k, v in given.items() if k != key})
    with pytest.raises(UserError, match="no cache"):
        model(given, cache={})
