"""The refiner: it begins as nothing, lets words read those that follow, leaves out padding, and follows the time."""

import branches
import jax.numpy as jnp
import numpy as np
import small

from lab.axes import Dims, inside
from lab.layers import refine
from lab.models import pixart

KNOBS = dict(width=32, depth=1, head_dim=16, mlp_ratio=2, patch=4, image=16, channels=1, features=12, length=5)
DIMS = Dims.of(pixart.Model.axes, {**KNOBS, "refiner": 2}, {"width": 32})
RNG = np.random.default_rng(0)
X, C = (jnp.asarray(RNG.normal(size=s), jnp.float32) for s in ((2, 5, 32), (2, 32)))
SEEN = jnp.arange(5) < jnp.array([[5], [3]])


def test_it_begins_as_nothing():
    np.testing.assert_array_equal(small.drawn(refine.Refiner(DIMS), more=0)(X, C, SEEN), X)


def test_a_word_reads_those_that_follow_but_padding_and_goes_by_the_condition():
    refiner = small.drawn(refine.Refiner(DIMS, init=1.0))
    out = refiner(X, C, SEEN)
    assert np.abs(out - refiner(X.at[0, 4].add(1.0), C, SEEN))[0, 0].max() > 1e-3
    np.testing.assert_array_equal(out[1, :3], refiner(X.at[1, 4].add(1.0), C, SEEN)[1, :3])
    assert np.abs(out - refiner(X, C + 1, SEEN)).max() > 1e-3


def test_with_all_closers_but_one_at_zero_the_branch_is_linear_in_that_one():
    tree = small.drawn(inside(refine.Block(DIMS, 1.0), DIMS))
    branches.check(tree, lambda tree: tree(X, C, SEEN) - X, {"attention.out", "attention.out_bias", "mlp.down.kernel", "mlp.down.bias"})


def test_pixart_with_it_begins_as_pixart_without_it_and_then_goes_another_way():
    given = {"x": jnp.ones((2, 16, 16, 1)), "t": jnp.array([0.2, 0.7]), "text": jnp.asarray(RNG.normal(size=(2, 5, 12)), jnp.float32)}
    model = small.drawn(pixart.Model(DIMS, False, False))
    gates = model.refiner.blocks.modulation
    moved = model(given)
    for w in (gates.kernel, gates.bias):
        w.set_value(jnp.zeros_like(w.get_value()))
    begun = model(given)
    model.refiner = None
    np.testing.assert_array_equal(begun, model(given))
    assert np.abs(begun - moved).max() > 1e-3
