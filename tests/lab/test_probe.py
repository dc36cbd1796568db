"""The probe against what it should be by hand, in a scan, under jit, and for products of activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab import axes, parametrization
from lab.axes import Dims, stack, weight
from lab.probe import probe, rms

DIMS = Dims({"a": 8, "b": 6, "layers": 3}, {})


def drawn(tree, seed):
    return axes.draw(jax.random.key(seed), tree, axes.scales(tree, parametrization.standard))


def value(tree, name):
    return tree[name].get_value()


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_own_changes_and_products_are_those_by_hand(wrap):
    described = {"q": weight("a -> b", DIMS), "kv": weight("2 | a -> b", DIMS), "bias": weight("-> b", DIMS, init=1.0)}
    now, start, x = drawn(described, 0), drawn(described, 1), jax.random.normal(jax.random.key(2), (5, 8))

    @wrap
    def f(t):
        q, (k, v) = x @ value(t, "q") + value(t, "bias"), (x @ w for w in value(t, "kv"))
        return jax.nn.softmax(q @ k.T) @ v

    _, found = probe(f, now, start, pairs=True)
    q, (k, v) = x @ value(now, "q") + value(now, "bias"), (x @ w for w in value(now, "kv"))
    logits = q @ k.T
    want = {
        "q": (rms(x @ value(now, "q")), rms(x @ (value(now, "q") - value(start, "q")))),
        "bias": (rms(value(now, "bias")), rms(value(now, "bias") - value(start, "bias"))),
        **{"kv" + "'" * i: (rms(y), rms(x @ (value(now, "kv") - value(start, "kv"))[i])) for i, y in enumerate((k, v))},
        "q x kv": (rms(logits), 0.0),
        "q x kv x kv'": (rms(jax.nn.softmax(logits) @ v), 0.0),
    }
    assert set(found) == set(want)
    for n, (size, own) in want.items():
        np.testing.assert_allclose(found[n], (size, own), rtol=1e-5, err_msg=n)
    assert set(probe(f, now, start)[1]) == {"q", "kv", "kv'", "bias"}


def test_a_scanned_weight_has_a_row_a_layer_and_its_products_too():
    described = {"w": stack({"v": weight("a -> a", DIMS)}, 3, DIMS)}
    now, start, x = drawn(described, 0), drawn(described, 1), jax.random.normal(jax.random.key(2), (5, 8))

    def layer(y, each):
        z = y @ each["v"].get_value()
        return jnp.tanh(z) + (z @ z.T) @ z, None

    _, found = probe(lambda t: jax.lax.scan(layer, x, t["w"])[0], now, start, pairs=True)
    y, sizes, owns, products = x, [], [], []
    for i in range(3):
        new, old = (t["w"]["v"].get_value()[i] for t in (now, start))
        sizes, owns, products = [*sizes, rms(y @ new)], [*owns, rms(y @ (new - old))], [*products, rms((y @ new) @ (y @ new).T)]
        y = layer(y, {"v": axes.Weight(new, arrow=None)})[0]
    np.testing.assert_allclose(found["w.v"], (sizes, owns), rtol=1e-4)
    np.testing.assert_allclose(found["w.v x v"][0], products, rtol=1e-4)
