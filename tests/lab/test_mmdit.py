"""MMDiT: what joint attention, its two streams and its text promise, how its weights scale, what it costs, and how it fails."""

import re

import branches
import jax
import jax.numpy as jnp
import mistakes
import numpy as np
import pytest
import small

from lab import audit, axes, cost
from lab.axes import Dims, inside
from lab.errors import UserError
from lab.formats import mmdit as formats
from lab.formats.rules import apply, invert
from lab.layers import attention, embed, joint, rope
from lab.models import mmdit, shared
from lab.population import build, described

SIZES = {k: v for k, v in small.KNOBS.items() if k != "classes"} | {"mlp_ratio": 2}
TOKENS, FEATURES = dict(words=11, length=6), dict(features=10, length=6)
DIMS = Dims.of(mmdit.Model.axes, {**SIZES, **TOKENS}, {"width": 32})


def described_model(text=TOKENS, qk_norm=True, zero_gates=False, positions="sincos", base=32, **knobs):
    """A described MMDiT."""
    return mmdit.Model(Dims.of(mmdit.Model.axes, {**SIZES, **text, **knobs}, {"width": base}), qk_norm, zero_gates, positions)


def normal(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def inputs(n=2, features=False):
    """What the model takes; the second text is one word shorter."""
    rng = np.random.default_rng(0)
    text = normal(n, 6, 10) if features else jnp.asarray(rng.integers(1, 11, (n, 6)), jnp.int32)
    return {"x": normal(n, 16, 16, 1, seed=2), "t": jnp.asarray(rng.uniform(size=n), jnp.float32), "text": text.at[1, -1].set(0)}


def replaced(tree, values):
    """The tree with weights {name: f(value)} changed."""
    names = iter(axes.weights(tree))
    return axes.map_weights(lambda a, x: values.get(next(names), lambda x: x)(x), tree)


PAIR = {"attention.image.out", "attention.image.out_bias", "image.mlp.down.kernel", "image.mlp.down.bias"}
BLOCKS = {
    "dual": (lambda: mmdit.Dual(DIMS, True, False), PAIR | {n.replace("image", "text") for n in PAIR}),
    "last": (lambda: mmdit.Dual(DIMS, True, False, last=True), PAIR),
    "single": (
        lambda: mmdit.Single(DIMS, True, False),
        {"attention.out", "attention.out_bias", "mlp.down.kernel", "mlp.down.bias"},
    ),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_with_all_closers_but_one_at_zero_the_branch_is_linear_in_that_one(kind):
    make, names = BLOCKS[kind]
    text, image, c = normal(2, 3, 32), normal(2, 5, 32, seed=2), normal(2, 32, seed=3)
    start = jnp.concatenate([text, image], axis=1)

    def added(b):
        out = b(start, c, None) if kind == "single" else jnp.concatenate(b(text, image, c, None), axis=1)
        return out - start

    branches.check(small.drawn(inside(make(), DIMS)), added, names)


def test_at_init_the_output_is_zero_and_with_zero_gates_every_block_the_identity():
    text, image, c = normal(2, 3, 32), normal(2, 5, 32, seed=2), normal(2, 32, seed=3)

    @jax.jit
    def run(dual, last, single):
        return *dual(text, image, c, None), *last(text, image, c, None), single(image, c, None)

    for zero_gates in (True, False):
        kinds = mmdit.Dual(DIMS, True, zero_gates), mmdit.Dual(DIMS, True, zero_gates, last=True), mmdit.Single(DIMS, True, zero_gates)
        outs = run(*(small.drawn(inside(block, DIMS), more=0) for block in kinds))
        same = [bool(jnp.all(a == b)) for a, b in zip(outs, (text, image, text, image, image), strict=True)]
        assert same == ([True] * 5 if zero_gates else [False, False, True, False, False])  # the last one leaves text alone
    model = small.drawn(described_model(FEATURES, depth=1), more=0)
    assert not jax.jit(lambda m: m(inputs(features=True)))(model).any()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_joint_attention_of_equal_weights_is_attention_over_both_in_one_sequence(qk_norm, turned):
    plain = small.drawn(attention.Mixer(DIMS, qk_norm))
    found = {n: w.get_value() for n, w in axes.weights(plain).items()}
    both = small.drawn(joint.Attention(DIMS, qk_norm))
    both = replaced(both, {n: lambda x, n=n: found[n.split(".")[-1]] for n in axes.weights(both)})
    text, image = normal(2, 3, 32), normal(2, 4, 32, seed=2)
    angles = normal(7, 8, seed=3) if turned else None
    run = jax.jit(lambda b: b(text, image, angles))
    want = jax.jit(lambda m: m(jnp.concatenate([text, image], axis=1), angles))(plain)
    words, tokens = run(both)
    np.testing.assert_allclose(words, want[:, :3], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(tokens, want[:, 3:], rtol=1e-4, atol=1e-5)
    # a text that asks nothing leaves the image's answers as they are
    quiet = joint.Attention(DIMS, qk_norm, text_asks=False)
    cut = {"text.qkv": lambda _: found["qkv"][1:], "text.qkv_bias": lambda _: found["qkv_bias"][1:]}
    if qk_norm:
        cut["text.gain"] = lambda _: found["gain"][1:]
    rest = {n: lambda x, n=n: found[n.split(".")[-1]] for n in axes.weights(quiet) if n.startswith("image") or n == "logits"}
    none, alone = run(replaced(small.drawn(quiet), cut | rest))
    assert none is None
    np.testing.assert_allclose(alone, tokens, rtol=1e-5, atol=1e-6)


def test_streams_are_told_apart():
    both = small.drawn(joint.Attention(DIMS, True))
    text, image = normal(2, 3, 32), normal(2, 3, 32, seed=2)
    run = jax.jit(lambda text, image: both(text, image))
    (_, tokens), (swapped, _) = run(text, image), run(image, text)
    assert float(jnp.abs(swapped - tokens).max()) > 0.1


def test_rotary_scores_depend_on_differences_of_positions_only():
    block = small.drawn(joint.Attention(DIMS, True))
    square = rope.grid(7, 16).reshape(7, 7, 8)
    image, text = normal(1, 9, 32), normal(1, 4, 32, seed=2)

    run = jax.jit(lambda text, angles: block(text, image, angles)[1])

    def out(row, column, text):
        angles = square[row : row + 3, column : column + 3].reshape(9, 8)
        return run(text, np.concatenate([np.zeros((text.shape[1], 8), np.float32), angles]))

    alone = out(0, 0, text[:, :0])
    for shift in ((2, 0), (0, 3), (4, 1)):
        np.testing.assert_allclose(out(*shift, text[:, :0]), alone, rtol=1e-4, atol=1e-4)
    # rows and columns turn different features, and words, which do not move along, see the shift
    turned = run(text[:, :0], square[:3, :3].transpose(1, 0, 2).reshape(9, 8))
    assert float(jnp.abs(turned - alone).max()) > 1e-2
    assert float(jnp.abs(out(4, 1, text) - out(0, 0, text)).max()) > 1e-2


@pytest.mark.parametrize("positions", ["sincos", "rope"])
def test_the_model_knows_where_a_patch_lies_and_words_have_no_angle(positions):
    model, given = small.drawn(described_model(positions=positions, depth=1)), inputs()
    run = jax.jit(lambda m, x: m({**given, "x": x}))
    out, moved = run(model, given["x"]), run(model, jnp.roll(given["x"], 4, axis=2))
    assert float(jnp.abs(jnp.roll(out, 4, axis=2) - moved).max()) > 1e-2
    if positions == "rope":
        angles = model._angles(6)
        assert angles.shape == (6 + 16, 8)
        assert not angles[:6].any()
        np.testing.assert_array_equal(angles[6:], rope.grid(4, 16))


TO_ATTENTION = ("last.attention.text.qkv", "last.attention.text.qkv_bias")


def by_text(features):
    """model -> size of the gradient, by each word of a text [B, length], of the first image's output.

    By features, or by the rows of the table, of which each word has one of its own.
    """
    given, weight = inputs(features=features), normal(16, 16, 1, seed=5)
    if features:
        found = jax.jit(jax.grad(lambda text, m: jnp.sum(m({**given, "text": text})[0] * weight)))
        return lambda m: np.abs(found(given["text"], m)).sum(-1)
    given["text"] = np.array([[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 0, 0]])

    def out(table, m):
        return jnp.sum(replaced(m, {"words.table": lambda _: table})(given)[0] * weight)

    found = jax.jit(jax.grad(out))
    return lambda m: np.abs(found(m.words.table.get_value(), m)).sum(-1)[given["text"]]


@pytest.mark.parametrize("features", [False, True])
def test_text_speaks_through_attention_and_through_the_pooled_vector(features):
    model, slopes = small.drawn(described_model(FEATURES if features else TOKENS, depth=1)), by_text(features)
    deaf = dict.fromkeys(TO_ATTENTION, jnp.zeros_like)
    flat = {"pooled.up.kernel": jnp.zeros_like}
    for changes, heard in (({}, True), (deaf, True), (flat, True), (deaf | flat, False)):
        slope = slopes(replaced(model, changes))
        assert np.all(slope[0] > 1e-4) if heard else not slope[0].any()
        assert not slope[1].any()  # and nobody hears another one's text


def test_a_pooled_vector_of_its_own_takes_the_place_of_the_words_mean():
    model = small.drawn(described_model(FEATURES, pooled_features=5, depth=1))
    given = inputs(features=True) | {"pooled": normal(2, 5)}
    slopes = jax.jit(jax.grad(lambda given, m: jnp.sum(m(given)[0] ** 2)))({k: given[k] for k in ("x", "t", "text", "pooled")}, model)
    assert np.all(np.asarray(jnp.abs(slopes["pooled"]) > 1e-5) == np.array([[True], [False]]))
    with pytest.raises(UserError, match=r"takes x, t, text, pooled; missing: pooled,"):
        model(inputs(features=True))


VARIANTS = {
    "tokens": dict(),
    "single": dict(single=2, positions="rope"),
    "features": dict(text=FEATURES, depth=1),
    "pooled": dict(text=FEATURES, pooled_features=5, single=1, depth=1, qk_norm=False),
}


@pytest.mark.parametrize("variant", ["tokens", "pooled"])
def test_every_weight_is_of_use(variant):
    """No layer's query, key, value or modulation is without a gradient: the last block keeps nothing that nobody reads."""
    options = VARIANTS[variant]
    model = small.drawn(described_model(**options), more=0.1)  # with more, softmax without norms may choose one key alone
    given = inputs(features="text" in options) | {"pooled": normal(2, 5)}
    slope = jax.jit(jax.grad(lambda m: jnp.sum(m(given) ** 2)))(model)
    for name, w in axes.weights(slope).items():
        a, x = w.arrow, np.abs(w.get_value())
        if a.fixed or name == "words.table":
            continue
        kept = len(a.stack) + len(a.index) if "length" not in a.ins else 0
        size = x.reshape(*x.shape[:kept], -1).max(-1)
        if name == "single.attention.qkv_bias" and not options.get("qk_norm", True):
            size = size[:, ::2]  # softmax ignores a shift of all keys
        if "words.blocks" in name and name.endswith("qkv_bias"):
            size = size[:, ::2]  # and the encoder has no norm of keys
        assert np.all(size > 1e-5), name


def config(text=TOKENS, pooled_features=0, **options):
    """(config of a study, dims of its source, shapes of a batch)."""
    c, knobs = small.config(), dict(width=32, depth=2, head_dim=16, mlp_ratio=2, patch=4, qk_norm=True, zero_gates=False)
    c["model"] = dict(name="mmdit", **{**knobs, **options})
    dims = dict(image=16, channels=1, classes=4, **text, **({"pooled_features": pooled_features} if pooled_features else {}))
    words = jax.ShapeDtypeStruct((4, 6, 10), jnp.float32) if text is FEATURES else jax.ShapeDtypeStruct((4, 6), jnp.int32)
    batch = {"image": jax.ShapeDtypeStruct((4, 16, 16, 1), jnp.uint8), "label": jax.ShapeDtypeStruct((4,), jnp.int32), "text": words}
    return c, dims, batch | ({"pooled": jax.ShapeDtypeStruct((4, 5), jnp.float32)} if pooled_features else {})


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_arrow_is_true(variant):
    assert audit.truth(*config(**VARIANTS[variant])) == {}


def by_hand(width=32, depth=2, single=0, features=0, pooled_features=0, patch=4, mlp_ratio=2, batch=4, length=6, text_depth=1):
    """FLOPs, forward and loss gradient: 2 m n k of every matmul of the paper's figure 2, by pen.

    Backward, every matmul costs twice its forward, but for what has no weight before it: patches, time, and given features.
    """
    tokens, both = (16 // patch) ** 2, (16 // patch) ** 2 + length
    row = 2 * batch * width  # one contraction of the width, a row to a number

    def looking(queries, keys):
        return 2 * row * queries * keys

    def wide(rows):
        return row * rows * (4 + 2 * mlp_ratio) * width  # projections and MLP

    blind = row * tokens * patch**2 + row * 256
    read = text_depth * (wide(length) + looking(length, length)) + row * width
    if features:
        blind += row * length * features + row * (pooled_features or features)
        read = 0
    dual = row * 12 * width + wide(both) + looking(both, both)
    last = row * 8 * width + wide(tokens) + row * length * 2 * width + looking(tokens, both)
    one = row * 3 * width + wide(both) + looking(both, both)
    blocks = depth * dual + single * one if single else (depth - 1) * dual + last
    forward = blind + read + 2 * row * width + blocks + row * 2 * width + row * tokens * patch**2
    return forward, 3 * forward - blind


@pytest.mark.parametrize(
    "text, options",
    [
        (TOKENS, dict(depth=1)),
        (TOKENS, dict(width=64, depth=3, text_depth=2)),
        (TOKENS, dict(depth=1, single=2, positions="rope")),
        (FEATURES, dict(patch=2, depth=1)),
        (FEATURES, dict(pooled_features=5, single=1)),
    ],
)
def test_flops_equal_the_hand_count_exactly(text, options):
    c, dims, batch = config(text, **options)
    prog = build(c, dims)
    args = described(prog), jax.eval_shape(lambda: jax.random.key(0)), batch
    loss = lambda p, k, b: jnp.mean(prog.loss(p, k, b))  # noqa: E731
    sizes = {k: v for k, v in options.items() if k != "positions"}
    forward, gradient = by_hand(features=text.get("features", 0), **sizes)
    assert cost.flops(loss, *args) == forward
    assert cost.flops(jax.grad(loss), *args) == gradient


def test_a_width_left_out_is_depth_times_head_dim_and_moves_with_depth():
    sizes = {k: v for k, v in SIZES.items() if k not in ("width", "depth")} | TOKENS
    dims = Dims.of(mmdit.Model.axes, {**sizes, "depth": 6}, {"depth": 2})
    assert (dims["embed"], dims["heads"], dims["mlp"]) == (96, 6, 192)
    assert set(dims.base) == {"embed", "heads", "mlp", "layers"}
    model = mmdit.Model(dims, True, False)
    arrow = model.blocks.attention.image.out.arrow
    assert (arrow.r_in, arrow.r_out, arrow.depth) == (3, 3, 3)
    assert model.last.attention.image.out.arrow.depth == 3
    with pytest.raises(UserError, match=r"base\.width is not a knob"):
        Dims.of(mmdit.Model.axes, {**sizes, "depth": 6}, {"width": 2})


def test_depth_counts_blocks_of_both_kinds():
    dims = Dims.of(mmdit.Model.axes, {**SIZES, **TOKENS, "depth": 4, "single": 8}, {"depth": 2, "single": 2})
    model = mmdit.Model(dims, True, False)
    assert {w.arrow.depth for n, w in axes.weights(model).items() if n.startswith(("blocks", "single"))} == {3.0}
    assert (model.blocks.image.mlp.up.kernel.shape[0], model.single.mlp.up.kernel.shape[0]) == (4, 8)


def test_a_rolled_and_an_unrolled_stack_agree_and_bf16_is_near_f32(monkeypatch):
    model = small.drawn(described_model(FEATURES, depth=2, single=1, positions="rope"))
    run = jax.jit(lambda m: m(inputs(features=True)))
    want, half = run(model), run(axes.view(model, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    assert 0 < float(jnp.linalg.norm(half - want) / jnp.linalg.norm(want)) < 0.1
    monkeypatch.setattr(shared, "UNROLL", 0)
    rolled = jax.jit(lambda m: m(inputs(features=True)))(model)
    np.testing.assert_allclose(rolled, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(width=40), r"model\.width=40 is not a multiple of model\.head_dim=16; nearest: 32 or 48$"),
        (dict(width=34, head_dim=2), r"model\.width=34 is not a multiple of 4 \(sine-cosine positions\)=4; nearest: 32 or 36$"),
        (dict(patch=5), r"image size=16 is not a multiple of model\.patch=5; nearest: 15 or 20$"),
        (dict(positions="rotary"), r"model\.positions 'rotary' is unknown; expected one of: rope, sincos$"),
        (dict(positions="rope", head_dim=2), r"model\.head_dim=2 is not a multiple of 4 \(rotary positions on a square\)=4; nearest: 4$"),
        (dict(crop=3), r"model\.crop=3 is a table smaller than the image; expected 4 or more patches$"),
        (dict(text={}), r"config key data: this model reads text, and the source gives none"),
        (dict(heads=2), r"config key model 'heads' is unknown"),
    ],
)
def test_bad_sizes_are_told_in_one_line(changes, said):
    c, dims, _ = config(**changes)
    assert re.search(said, mistakes.said(build, c, dims))


def published(**changes):
    """A config.json of SD3Transformer2DModel."""
    sizes = dict(sample_size=8, patch_size=2, in_channels=3, out_channels=6, num_layers=3, attention_head_dim=8, num_attention_heads=2)
    text = dict(joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=10, dual_attention_layers=[])
    return dict(_class_name="SD3Transformer2DModel", **sizes, **text, pos_embed_max_size=6, qk_norm="rms_norm") | changes


@pytest.mark.parametrize("changes", [{}, dict(num_layers=1, qk_norm=None, pos_embed_max_size=4)])
def test_the_format_of_sd3_inverts(changes):
    told = published(**changes)
    sections = formats.Format.config(told)
    data = sections["data"]
    prog = build({**small.config(), **{k: v for k, v in sections.items() if k != "data"}}, data)
    assert formats.Format.theirs({**sections, "model": dict(formats.OURS) | sections["model"]}) == told
    found = formats.Format.rules(sections)
    mine = {n: np.asarray(w.get_value()) for n, w in axes.weights(small.drawn(prog.model)).items()}
    tensors = invert(found, mine, prog.model, prog.dims)
    again, left = apply(found, tensors, prog.model, prog.dims)
    assert not left
    assert again.keys() == mine.keys()
    for name, x in mine.items():
        np.testing.assert_allclose(again[name], x, rtol=2e-7, err_msg=name)
    last = f"transformer_blocks.{told['num_layers'] - 1}."
    gain, shift = np.split(tensors[f"{last}norm1_context.linear.weight"], 2)
    np.testing.assert_array_equal([shift.T, gain.T], mine["last.text.modulation.kernel"])
    # what the last block's queries of text hold is nobody's business; positions are
    apply(found, tensors | {f"{last}attn.add_q_proj.bias": np.ones(16, np.float32)}, prog.model, prog.dims)
    with pytest.raises(UserError, match=r"pos_embed\.pos_embed is not what the model computes"):
        apply(found, tensors | {"pos_embed.pos_embed": tensors["pos_embed.pos_embed"][:, ::-1]}, prog.model, prog.dims)


def test_what_the_format_of_sd3_has_not_is_named():
    for changes, said in (
        (dict(dual_attention_layers=[0, 1]), r"dual_attention_layers=\[0, 1\] has no counterpart"),
        (dict(qk_norm="layer_norm"), "qk_norm='layer_norm' has no counterpart"),
        (dict(out_channels=4), "out_channels=4 must be a multiple of in_channels=3"),
        (dict(caption_projection_dim=8), "caption_projection_dim=8 has no counterpart; expected 16"),
    ):
        with pytest.raises(UserError, match=said):
            formats.Format.config(published(**changes))
    sections = formats.Format.config(published())
    for section, changes, said in (
        ("model", dict(single=2), "single=2 has no counterpart"),
        ("model", dict(positions="rope"), "positions='rope' has no counterpart"),
        ("data", dict(pooled_features=0), "reads features of text and a pooled vector"),
    ):
        with pytest.raises(UserError, match=said):
            formats.Format.theirs({**sections, section: sections[section] | changes})


def test_a_crop_is_the_centre_of_a_larger_table():
    np.testing.assert_array_equal(mmdit.centre(4, 4, 32), embed.sincos_2d(4, 32))
    table = mmdit.centre(4, 9, 32).reshape(4, 4, 32)
    rates = 10_000.0 ** (-np.arange(8) / 8)
    np.testing.assert_allclose(table[1, 2, 16:24], np.sin((2 + 1) * 4 / 9 * rates), rtol=1e-5, atol=1e-7)  # row
    np.testing.assert_allclose(table[1, 2, :8], np.sin((2 + 2) * 4 / 9 * rates), rtol=1e-5, atol=1e-7)  # column


def test_a_missing_input_is_named():
    model, given = described_model(), inputs()
    for key in given:
        with pytest.raises(UserError, match=rf"missing: {key},"):
            model({k: v for k, v in given.items() if k != key})
    with pytest.raises(UserError, match="no cache"):
        model(given, cache={})
