"""Every rule of the tables against what is published: exponents by doubling, equal forms, spectral norms, and a network that trains."""

import functools

import families
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small

from lab import axes
from lab.axes import Dims, inside, parse, weight
from lab.check import Sizes, climb
from lab.coordinates import Setting
from lab.errors import UserError
from lab.optim import Hyper, optimizer
from lab.parametrization import DECAY, EPS, TABLES, table
from lab.population import build, peak
from lab.verdict import slopes as check_slopes

BASE = {"data": 12, "width": 16, "other": 16, "layers": 3}
PLACES = {"emb": "data -> width", "hid": "width -> width", "out": "width -> data"}


def arrow(spec, within=False, **ratios):
    """An arrow in a model whose named axes are so many times the base's."""
    dims = Dims({a: n * ratios.get(a, 1) for a, n in BASE.items()}, {a: BASE[a] for a in ("width", "other", "layers")})
    return next(iter(inside({"w": weight(spec, dims)}, dims).values())).arrow if within else parse(spec, dims)


def exponent(rule, column, spec, within=False, axis="width"):
    """p of column ~ axis^p, by doubling the axis."""
    two, four = (column(rule(arrow(spec, within, **{axis: k}))) for k in (2, 4))
    return float(np.log2(four / two))


# Everett et al. (arXiv 2407.05872): w of std n^-b behind n^-a, learning rate n^-c: (a, b) and c under full alignment for Adam, SGD, Adafactor
EVERETT = {
    "standard": ("standard_layerwise", {"emb": (0, 0, 0, -0.5, 0), "hid": (0, 0.5, 1, 0.5, 0.5), "out": (0, 0.5, 1, 1, 0.5)}),
    "ntk": ("standard_layerwise", {"emb": (0, 0, 0, -0.5, 0), "hid": (0.5, 0, 0.5, -0.5, 0.5), "out": (0.5, 0, 0.5, 0, 0.5)}),
    "mup": ("mup", {"emb": (-0.5, 0.5, 0.5, 0, 0), "hid": (0, 0.5, 1, 0, 0.5), "out": (0.5, 0.5, 0.5, 0, 0)}),
    "mean_field": ("mean_field", {"emb": (0, 0, 0, -1, 0), "hid": (0.5, 0, 0.5, -1, 0.5), "out": (1, 0, 0, -1, 0)}),
}


@pytest.mark.parametrize("name", EVERETT)
def test_everetts_exponents_row_by_row(name):
    """Folded, w behind n^-a has init n^-(a+b) and, by an update of size one, step n^-(a+c); SGD's update is n^-a times the gradient."""
    rule, rows = TABLES[EVERETT[name][0]], EVERETT[name][1]
    for place, (a, b, adam, sgd, adafactor) in rows.items():

        def measured(column, place=place):
            return exponent(rule, column, PLACES[place])

        assert np.isclose(measured(lambda s: s.init), -(a + b)), place
        assert np.isclose(measured(lambda s: s.step), -(a + adam)), place
        assert np.isclose(measured(lambda s: s.step / s.grad), -(2 * a + sgd)), place  # SGD, whose core sees g / grad
        assert np.isclose(measured(lambda s: s.step / s.init), -adafactor), place  # Adafactor, whose update is as large as the weight


@pytest.mark.parametrize("name, none", [("standard", {"hid": 0.5, "out": 0.5}), ("ntk", {"hid": 0, "out": 0})])
def test_without_alignment_the_rates_are_those_of_ntk(name, none):
    for place, c in none.items():
        a, b = EVERETT[name][1][place][:2]
        assert np.isclose(exponent(TABLES["ntk"], lambda s: s.init, PLACES[place]), -(a + b))
        assert np.isclose(exponent(TABLES["ntk"], lambda s: s.step, PLACES[place]), -(a + c))
        assert not np.isclose(exponent(TABLES["standard_layerwise"], lambda s: s.step, PLACES[place]), -(a + c))


# CompleteP (arXiv 2505.01618, table 1): arrow, whether in a block, and exponents of width and depth: init std, Adam's learning rate, multiplier, epsilon
def completep_rows(a):
    block = (-1, -a)
    return {
        "embedding": ("data -> width", False, (0, 0), (0, 0), (0, 0), None),
        "norm before a block": ("-> width", True, None, (0, a - 1), (0, 0), block),
        "hidden": ("width -> width", True, (-0.5, 0), (-1, a - 1), (0, 0), block),
        "hidden, last of a branch": ("width => width", True, (-0.5, 0), (-1, a - 1), (0, -a), block),
        "bias": ("-> width", True, None, (0, a - 1), (0, 0), block),
        "bias, last of a branch": ("=> width", True, None, (0, a - 1), (0, -a), block),
        "last norm": ("-> width", False, None, (0, 0), (0, 0), None),
        "unembedding": ("width -> data", False, (0, 0), (0, 0), (-1, 0), None),
    }


def completep_differences(rule, a):
    """Rows of CompleteP's table that a rule does not give; a multiplier is folded into init and step, and out of epsilon."""
    wrong = set()
    for name, (spec, within, init, lr, mult, eps) in completep_rows(a).items():
        for i, axis in enumerate(("width", "layers")):
            wants = [(lambda s: s.step, lr[i] + mult[i])]
            wants += [(lambda s: s.init, init[i] + mult[i])] if init else []
            wants += [(lambda s: s.grad * s.eps, eps[i] - mult[i])] if eps else []
            wrong |= {name for column, want in wants if not np.isclose(exponent(rule, column, spec, within, axis), want)}
    return wrong


@pytest.mark.parametrize("eps", ["scaled", "completep"])
@pytest.mark.parametrize("name, alpha, a", [("mup", 1.0, 1.0), ("mup", 0.5, 0.5), ("completep", 0.5, 1.0), ("depth_mup", 1.0, 0.5)])
def test_completeps_table_row_by_row(name, alpha, a, eps):
    assert completep_differences(table(name, alpha, eps), a) == set()


def test_completeps_table_catches_another_rule():
    every = set(completep_rows(1.0))
    assert completep_differences(table("mup", 0.5), 1.0) >= {"hidden", "bias", "norm before a block"}
    assert completep_differences(table("mup", 1.0, "fixed"), 1.0) >= {"hidden", "bias"}
    assert completep_differences(table("standard"), 1.0) >= every - {"embedding", "last norm"}


def test_completeps_weight_decay():
    """LR (1/width, at alpha = 1 without depth) times WD (width) is constant."""
    s = table("completep")(arrow("width -> width", True, width=4, layers=8))
    lr, wd = 1 / 4, 4.0
    assert s.decay == lr * wd == 1.0


@pytest.mark.parametrize("decay", DECAY)
@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("name", TABLES)
def test_at_the_base_every_rule_is_the_standard_one(name, eps, decay):
    tree = small.model(qk_norm=True)
    mine, plain = (axes.scales(tree, table(n, alpha, eps, decay)) for n, alpha in ((name, 0.7), ("standard", 1.0)))
    columns = ("step", "grad", "decay", "eps") + (() if name.startswith("published") else ("init",))
    assert [[getattr(s, c) for c in columns] for s in mine] == [[getattr(s, c) for c in columns] for s in plain]


def test_away_from_the_base_rules_differ_unless_they_are_told_to_be_one():
    tree = small.model(width=128, base=32)  # 4 times, of which the root is exact
    kinds = {}
    for name in TABLES:
        kinds.setdefault(str([s[:2] for s in axes.scales(tree, table(name))]), []).append(name)
    told = [["mean_field", "mup", "depth_mup", "completep", "spectral"], ["standard_layerwise", "mup_simple"]]
    assert sorted(k for k in kinds.values() if len(k) > 1) == sorted(told)  # one width, depth at its base, square hidden weights
    inits = ([s.init for s in axes.scales(tree, table(name))] for name in ("mup", "standard_layerwise"))
    differ = [n for n, *both in zip(axes.weights(tree), *inits, strict=True) if len(set(both)) > 1]
    assert differ == ["readout"]  # which starts at zero
    assert axes.weights(tree)["readout"].arrow.std == 0.0
    wide, deep = arrow("width -> other", True, width=4), arrow("width -> width", True, width=2, layers=4)
    assert len({TABLES[n](wide).init for n in ("mup", "mean_field")}) == 2
    assert len({TABLES[n](deep).step for n in ("completep", "depth_mup", "spectral")}) == 2
    assert TABLES["mup_simple"](wide).grad == TABLES["standard"](wide).grad
    assert TABLES["mup_simple"](arrow("data -> width", width=4)).grad != TABLES["standard_layerwise"](arrow("data -> width", width=4)).grad


def test_only_embeddings_are_faster_under_standard_embed():
    m = 8
    specs = ["data -> width", "data | -> width", "3 | -> width", "-> width", "=> width", "width -> width", "width -> data", "-> data"]
    steps = {s: TABLES["standard_embed"](arrow(s, width=m)).step for s in specs}
    assert steps == {**dict.fromkeys(specs, 1.0), "data -> width": m, "data | -> width": m}
    mup = {s: TABLES["mup"](arrow(s, width=m)).step for s in specs}
    hidden = "width -> width"
    assert all(steps[s] / steps[hidden] == mup[s] / mup[hidden] for s in ("data -> width", "data | -> width", hidden, "width -> data"))
    assert {s: TABLES["umup_weights"](arrow(s, width=m)).step / mup[s] for s in specs} == {
        **dict.fromkeys(specs, 1.0),
        "data | -> width": m**-0.5,
    }


def norms(rule, ins, outs):
    """Spectral norms of a drawn weight and of a sign-like update, over sqrt(fan-out / fan-in); at the base both fans are 16."""
    dims = Dims({"a": ins, "b": outs}, {"a": 16, "b": 16})
    a = parse("a -> b", dims)
    s, rng = rule(a), np.random.default_rng(0)
    drawn = rng.normal(size=(ins, outs)) * (a.std * s.init)
    update = np.sign(np.outer(rng.normal(size=ins), rng.normal(size=outs))) * s.step
    want = (outs / ins) ** 0.5
    return np.linalg.norm(drawn, 2) / want, np.linalg.norm(update, 2) / want


def test_spectral_norms_are_those_of_the_condition():
    shapes = [(16, 16), (64, 64), (128, 16), (16, 128), (32, 128), (128, 32)]
    got = np.array([norms(TABLES["spectral"], *s) for s in shapes])
    np.testing.assert_allclose(got[:, 1], got[0, 1], rtol=1e-5)
    assert np.all((got[:, 0] / got[0, 0] > 0.45) & (got[:, 0] / got[0, 0] < 1.1))  # std 1 has norm sqrt(ins) + sqrt(outs)
    plain = np.array([norms(TABLES["standard"], *s) for s in shapes])
    assert plain[2, 0] / plain[0, 0] > 1.5
    assert plain[1, 1] / plain[0, 1] > 3.9


# a small network in plain jax

DATA, OUT, WIDTH = 8, 3, 16


def network(m):
    """Two inputs (features and a table of 4 labels), a hidden matrix, a readout; m times the base width."""
    dims = Dims({"data": DATA, "labels": 4, "width": WIDTH * m, "out": OUT}, {"width": WIDTH})
    specs = {"in": "data -> width", "table": "labels | -> width", "bias": "-> width", "hid": "width -> width", "out": "width -> out"}
    return {k: weight(s, dims) for k, s in specs.items()}


@functools.cache
def batch(n=32):
    rng = np.random.default_rng(3)
    return rng.normal(size=(n, DATA)).astype(np.float32), rng.integers(0, 4, n), rng.normal(size=(n, OUT)).astype(np.float32)


def forward(w, x, label, scale=1.0):
    """Outputs and the inputs of every matrix; `scale` multiplies what the readout reads."""
    first = jnp.tanh(x @ w["in"] + w["table"][label] + w["bias"])
    second = jnp.tanh(first @ w["hid"])
    return (scale * second) @ w["out"], {"in": x, "hid": first, "out": second}


def loss(w, scale=1.0, n=32):
    x, label, y = batch(n)
    return jnp.mean((forward(w, x, label, scale)[0] - y) ** 2)


def plain(tree):
    return {k: w.get_value() for k, w in tree.items()}


def descend(f, core, weights, steps):
    """f before each of some steps of an optax optimizer."""

    def step(carry, _):
        weights, state = carry
        value, grads = jax.value_and_grad(f)(weights)
        updates, state = core.update(grads, state, weights)
        return (optax.apply_updates(weights, updates), state), value

    return np.asarray(jax.jit(lambda w: jax.lax.scan(step, (w, core.init(w)), None, steps)[1])(weights))


def losses_of_the_lab(tree, rule, lr, eps, steps):
    drawn = axes.draw(jax.random.key(0), tree, axes.scales(tree, rule))
    core = optimizer(Hyper(lr, 0.0, 0.9, 0.99, eps, jnp.inf, 0.0, 0, 0, axes.scales(tree, rule)), lambda n: 1.0)
    return plain(drawn), descend(lambda t: loss(plain(t)), core, drawn, steps)


def losses_of_a_form(weights, lrs, epss, scale, steps):
    """Adam with a learning rate and an epsilon a tensor, as other libraries have it."""
    core = optax.partition({k: optax.adam(lrs[k], 0.9, 0.99, epss[k]) for k in weights}, {k: k for k in weights})
    return descend(lambda w: loss(w, scale), core, weights, steps)


def test_forms_of_mup_with_and_without_a_readout_multiplier_are_the_labs():
    """Tensor Programs V, tables 8 (form A: readout of constant std behind 1/m, constant rate) and 3 (form B: std and rate 1/m).

    Epsilon is comparable with the gradients, so that its rule counts: 1/m of the base's, but for form B's readout.
    """
    m, lr, eps, steps = 4, 2.0**-7, 2.0**-9, 12
    drawn, mine = losses_of_the_lab(network(m), table("mup"), lr, eps, steps)
    rates = {k: lr / m if k == "hid" else lr for k in drawn}
    small_eps = dict.fromkeys(drawn, eps / m)
    form_a = losses_of_a_form({**drawn, "out": m * drawn["out"]}, rates, small_eps, 1 / m, steps)
    form_b = losses_of_a_form(drawn, {**rates, "out": lr / m}, {**small_eps, "out": eps}, 1.0, steps)
    np.testing.assert_allclose(form_a, mine, rtol=1e-6)
    np.testing.assert_allclose(form_b, mine, rtol=1e-6)
    assert mine[-1] < 0.9 * mine[0]
    wrong = losses_of_a_form(drawn, rates, {**small_eps, "out": eps}, 1.0, steps)  # form B with form A's rate
    assert np.abs(wrong - mine).max() > 1e-3
    wrong = losses_of_a_form({**drawn, "out": m * drawn["out"]}, rates, dict.fromkeys(drawn, eps), 1 / m, steps)  # torch's epsilon
    assert np.abs(wrong - mine).max() > 1e-4


def test_the_ntk_form_with_its_multipliers_is_the_labs():
    m, lr, steps = 4, 2.0**-7, 12
    drawn, mine = losses_of_the_lab(network(m), table("ntk"), lr, 1e-12, steps)
    behind = {k: m**-0.5 if k in ("hid", "out") else 1.0 for k in drawn}

    def form(lr):
        stored = {k: w / behind[k] for k, w in drawn.items()}
        return descend(lambda s: loss({k: behind[k] * w for k, w in s.items()}), optax.adam(lr, 0.9, 0.99, 1e-12), stored, steps)

    np.testing.assert_allclose(form(lr), mine, rtol=1e-6)
    assert np.abs(form(lr / 2) - mine).max() > 1e-3


WIDTHS, SEEDS, STEPS, FEW = (4, 8, 16, 32), 4, 3, 4  # few examples, so that what they add to a weight is aligned with what it reads


def changes(m, names, lr):
    """rms of each weight's own change of its output after a few steps, and of the whole network's, [rule, seed]."""
    tree = network(m)
    rows = [axes.scales(tree, table(name)) for name in names]

    def one(scales, seed):
        params = start = axes.draw(jax.random.key(seed), tree, scales)
        core = optimizer(Hyper(lr, 0.0, 0.9, 0.99, 1e-12, jnp.inf, 0.0, 0, 0, scales), lambda n: 1.0)
        state = core.init(params)
        for _ in range(STEPS):
            updates, state = core.update(jax.grad(lambda t: loss(plain(t), n=FEW))(params), state, params)
            params = optax.apply_updates(params, updates)
        x, label, _ = batch(FEW)
        then, now = plain(start), plain(params)
        (before, _), (after, reads) = forward(then, x, label), forward(now, x, label)
        own = {k: reads[k] @ (now[k] - then[k]) for k in reads} | {"table": (now["table"] - then["table"])[label], "all": after - before}
        return {k: jnp.sqrt(jnp.mean(v**2)) for k, v in own.items()}

    stacked = jax.tree.map(lambda *s: jnp.stack([jnp.float32(v) for v in s]), *rows)
    return jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(stacked, jnp.arange(SEEDS))


@pytest.fixture(scope="module")
def slopes():
    """{rule: {weight: d log(change) / d log(width)}} at a learning rate at which all is linear."""
    kinds = {}  # rules of one init and one step are one
    for name in TABLES:
        kinds.setdefault(str([s[:2] for s in axes.scales(network(2), table(name))]), []).append(name)
    names = [same[0] for same in kinds.values()]
    found = [changes(m, names, 2.0**-17) for m in WIDTHS]
    x = np.log(WIDTHS) - np.log(WIDTHS).mean()
    fit = {k: np.einsum("w,wrs->r", x, np.log(np.stack([f[k] for f in found]))) / (x @ x) / SEEDS for k in found[0]}
    return {name: {k: float(v[i]) for k, v in fit.items()} for i, same in enumerate(kinds.values()) for name in same}


# what a step, of size `step` on every entry and aligned with what the weight reads, adds to its output: width^(contracted) times the step; and
# what all of it adds to the network's, through a readout of std width^-1/2 or width^-1 with which hidden changes are aligned
FLAT = {"in": 0, "table": 0, "hid": 0, "out": 0}
THEORY = {
    "mup": {**FLAT, "all": 0},
    "depth_mup": {**FLAT, "all": 0},
    "completep": {**FLAT, "all": 0},
    "spectral": {**FLAT, "all": 0},
    "mean_field": {**FLAT, "all": 0},
    "umup_weights": {**FLAT, "table": -0.5, "all": 0},
    "standard_layerwise": {**FLAT, "all": 0.5},
    "mup_simple": {**FLAT, "all": 0.5},
    "ntk": {"in": 0, "table": 0, "hid": 0.5, "out": 0.5, "all": 1.0},
    "standard": {"in": 0, "table": 0, "hid": 1, "out": 1, "all": 1.5},
    "standard_embed": {"in": 1, "table": 1, "hid": 1, "out": 1, "all": 1.5},
    # what the readout reads grows as width^1/2; all: a sum of 1.5 and 2
    "published_normal": {"in": 0, "table": 0, "hid": 1, "out": 1.5, "all": 1.75},
}


@pytest.mark.parametrize("name", [n for n in TABLES if n != "published_xavier"])  # whose init is no power of the width
def test_changes_drift_with_width_as_theory_says(slopes, name):
    got, want = slopes[name], THEORY[name]
    assert set(want) == set(got)
    for k, slope in want.items():
        assert abs(got[k] - slope) < (0.2 if k == "all" else 0.1), (name, k, got)


# decay and epsilon by the real optimizer


@jax.jit
def update(hyper, grads, params):
    """What the optimizer adds at its first step."""
    core = optimizer(hyper, lambda n: 1.0)
    return core.update(grads, core.init(params), params)[0]


def traced(scales, lr=1.0, wd=0.0, b1=0.9, b2=0.99, eps=1e-8, clip=np.inf):
    return jax.tree.map(np.float32, Hyper(lr, wd, b1, b2, eps, clip, 0.0, 0, 0, scales))


def shrink(rule, lr, wd, m):
    """What is lost of each weight at a step without a gradient."""
    tree = network(m)
    ones = axes.map_weights(lambda a, x: np.ones(x.shape, np.float32), tree)
    hyper = traced(axes.scales(tree, rule), lr, wd)
    updates = update(hyper, axes.map_weights(lambda a, x: 0 * x, ones), ones)
    return {k: float(-np.mean(u.get_value())) for k, u in updates.items()}


MATRICES = ("in", "hid", "out")


@pytest.mark.parametrize("lr", [2.0**-6, 2.0**-8])
@pytest.mark.parametrize("m", [1, 4, 16])
@pytest.mark.parametrize("name", ["mup", "standard"])
def test_a_step_decays_as_the_rule_says(name, m, lr):
    per_step = {
        "constant": {"in": lr * 0.1, "hid": lr * 0.1, "out": lr * 0.1},  # LR WD
        "independent": {"in": 0.1, "hid": 0.1, "out": 0.1},
        "sqrt": {"in": 0.0, "hid": (lr / m) * (0.1 * m**0.5), "out": 0.0},  # the hidden weights' LR and WD
        "inverse_width": {"in": 0.1 / m, "hid": 0.1 / m, "out": 0.1 / m},
    }
    assert set(per_step) == set(DECAY)
    for decay, want in per_step.items():
        config = small.config(**{"optim.lr": lr, "optim.weight_decay": 0.1, "parametrization.decay": decay})
        got = shrink(table(name, decay=decay), *peak(config), m)
        assert got["table"] == got["bias"] == 0.0
        for k in MATRICES:
            np.testing.assert_allclose(got[k], want[k], rtol=1e-4, err_msg=f"{decay} {k}")


def first_update(rule, a, size, eps):
    """Adam's first update of a gradient `size` times as large as expected, over the step: 1 where epsilon is nothing."""
    w, s = axes.Weight(np.ones(1, np.float32), arrow=a), rule(a)
    updates = update(traced([s], eps=eps), {"w": w.replace(np.float32([size * s.grad]))}, {"w": w})
    return updates["w"].get_value()[0] / -s.step


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("spec", ["data -> width", "width -> width", "width => width", "-> width"])
def test_epsilons_share_is_as_the_rule_says(spec, within):
    """u = g / (g + eps): at gradients as large as expected, scaled is the same at every size; fixed grows as the gradient shrinks."""
    size, eps = 2.0**-3, 2.0**-6
    for m, depth in ((1, 1), (8, 1), (8, 4)):
        a = arrow(spec, within, width=m, layers=depth)
        raw = 1 / m if not within or a.closes else 1 / (m * depth)  # the gradient relative to the base's
        want = {"scaled": eps, "fixed": eps / raw, "completep": eps if within else eps / raw}
        for name, relative in want.items():
            got = first_update(table("mup", eps=name), a, size, eps)
            np.testing.assert_allclose(got, size / (size + relative), rtol=1e-5, err_msg=name)


def test_clipping_is_blind_to_epsilons_rule():
    a = arrow("data -> width", width=8)
    w = {"w": axes.Weight(np.ones(1, np.float32), arrow=a)}
    for clip, want in ((jnp.inf, 3.0), (1.0, 1.0)):  # the gradient over its expected size is 3
        for name in EPS:
            s = table("mup", eps=name)(a)
            hyper = traced([s], b1=0.0, b2=0.0, eps=2.0**20, clip=clip)  # epsilon so large that u = g / eps
            got = update(hyper, {"w": w["w"].replace(np.float32([3 * s.grad]))}, w)["w"].get_value()
            np.testing.assert_allclose(-got[0] * s.eps * 2.0**20, want, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    "key, value, nearest", [("eps", "fixd", "fixed"), ("decay", "independant", "independent"), ("name", "completp", "completep")]
)
def test_an_unknown_rule_names_the_nearest(key, value, nearest):
    with pytest.raises(UserError, match=rf"parametrization.{key} '{value}' is unknown.*nearest: '{nearest}'"):
        table(**{"name": "mup", key: value})


@pytest.mark.slow  # the network above is its smaller sibling
def test_a_transformer_drifts_under_the_rules_of_one_rate_alone():
    """Its readout starts at zero, so that full alignment is muP; ntk and standard_embed want a rate that falls with the width."""
    setting = Setting(2, 4)
    rules = {name: table(name) for name in ("standard_layerwise", "ntk", "standard_embed")}
    batches = small.stack([families.batch(16, seed) for seed in range(setting.steps)])
    config = families.config("dit", depth=1)
    (ladder,) = climb(config, families.dims("dit"), batches, Sizes((32, 64, 128), ()), setting, rules, print)
    found = {name: check_slopes(ladder, i)["own"] for i, name in enumerate(rules)}
    model = build(families.config("dit", depth=1, width=64), families.dims("dit")).model
    hidden = {name for name, w in axes.weights(model).items() if w.arrow.role == "hidden" and not w.arrow.fixed}
    medians = {rule: np.median([by[name].value for name in hidden]) for rule, by in found.items()}
    assert abs(medians["standard_layerwise"]) < 0.1, medians
    assert 0.25 < medians["ntk"] < 0.6, medians
    assert medians["standard_embed"] > 0.5, medians
    assert found["standard_embed"]["patch_in.kernel"].value > 0.5 > abs(found["ntk"]["patch_in.kernel"].value)


def test_published_inits_are_absolute():
    """The std drawn at every width is the paper's, base or not; jax's own Glorot initializer is the reference for Xavier's."""
    for width in (16, 64, 256):
        dims = Dims({"data": 12, "width": width, "rows": 50}, {"width": 16})
        tree = {"q": weight("3 | width -> width", dims), "in": weight("data -> width", dims), "table": weight("rows | -> width", dims)}
        tree |= {"zero": weight("width -> data", dims, init=0.0), "gain": weight("-> width", dims, fill=1.0)}
        for name in ("published_normal", "published_xavier"):
            drawn = axes.draw(jax.random.key(0), tree, axes.scales(tree, table(name)))
            std = {k: float(w.get_value().std()) for k, w in drawn.items()}
            assert std["zero"] == std["gain"] == 0.0
            want = dict.fromkeys(("q", "in", "table"), 0.02)
            if name == "published_xavier":
                glorot = jax.nn.initializers.glorot_normal()
                want |= {"q": glorot(jax.random.key(1), (width, 3 * width)).std(), "in": glorot(jax.random.key(1), (12, width)).std()}
            for k, x in want.items():
                n = drawn[k].get_value().size
                assert abs(std[k] / x - 1) < 5 * n**-0.5, (name, width, k)


def test_published_inits_leave_attention_alone():
    dims = Dims({"head_dim": 32}, {"head_dim": 16})
    tree = {"scale": axes.scale("head_dim ->", dims)}
    assert axes.scales(tree, table("published_normal")) == axes.scales(tree, table("standard"))
