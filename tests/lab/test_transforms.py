"""What transforms carry is what the model computed: grown models answer alike, resized ones to resized pictures; each beside a control that does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from lab import axes, find, parametrization
from lab.axes import Dims
from lab.errors import UserError
from lab.models import decoder, dit, masked, meissonic, mmdit, pixart, uvit
from lab.objectives import flow
from lab.optim import schedule
from lab.train import Program
from lab.transforms import grow, resize

SHAPE = dict(width=16, depth=2, head_dim=8, mlp_ratio=2)
PICTURE = dict(image=8, channels=3, patch=2)
TEXT = dict(words=7, length=5)
TOKENS = dict(vocabulary=11, tokens=16)
MODELS = {  # model, knobs, options
    "dit": (dit.Model, {**SHAPE, **PICTURE, "classes": 4}, dict(qk_norm=True, zero_gates=True)),
    "pixart": (pixart.Model, {**SHAPE, **PICTURE, **TEXT}, dict(qk_norm=True, zero_gates=False)),
    "pixart with compressed keys": (pixart.Model, {**SHAPE, **PICTURE, **TEXT, "kv_compress": 2}, dict(qk_norm=False, zero_gates=True)),
    "mmdit": (mmdit.Model, {**SHAPE, **PICTURE, **TEXT, "single": 1, "depth": 2}, dict(qk_norm=True, zero_gates=True)),
    "mmdit by rope": (mmdit.Model, {**SHAPE, **PICTURE, **TEXT, "depth": 3}, dict(qk_norm=True, zero_gates=True, positions="rope")),
    "decoder": (decoder.Model, {**SHAPE, **TOKENS, "classes": 4, "side": 4, "kv_group": 2}, dict(qk_norm=True, rope="grid")),
    "masked": (masked.Model, {**SHAPE, **TOKENS, **TEXT, "classes": 4, "text_depth": 1}, dict(qk_norm=False)),
    "meissonic": (meissonic.Model, {**SHAPE, **TEXT, "single": 1, "side": 4, "vocabulary": 11, "compress": 2}, dict(qk_norm=True, zero_gates=True)),
}  # fmt: skip
SINES = ("dit", "pixart", "pixart with compressed keys", "mmdit")


def described(name, base=16, **more):
    """A described model, with its dims."""
    kind, knobs, options = MODELS[name]
    sizes = {k: more.pop(k, v) for k, v in knobs.items()}
    dims = Dims.of(kind.axes, sizes, {"width": base, "depth": knobs["depth"]})
    return kind(dims, **options, **more), dims


def inputs(model, knobs, seed=0):
    """Inputs of whatever a model takes, for two examples."""
    rng = np.random.default_rng(seed)
    side, n = knobs.get("image", 0), 4
    made = {
        "x": rng.normal(size=(2, side, side, knobs.get("channels", 1))).astype(np.float32),
        "t": np.array([0.2, 0.7], np.float32),
        "label": np.array([1, -1], np.int32),
        "text": rng.integers(0, 7, (2, knobs.get("length", 5))).astype(np.int32),
        "tokens": rng.integers(0, 11, (2, n, n)).astype(np.int32),
    }
    return {k: jnp.asarray(made[k]) for k in model.takes}


def carried(transform, trained, fresh, source, dims):
    """A tree like `fresh` with what a transform makes of `trained`."""
    arrays = transform(axes.weights(trained), axes.weights(fresh), source, dims)
    assert {n: x.shape for n, x in arrays.items()} == {n: w.get_value().shape for n, w in axes.weights(fresh).items()}
    leaves = [w.replace(jnp.asarray(arrays[n])) for n, w in axes.weights(fresh).items()]
    return jax.tree.unflatten(jax.tree.structure(fresh, is_leaf=axes.is_weight), leaves)


def drawn(model, rule="mup", seed=0, more=0.3):
    return small.drawn(model, more=more, seed=seed, rule=rule)


def apart(a, b):
    """The largest difference of two outputs beside the size of the first."""
    return float(jnp.max(jnp.abs(a - b)) / jnp.std(a))


def grown(name, transform, rule="mup", **larger):
    """How far a grown model's output is from the smaller one's, and both."""
    model, source = described(name)
    more = {"position_width": 16} if name in SINES and "width" in larger else {}
    big, dims = described(name, **larger, **more)
    trained = drawn(model)
    tree = carried(transform, trained, drawn(big, rule, seed=1, more=0.0), source, dims)
    given = inputs(model, MODELS[name][1])
    return apart(forward(trained, given), forward(tree, given)), trained, tree


@jax.jit
def forward(model, given):
    with jax.default_matmul_precision("highest"):
        return model(given)


@pytest.mark.parametrize("name", MODELS)
def test_a_grown_model_computes_what_the_smaller_one_did(name):
    """Twice as wide, and deeper by a number that is no multiple."""
    assert grown(name, grow.Transform(), width=32, depth=MODELS[name][1]["depth"] + 1)[0] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["standard", "mean_field", "completep"])
@pytest.mark.parametrize("name", MODELS)
def test_it_does_so_by_any_factor_and_under_any_parametrization(name, rule):
    assert grown(name, grow.Transform(), rule, width=48)[0] < 1e-5
    assert grown(name, grow.Transform(), rule, depth=MODELS[name][1]["depth"] + 3)[0] < 1e-5


def test_what_is_not_divided_or_not_parted_or_not_closed_is_another_function(monkeypatch):
    """The controls: each part of the rule is needed."""
    _, trained, tree = grown("decoder", grow.Transform(noise=0.0), width=32)
    given = inputs(trained, MODELS["decoder"][1])
    doubled = axes.map_weights(lambda a, x: x * (2 if a.inf_in else 1), tree)  # repeated and not divided
    assert apart(forward(trained, given), forward(tree, given)) < 1e-5
    assert apart(forward(trained, given), forward(doubled, given)) > 0.1
    with monkeypatch.context() as m:  # a draw whose mean over equal features is not taken off
        m.setattr(grow.Transform, "_parted", lambda self, pair, contracted, copies: pair.fresh - pair.arrow.fill)
        assert grown("decoder", grow.Transform(), width=32)[0] > 0.1
    shared = grown("decoder", grow.Transform(depth="share"), depth=3)[0]
    copied = grown("decoder", Copies(), depth=3)[0]
    assert 1e-3 < shared < copied  # closers in shares come near, copies as they are do not


class Copies(grow.Transform):
    """New blocks that are copies of old ones, whole."""

    def __call__(self, trained, fresh, source, dims):
        whole = grow.Transform(depth="share")(trained, fresh, source, dims)
        return {n: np.asarray(trained[n].get_value())[[0, 0, 1]] if fresh[n].arrow.stack else x for n, x in whole.items()}


def test_sine_cosine_positions_of_another_width_are_others():
    model, source = described("dit")
    big, dims = described("dit", width=32)
    trained = drawn(model)
    tree = carried(grow.Transform(), trained, drawn(big, more=0.0), source, dims)
    given = inputs(model, MODELS["dit"][1])
    assert apart(forward(trained, given), forward(tree, given)) > 0.01


@pytest.mark.parametrize("rule", ["mup", "standard", "mean_field"])
def test_what_is_added_has_the_std_of_the_new_models_own_init(rule):
    """Of every hidden weight, whose trained part keeps its spectral norm; entries of inputs and vectors keep their size, readouts shrink as 1/width."""
    width = 128
    _, trained, tree = grown("decoder", grow.Transform(), rule, width=width)
    bare = grown("decoder", grow.Transform(noise=0.0), rule, width=width)[2]
    table, small_ones, seen = parametrization.table(rule), axes.weights(trained), 0
    for name, w in axes.weights(tree).items():
        a, x, plain = w.arrow, np.asarray(w.get_value()), np.asarray(axes.weights(bare)[name].get_value())
        before = np.asarray(small_ones[name].get_value())
        if a.fixed:
            assert np.array_equal(x, before)
            continue
        added = x - plain
        if a.inf_in and a.std:
            assert np.std(added) == pytest.approx(a.std * table(a).init, rel=0.1), name
            seen += 1
        else:
            assert not added.any(), name
        if not a.inf_in:
            assert np.sqrt(np.mean(plain**2)) == pytest.approx(np.sqrt(np.mean(before**2)), rel=1e-5)
        elif a.inf_out:
            ins = len(a.ins)
            flat, old = (y[(0,) * (len(a.stack) + len(a.index))] for y in (plain, before))
            flat, old = (y.reshape(int(np.prod(y.shape[:ins])), -1) for y in (flat, old))
            assert np.linalg.norm(flat, 2) == pytest.approx(np.linalg.norm(old, 2), rel=1e-4), name
        else:
            assert np.sqrt(np.mean(plain**2)) == pytest.approx(np.sqrt(np.mean(before**2)) / 8, rel=1e-5)
    assert seen == 5  # query, keys and values, out, up and down; the readout begins at zero, and is given nothing


def features(tree, name):
    """How far equal features of a weight are apart, relative to its size."""
    up = np.asarray(axes.weights(tree)[name].get_value())
    pairs = up.reshape(*up.shape[:-1], -1, 2)
    return np.abs(pairs[..., 0] - pairs[..., 1]).max() / np.abs(up).max()


def test_equal_features_part_by_the_draw_and_never_without_it():
    model, source = described("dit")
    big, dims = described("dit", width=32, position_width=16)
    trained, fresh = drawn(model), drawn(big, seed=1, more=0.0)
    program = Program(big, dims, flow.Objective("logit_normal", 0.1), schedule("constant", 8, 0, 0.2), jnp.float32)
    batch = small.batch(8, source=Pictures())
    hyper = small.hyper(program)
    step = jax.jit(program.step)
    found = []
    for noise in (1.0, 0.0):
        tree = carried(grow.Transform(noise=noise), trained, fresh, source, dims)
        state = program.begin(hyper, tree, tree)
        with jax.default_matmul_precision("highest"):
            for _ in range(3):
                state, _ = step(state, hyper, batch)
        found.append(features(state.params, "patch_in.kernel"))
    assert found[0] > 1e-3
    assert found[1] < 1e-5


class Pictures:
    """Random pictures of 8 pixels and 3 channels."""

    rng = np.random.default_rng(0)
    arrays = {"image": rng.integers(0, 256, (32, 8, 8, 3)).astype(np.uint8), "label": rng.integers(0, 4, 32).astype(np.int32)}  # noqa: RUF012


def resized(name, given, bigger, **larger):
    """Outputs of a model, and of the same with other sizes for other inputs."""
    model, source = described(name)
    big, dims = described(name, **larger)
    trained = drawn(model)
    tree = carried(resize.Transform(), trained, drawn(big, seed=1), source, dims)
    return forward(trained, given), forward(tree, bigger)


@pytest.mark.parametrize("name", ["dit", "pixart", "mmdit"])
def test_a_patch_of_more_pixels_answers_to_a_larger_picture_as_before(name):
    """Twice the pixels in patches of twice the side: tokens, and so all between, are the same ones, and so is what is drawn, but larger."""
    given = inputs(described(name)[0], MODELS[name][1])

    def large(x):
        by = resize.matrix(2, 4)
        patches = np.asarray(x).reshape(2, 4, 2, 4, 2, 3)
        return jnp.asarray(np.einsum("pi,qj,bhiwjc->bhpwqc", by, by, patches).reshape(2, 16, 16, 3), jnp.float32)

    before, after = resized(name, given, {**given, "x": large(given["x"])}, image=16, patch=4)
    assert apart(large(before), after) < 1e-5
    plain = jnp.repeat(jnp.repeat(given["x"], 2, 1), 2, 2)  # resized otherwise, it is another picture
    assert apart(large(before), resized(name, given, {**given, "x": plain}, image=16, patch=4)[1]) > 1e-3


def test_the_same_sizes_are_carried_as_they_are_and_positions_are_recomputed():
    given = inputs(described("dit")[0], MODELS["dit"][1])
    before, after = resized("dit", given, given)
    assert np.array_equal(before, after)
    larger = {**given, "x": jnp.concatenate([jnp.concatenate([given["x"]] * 2, 1)] * 2, 2)}
    _, after = resized("dit", given, larger, image=16)
    assert after.shape == (2, 16, 16, 3)


def test_learned_positions_are_interpolated_over_the_grid():
    """Positions that are linear in row and column stay so; what stands before the image keeps its place, words that are new are drawn."""
    kind, knobs, options = (
        uvit.Model,
        {**SHAPE, **PICTURE, **TEXT, "depth": 3, "classes": 1},
        dict(qk_norm=False, time_mlp=True, final_conv=False),
    )

    def made(**more):
        dims = Dims.of(kind.axes, {**knobs, **more}, {"width": 16})
        return kind(dims, **options), dims

    (model, source), (big, dims) = made(), made(image=16, length=7)
    trained, fresh = drawn(model), drawn(big, seed=1)
    ramp = np.add.outer(2.0 * np.arange(4), np.arange(4)).reshape(-1, 1) * np.ones(16)
    first = np.asarray(trained.positions.get_value()[:6])
    trained.positions = trained.positions.replace(jnp.asarray(np.concatenate([first, ramp]), jnp.float32))
    tree = carried(resize.Transform(), trained, fresh, source, dims)
    got, own = np.asarray(tree.positions.get_value()), np.asarray(fresh.positions.get_value())
    assert np.array_equal(got[:6], first)
    assert np.array_equal(got[6:8], own[6:8])
    grid = got[8:, 0].reshape(8, 8)
    assert np.allclose(np.diff(grid, axis=0)[1:-1], 1.0, atol=1e-5)
    assert np.allclose(np.diff(grid, axis=1)[:, 1:-1], 0.5, atol=1e-5)
    words = axes.weights(tree)["condition.positions"].get_value()
    assert np.array_equal(words[:5], axes.weights(trained)["condition.positions"].get_value())
    assert np.array_equal(words[5:], axes.weights(fresh)["condition.positions"].get_value()[5:])
    back = carried(resize.Transform(), tree, drawn(model, seed=2), dims, source)
    assert np.array_equal(np.asarray(back.positions.get_value())[:6], first)


def refused(transform, name, other=None, **more):
    """What is said where a model cannot be carried."""
    model, source = described(name)
    big, dims = described(other or name, **more)
    with pytest.raises(UserError) as e:
        carried(transform, drawn(model), drawn(big), source, dims)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_what_cannot_be_carried_is_one_line_that_names_the_weight():
    assert "weight 'blocks.attention.out' has heads=2 in the model begun from and heads=4 in this one" in refused(
        resize.Transform(), "dit", width=32
    )
    assert "grow" in refused(resize.Transform(), "dit", width=32)
    assert "labels=5" in refused(resize.Transform(), "dit", classes=9)
    assert "channels differ, 3 and 1" in refused(resize.Transform(), "dit", channels=1)
    assert "weight 'patch_in.kernel' has patch=12" in refused(grow.Transform(), "dit", patch=4)
    assert (
        "has heads=2 in the model begun from and heads=3 in this one; features are repeated a whole number of times; nearest: 2"
        in refused(grow.Transform(), "dit", width=24)
    )
    assert "makes no model smaller" in refused(grow.Transform(), "dit", depth=1)
    assert "in this model and not in the one begun from" in refused(grow.Transform(), "dit", "pixart")
    assert "no square" in refused(resize.Transform(), "masked", tokens=17)
    with pytest.raises(UserError, match=r"init.options.depth 'copy' is unknown"):
        grow.Transform(depth="copy")
    with pytest.raises(UserError, match="must be 0 or more"):
        grow.Transform(noise=-1.0)


def test_long_skips_of_a_uvit_have_no_layer_that_is_the_identity():
    knobs, options = {**SHAPE, **PICTURE, "depth": 3, "classes": 4}, dict(qk_norm=False, time_mlp=True, final_conv=False)
    made = [uvit.Model(d, **options) for d in (Dims.of(uvit.Model.axes, {**knobs, "depth": n}, {"width": 16}) for n in (3, 5))]  # fmt: skip
    with pytest.raises(UserError, match=r"weight 'skips.*' has skips=1"):
        carried(grow.Transform(), *map(drawn, made), None, Dims({}, {}))


def test_transforms_are_found_by_name():
    assert find.names("lab.transforms") == ["grow", "resize"]
