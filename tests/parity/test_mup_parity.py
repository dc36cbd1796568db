"""The table `mup` is microsoft/mup's: init, multipliers and learning rates of every tensor, and the losses of training.

Their readout keeps a multiplier 1/m (m = width / base width). Folded, a stored weight w is the lab's w / m: init and Adam's update are
divided by m, SGD's by m^2, as the multiplier is in its gradient too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lab import axes
from lab.axes import Dims, weight
from lab.layers import attention, embed, mlp
from lab.layers.attention import rms_norm
from lab.optim import Hyper, optimizer
from lab.parametrization import table

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
mup = pytest.importorskip("mup")
F = torch.nn.functional

WIDTH, WORDS, LENGTH, DATA, OUT = 16, 11, 6, 5, 3
RATE, STEPS = {"adam": 2.0**-7, "sgd": 2.0**-4}, 5


class Mlp(nnx.Module):
    """features -> width -> width -> outputs."""

    def __init__(self, dims):
        self.first, self.second = embed.Linear("data -> embed", dims), embed.Linear("embed -> embed", dims)
        self.readout, self.readout_bias = weight("embed -> out", dims), weight("-> out", dims)

    def loss(self, x, y):
        x = jnp.tanh(self.second(jnp.tanh(self.first(x))))
        return jnp.mean((embed.project(x, self.readout.get_value(), self.readout_bias.get_value()) - y) ** 2)


class Transformer(nnx.Module):
    """Words and places -> one block with gains -> logits."""

    def __init__(self, dims):
        self.table, self.place = weight("words | -> embed", dims), weight("length | -> embed", dims)
        self.gain_a, self.gain_b, self.gain_c = (weight("-> embed", dims) for _ in range(3))
        self.attention, self.mlp = attention.Mixer(dims), mlp.Mixer(dims)
        self.readout, self.readout_bias = weight("embed -> words", dims), weight("-> words", dims)

    def loss(self, x, y):
        gain = [g.get_value() for g in (self.gain_a, self.gain_b, self.gain_c)]
        x = self.table.get_value()[x] + self.place.get_value()
        x = x + self.attention(rms_norm(x) * gain[0])
        x = x + self.mlp(rms_norm(x) * gain[1])
        logits = embed.project(rms_norm(x) * gain[2], self.readout.get_value(), self.readout_bias.get_value())
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))


class TheirMlp(torch.nn.Module):
    """Mlp in PyTorch, with mup's readout."""

    def __init__(self, dims):
        super().__init__()
        d = dims["embed"]
        self.first, self.second, self.readout = torch.nn.Linear(DATA, d), torch.nn.Linear(d, d), mup.MuReadout(d, OUT)

    def loss(self, x, y):
        return (self.readout(self.second(self.first(x).tanh()).tanh()) - y).square().mean()


class TheirTransformer(torch.nn.Module):
    """Transformer in PyTorch, with mup's readout; attention in 1/d where heads grow, as its guide has it."""

    def __init__(self, dims):
        super().__init__()
        d = dims["embed"]
        self.heads, self.head = dims["heads"], dims["head_dim"]
        self.scale = dims.base["head_dim"] ** 0.5 / self.head if "head_dim" in dims.base else self.head**-0.5
        self.table, self.place = torch.nn.Embedding(WORDS, d), torch.nn.Parameter(torch.zeros(LENGTH, d))
        self.gain_a, self.gain_b, self.gain_c = (torch.nn.Parameter(torch.ones(d)) for _ in range(3))
        self.qkv, self.proj = torch.nn.Linear(d, 3 * d), torch.nn.Linear(d, d)
        self.up, self.down, self.readout = torch.nn.Linear(d, 2 * d), torch.nn.Linear(2 * d, d), mup.MuReadout(d, WORDS)

    def loss(self, x, y):
        def norm(x, gain):
            return F.rms_norm(x, x.shape[-1:], gain, eps=1e-6)

        b, t = x.shape
        x = self.table(x) + self.place
        q, k, v = self.qkv(norm(x, self.gain_a)).view(b, t, 3, self.heads, self.head).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).reshape(b, t, -1))
        x = x + self.down(F.gelu(self.up(norm(x, self.gain_b)), approximate="tanh"))
        return F.cross_entropy(self.readout(norm(x, self.gain_c)).flatten(0, 1), y.flatten())


# their name of a tensor: the lab's
NAMES = {
    "mlp": {
        **{f"{n}.weight": f"{n}.kernel" for n in ("first", "second")},
        **{f"{n}.bias": f"{n}.bias" for n in ("first", "second")},
    },
    "transformer": {
        **{"table.weight": "table", **{n: n for n in ("place", "gain_a", "gain_b", "gain_c")}},
        **{
            "qkv.weight": "attention.qkv",
            "qkv.bias": "attention.qkv_bias",
            "proj.weight": "attention.out",
            "proj.bias": "attention.out_bias",
        },
        **{f"{n}.{theirs}": f"mlp.{n}.{mine}" for n in ("up", "down") for theirs, mine in (("weight", "kernel"), ("bias", "bias"))},
    },
}
NAMES = {kind: {**names, "readout.weight": "readout", "readout.bias": "readout_bias"} for kind, names in NAMES.items()}
CASES = [("mlp", "heads", 4), ("transformer", "heads", 4), ("transformer", "head_dim", 4), ("transformer", "heads", 1)]


def sizes(grows, m):
    """Dims at m times the base width, of which heads or head_dim grow."""

    def axes_of(width):
        heads, head = (width // 8, 8) if grows == "heads" else (2, width // 2)
        return {
            **{"embed": width, "heads": heads, "head_dim": head, "mlp": 2 * width},
            **{"words": WORDS, "length": LENGTH, "data": DATA, "out": OUT},
        }

    return Dims.of(axes_of, {"width": WIDTH * m}, {"width": WIDTH})


def both(kind, grows, m):
    """The lab's model, described, and theirs with its base shapes set."""
    mine, theirs = {"mlp": (Mlp, TheirMlp), "transformer": (Transformer, TheirTransformer)}[kind]
    made = theirs(sizes(grows, m))
    mup.set_base_shapes(made, theirs(sizes(grows, 1)), delta=theirs(sizes(grows, 2)))
    return mine(sizes(grows, m)), made


def pairs(kind, mine, theirs):
    """(their parameter, its multiplier, the lab's name, its arrow) of every tensor but the untrained scale."""
    lab, named = axes.weights(mine), dict(theirs.named_parameters())
    assert set(NAMES[kind]) == set(named)
    assert set(NAMES[kind].values()) == {n for n, w in lab.items() if not w.arrow.fixed}
    for name, mine_name in NAMES[kind].items():
        yield named[name], 1 / theirs.readout.width_mult() if name == "readout.weight" else 1.0, mine_name, lab[mine_name].arrow


def groups(optimizer):
    return {id(p): g for g in optimizer.param_groups for p in g["params"]}


@pytest.mark.parametrize("kind, grows, m", CASES)
def test_every_tensor_has_the_tables_init_and_learning_rates(kind, grows, m):
    mine, theirs = both(kind, grows, m)
    params, lr, wd = list(theirs.parameters()), 0.01, 0.3
    adam, sgd = groups(mup.MuAdam(params, lr=lr)), groups(mup.MuSGD(params, lr=lr))
    adamw = groups(mup.MuAdamW(params, lr=lr, weight_decay=wd))
    differ = 0
    for p, multiplier, name, arrow in pairs(kind, mine, theirs):
        s, plain = table("mup")(arrow), table("standard")(arrow)
        torch.manual_seed(0)
        drawn = mup.init.normal_(p, std=1.0).detach().clone()
        torch.manual_seed(0)
        ratio = drawn / torch.empty_like(p).normal_()
        assert ratio.numpy() == pytest.approx(s.init / multiplier, rel=1e-5), name
        assert adam[id(p)]["lr"] * multiplier == pytest.approx(lr * s.step, rel=1e-12), name
        assert sgd[id(p)]["lr"] * multiplier**2 == pytest.approx(lr * s.step / s.grad, rel=1e-12), name
        if arrow.is_matrix:  # the others the lab does not decay
            assert adamw[id(p)]["lr"] * adamw[id(p)]["weight_decay"] == pytest.approx(lr * wd * s.decay, rel=1e-12), name
        differ += s[:3] != plain[:3]
    assert (differ > 0) == (m > 1)
    logits = axes.weights(mine).get("attention.logits")
    if logits is not None:
        assert logits.arrow.std * table("mup")(logits.arrow).init == pytest.approx(theirs.scale, rel=1e-12)


def to_theirs(name, x, arrow):
    """An array of the lab in PyTorch's layout: [out, in] of what contracts, [n, ...] of the rest."""
    x = np.asarray(x)
    if not arrow.is_matrix:
        return x if arrow.index and name in ("table", "place") else x.reshape(-1)
    k, n = len(arrow.index), len(arrow.ins)
    x = np.moveaxis(x, range(k), range(n, n + k))
    return x.reshape(int(np.prod(x.shape[:n])), -1).T


def data(kind):
    rng = np.random.default_rng(5)
    if kind == "mlp":
        return rng.normal(size=(32, DATA)).astype(np.float32), rng.normal(size=(32, OUT)).astype(np.float32)
    return rng.integers(0, WORDS, (8, LENGTH)), rng.integers(0, WORDS, (8, LENGTH))


def mine_trained(kind, params, rule, optimizer_name):
    """Losses before each of the steps, and after the last."""
    scales, lr = axes.scales(params, rule), RATE[optimizer_name]
    core = optimizer(Hyper(lr, 0.0, 0.9, 0.999, 1e-12, jnp.inf, 0.0, 0, 0, scales), lambda n: 1.0)
    if optimizer_name == "sgd":  # the contract of every optimizer: g / grad -> core -> -lr step u
        flat = [-lr * s.step / s.grad for s in scales]
        core = optax.stateless(
            lambda g, _: jax.tree.unflatten(jax.tree.structure(g), [f * x for f, x in zip(flat, jax.tree.leaves(g), strict=True)])
        )

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(lambda p: axes.view(p, jnp.float32).loss(*data(kind)))(params)
        updates, state = core.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    return np.asarray(jax.jit(lambda p: jax.lax.scan(step, (p, core.init(p)), None, STEPS + 1)[1])(params))


@pytest.mark.parametrize("name", RATE)
@pytest.mark.parametrize("kind, grows, m", CASES[:3])
def test_training_has_the_same_losses(kind, grows, m, name):
    mine, theirs = both(kind, grows, m)
    drawn = axes.draw(jax.random.key(0), mine, axes.scales(mine, table("mup")))
    for p, multiplier, lab_name, arrow in pairs(kind, mine, theirs):
        p.data = torch.tensor(to_theirs(lab_name, axes.weights(drawn)[lab_name].get_value(), arrow) / multiplier).reshape(p.shape)
    make = {
        "adam": lambda: mup.MuAdam(theirs.parameters(), lr=RATE["adam"], eps=1e-12),
        "sgd": lambda: mup.MuSGD(theirs.parameters(), lr=RATE["sgd"]),
    }
    descent, want = make[name](), []
    for _ in range(STEPS + 1):
        descent.zero_grad()
        value = theirs.loss(*map(torch.tensor, data(kind)))
        value.backward()
        descent.step()
        want.append(value.item())
    got = mine_trained(kind, drawn, table("mup"), name)
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert abs(want[-1] - want[0]) > 1e-2  # it has moved
    other = mine_trained(kind, drawn, table("standard"), name)
    assert abs(other[-1] - want[-1]) > 1e-3
