"""The masked transformer: what it may see, what every weight is, and what it costs."""

import branches
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from lab import audit, axes, cost, parametrization
from lab.axes import Dims, inside
from lab.errors import UserError
from lab.models import masked
from lab.objectives.unmask import Objective
from lab.optim import schedule
from lab.population import described
from lab.train import Program

KNOBS = dict(width=32, depth=1, head_dim=16, mlp_ratio=2, tokens=9, vocabulary=5, classes=3)
TEXT = dict(words=7, length=4, text_depth=1)
SOURCE = {"side": 3, "tokens": 9, "vocabulary": 5, "classes": 3, "words": 7, "length": 4}
BOTH = pytest.mark.parametrize("more", [{}, TEXT], ids=["label", "text"])


def model(qk_norm=False, **knobs):
    """A described model."""
    return masked.Model(Dims.of(masked.Model.axes, {**KNOBS, **knobs}, {"width": 32}), qk_norm)


def batch(n=4, seed=0):
    """Random grids with label and text."""
    rng = np.random.default_rng(seed)
    sizes = {"tokens": (5, (n, 3, 3)), "label": (3, n), "text": (7, (n, 4))}
    return {k: rng.integers(0, high, shape, np.int32) for k, (high, shape) in sizes.items()}


def moved(a, b):
    """Largest change of each token's logits, [B, T]."""
    return np.abs(np.asarray(a) - np.asarray(b)).max(-1)


@BOTH
def test_what_is_masked_is_not_seen_and_what_is_shown_is_seen_by_all(more):
    m, objective = small.drawn(model(**more)), Objective("linear", "plain", 0.0)
    run, inputs = jax.jit(lambda given: m(given)), jax.jit(lambda data: objective.inputs(jax.random.key(1), data))
    data = batch(9)
    given = inputs(data)
    hidden = np.asarray(given["masked"])
    assert 0.2 < hidden.mean() < 0.8
    out = run(given)
    assert out.shape == (9, 9, 5)
    other = (data["tokens"] + 1) % 5
    np.testing.assert_array_equal(run(inputs({**data, "tokens": np.where(hidden, other, data["tokens"])})), out)
    # the only way in: a shown token changed, one in an example, moves the logits of every position of that example
    one = np.eye(9, dtype=bool).reshape(9, 3, 3) & ~hidden
    changed = one.any((1, 2))
    assert changed.sum() >= 3
    found = moved(run({**given, "tokens": np.where(one, other, given["tokens"])}), out)
    assert found[changed].min() > 1e-4
    assert found[~changed].max() == 0


@BOTH
def test_every_position_listens_to_every_other_and_to_the_condition(more):
    m, data = small.drawn(model(**more)), batch(1)
    grid = np.repeat(data["tokens"], 9, 0)
    given = {"tokens": grid, "label": np.zeros(9, np.int32), "text": np.repeat(data["text"], 9, 0)}
    run = jax.jit(lambda given: m(given))
    out = run(given)
    swapped = np.where(np.eye(9, dtype=bool).reshape(9, 3, 3), (grid + 1) % 5, grid)
    assert moved(run({**given, "tokens": swapped}), out).min() > 1e-4  # row i: token i changed
    np.testing.assert_allclose(jax.jit(lambda given: m(given))({**given, "tokens": grid.reshape(9, 9)}), out, rtol=1e-5, atol=1e-6)
    # equal tokens in other places are told apart by their positions
    flat = np.asarray(run({**given, "tokens": 0 * grid}))[0]
    assert np.abs(flat[:, None] - flat[None]).max(-1)[~np.eye(9, dtype=bool)].min() > 1e-3
    takes, leaves = ("text", "label") if more else ("label", "text")
    np.testing.assert_array_equal(run({**given, leaves: given[leaves] + 1}), out)
    given[takes][3] += 1
    assert moved(run(given), out).max(-1).nonzero()[0].tolist() == [3]


def test_a_mask_and_no_label_are_rows_of_their_own():
    m, data = small.drawn(model()), batch(2)
    run = jax.jit(lambda tokens, label: m({"tokens": tokens, "label": label}))
    gone = data["tokens"].copy()
    gone[:, 1, 1] = -1
    out = run(gone, data["label"])
    np.testing.assert_array_equal(run(np.where(gone < 0, 5, gone), data["label"]), out)
    np.testing.assert_array_equal(run(gone, np.array([-1, -1], np.int32)), run(gone, np.array([3, 3], np.int32)))
    for v in range(5):
        assert moved(run(np.where(gone < 0, v, gone), data["label"]), out).min() > 1e-4
    assert moved(run(gone, np.array([-1, -1], np.int32)), out).min() > 1e-4


def test_the_logits_start_at_zero_so_the_loss_is_that_of_a_guess():
    m = model()
    params = axes.draw(jax.random.key(0), m, axes.scales(m, parametrization.mup))
    loss = jax.jit(lambda p, b: Objective("cosine", "plain", 0.1).loss(p, jax.random.key(0), b))(params, batch())
    np.testing.assert_allclose(loss, np.log(5), rtol=1e-6)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_with_all_closers_but_one_at_zero_the_branch_is_linear_in_that_one(qk_norm):
    dims = Dims.of(masked.Model.axes, KNOBS, {"width": 32})
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 32)), jnp.float32)
    closers = {"attention.out", "attention.out_bias", "mlp.down.kernel", "mlp.down.bias"}
    branches.check(small.drawn(inside(masked.Block(dims, qk_norm), dims)), lambda block: block(x) - x, closers)


def config(**more):
    """A study's config of this model."""
    c = small.config()
    c["model"] = dict(name="masked", width=32, depth=1, head_dim=16, mlp_ratio=2, qk_norm=False) | more
    c["objective"] = dict(name="unmask", schedule="cosine", weighting="elbo", label_drop=0.1)
    return c


@pytest.mark.parametrize("more", [{}, dict(qk_norm=True, depth=10, width=64), dict(text_depth=2)])
def test_every_arrow_is_true(more):
    assert audit.truth(config(**more), SOURCE, batch(2)) == {}


def by_hand(n, width, depth, head_dim, mlp_ratio, tokens, vocabulary, length=0, text_depth=0, **_):
    """FLOPs forward: 2 m n k of every product; all look-ups are free, and every factor needs a gradient."""

    def blocks(seen):
        return 2 * n * seen * width**2 * (3 + 1 + 2 * mlp_ratio) + 2 * (2 * n * seen**2 * width)

    return depth * blocks(tokens + (length or 1)) + text_depth * blocks(length) + 2 * n * tokens * width * (width + vocabulary)


@pytest.mark.parametrize("more", [{}, dict(width=64, depth=1, head_dim=8), dict(depth=10), TEXT, dict(TEXT, text_depth=3)])
def test_flops_equal_the_hand_count(more):
    prog = Program(model(**more), None, Objective("cosine", "plain", 0.1), schedule("constant", 20, 0, 0.2), jnp.float32)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch(4))
    args = described(prog), jax.eval_shape(lambda: jax.random.key(0)), shapes

    def f(p, k, b):
        return jnp.mean(prog.loss(p, k, b))

    want = by_hand(4, **{**KNOBS, **more})
    assert cost.flops(f, *args) == want
    assert cost.flops(jax.grad(f), *args) == 3 * want


def test_mistakes_are_one_line():
    m, given = small.drawn(model()), {k: v for k, v in batch().items() if k != "text"}
    for key in given:
        with pytest.raises(UserError, match=rf"'masked' takes tokens, label; missing: {key},"):
            m({k: v for k, v in given.items() if k != key})
    with pytest.raises(UserError, match=r"'masked' takes tokens, text; missing: text"):
        small.drawn(model(**TEXT))(given)
    with pytest.raises(UserError, match="no cache; missing: nothing"):
        m(given, cache={})
    with pytest.raises(UserError, match="reads text, and the source gives none"):
        model(text_depth=1)
    with pytest.raises(UserError, match=r"model\.width=40 is not a multiple of model\.head_dim=16; nearest: 32 or 48"):
        model(width=40)
