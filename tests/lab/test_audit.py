"""Every arrow of a model is true to its traced program, and planted lies are named."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import small

from lab import audit, axes, parametrization, probe
from lab.axes import Dims, inside, stack, weight
from lab.population import described
from lab.train import Program

SIDES = {"image": 16, "channels": 1, "classes": 4}
DIMS = Dims({"a": 8, "b": 8, "k": 3, "layers": 2}, {"a": 4})


def complaints(f, *args, **tree):
    """What the audit says of f(tree, *args)."""
    drawn = axes.draw(jax.random.key(0), tree, axes.scales(tree, parametrization.standard))
    return probe.audit(f, drawn, *args)


def value(tree, name="w"):
    return tree[name].get_value()


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("width, depth", [(32, 1), (64, 10), (16, 2)])  # a written-out and a rolled scan; one head
def test_every_arrow_of_dit_is_true(qk_norm, width, depth):
    config = small.config()
    config["model"] |= {"qk_norm": qk_norm, "width": width, "depth": depth}
    assert audit.truth(config, SIDES, small.batch(2)) == {}


def lies(a):
    """What else the same array could be said to do: produce every dim, contract every dim, be indexed by what it contracts."""
    every = a.index + a.ins + a.outs
    yield dataclasses.replace(a, index=(), ins=(), outs=every)
    yield dataclasses.replace(a, index=(), ins=every, outs=())
    yield dataclasses.replace(a, index=a.index + a.ins[:1], ins=a.ins[1:])


def test_every_lie_about_a_matrix_of_dit_is_caught_and_nothing_else():
    prog = small.program(qk_norm=True, depth=2)
    batch, key = small.batch(2), jax.random.key(0)
    flat, treedef = jax.tree.flatten(prog.model, is_leaf=axes.is_weight)
    names, planted = list(axes.weights(prog.model)), 0
    for i, w in enumerate(flat):
        for arrow in lies(w.arrow) if w.arrow.ins and not w.arrow.fixed else ():
            leaves = [*flat[:i], axes.Weight(w.get_value(), arrow=arrow), *flat[i + 1 :]]
            told = Program(jax.tree.unflatten(treedef, leaves), None, prog.objective, prog.rate, prog.dtype)
            found = probe.audit(lambda p, told=told: jnp.mean(told.loss(p, key, batch)), described(told))
            assert list(found) == [names[i]], arrow
            assert "contracts" in found[names[i]][0] or "batches" in found[names[i]][0]
            planted += 1
    assert planted == 3 * 10  # patches, time twice, modulation twice, qkv, attention's out, the mlp's two, readout


def test_a_truth_has_no_complaint():
    x = jnp.ones((5, 8))
    assert complaints(lambda t: x @ value(t), w=weight("a -> b", DIMS)) == {}
    assert complaints(lambda t: jnp.einsum("na,kab->knb", x, value(t)), w=weight("k | a -> b", DIMS)) == {}
    assert complaints(lambda t: value(t)[jnp.array([0, 2])], w=weight("k | -> a", DIMS)) == {}
    assert complaints(lambda t: x * value(t), w=weight("-> a", DIMS)) == {}


@pytest.mark.parametrize(
    "spec, use, said",
    [
        ("b -> a", lambda x, w: jnp.einsum("na,ab->nb", x, w.T.T), None),  # the truth, with other names
        ("b -> a", lambda x, w: jnp.einsum("na,ba->nb", x, w), "contracts a, but the arrow contracts b"),
        ("k | a -> b", lambda x, w: jnp.einsum("kna,kab->nb", x[None].repeat(3, 0), w), "contracts a, k, but the arrow contracts a"),
        ("k a -> b", lambda x, w: jnp.einsum("kna,kab->knb", x[None].repeat(3, 0), w), "contracts a, but the arrow contracts a, k"),
        ("a -> a", lambda x, w: jnp.einsum("na,ba->nb", x, w), "contracts a where the arrow produces it"),
        ("a a ->", lambda x, w: x @ w, "contracts a, but the arrow contracts a, a"),
        ("a -> b", lambda x, w: jnp.einsum("nhe,heb->nb", x.reshape(5, 2, 4), w.reshape(2, 4, 8)), None),
        ("a -> b", lambda x, w: x[:, :, None] * w, "contracts nothing"),
        ("a -> b", lambda x, w: w[jnp.array([1, 2])], "looks up a"),
        ("-> a b", lambda x, w: x @ w, "contracts a, but the arrow contracts nothing"),
        ("a -> b", lambda x, w: x, "is never used"),
        ("k | a -> b", lambda x, w: x @ w[0], None),  # one slice of what is indexed
        ("a -> k b", lambda x, w: x @ w[:, 0], "takes one slice of k"),
    ],
)
def test_planted_lies_are_named(spec, use, said):
    x = jnp.ones((5, 8))
    for wrapped in (use, lambda x, w: jax.jit(use)(x, w)):
        found = complaints(lambda t, wrapped=wrapped: wrapped(x, value(t)), w=weight(spec, DIMS))
        if said is None:
            assert found == {}
        else:
            assert list(found) == ["w"]
            assert said in " ".join(found["w"])


def test_a_lie_inside_a_scan_and_under_grad_is_named():
    tree = {"w": stack({"v": weight("b -> a", DIMS)}, 2, DIMS), "head": inside(weight("a -> b", DIMS), DIMS)}
    x = jnp.ones((5, 8))

    def f(t):
        y, _ = jax.lax.scan(lambda y, layer: (jnp.tanh(y @ layer["v"].get_value().T), None), x, t["w"])
        return jnp.sum(y @ value(t, "head"))

    found = complaints(f, **tree)
    assert list(found) == ["w.v"]


def test_weights_that_meet_before_any_activation_are_named():
    tree = {"u": weight("a -> b", DIMS), "w": weight("b -> a", DIMS)}
    found = complaints(lambda t: jnp.ones((5, 8)) @ (value(t, "u") @ value(t)), **tree)
    assert set(found) == {"u", "w"}
    assert all("meets another weight" in said[0] for said in found.values())


def test_the_text_has_a_line_a_weight_and_the_columns_of_a_wider_model():
    config = small.config()
    narrow = audit.rows(config, SIDES)
    wide = audit.rows({**config, "model": {**config["model"], "width": 128}}, SIDES)
    lines = audit.text(narrow, wide, "4x").splitlines()
    names = [line.split()[0] for line in lines[1:-2]]
    assert names == list(axes.weights(small.program(mlp_ratio=2, depth=1).model))
    assert {"init std 4x", "step 4x", "gradient 4x", "shape 4x", "parameters 4x"} <= {h.strip() for h in lines[0].split("  ")}
    assert "4x" not in audit.text(narrow).splitlines()[0]
    by_name = {r["weight"]: (r, big) for r, big in zip(narrow, wide, strict=True)}
    qkv, big = by_name["blocks.attention.qkv"]
    assert (qkv["shape"], big["shape"]) == ("1x3x32x2x16", "1x3x128x8x16")
    assert (qkv["fan-in"], big["fan-in"]) == (32, 128)
    assert (qkv["step"], big["step"]) == (1.0, 0.25)
    assert big["init std"] == pytest.approx(qkv["init std"] / 2)
    tree = jax.tree.leaves(small.model(mlp_ratio=2, depth=1), is_leaf=axes.is_weight)
    assert sum(r["parameters"] for r in narrow) == sum(w.get_value().size for w in tree if not w.arrow.fixed)
