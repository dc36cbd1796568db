"""What a residual block promises of its closers, the weights that '=>' marks as linear and last in a branch."""

import jax
import jax.numpy as jnp
import numpy as np

from lab import axes


def closed(tree, **kept):
    """All closers zero but those of `kept`, which have the values given."""
    names = iter(axes.weights(tree))
    return axes.map_weights(lambda a, x: kept.get(n, jnp.zeros_like(x)) if (n := next(names)) and a.closes else x, tree)


def check(block, added, names):
    """The closers of a block are `names`; `added(block)`, what it adds to its stream, is linear in each alone and zero without them.

    So the mark '=>' is neither too generous nor too sparing. AssertionError where it is.
    """
    closers = {n: w.get_value() for n, w in axes.weights(block).items() if w.arrow.closes}
    assert set(closers) == names
    rng, none = np.random.default_rng(1), {n: jnp.zeros_like(x) for n, x in closers.items()}
    branch = jax.jit(lambda kept: added(closed(block, **kept)))
    np.testing.assert_allclose(branch(none), 0, atol=1e-6)
    for name, like in closers.items():
        one, two = (rng.normal(size=like.shape).astype(np.float32) for _ in range(2))
        first, second, mixed = (branch(none | {name: w}) for w in (one, two, 2 * one - 3 * two))
        np.testing.assert_allclose(mixed, 2 * first - 3 * second, rtol=1e-4, atol=1e-3, err_msg=name)
        assert np.abs(first).mean() > 1e-2, name
