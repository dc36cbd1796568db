"""FLOPs from the jaxpr: equal to a hand count exactly, near XLA's own count, loop bodies times their length."""

import jax
import jax.numpy as jnp
import pytest
import small

from lab import cost
from lab.population import described

BATCH = 4


def traced(prog):
    """The mean loss of a program and the shapes of its arguments."""
    shapes = {"image": jax.ShapeDtypeStruct((BATCH, 16, 16, 1), jnp.uint8), "label": jax.ShapeDtypeStruct((BATCH,), jnp.int32)}
    key = jax.eval_shape(lambda: jax.random.key(0))
    return lambda p, k, b: jnp.mean(prog.loss(p, k, b)), (described(prog), key, shapes)


def by_hand(width, depth, head_dim, mlp_ratio, patch, image, channels, **_):
    """FLOPs of DiT, forward and loss gradient: 2 m n k of every matmul of the paper's figure 3, by pen.

    Backward, every matmul costs twice its forward: the gradient of its weight, or of one factor, and that of its input, or of
    the other. Two inputs need no gradient, as no weight lies before them: the patches and the sine-cosine features of time.
    """
    tokens, heads, pixels, features = (image // patch) ** 2, width // head_dim, patch**2 * channels, 128
    n = BATCH * tokens
    embed, up = 2 * n * pixels * width, 2 * BATCH * features * width
    time_out = 2 * BATCH * width**2
    modulation = 2 * BATCH * width * 6 * width
    projections = 2 * n * width * 3 * width + 2 * n * width * width
    attention = 2 * (2 * BATCH * heads * tokens * tokens * head_dim)  # scores, and shares times values
    mlp = 2 * (2 * n * width * mlp_ratio * width)
    last = 2 * BATCH * width * 2 * width + 2 * n * width * pixels
    forward = embed + up + time_out + depth * (modulation + projections + attention + mlp) + last
    return forward, 3 * forward - embed - up


@pytest.mark.parametrize(
    "knobs", [{}, dict(width=64, depth=3), dict(patch=2, head_dim=8), dict(mlp_ratio=2, depth=1), dict(qk_norm=True), dict(depth=12)]
)
def test_flops_of_dit_equal_the_hand_count_exactly(knobs):
    f, args = traced(small.program(**knobs))
    sizes = {k: v for k, v in {**small.KNOBS, **knobs}.items() if k in small.KNOBS}
    forward, gradient = by_hand(**sizes)
    assert cost.flops(f, *args) == forward
    assert cost.flops(jax.grad(f), *args) == gradient


@pytest.mark.parametrize("width, within", [(128, 0.05), (256, 0.02)])
@pytest.mark.parametrize("patch", [4, 2])
def test_flops_are_near_xlas_count_of_the_unrolled_program(width, within, patch):
    """XLA also counts elementwise work, so its count is the larger one by a share that falls as 1/width."""
    f, args = traced(small.program(width=width, depth=2, patch=patch))
    for g in (f, jax.grad(f)):
        theirs = jax.jit(g).lower(*args).cost_analysis()["flops"]
        assert 1 < theirs / cost.flops(g, *args) < 1 + within


def test_a_scan_counts_its_body_as_often_as_it_runs():
    w = jnp.ones((5, 8, 8))

    def scanned(w, x, unroll=1):
        return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w, unroll=unroll)[0])

    def written_out(w, x):
        for layer in w:
            x = jnp.tanh(x @ layer)
        return jnp.sum(x)

    x = jnp.ones((3, 8))
    assert cost.flops(scanned, w, x) == 5 * 2 * 3 * 8 * 8
    for g in (lambda f: f, lambda f: jax.grad(f, (0, 1))):
        assert cost.flops(g(scanned), w, x) == cost.flops(g(written_out), w, x)
    assert cost.flops(lambda w, x: scanned(w, x, unroll=5), w, x) == cost.flops(scanned, w, x)
    nested = jax.vmap(jax.jit(scanned), (None, 0))
    assert cost.flops(nested, w, jnp.ones((7, 3, 8))) == 7 * cost.flops(scanned, w, x)


def test_a_matmul_in_a_while_loop_raises_and_other_while_loops_do_not():
    w = jnp.ones((8, 8))
    with pytest.raises(ValueError, match="while loop"):
        cost.flops(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x), w)
    assert cost.flops(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x @ w), w) == 2 * 8**3


def test_a_branch_costs_its_dearest_side():
    w = jnp.ones((4, 4))
    assert cost.flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ w @ w, lambda x: x @ w, x), w) == 2 * 2 * 4**3


@pytest.mark.parametrize("groups, stride", [(1, 1), (1, 2), (2, 1), (8, 1)])
def test_a_convolution_costs_its_taps_and_its_gradient_twice_that(groups, stride):
    x, kernel = jnp.ones((2, 6, 6, 8)), jnp.ones((2, 2, 8 // groups, 16))

    def conv(x, k):
        kinds = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups)
        return jax.lax.conv_general_dilated(x, k, (stride, stride), "SAME", **kinds)

    forward = 2 * (2 * (6 // stride) ** 2 * 16) * (2 * 2 * 8 // groups)
    assert cost.flops(conv, x, kernel) == forward
    assert cost.flops(jax.grad(lambda x, k: jnp.sum(conv(x, k) ** 2), (0, 1)), x, kernel) == 3 * forward


def test_a_ragged_dot_costs_one_expert_a_row_forward_and_backward():
    rows, weights, sizes = jnp.ones((12, 5)), jnp.ones((3, 5, 7)), jnp.array([2, 4, 6])

    def f(x, w):
        return jnp.sum(jax.lax.ragged_dot(x, w, sizes) ** 2)

    assert cost.flops(f, rows, weights) == 2 * 12 * 5 * 7
    assert cost.flops(jax.grad(f, (0, 1)), rows, weights) == 3 * 2 * 12 * 5 * 7


def test_parameters_by_role_are_the_shapes_of_the_weights():
    width, mlp, depth, pixels = 32, 128, 2, 16
    count = cost.parameters(small.model())
    block = 6 * width**2 + 3 * width**2 + width**2 + 2 * width * mlp
    assert count["hidden"] == depth * block + 2 * width**2 + width**2
    assert count["input"] == pixels * width + 128 * width
    assert count["output"] == width * pixels
    biases = depth * (6 * width + 3 * width + width + mlp + width) + 2 * width + 3 * width
    assert count["vector"] == biases + 5 * width  # and the table of four labels and none
    assert count["scalar"] == pixels  # the logits' scale is not trained
    rows = cost.card(small.model())
    assert {r["name"] for r in rows} >= {"readout", "blocks.attention.qkv"}
