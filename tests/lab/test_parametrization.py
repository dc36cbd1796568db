"""The tables against what is published, on planted arrows."""

import numpy as np
import pytest
import small

from lab import axes
from lab.axes import Dims, inside, parse, weight
from lab.errors import UserError
from lab.parametrization import mup, standard, table

M, L = 8, 4  # width and depth relative to the base
DIMS = Dims({"data": 12, "width": 16 * M, "layers": 3 * L}, {"width": 16, "layers": 3})

# Tensor Programs V (arXiv 2203.03466), table 3, Adam: init std and learning rate relative to the base model's
PUBLISHED = {
    "data -> width": (1.0, 1.0),  # input weights: variance 1/fan-in, learning rate 1
    "-> width": (1.0, 1.0),  # biases go with the input weights
    "width -> width": (M**-0.5, 1 / M),  # hidden: variance 1/fan-in, learning rate 1/fan-in
    "width -> data": (1 / M, 1 / M),  # output: variance 1/fan-in^2, learning rate 1/fan-in
}
# gradient of the loss in an entry of the weight, from the same paper's sizes of activations and their gradients
GRADIENT = {"data -> width": 1 / M, "-> width": 1 / M, "width -> width": 1 / M, "width -> data": 1.0}


def differences(rule):
    """Planted arrows for which a table is not the published one."""
    found = {s: rule(parse(s, DIMS)) for s in PUBLISHED}
    return {s for s, got in found.items() if not np.allclose(got[:3], (*PUBLISHED[s], GRADIENT[s]), rtol=1e-12)}


def test_mup_is_the_published_table():
    assert differences(mup) == set()


def test_mutated_tables_are_caught():
    def no_hidden_step(a):
        return mup(a)._replace(step=1.0) if a.role == "hidden" else mup(a)

    def standard_output(a):
        return mup(a)._replace(init=a.r_in**-0.5)

    def forgot_gradient(a):
        return mup(a)._replace(grad=1.0)

    assert differences(no_hidden_step) == {"width -> width"}
    assert differences(standard_output) == {"width -> data"}
    assert differences(forgot_gradient) == {"data -> width", "-> width", "width -> width"}
    assert "width -> width" in differences(standard)


def test_an_infinite_index_is_in_the_gradient_alone():
    wide = Dims({"experts": 8, "width": 16}, {"experts": 2, "width": 16})
    got = mup(parse("experts | width -> width", wide))
    assert got[:4] == (1.0, 1.0, 1 / 4, 1.0)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_depth_rule_is_completep_with_the_branch_multiplier_folded_into_the_closer(alpha):
    """CompleteP (arXiv 2505.01618, table 1): branch multiplier L^-a, step of every block weight L^(a-1) times the width rule.

    Without the multiplier the weight that closes the branch is W' = L^-a W: its init and step get the factor, its gradient not.
    """
    first, last = inside({"a": weight("width -> width", DIMS), "b": weight("width => width", DIMS)}, DIMS).values()
    wide = mup(parse("width -> width", DIMS))
    assert np.allclose(mup(first.arrow, alpha)[:3], (wide.init, wide.step * L ** (alpha - 1), wide.grad * L**-alpha))
    assert np.allclose(mup(last.arrow, alpha)[:3], (wide.init * L**-alpha, wide.step * L ** (alpha - 1) * L**-alpha, wide.grad))
    if alpha == 1.0:  # CompleteP itself: no depth in the step of a weight behind a multiplier, eps by 1/L
        assert mup(first.arrow).step == wide.step
        assert mup(first.arrow).grad == wide.grad / L


def test_a_closing_arrow_outside_a_stack_has_no_depth():
    assert mup(parse("width => width", DIMS)) == mup(parse("width -> width", DIMS))


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("knobs", [{}, {"qk_norm": True}, {"width": 64, "base": 64}])
def test_standard_equals_mup_at_the_base_weight_for_weight(alpha, knobs):
    tree = small.model(**knobs)
    plain, mine = (axes.scales(tree, table(rule, alpha)) for rule in ("standard", "mup"))
    assert [s._replace(unit=1.0) for s in plain] == mine  # at the base an update is of the size it has


def test_standard_differs_from_mup_away_from_the_base():
    tree = small.model(width=64, base=32)
    rules = [axes.scales(tree, table(r)) for r in ("standard", "mup")]
    names = axes.weights(tree)
    same = {n for n, a, b in zip(names, *rules, strict=True) if a == b}
    assert "blocks.attention.qkv" not in same
    assert "readout" not in same


def test_only_matrices_decay_and_untrained_scales_do_not_move():
    tree = axes.weights(small.model(width=64, qk_norm=True))
    for rule in (mup, standard):
        for name, w in tree.items():
            s = rule(w.arrow)
            kernel = any(part in name for part in ("kernel", "qkv", "attention.out", "readout")) and "bias" not in name
            assert s.decay == float(kernel), name
            assert (s.step == 0) == name.endswith("logits"), name


def test_an_unknown_table_names_the_nearest():
    with pytest.raises(UserError, match=r"parametrization.name 'mupp' is unknown.*nearest: 'mup'"):
        table("mupp")
