"""PixArt: what its closers, shared modulation, words and compressed keys promise, what each weight is and costs, how it fails."""

import branches
import jax
import jax.numpy as jnp
import mistakes
import numpy as np
import pytest
import small

from lab import axes, cost, parametrization
from lab.axes import Dims, inside
from lab.errors import UserError
from lab.layers import compress, cross
from lab.layers.modulation import layer_norm
from lab.models import pixart
from lab.objectives import conditions, flow
from lab.probe import audit

TOKENS = dict(words=9, length=5)
FEATURES = dict(features=12, length=5)
KNOBS = dict(width=32, depth=1, head_dim=16, mlp_ratio=2, patch=4, image=16, channels=1)
CLOSERS = {f"{part}.{w}" for part in ("attention", "cross") for w in ("out", "out_bias")} | {"mlp.down.kernel", "mlp.down.bias"}
both = pytest.mark.parametrize("told", [TOKENS, FEATURES], ids=["tokens", "features"])


def sized(told=TOKENS, **more):
    """Dims with the width 32 as base."""
    return Dims.of(pixart.Model.axes, {**KNOBS, **told, **more}, {"width": 32})


def model(told=TOKENS, qk_norm=False, zero_gates=True, **more):
    """A described PixArt."""
    return pixart.Model(sized(told, **more), qk_norm, zero_gates)


def inputs(told=TOKENS, n=3):
    """What the model takes; the first text ends in padding, the second is hidden."""
    rng = np.random.default_rng(0)
    text = rng.integers(1, 9, (n, 5)) if "words" in told else rng.normal(size=(n, 5, 12)).astype(np.float32)
    text[0, 3:], text[1] = 0, 0
    x, t = rng.normal(size=(n, 16, 16, 1)), rng.uniform(size=n)
    return {"x": jnp.asarray(x, jnp.float32), "t": jnp.asarray(t, jnp.float32), "text": jnp.asarray(text)}


run = jax.jit(lambda part, *given: part(*given))


def block(compressed=False, qk_norm=False, **more):
    """One block with random weights, and what it takes: x, time, words, seen."""
    dims, rng = sized(**more), np.random.default_rng(1)
    x, words, *time = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 16, 32), (2, 5, 32), *[(2, 1, 32)] * 6))
    return small.drawn(inside(pixart.Block(dims, qk_norm, False, compressed), dims)), (
        x,
        time,
        words,
        jnp.arange(5) < jnp.array([[5], [3]]),
    )


@pytest.mark.parametrize("compressed", [False, True])
def test_with_all_closers_but_one_at_zero_the_branch_is_linear_in_that_one(compressed):
    tree, given = block(compressed, qk_norm=compressed, kv_compress=2)
    branches.check(tree, lambda tree: tree(*given) - given[0], CLOSERS)


def test_cross_attention_reads_the_stream_as_it_is_and_no_gate_scales_it():
    tree, (x, time, words, seen) = block()
    only = branches.closed(tree, **{f"cross.{n}": getattr(tree.cross, n).get_value() for n in ("out", "out_bias")})
    out = run(only, x, time, words, seen)
    np.testing.assert_allclose(out, x + run(tree.cross, x, words, seen), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(run(only, x, [9 * m for m in time], words, seen), out)


def test_at_init_the_output_is_zero_and_with_zero_gates_every_block_the_identity():
    m, given = small.drawn(model(), more=0), block()[1]
    assert np.all(run(m, inputs()) == 0)
    for zero_gates in (False, True):
        shared = small.drawn(model(zero_gates=zero_gates).modulation, more=0)
        time = run(shared, given[0][:, 0])
        moved = run(small.drawn(pixart.Block(sized(), False, zero_gates, False), more=0), given[0], time, *given[2:]) - given[0]
        assert np.all(moved == 0) if zero_gates else float(jnp.abs(moved).mean()) > 1e-2


def test_a_block_adds_its_table_to_the_modulation_that_all_share():
    tree, (x, time, words, seen) = block()
    table = tree.table.get_value()
    bare = axes.map_weights(lambda a, v: jnp.zeros_like(v) if a.index == ("6",) else v, tree)
    assert float(jnp.abs(bare.table.get_value()).max()) == 0
    want = run(bare, x, list(table[:, None, None] + jnp.stack(time)), words, seen)
    np.testing.assert_allclose(run(tree, x, time, words, seen), want, atol=1e-4)


@pytest.mark.parametrize("rule", ["standard", "mup"])
def test_tables_start_at_one_size_at_every_width(rule):
    for width in (32, 512):
        tables = {n: w for n, w in axes.weights(model(zero_gates=False, width=width)).items() if n.endswith("table") and "words" not in n}
        assert set(tables) == {"table", "blocks.table"}
        for w in tables.values():
            assert w.arrow.std * parametrization.table(rule)(w.arrow).init == pixart.TABLE


@both
def test_words_matter_and_their_order_is_told_by_whoever_encodes_them(told):
    m, given = small.drawn(model(told)), inputs(told)
    out, text = run(m, given), given["text"]
    other = run(m, {**given, "text": text.at[2, 4].set(text[2, 3])})
    np.testing.assert_array_equal(out[:2], other[:2])
    assert float(jnp.abs(out - other)[2].max()) > 1e-3
    hidden = run(m, {**given, **conditions.hidden(given)})
    np.testing.assert_array_equal(hidden[1], out[1])
    assert float(jnp.abs(hidden - out)[0].max()) > 1e-3
    turned = run(m, {**given, "text": text[:, ::-1]})
    if "words" in told:
        assert float(jnp.abs(turned - out)[2].max()) > 1e-3
    else:
        np.testing.assert_allclose(turned[::2], out[::2], rtol=1e-3, atol=1e-4)


def test_padding_among_words_is_not_read():
    m, given = small.drawn(model(FEATURES)), inputs(FEATURES)
    slope = jax.jit(jax.grad(lambda text: jnp.sum(m({**given, "text": text}) ** 2)))(given["text"])
    read = np.abs(slope).max(-1) > 0
    assert not read[0, 3:].any()
    assert read[0, :3].any()
    assert read[2].any()
    c = small.drawn(cross.Attention(sized(), True))
    x, words, seen = jnp.ones((1, 4, 32)) * jnp.arange(32), jnp.sin(jnp.arange(160.0)).reshape(1, 5, 32), jnp.arange(5)[None] < 3
    np.testing.assert_allclose(run(c, x, words, seen), run(c, x, words[:, :3], seen[:, :3]), rtol=1e-4, atol=1e-5)


def test_a_hidden_caption_is_the_null_caption_and_no_other_has_part_of_it():
    caption, features = small.drawn(pixart.Caption(sized(FEATURES), True)), inputs(FEATURES)["text"]
    null = caption.null.get_value()
    bare = axes.map_weights(lambda a, v: jnp.zeros_like(v) if a.outs == ("text_features",) else v, caption)
    np.testing.assert_allclose(run(caption, features), run(bare, features.at[1].set(null)), atol=1e-6)
    assert float(jnp.abs(run(caption, features) - run(bare, features))[1].mean()) > 1e-2


def test_keys_are_at_first_averages_over_squares_and_then_any_depth_wise_convolution():
    reduce = jax.jit(lambda mixer, y: mixer.reduce(y))
    mixer = small.drawn(compress.Attention(sized(kv_compress=2)), more=0)
    y = jnp.asarray(np.random.default_rng(0).normal(size=(2, 36, 2, 16)), jnp.float32)
    image = y.reshape(2, 3, 2, 3, 2, 32)  # six rows of six tokens
    want = layer_norm(image.mean((2, 4)).reshape(2, 9, 32))
    np.testing.assert_allclose(reduce(mixer, y).reshape(2, 9, 32), want, atol=1e-5)
    mixer = small.drawn(compress.Attention(sized(kv_compress=2)))
    kinds = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=32)
    kernel = mixer.taps.get_value().reshape(2, 2, 1, 32)
    conv = jax.lax.conv_general_dilated(y.reshape(2, 6, 6, 32), kernel, (2, 2), "VALID", **kinds).reshape(2, 9, 32)
    bias, gain, shift = (w.get_value().reshape(32) for w in (mixer.taps_bias, mixer.norm_gain, mixer.norm_bias))
    np.testing.assert_allclose(reduce(mixer, y).reshape(2, 9, 32), layer_norm(conv + bias) * gain + shift, atol=1e-5)


def test_compressed_attention_sees_all_tokens_and_costs_less():
    mixer = small.drawn(compress.Attention(sized(kv_compress=2), True))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 32)), jnp.float32)
    slope = jax.jit(jax.grad(lambda x: mixer(x)[0, 3].sum()))(x)
    assert np.all(np.abs(slope[0]).max(-1) > 1e-5)
    assert np.all(slope[1] == 0)
    plain, none, half = (model(depth=3, **more) for more in ({}, {"kv_compress": 1}, {"kv_compress": 2}))
    assert {n: w.arrow for n, w in axes.weights(none).items()} == {n: w.arrow for n, w in axes.weights(plain).items()}
    assert (half.shallow, half.deep) == (1, 2)
    assert half.blocks.table.get_value().shape[0] == 1
    spent = [cost.flops(lambda m, given: m(given), m, inputs(n=2)) for m in (none, half)]
    scores = 2 * 2 * 2 * 2 * 16 * 16 * 16  # of one block: two products, a batch of 2, 2 heads, 16 queries, 16 keys, head_dim 16
    assert spent[0] - spent[1] == 2 * scores * 3 // 4


@both
def test_every_arrow_is_true(told):
    m = model(told, True, depth=2, kv_compress=2)
    objective, given = flow.Objective("uniform", 0.5), inputs(told)
    batch = {"image": given["x"], "text": given["text"]}
    assert audit(lambda m, k, b: jnp.mean(objective.loss(m, k, b)), m, jax.random.key(0), batch) == {}


@both
def test_all_is_computed_in_the_weights_type(told):
    m = model(told, True, depth=2, kv_compress=2)
    out = jax.eval_shape(lambda m, given: axes.view(m, jnp.bfloat16)(given), m, inputs(told))
    assert out.dtype == jnp.bfloat16


def by_hand(n, width, depth, head_dim, mlp_ratio, patch, image, channels, words=0, length=0, features=0):
    """FLOPs of PixArt, forward and loss gradient, by pen; see test_cost."""
    tokens, heads, pixels = (image // patch) ** 2, width // head_dim, patch**2 * channels
    embed, time = 2 * n * tokens * pixels * width, 2 * n * 256 * width
    shared = 2 * n * width**2 + 2 * n * width * 6 * width

    def core(queries, keys):
        return 2 * (2 * n * heads * queries * keys * head_dim)

    def mlp(rows):
        return 2 * (2 * n * rows * width * mlp_ratio * width)

    itself = 2 * n * tokens * width * 4 * width + core(tokens, tokens)
    words_read = 2 * n * (2 * tokens + 2 * length) * width * width + core(tokens, length)
    text = 2 * n * length * width * 4 * width + core(length, length) + mlp(length)
    if features:
        text = 2 * n * length * width * (features + width)
    forward = embed + time + shared + text + depth * (itself + words_read + mlp(tokens)) + 2 * n * tokens * width * pixels
    return forward, 3 * forward - embed - time


@pytest.mark.parametrize("more", [TOKENS, FEATURES, TOKENS | dict(depth=3, patch=2, head_dim=8)])
def test_flops_equal_the_hand_count_exactly(more):
    m, given = model(more), inputs(more)
    forward, gradient = by_hand(3, **KNOBS | more)
    assert cost.flops(lambda m, given: m(given), m, given) == forward
    assert cost.flops(jax.grad(lambda m, given: jnp.sum(m(given) ** 2)), m, given) == gradient


def test_sizes_that_do_not_fit_and_a_text_that_is_missing_are_told_in_one_line():
    for more, said in (
        (dict(image=18), "image size=18 is not a multiple of model.patch=4; nearest: 16 or 20"),
        (dict(kv_compress=3), "image size / model.patch=4 is not a multiple of model.kv_compress=3; nearest: 3 or 6"),
        (dict(width=40), "model.width=40 is not a multiple of model.head_dim=16"),
        (dict(length=0), "this model reads text, and the source gives none"),
    ):
        assert said in mistakes.said(sized, **more)
    for key, m in (("text", model()), ("t", model())):
        with pytest.raises(UserError, match=f"model 'pixart' takes x, t, text; missing: {key},"):
            m({k: v for k, v in inputs().items() if k != key})
