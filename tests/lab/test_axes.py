"""The arrow: how it is read, which axes are infinite, and what `draw` makes of it."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest
import small

from lab import axes, parametrization
from lab.axes import Dims, inside, parse, scale, split, stack, weight
from lab.errors import UserError
from lab.models import dit

# a model four times as wide as its base; depth twice the base's; 'deep' and 'half' move with another knob than the width
DIMS = Dims(
    {"patch": 48, "embed": 128, "heads": 8, "head_dim": 16, "mlp": 512, "layers": 6, "classes": 10, "experts": 4},
    {"embed": 32, "heads": 2, "mlp": 128, "layers": 3},
)

# arrow -> index, ins, outs, closes, role, (r_in, r_out, r_index), fan-in at the base
READ = {
    "patch -> embed": ((), ("patch",), ("embed",), False, "input", (1, 4, 1), 48),
    "3 | embed -> heads head_dim": (("3",), ("embed",), ("heads", "head_dim"), False, "hidden", (4, 4, 1), 32),
    "heads head_dim => embed": ((), ("heads", "head_dim"), ("embed",), True, "hidden", (4, 4, 1), 32),
    "mlp => embed": ((), ("mlp",), ("embed",), True, "hidden", (4, 4, 1), 128),
    "embed -> patch": ((), ("embed",), ("patch",), False, "output", (4, 1, 1), 32),
    "-> embed": ((), (), ("embed",), False, "vector", (1, 4, 1), 1),
    "=> embed": ((), (), ("embed",), True, "vector", (1, 4, 1), 1),
    "-> patch": ((), (), ("patch",), False, "scalar", (1, 1, 1), 1),
    "classes | -> embed": (("classes",), (), ("embed",), False, "vector", (1, 4, 1), 1),
    "experts | embed -> mlp": (("experts",), ("embed",), ("mlp",), False, "hidden", (4, 4, 1), 32),
    "heads | head_dim -> head_dim": (("heads",), ("head_dim",), ("head_dim",), False, "scalar", (1, 1, 4), 16),
    "embed mlp -> patch": ((), ("embed", "mlp"), ("patch",), False, "output", (16, 1, 1), 32 * 128),
    "head_dim ->": ((), ("head_dim",), (), False, "scalar", (1, 1, 1), 16),
}


@pytest.mark.parametrize("spec", READ)
def test_every_kind_of_arrow_is_read(spec):
    index, ins, outs, closes, role, ratios, fan = READ[spec]
    a = parse(spec, DIMS)
    assert (a.index, a.ins, a.outs, a.closes) == (index, ins, outs, closes)
    assert (a.role, (a.r_in, a.r_out, a.r_index), a.fan) == (role, ratios, fan)
    assert a.names == index + ins + outs
    again = parse(str(a), DIMS)
    assert again == a


def test_a_weight_has_the_shape_of_its_arrow():
    w = weight("3 | embed -> heads head_dim", DIMS)
    assert w.get_value().shape == (3, 128, 8, 16)
    assert w.arrow.std == 32**-0.5  # at the base: what the table multiplies


def test_an_axis_is_infinite_exactly_when_it_moves_with_a_base_knob():
    moves = {
        "embed": {"width"},
        "heads": {"width"},
        "mlp": {"width", "ratio"},
        "layers": {"depth"},
        "patch": set(),
        "ratio_only": {"ratio"},
    }

    def sizes(width, depth, ratio, patch):
        return {
            **{"embed": width, "heads": width // 16, "mlp": ratio * width, "layers": depth},
            **{"patch": patch * patch, "ratio_only": 7 + ratio},
        }

    knobs = dict(width=64, depth=6, ratio=4, patch=2)
    at = dict(width=32, depth=3, ratio=2)
    for n in range(4):
        for chosen in itertools.combinations(at, n):
            base = {k: at[k] for k in chosen}
            dims = Dims.of(sizes, knobs, base)
            assert set(dims.base) == {a for a, by in moves.items() if by & set(chosen)}
            assert dict(dims) == sizes(**knobs)
            assert dims.base == {a: sizes(**{**knobs, **base})[a] for a in dims.base}


def test_the_width_axes_of_dit_are_all_found():
    dims = Dims.of(dit.Model.axes, {**small.KNOBS, "width": 128}, {"width": 32, "depth": 1})
    assert dims.base == {"embed": 32, "heads": 2, "mlp": 128, "layers": 1}


@pytest.mark.parametrize("spec", ["embed mlp", "a | b | embed -> mlp", "embed -> mlp -> patch", "embed | -> mlp | patch", "", "3 | embed"])
def test_a_malformed_arrow_is_the_users_error(spec):
    with pytest.raises(UserError, match="malformed"):
        parse(spec, DIMS)


def test_an_unknown_axis_names_itself_its_arrow_and_the_nearest():
    with pytest.raises(UserError, match=r"'embd -> mlp'.*axis 'embd' is unknown.*nearest: 'embed'"):
        weight("embd -> mlp", DIMS)


def test_sizes_that_do_not_divide_name_the_axis_and_what_would():
    with pytest.raises(UserError, match=r"model.width=40 is not a multiple of model.head_dim=16; nearest: 32 or 48"):
        Dims.of(dit.Model.axes, {**small.KNOBS, "width": 40}, {})
    with pytest.raises(UserError, match=r"image size=18.*model.patch=4"):
        Dims.of(dit.Model.axes, {**small.KNOBS, "image": 18}, {})
    with pytest.raises(UserError, match=r"width=8 .*head_dim=16; nearest: 16"):
        split("width", 8, "head_dim", 16)
    assert split("width", 48, "head_dim", 16) == 3


def test_a_base_of_something_that_is_no_knob_names_the_nearest():
    with pytest.raises(UserError, match=r"base.widht is not a knob.*nearest: 'width'"):
        Dims.of(dit.Model.axes, small.KNOBS, {"widht": 32})


def block():
    return {"up": weight("embed -> mlp", DIMS), "down": weight("mlp => embed", DIMS), "gate": scale("head_dim ->", DIMS)}


def test_stack_adds_one_named_dim_and_the_depth_ratio():
    tree = stack(block(), 6, DIMS)
    assert {k: w.arrow.names for k, w in tree.items()} == {
        "up": ("layers", "embed", "mlp"),
        "down": ("layers", "mlp", "embed"),
        "gate": ("layers",),
    }
    assert {k: w.get_value().shape for k, w in tree.items()} == {"up": (6, 128, 512), "down": (6, 512, 128), "gate": (6,)}
    assert all(w.arrow.inside and w.arrow.depth == 2 for w in tree.values())
    assert axes.names(tree, ("trials",))["up"] == ("trials", "layers", "embed", "mlp")


def test_inside_is_a_stack_without_the_dim():
    tree, stacked = inside(block(), DIMS), stack(block(), 6, DIMS)
    for k, w in tree.items():
        assert w.get_value().shape == stacked[k].get_value().shape[1:]
        assert dataclasses.replace(stacked[k].arrow, stack=()) == w.arrow
        assert parametrization.mup(w.arrow) == parametrization.mup(stacked[k].arrow)


def big():
    """Weights large enough for their std to be measured, of every kind."""
    return {
        "hidden": weight("3 | embed -> heads head_dim", DIMS),
        "input": weight("patch -> embed", DIMS, init=0.5),
        "look": weight("classes | -> embed", DIMS, init=2.0),
        "output": weight("embed -> patch", DIMS),
        "closer": stack({"w": weight("mlp => embed", DIMS)}, 6, DIMS),
        "gain": weight("-> embed", DIMS, fill=1.0),
        "zero": weight("embed -> patch", DIMS, init=0.0),
        "logits": scale("head_dim ->", DIMS),
    }


def test_numbers_drawn_weight_by_weight_are_those_of_the_flat_draw():
    tree, scales = big(), axes.scales(big(), parametrization.mup)
    flat, apart = (jax.jit(lambda k, a=a: axes.draw(k, tree, scales, a))(jax.random.key(5)) for a in (False, True))
    pairs = zip(axes.weights(flat).values(), axes.weights(apart).values(), strict=True)
    assert all(np.array_equal(a.get_value(), b.get_value()) for a, b in pairs)


def test_an_index_beyond_32_bits_goes_on_by_the_high_word():
    """The same numbers whether the carry happens between rows or within one, and others than at the start."""
    key, start = jax.random.key(0), 2**32 - 3
    rows, row = (np.asarray(axes._normal(key, start, shape)).ravel() for shape in ((8,), (1, 8)))
    assert np.array_equal(rows, row)
    assert not np.isin(rows[3:], axes._normal(key, 0, (5,))).any()


@pytest.mark.parametrize("rule", ["standard", "mup"])
def test_drawn_weights_have_the_std_of_the_table(rule):
    tree = big()
    table = parametrization.table(rule, 1.0)
    drawn = axes.weights(axes.draw(jax.random.key(1), tree, axes.scales(tree, table)))
    # base std times the ratios, written out by hand
    want = {
        "hidden": 128**-0.5,
        "input": 0.5 * 48**-0.5,
        "look": 2.0,
        "output": 32**-0.5 * (4**-0.5 if rule == "standard" else 1 / 4),
        "closer.w": 128**-0.5 * 4**-0.5 * (1 if rule == "standard" else 1 / 2),
    }
    for name, std in want.items():
        x = np.asarray(drawn[name].get_value())
        n = x.size
        assert abs(x.std() / std - 1) < 4 / math.sqrt(2 * n), name
        assert abs(x.mean()) < 4 * std / math.sqrt(n), name
    assert np.all(drawn["gain"].get_value() == 1)
    assert np.all(drawn["zero"].get_value() == 0)
    assert np.isclose(drawn["logits"].get_value(), 16**-0.5)


def test_arms_that_share_a_seed_share_every_normal():
    tree = big()
    tables = [axes.scales(tree, parametrization.table(rule)) for rule in ("standard", "mup")]
    arms = [axes.values(axes.draw(jax.random.key(3), tree, s)) for s in tables]
    other = axes.values(axes.draw(jax.random.key(4), tree, tables[0]))
    leaves = jax.tree.leaves(tree, is_leaf=axes.is_weight)
    for w, a, b, c, sa, sb in zip(leaves, *arms, other, *tables, strict=True):
        if w.arrow.init and not w.arrow.fixed:
            np.testing.assert_allclose(a / sa.init, b / sb.init, rtol=1e-5, atol=1e-7)
            assert abs(np.corrcoef(np.ravel(a), np.ravel(c))[0, 1]) < 4 / math.sqrt(a.size)


def test_view_casts_and_stops_the_gradient_of_untrained_scales():
    tree = axes.draw(jax.random.key(0), block(), axes.scales(block(), parametrization.standard))

    def f(t):
        seen = axes.view(t, jax.numpy.bfloat16)
        assert all(x.dtype == jax.numpy.bfloat16 for x in axes.values(seen))
        return sum(jax.numpy.sum(x.astype(jax.numpy.float32)) for x in axes.values(seen))

    grads = jax.grad(f)(tree)
    assert {k: float(abs(w.get_value()).max()) for k, w in grads.items()} == {"up": 1, "down": 1, "gate": 0}
