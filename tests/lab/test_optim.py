"""Schedules against their formulas, and the optimizer against optax's AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lab import axes, parametrization
from lab.axes import Dims, scale, weight
from lab.errors import UserError
from lab.optim import SCHEDULES, Hyper, optimizer, schedule
from lab.parametrization import Scales

STEPS = 5


def tree(width=16, base=16):
    """A matrix, a bias and an untrained scale."""
    dims = Dims({"embed": width, "out": 4}, {"embed": base})
    described = {"w": weight("embed -> out", dims), "b": weight("-> embed", dims, fill=1.0), "s": scale("embed ->", dims)}
    return described, axes.draw(jax.random.key(0), described, axes.scales(described, parametrization.standard))


def gradients(params, size=1.0):
    """STEPS random gradients of very different sizes from entry to entry."""
    rng = np.random.default_rng(1)
    draw = lambda a, x: jnp.asarray(size * rng.normal(size=x.shape) * np.exp(2 * rng.normal(size=x.shape)), jnp.float32)  # noqa: E731
    return [axes.map_weights(draw, params) for _ in range(STEPS)]


def hyper(scales, **changes):
    """Hyperparameters with awkward values; 1 for lr, so that tests see it."""
    values = dict(lr=0.03, weight_decay=0.1, b1=0.8, b2=0.95, eps=1e-3, clip=float("inf"), ema=0.0, seed=0, slot=0) | changes
    return Hyper(scales=scales, **values)


def run(transform, params, grads):
    """Parameters after the gradients."""
    state = transform.init(params)
    for g in grads:
        updates, state = transform.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return axes.values(params)


def close(a, b, rtol=1e-5):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-7)


def test_at_the_base_it_is_adamw_with_decoupled_decay_of_matrices():
    described, params = tree()
    scales = axes.scales(described, parametrization.standard)
    rate = schedule("cosine", 10, 2, 0.2)
    mine = run(optimizer(hyper(scales), rate), params, gradients(params))
    theirs = optax.adamw(
        lambda n: 0.03 * rate(n), 0.8, 0.95, 1e-3, weight_decay=0.1, mask=axes.map_weights(lambda a, x: a.is_matrix and not a.fixed, params)
    )
    want = run(theirs, params, gradients(params))
    names = list(axes.weights(params))
    fixed = names.index("s")
    close([x for i, x in enumerate(mine) if i != fixed], [x for i, x in enumerate(want) if i != fixed])
    assert mine[fixed] == axes.values(params)[fixed]


def test_the_core_sees_the_gradient_over_its_expected_size():
    """A gradient g times smaller, expected to be so, makes the same step: epsilon and clipping follow the width."""
    _, params = tree()
    ones = [Scales(1.0, 1.0, 1.0, 1.0)] * 3
    for clip in (float("inf"), 2.0):
        plain = run(optimizer(hyper(ones, clip=clip), lambda n: 1.0), params, gradients(params))
        small = [s._replace(grad=1 / 64) for s in ones]
        close(run(optimizer(hyper(small, clip=clip), lambda n: 1.0), params, gradients(params, 1 / 64)), plain)
        forgotten = run(optimizer(hyper(ones, clip=clip), lambda n: 1.0), params, gradients(params, 1 / 64))
        assert max(float(jnp.abs(a - b).max()) for a, b in zip(forgotten, plain, strict=True)) > 1e-3


def test_step_scales_the_update_and_not_the_decay():
    _, params = tree()
    ones, half = ([Scales(1.0, step, 1.0, 1.0)] * 3 for step in (1.0, 0.5))
    for decay in (0.0, 0.1):
        grads = gradients(params)[:1]
        moved, less = (run(optimizer(hyper(s, weight_decay=decay), lambda n: 1.0), params, grads) for s in (ones, half))
        for p, a, b in zip(axes.values(params), moved, less, strict=True):
            left = p * (1 - 0.03 * decay)  # decoupled: lr times decay, whatever the step
            np.testing.assert_allclose(b - left, 0.5 * (a - left), rtol=1e-3, atol=1e-6)


def test_clipping_bounds_the_global_norm_and_leaves_small_gradients_alone():
    _, params = tree()
    scales = [Scales(1.0, 1.0, 1.0, 0.0)] * 3

    def unit(g):
        norm = optax.tree.norm(g)
        return jax.tree.map(lambda x: x / norm, g)

    plain = [unit(g) for g in gradients(params)]

    def clipped(factor, clip, eps=1.0):
        grads = [jax.tree.map(lambda x: factor * x, g) for g in plain]
        return run(optimizer(hyper(scales, clip=clip, eps=eps), lambda n: 1.0), params, grads)

    close(clipped(1.0, 1.01), clipped(1.0, float("inf")))
    close(clipped(50.0, 0.5), clipped(0.5, float("inf")))
    assert any(float(jnp.abs(a - b).max()) > 1e-3 for a, b in zip(clipped(50.0, 0.5), clipped(50.0, 1.0), strict=True))
    assert all(np.all(np.isfinite(x)) for x in clipped(0.0, 1.0))


def test_hyperparameters_are_traced_one_program_serves_all():
    described, params = tree(width=64)
    tables = [axes.scales(described, parametrization.table(r)) for r in ("standard", "mup")]
    grads, rate = gradients(params), schedule("constant", 10, 0, 0.2)
    compiled = jax.jit(lambda h: run(optimizer(h, rate), params, grads))
    for scales in tables:
        for lr in (0.01, 0.1):
            h = hyper(scales, lr=lr, clip=3.0)
            close(compiled(jax.tree.map(jnp.float32, h)), run(optimizer(h, rate), params, grads), rtol=1e-4)
    assert compiled._cache_size() == 1


def test_schedules_are_their_formulas():
    steps, warmup = 20, 4
    rest = steps - warmup
    after = {
        "constant": lambda n: 1.0,
        "linear": lambda n: 1 - n / rest,
        "cosine": lambda n: 0.5 * (1 + np.cos(np.pi * n / rest)),
        "wsd": lambda n: 1.0 if n <= rest - 8 else (rest - n) / 8,
    }
    assert set(after) == set(SCHEDULES)
    for name, f in after.items():
        rate = schedule(name, steps, warmup, 0.5)
        want = [(n + 1) / warmup for n in range(warmup)] + [f(n) for n in range(rest + 1)]
        np.testing.assert_allclose([rate(n) for n in range(steps + 1)], want, atol=1e-6)
        assert rate(0) > 0  # the first step already moves
        assert schedule(name, steps, 0, 0.5)(0) == 1


def test_wsd_decays_over_the_asked_share_alone():
    for decay in (0.1, 0.25, 1.0):
        rate = np.array([schedule("wsd", 100, 0, decay)(n) for n in range(101)])
        assert (rate == 1).sum() == 101 - round(100 * decay)
        assert rate[-1] == 0


def test_a_warmup_of_one_step_is_a_full_step():
    assert [float(schedule("constant", 5, 1, 0.2)(n)) for n in range(3)] == [1.0, 1.0, 1.0]


def test_unknown_schedules_and_warmups_that_do_not_end_are_the_users_errors():
    with pytest.raises(UserError, match=r"optim.schedule 'cosin' is unknown.*nearest: 'cosine'"):
        schedule("cosin", 10, 0, 0.2)
    for warmup in (10, -1):
        with pytest.raises(UserError, match=rf"optim.warmup={warmup}.*train.steps=10"):
            schedule("linear", 10, warmup, 0.2)
