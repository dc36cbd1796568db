"""U-ViT: its tokens, its long skips, its depth rule and what it costs."""

import re
from collections import Counter

import branches
import jax
import jax.numpy as jnp
import mistakes
import numpy as np
import pytest
import small

from lab import audit, axes, cost, parametrization
from lab.axes import Dims, inside
from lab.errors import UserError
from lab.layers import embed
from lab.models import shared, uvit
from lab.population import build, described

SIDES = {"image": 16, "channels": 1, "classes": 4}
KNOBS = dict(width=32, depth=3, head_dim=16, mlp_ratio=2, patch=4) | SIDES
OPTIONS = dict(qk_norm=False, time_mlp=False, final_conv=True)
WORDS = {"words": 9, "length": 5}  # what each kind of source adds to its dims
FEATURES = {"features": 6, "length": 5}
run = jax.jit(lambda tree, given: tree(given))  # one, so that tests share what it compiles
kinds = pytest.mark.parametrize("said", [{}, WORDS, FEATURES], ids=["label", "words", "features"])


def dims(base=None, **knobs):
    """Sizes of a small U-ViT; `base` maps knobs to theirs."""
    return Dims.of(uvit.Model.axes, {**KNOBS, **knobs}, {"width": 32} if base is None else base)


def model(base=None, **more):
    """A described U-ViT."""
    options = {k: more.pop(k, v) for k, v in OPTIONS.items()}
    return uvit.Model(dims(base, **more), **options)


def text(said, n=3, seed=0):
    """A batch's text: tokens or features."""
    rng = np.random.default_rng(seed)
    tokens = jnp.asarray(rng.integers(1, 9, (n, 5)), jnp.int32)
    return jnp.asarray(rng.normal(size=(n, 5, 6)), jnp.float32) if "features" in said else tokens


def inputs(said=(), n=3, seed=0):
    """What the model takes."""
    rng = np.random.default_rng(seed)
    x, t = rng.normal(size=(n, 16, 16, 1)), rng.uniform(size=n)
    condition = {"text": text(said, n, seed)} if said else {"label": jnp.asarray(rng.integers(0, 4, n))}
    return {"x": jnp.asarray(x, jnp.float32), "t": jnp.asarray(t, jnp.float32), **condition}


def config(**changes):
    """A complete config of a small study."""
    c = small.config()
    c["model"] = dict(name="uvit", **{k: v for k, v in KNOBS.items() if k not in SIDES}, **OPTIONS) | changes
    return c


def batch(said, n=4):
    """A batch of pictures with labels, and text where the source has it."""
    return small.batch(n) | ({"text": text(said, n)} if said else {})


def replaced(tree, change):
    """The tree with change(name, arrow, value) for the value of every weight."""
    names = iter(axes.weights(tree))
    return axes.map_weights(lambda a, x: change(next(names), a, x), tree)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_with_all_closers_but_one_at_zero_the_branch_is_linear_in_that_one(qk_norm):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 32)), jnp.float32)
    closers = {"attention.out", "attention.out_bias", "mlp.down.kernel", "mlp.down.bias"}
    branches.check(small.drawn(inside(uvit.Block(dims(), qk_norm), dims())), lambda block: block(x) - x, closers)


def test_a_skip_joins_block_i_to_block_depth_1_i(monkeypatch):
    """Blocks that add one vector each, and one skip that lets only its partner's state through: what came later has no effect."""
    monkeypatch.setattr(shared, "UNROLL", 0)  # compiles faster
    halves = 3
    plain = small.drawn(model(depth=2 * halves + 1))

    def output(added, opened):
        def change(name, a, v):
            if name == "skips.kernel":
                return jnp.concatenate([(1 - opened) * jnp.eye(32), opened * jnp.eye(32)], axis=1)
            return added if name == "blocks_in.mlp.down.bias" else 0 * v if a.closes or name == "skips.bias" else v

        return jnp.sum(replaced(plain, change)(inputs()) ** 2)

    slope = jax.jit(jax.grad(output))
    added = jnp.asarray(np.random.default_rng(0).normal(size=(halves, 32)), jnp.float32)
    for j in range(halves):  # block halves + 1 + j of depth 2 halves + 1 is the partner of block halves - 1 - j
        moved = np.abs(slope(added, jnp.zeros((halves, 1, 1)).at[j].set(1.0))).max(1)
        assert np.all(moved[: halves - j] > 1e-4)
        assert np.all(moved[halves - j :] == 0)
    # with no skip open the stream passes by the middle, and all that the first half wrote is in it
    assert np.all(np.abs(slope(added, jnp.zeros((halves, 1, 1)))).max(1) > 1e-4)


def test_skips_keep_the_size_of_the_stream_at_any_depth_and_standard_width():
    for width in (32, 128):
        skips = small.drawn(model(depth=41, width=width).skips, more=0)
        x, kept = np.random.default_rng(0).normal(size=(2, 64, width))
        for kernel in np.asarray(skips.kernel.get_value()):
            x = np.concatenate([x, kept], axis=1) @ kernel
        assert abs(np.sqrt(np.mean(x**2)) - 1) < 0.1


def test_depth_scales_branches_by_the_whole_depth_and_skips_not_at_all():
    deep = model({"depth": 3}, depth=9)
    trained = {n: w for n, w in axes.weights(deep).items() if not w.arrow.fixed}
    assert {"skips.kernel", "middle.mlp.down.kernel"} <= set(trained)
    for alpha in (0.5, 1.0):
        for name, w in trained.items():
            s, at = parametrization.mup(w.arrow, alpha), name.split(".")[0]
            want = (1.0, 1.0, 1.0)
            if at in ("blocks_in", "middle", "blocks_out"):
                want = (3**-alpha, 1 / 3, 1.0) if w.arrow.closes else (1.0, 3 ** (alpha - 1), 3**-alpha)
            np.testing.assert_allclose((s.init, s.step, s.grad), want, err_msg=name)


def test_at_the_base_the_two_parametrizations_are_equal_and_off_it_they_are_not():
    for knobs, same in (({}, True), ({"width": 64}, False), ({"depth": 5}, False)):
        tree = model({"width": 32, "depth": 3}, **knobs)
        # `unit` says what a step is relative to, which is no size
        scales = [[s._replace(unit=1.0) for s in axes.scales(tree, rule)] for rule in (parametrization.mup, parametrization.standard)]
        assert (scales[0] == scales[1]) == same


@pytest.mark.parametrize("width", [32, 64])
def test_a_skip_contracts_both_halves_and_the_times_first_layer_a_sinusoid_as_wide_as_the_model(width):
    found = {n: w.arrow for n, w in axes.weights(model(width=width, time_mlp=True)).items()}
    skip = found["skips.kernel"]
    assert (skip.fan, skip.r_in, skip.r_out, skip.closes) == (64, width / 32, width / 32, False)
    assert found["time.up.kernel"].fan == 32


@kinds
@pytest.mark.parametrize("options", [{}, dict(qk_norm=True, time_mlp=True, final_conv=False, depth=5, width=64), dict(depth=21)])
def test_every_arrow_is_true(said, options):
    c = config(**options, **({"text_depth": 1} if "words" in said else {}))
    assert audit.truth(c, SIDES | said, batch(said, 2)) == {}


def by_hand(width, depth, head_dim, mlp_ratio, patch, image, channels, time_mlp, final_conv, n):
    """FLOPs forward, and of the loss gradient: 2 m n k of every matmul and nine taps of the convolution, by pen.

    Backward every product costs twice its forward, for its two factors, but the patches' and the time MLP's first, whose inputs no
    weight comes before.
    """
    patches = (image // patch) ** 2
    tokens, heads, pixels = patches + 2, width // head_dim, patch**2 * channels
    embedded = 2 * n * patches * pixels * width
    first = 2 * n * width * 4 * width if time_mlp else 0
    projections = 2 * n * tokens * width * 4 * width
    attention = 2 * (2 * n * heads * tokens * tokens * head_dim)
    mlp = 2 * (2 * n * tokens * width * mlp_ratio * width)
    skips = (depth // 2) * 2 * n * tokens * 2 * width * width
    last = 2 * n * patches * width * pixels
    conv = 2 * n * image**2 * 9 * channels**2 if final_conv else 0
    forward = embedded + 2 * first + depth * (projections + attention + mlp) + skips + last + conv
    return forward, 3 * forward - embedded - first


@pytest.mark.parametrize("knobs", [{}, dict(time_mlp=True, final_conv=False), dict(width=64, depth=5), dict(depth=21, patch=2, head_dim=8)])
def test_flops_equal_the_hand_count_exactly(knobs):
    program = build(config(**knobs), SIDES)
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch((), 4))
    args = described(program), jax.eval_shape(lambda: jax.random.key(0)), example

    def f(p, k, b):
        return jnp.mean(program.loss(p, k, b))

    sizes = {k: v for k, v in {**KNOBS, **OPTIONS, **knobs}.items() if k not in ("qk_norm", "classes")}
    forward, gradient = by_hand(**sizes, n=4)
    assert cost.flops(f, *args) == forward
    assert cost.flops(jax.grad(f), *args) == gradient


def test_tokens_are_time_then_the_condition_then_patches_with_learned_positions():
    tree = small.drawn(model(final_conv=False))
    given = inputs()
    tokens = np.asarray(tree.embedded(given)) - np.asarray(tree.positions.get_value())
    assert tokens.shape == (3, 1 + 1 + 16, 32)
    np.testing.assert_allclose(tokens[:, 0], embed.sinusoid(given["t"], 32), atol=1e-5)
    np.testing.assert_allclose(tokens[:, 1], tree.condition.table.get_value()[given["label"]], atol=1e-5)
    np.testing.assert_allclose(tokens[:, 2:], tree.patch_in(embed.patchify(given["x"], 4)), atol=1e-5)
    spoken = small.drawn(model(**WORDS))
    given = inputs(WORDS)
    tokens = np.asarray(spoken.embedded(given)) - np.asarray(spoken.positions.get_value())
    np.testing.assert_allclose(tokens[:, 1:6], spoken.condition(given["text"]), atol=1e-5)
    assert tokens.shape == (3, 1 + 5 + 16, 32)


def test_the_last_convolution_sees_a_pixel_and_its_eight_neighbours():
    conv = small.drawn(uvit.Conv(dims(channels=2)))
    x = jnp.zeros((1, 8, 8, 2)).at[0, 3, 4, 1].set(1.0)
    out = np.array(conv(x) - conv(0 * x))[0]
    np.testing.assert_allclose(out[2:5, 3:6], conv.kernel.get_value()[::-1, ::-1, 1], atol=1e-6)
    out[2:5, 3:6] = 0
    np.testing.assert_allclose(out, 0, atol=1e-6)


def test_a_negative_label_reads_the_last_row_and_no_other():
    tree, given = small.drawn(model()), inputs()

    def asked(label):
        return {**given, "label": jnp.array(label)}

    none = run(tree, asked([-1, -1, -1]))
    np.testing.assert_array_equal(run(tree, asked([-7, -1, 4])), none)
    slope = jax.jit(jax.grad(lambda m, given: jnp.sum(m.embedded(given) ** 2)))
    for label, rows in (([-1, -1, -1], [4]), ([0, 2, 2], [0, 2])):
        moved = np.abs(slope(tree, asked(label)).condition.table.get_value()).sum(1)
        assert np.flatnonzero(moved).tolist() == rows
    assert np.abs(run(tree, asked([0, 0, 0])) - none).max() > 1e-3


def test_it_starts_at_zero_and_its_first_gradient_is_that_of_the_readout_and_what_follows_it():
    program = build(config(), SIDES)
    params = small.drawn(program.model, more=0)
    assert np.all(run(params, inputs()) == 0)
    slope = jax.jit(jax.grad(lambda p: jnp.mean(program.loss(p, jax.random.key(0), small.batch(4)))))(params)
    assert {n for n, g in axes.weights(slope).items() if np.any(g.get_value())} == {"readout", "readout_bias", "conv.bias"}


@kinds
def test_under_flow_every_weight_has_a_gradient(said):
    program = build(config(time_mlp=True, qk_norm=True), SIDES | said)
    params, given = small.drawn(program.model), batch(said)
    loss = jax.jit(jax.value_and_grad(lambda p: jnp.mean(program.loss(p, jax.random.key(0), given))))
    value, slope = loss(params)
    assert np.isfinite(value)
    assert [n for n, g in axes.weights(slope).items() if not (g.arrow.fixed or np.any(g.get_value()))] == []


def test_samples_follow_the_text():
    program = build(config(), SIDES | WORDS)
    params, label = small.drawn(program.model), jnp.array([0, 1])
    draw = jax.jit(
        lambda text: program.objective.sample(params, jax.random.key(0), {"label": label, "text": text}, (16, 16, 1), 2, 2.0, "euler")
    )
    said = text(WORDS, 2)
    one, other = draw(said), draw(said[:, ::-1])
    assert one.shape == (2, 16, 16, 1)
    assert np.all(np.isfinite(one))
    assert np.all(np.abs(one - other).max(axis=(1, 2, 3)) > 1e-3)


@pytest.mark.parametrize("said", [WORDS, FEATURES], ids=["words", "features"])
def test_text_is_read_in_its_order(said):
    tree, given = small.drawn(model(**said)), inputs(said)
    want, heard = run(tree, given), given["text"]
    for other in (heard[:, ::-1], 0 * heard, heard.at[:, 4].set(heard[:, 3])):
        assert np.abs(run(tree, {**given, "text": other}) - want).max() > 1e-3


def test_a_rolled_and_an_unrolled_stack_agree(monkeypatch):
    tree = small.drawn(model(depth=5))
    want = jax.jit(lambda m: m(inputs()))(tree)
    monkeypatch.setattr(shared, "UNROLL", 0)
    np.testing.assert_allclose(jax.jit(lambda m: m(inputs()))(tree), want, rtol=1e-4, atol=1e-4)


def test_bf16_is_near_f32():
    tree = small.drawn(model())
    want, out = run(tree, inputs()), run(axes.view(tree, jnp.bfloat16), inputs())
    assert out.dtype == jnp.bfloat16
    assert 0 < float(jnp.linalg.norm(out - want) / jnp.linalg.norm(want)) < 0.05


def test_more_outputs_widen_the_last_layers_only():
    one, two = (axes.weights(model(outputs=n)) for n in (1, 2))
    changed = {n for n in one if one[n].get_value().shape != two[n].get_value().shape}
    assert changed == {"readout", "readout_bias", "conv.kernel", "conv.bias"}
    assert jax.eval_shape(lambda tree: tree(inputs()), model(outputs=2)).shape == (3, 16, 16, 2)


def test_a_missing_input_is_named():
    for said in ((), WORDS):
        tree, given = small.drawn(model(**dict(said)), more=0), inputs(said)
        for key in given:
            with pytest.raises(UserError, match=rf"missing: {key},"):
                tree({k: v for k, v in given.items() if k != key})
        with pytest.raises(UserError, match="no cache"):
            tree(given, cache={})


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(patch=5), r"image size=16 is not a multiple of model.patch=5; nearest: 15 or 20"),
        (dict(depth=4), r"model.depth=4 must be odd .*; nearest: 3 or 5"),
        (dict(depth=1), r"model.depth=1 must be odd and at least 3 .*; nearest: 3"),
        (dict(width=40), r"model.width=40 is not a multiple of model.head_dim=16; nearest: 32 or 48"),
        (dict(text_depth=1), r"this model reads text, and the source gives none"),
        (dict(length=5), r"this model reads text, and the source gives none"),
        (dict(zero_gates=True), r"config key model 'zero_gates' is unknown"),
    ],
)
def test_a_size_or_option_that_cannot_be_is_told_in_one_line(changes, said):
    assert re.search(said, mistakes.said(build, config(**changes), SIDES))


def test_an_odd_width_has_no_sinusoid():
    with pytest.raises(UserError, match=r"model.width=15 is not a multiple of 2 .*; nearest: 14 or 16"):
        dims({"width": 15}, width=15, head_dim=15)


def test_a_base_of_odd_depth_makes_depth_infinite():
    d = dims({"width": 32, "depth": 3}, depth=9, width=64)
    assert Counter({a: d[a] / b for a, b in d.base.items()}) == Counter(
        {"embed": 2, "skip": 2, "time": 2, "heads": 2, "mlp": 2, "layers": 3}
    )
