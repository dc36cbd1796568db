"""Each optimizer against optax's own, against its published exponents, and over width."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
from test_optim import hyper

from lab import axes, find
from lab.axes import Dims, scale, stack, weight
from lab.coordinates import Setting, measured
from lab.errors import UserError
from lab.optim import core, optimizer
from lab.optimizers.muon import _numbers
from lab.parametrization import Scales, mup, standard

NAMES = find.names("lab.optimizers")
BASE, LAYERS = 16, 2
MATRIX = {"read": 1, "up": 1, "down": 1, "write": 1, "bias": 0, "table": 0, "logits": 0}  # whether it contracts, and so decays


def described(width=BASE, wide=None):
    """Weights of every role; `wide` is the width inside a block, of which the base has twice that outside."""
    dims = Dims(
        {"data": 12, "embed": width, "mlp": wide or 2 * width, "layers": LAYERS}, {"embed": BASE, "mlp": 2 * BASE, "layers": LAYERS}
    )
    block = stack({"up": weight("3 | embed -> mlp", dims), "down": weight("mlp => embed", dims)}, LAYERS, dims)
    return {
        **{"read": weight("data -> embed", dims), "table": weight("data | -> embed", dims), "bias": weight("-> embed", dims, fill=0.3)},
        **{"logits": scale("embed ->", dims), "write": weight("embed -> data", dims), **block},
    }


def drawn(tree, table=mup, seed=0):
    """Numbers for a described tree, and the scales they are drawn by."""
    scales = axes.scales(tree, table)
    return axes.draw(jax.random.key(seed), tree, scales), scales


def noise(params, seed=1):
    """Gradients of all sizes, from weight to weight and entry to entry."""
    rng = np.random.default_rng(seed)
    one = lambda a, x: jnp.asarray(np.exp(2 * rng.normal()) * rng.normal(size=x.shape) * np.exp(rng.normal(size=x.shape)), jnp.float32)  # noqa: E731
    return axes.map_weights(one, params)


def apart(tree):
    """{name: plain arrays}: a weight's matrices, or its vectors, which is what an optimizer of plain arrays would be given."""
    out = {}
    for name, w in axes.weights(tree).items():
        x, a = w.get_value(), w.arrow
        shape = (*x.shape[-2:],) if a.ins and not a.fixed else (*x.shape[-len(a.outs) :],) if not a.fixed else ()
        out[name] = list(x.reshape(-1, *shape))
    return out


def trained(make, params, grads):
    """Parameters after the gradients."""
    state = make.init(params)
    for g in grads:
        updates, state = make.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params


LR, DECAY = 0.03, 0.1
B1, B2, EPS = 0.8, 0.95, 1e-3
DECAYED = {k: bool(v) for k, v in MATRIX.items()}
ADAMW = functools.partial(optax.adamw, LR, B1, B2, EPS, weight_decay=DECAY)


def muon(**more):
    """optax's Muon for what is hidden, its AdamW at 0.4 of the rate for the rest; decay is by the rate of both."""
    hidden = {k: "muon" if k in ("up", "down") else "adam" for k in MATRIX}
    adam = optax.chain(optax.scale_by_adam(B1, B2, EPS), optax.scale(0.4), optax.add_decayed_weights(DECAY, DECAYED), optax.scale(-LR))
    return optax.partition({"muon": optax.contrib.muon(LR, beta=0.7, weight_decay=DECAY, **more), "adam": adam}, hidden)


THEIRS = {
    "adamw": (lambda: ADAMW(mask=DECAYED), {}),
    "lion": (lambda: optax.lion(LR, B1, B2, weight_decay=DECAY, mask=DECAYED), {}),
    "sgd": (lambda: optax.chain(optax.trace(B1), optax.add_decayed_weights(DECAY, DECAYED), optax.scale(-LR)), {}),
    "adafactor": (lambda: optax.chain(optax.adafactor(min_dim_size_to_factor=1), optax.scale(-1), optax.add_decayed_weights(DECAY, DECAYED), optax.scale(-LR)), {}),
    "muon": (muon, {"momentum": 0.7, "adam_ratio": 0.4}),
}  # fmt: skip


def mine(name, scales, own=None, **changes):
    """The lab's optimizer with the constants above."""
    own = own or {}
    h = hyper(scales, **{**dict(lr=LR, weight_decay=DECAY, b1=B1, b2=B2, eps=EPS), **changes})._replace(own=own)
    return optimizer(h, lambda n: 1.0, core({"name": name, **own}))


def gap(a, b, leave=("logits",)):
    """The largest relative difference of two {name: arrays}."""
    return max(float(jnp.max(jnp.abs(x - y)) / jnp.max(jnp.abs(y))) for k in a if k not in leave for x, y in zip(a[k], b[k], strict=True))


@pytest.mark.parametrize("name", THEIRS)
def test_at_the_base_it_is_optaxs_own_on_every_matrix_alone(name):
    params, scales = drawn(described())
    grads = [noise(params, seed) for seed in range(4)]
    make, own = THEIRS[name]
    want = trained(make(), apart(params), [apart(g) for g in grads])
    got = apart(trained(mine(name, scales, own), params, grads))
    assert gap(got, want) < 2e-5
    assert got["logits"] == apart(params)["logits"]
    for key in {"adamw": ("b1", "b2", "eps"), "lion": ("b1", "b2"), "sgd": ("b1",), "adafactor": (), "muon": ("b2",)}[name]:
        other = apart(trained(mine(name, scales, own, **{key: 0.5}), params, grads))
        assert gap(other, want) > 1e-3, key
    for key in own:
        other = apart(trained(mine(name, scales, own | {key: 0.1}), params, grads))
        assert gap(other, want) > 1e-3, key


def test_the_tangent_of_adam_atan2s_update_is_adams_without_epsilon():
    params, scales = drawn(described())
    ours, theirs = mine("adam_atan2", scales, lr=1.0, weight_decay=0.0), optax.scale_by_adam(B1, B2, eps=0.0)
    state, adam = ours.init(params), theirs.init(params)
    for seed in range(4):
        g = noise(params, seed)
        (u, state), (a, adam) = ours.update(g, state, params), theirs.update(g, adam)
        tangents = [jnp.tan(-x) for x in axes.values({k: v for k, v in u.items() if k != "logits"})]
        for t, x in zip(tangents, axes.values({k: v for k, v in a.items() if k != "logits"}), strict=True):
            np.testing.assert_allclose(t, x, rtol=2e-4)
    tiny = axes.map_weights(lambda a, x: x * 1e-12, g)  # squares of 1e-24: no epsilon to be lost in
    one, less = (ours.update(x, ours.init(params), params)[0] for x in (g, tiny))
    assert gap(apart(less), apart(one)) < 1e-3
    zero = ours.update(axes.map_weights(lambda a, x: 0 * x, g), ours.init(params), params)[0]
    assert all(np.all(np.asarray(x) == 0) for x in axes.values(zero))


# ---- published exponents

M = 8
# microsoft/mup and Tensor Programs V, table 3: learning rate of SGD over that of the base, in the form without multipliers
SGD = {"read": M, "table": M, "bias": M, "up": 1, "down": 1, "write": 1 / M}


def test_sgd_under_mup_is_the_published_rule():
    for table, rule in ((mup, SGD), (standard, dict.fromkeys(SGD, 1))):
        params, scales = drawn(described(M * BASE), table)
        g = noise(params)
        moved = trained(mine("sgd", scales, weight_decay=0.0), params, [g])
        for name, rate in rule.items():
            want = params[name].get_value() - LR * rate * g[name].get_value()
            np.testing.assert_allclose(moved[name].get_value(), want, rtol=1e-4, atol=1e-6 * M)
    # microsoft/mup: what is hidden has the ratio of fan-out to fan-in
    params, scales = drawn(described(2 * BASE, 16 * BASE))
    g = noise(params)
    moved = trained(mine("sgd", scales, weight_decay=0.0), params, [g])
    for name, rate in (("up", 8 / 2), ("down", 2 / 8)):
        np.testing.assert_allclose(
            moved[name].get_value(), params[name].get_value() - LR * rate * g[name].get_value(), rtol=1e-4, atol=1e-5
        )


def per_layer(arrow):
    """Standard init with Everett et al.'s exponents for Adam at full alignment: 0, 1, 1 of embedding, hidden and readout."""
    return Scales(arrow.r_in**-0.5, 0.0 if arrow.fixed else 1 / arrow.r_in, 1.0, 0.0)


# Everett et al. (arXiv 2407.05872), Adafactor at full alignment: -log of the learning rate over log of the width
EVERETT = {mup: (0, 1 / 2, 0), per_layer: (0, 1 / 2, 1 / 2)}
CLASSES = ("read", "up", "write")


def exponents(table, name="adafactor"):
    """How the update of each class over its weight falls as the width doubles, both as root mean squares."""
    out = []
    for width in (8 * BASE, 16 * BASE):
        params, scales = drawn(described(width), table)
        after = trained(mine(name, scales, lr=1.0, weight_decay=0.0), params, [noise(params)])
        before = {k: params[k].get_value() for k in CLASSES}
        out.append([float(jnp.std(after[k].get_value() - before[k]) / jnp.std(before[k])) for k in CLASSES])
    return -np.log2(np.array(out[1]) / np.array(out[0]))


@pytest.mark.parametrize("table", EVERETT, ids=lambda t: t.__name__)
def test_adafactor_has_the_published_exponents(table):
    np.testing.assert_allclose(exponents(table), EVERETT[table], atol=0.06)
    # the control: steps of Adam, on updates that are as large as the weight
    plain = lambda a: table(a)._replace(unit=0.0)  # noqa: E731
    assert np.abs(exponents(plain) - EVERETT[table]).max() > 0.4


def test_one_rate_for_every_weight_is_optaxs_adafactor_at_any_width():
    params, scales = drawn(described(M * BASE), standard)
    grads = [noise(params, seed) for seed in range(2)]
    theirs = optax.adafactor(LR, min_dim_size_to_factor=1)
    got = apart(trained(mine("adafactor", scales, weight_decay=0.0), params, grads))
    assert gap(got, trained(theirs, apart(params), [apart(g) for g in grads])) < 2e-5
    assert np.abs(exponents(standard)).max() < 0.06


def test_a_weight_of_zeros_first_moves_by_its_step_whatever_the_width():
    """Adafactor takes 0.001 for the size of smaller weights; it is 0.001 of the size that is expected."""

    def first(width, table):
        dims = Dims({"embed": width, "data": 12}, {"embed": BASE})
        params, scales = drawn({"write": weight("embed -> data", dims, init=0.0)}, table)
        after = trained(mine("adafactor", scales, lr=1.0, weight_decay=0.0), params, [noise(params)])
        return float(jnp.std(after["write"].get_value()))

    assert first(BASE, mup) == pytest.approx(1e-3, rel=0.1)
    assert first(M * BASE, mup) == pytest.approx(1e-3 / M, rel=0.1)
    assert first(M * BASE, standard) == pytest.approx(1e-3, rel=0.1)


# ---- Muon


def spectral(width, wide, table=mup):
    """{name: spectral norm over sqrt(fan-out / fan-in) [matrices]} of one update of the hidden weights at learning rate 1."""
    params, scales = drawn(described(width, wide), table)
    g = noise(params)
    # one of the three matrices of a fused weight, and one of the layers, has a gradient a thousand times the others'
    g["up"] = g["up"].replace(g["up"].get_value().at[0, 1].multiply(1000.0))
    before, after = (
        apart(params),
        apart(trained(mine("muon", scales, {"momentum": 0.9, "adam_ratio": 1.0}, lr=1.0, weight_decay=0.0), params, [g])),
    )
    norms = {k: [jnp.linalg.norm(b - a, ord=2) for a, b in zip(before[k], after[k], strict=True)] for k in ("up", "down")}
    return {k: np.array(v) / math.sqrt(before[k][0].shape[1] / before[k][0].shape[0]) for k, v in norms.items()}


def test_muons_update_has_the_spectral_norm_of_its_shape_at_every_width_and_matrix_by_matrix():
    base = spectral(BASE, 2 * BASE)
    assert base["up"].shape == (6,)
    for sizes in ((4 * BASE, 8 * BASE), (8 * BASE, 16 * BASE), (2 * BASE, 16 * BASE), (8 * BASE, 4 * BASE)):
        for name, norms in spectral(*sizes).items():
            # Newton-Schulz leaves singular values between 0.7 and 1.2
            np.testing.assert_allclose(norms, base[name].mean(), rtol=0.12)
    plain = spectral(2 * BASE, 16 * BASE, standard)  # the control: orthogonal, and blind to the shape
    assert plain["up"].mean() < 0.6 * base["up"].mean()


def test_a_fused_weight_taken_as_one_matrix_would_lose_two_of_three():
    rng = np.random.default_rng(0)
    three = rng.normal(size=(3, 32, 48)) * np.array([1.0, 1000.0, 1.0])[:, None, None]
    flat = jnp.asarray(three.transpose(1, 0, 2).reshape(32, 144), jnp.float32)
    coefficients = jnp.array((3.4445, -4.7750, 2.0315))
    whole = optax.contrib._muon.orthogonalize_via_newton_schulz(flat, coefficients).reshape(32, 3, 48)
    assert float(jnp.linalg.norm(whole[:, 0], ord=2)) < 0.1
    dims = Dims({"embed": 32, "heads": 6, "head_dim": 8}, {"embed": 32, "heads": 6})
    arrow = axes.parse("3 | embed -> heads head_dim", dims)
    numbers = _numbers(arrow, None)
    assert (numbers.reduction_axis, numbers.output_axis) == ((1,), (2, 3))
    each = optax.contrib._muon.orthogonalize_via_newton_schulz(
        jnp.asarray(three.reshape(3, 32, 6, 8), jnp.float32), coefficients, dimension_numbers=numbers
    )
    assert all(float(jnp.linalg.norm(x.reshape(32, 48), ord=2)) > 0.7 for x in each)


def test_a_model_of_no_width_is_not_muons():
    dims = Dims({"embed": 8}, {})
    params, scales = drawn({"w": weight("embed -> embed", dims)})
    with pytest.raises(UserError, match=r"optim.name='muon'.*config.base"):
        mine("muon", scales, {"momentum": 0.9, "adam_ratio": 1.0}).init(params)


# ---- over width

DIMS = {"image": 8, "channels": 1, "classes": 4}
RATES = {"sgd": 2.0**-6, "adafactor": 2.0**-5}  # small ones, so that a step is linear; 2^-9 for those whose entries are of size one
WIDTHS, STEPS = (32, 96, 256), 12


def config(name, width, **optim):
    """The residual MLP."""
    c = small.config(base=dict(width=32), model=dict(name="tests/residual.py", width=width, depth=2))
    c["optim"].update(name=name, schedule="constant", **optim)
    return c


def forgetful(arrow):
    """muP with one fault: what is told for Adam is taken for the optimizer's own."""
    return mup(arrow)._replace(unit=0.0)


# the two whose updates have a size of their own; adamw's check is that of every family (test_check.py)
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in ("muon", "adafactor"))) for n in NAMES])
def test_under_mup_no_change_drifts_with_width_and_under_the_standard_rule_some_do(name):
    batches = small.stack([small.batch(16, s, small.Source(side=8)) for s in range(STEPS)])
    setting = Setting(2, STEPS, RATES.get(name, 2.0**-9))
    rules, found = {"mup": mup, "standard": standard, "forgetful": forgetful}, []
    for width in WIDTHS:
        c = config(name, width)
        found.append(measured(c, DIMS, batches, rules, setting)[1]["own"])
    x = np.log(np.array(WIDTHS) / WIDTHS[0])
    slopes = {}
    for weight_name in found[0]:
        y = np.log(np.stack([f[weight_name].mean(1) for f in found]))  # [width, rule, layer], seeds averaged
        slopes[weight_name] = np.einsum("w,wrl->rl", x - x.mean(), y) / np.sum((x - x.mean()) ** 2)
    worst = np.max([np.abs(s).max(1) for s in slopes.values()], 0)
    assert worst[0] < 0.2, slopes
    assert worst[1] > 0.4, slopes
    assert (worst[2] > 0.2) == (name in ("adafactor", "muon")), slopes
