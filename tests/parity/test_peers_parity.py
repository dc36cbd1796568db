"""Each peer of `lab bench step` is the lab's model in plain PyTorch: with the same weights the same loss, gradients and AdamW steps."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from lab import axes, population
from lab.axes import weights
from lab.models import shared
from lab.optim import optimizer

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import _turns  # noqa: E402
import step  # noqa: E402

CASES = [(f, {"qk_norm": q}) for f in step.families() for q in (False, True)]
CASES += [("decoder", {"qk_norm": True, "kv_group": 2, "rope": "line"}), ("mmdit", {"text_depth": 0}), ("pixart", {"text_depth": 0})]
NAMES = ["-".join([f, *(f"{k}={v}" for k, v in c.items())]) for f, c in CASES]
BATCH = 6


class Pair:
    """A family's model at width 32 with random weights, none of them zero, its peer with the same, and what both are given."""

    def __init__(self, family, changes):
        config, self.sizes = step.setting(family, 32, min(step.peer_of(family).SHAPES))
        self.family, self.config = family, {**config, "model": {**config["model"], **changes}}
        self.program = population.build(self.config, self.sizes)
        self.hyper = small.hyper(self.program, 2.0**-8, "standard", weight_decay=0.1, eps=1e-4)
        drawn = axes.draw(jax.random.key(0), self.program.model, self.hyper.scales)
        rng = np.random.default_rng(0)
        self.params = axes.map_weights(lambda a, x: x if a.fixed else x + 0.1 * rng.normal(size=x.shape).astype(np.float32), drawn)
        batch, key = jax.tree.map(jnp.asarray, _turns.Noise(**self.sizes).batch(BATCH)), jax.random.key(3)
        self.loss_and_grads = jax.jit(jax.value_and_grad(lambda p: jnp.mean(self.program.loss(p, key, batch))))
        self.given = {k: np.asarray(v) for k, v in jax.jit(self.program.objective.inputs)(key, batch).items()}

    def peer(self, tree):
        """The peer with the weights of a tree."""
        model = step.build(self.family, self.config, self.sizes)
        step.peer_of(self.family).copy_weights(model, {n: np.asarray(w.get_value()) for n, w in weights(tree).items()})
        return model

    def loss(self, peer):
        """The peer's loss of what the lab's objective draws."""
        given = {k: torch.tensor(np.moveaxis(v, -1, 1) if v.ndim == 4 else v) for k, v in self.given.items()}
        return step.peer_of(self.family).loss(peer, {k: v if v.is_floating_point() else v.long() for k, v in given.items()})


def named(*models):
    """The parameters of like peers, side by side."""
    return [(n, *rest) for (n, *rest) in zip(dict(models[0].named_parameters()), *(m.parameters() for m in models), strict=True)]


@pytest.fixture(scope="module", params=CASES, ids=NAMES)
def pair(request):
    with shared.rolled():  # a rolled stack compiles faster
        yield Pair(*request.param)


def test_some_conditions_are_hidden_and_others_said(pair):
    for k in {"label", "text"} & pair.given.keys():
        gone = (pair.given[k].reshape(BATCH, -1) <= 0).all(1)
        assert gone.any()
        assert not gone.all()


def test_losses_and_gradients_agree(pair):
    peer = pair.peer(pair.params)
    theirs = pair.loss(peer)
    theirs.backward()
    mine, grads = pair.loss_and_grads(pair.params)
    assert mine == pytest.approx(theirs.item(), rel=1e-5)
    for name, a, b in named(pair.peer(grads), peer):
        assert b.grad.abs().max() > 1e-4, name  # the control: no weight is without a say
        np.testing.assert_allclose(a.detach().numpy(), b.grad.numpy(), atol=1e-4 * max(b.grad.abs().max(), 1e-2), err_msg=name)


def test_adamw_steps_agree(pair):
    """Five steps: gradients, moments, decoupled decay and update must all agree for the weights to.

    Epsilon is far above the rounding of a gradient and far below a usual one: Adam would make a whole step of rounding alone.
    """
    peer, params = pair.peer(pair.params), pair.params
    decays = pair.peer(axes.map_weights(lambda a, x: jnp.full_like(x, a.is_matrix and not a.fixed), params))
    groups = {True: [], False: []}
    for _, flag, p in named(decays, peer):
        assert flag.min() == flag.max()
        groups[bool(flag.max())].append(p)
    groups = [{"params": ps, "weight_decay": 0.1 * decayed} for decayed, ps in groups.items()]
    theirs = torch.optim.AdamW(groups, lr=2.0**-8, betas=(0.9, 0.99), eps=1e-4)
    core = optimizer(pair.hyper, lambda count: 1.0)
    state = core.init(params)
    update = jax.jit(core.update)
    for _ in range(5):
        updates, state = update(pair.loss_and_grads(params)[1], state, params)
        params = jax.tree.map(jnp.add, params, updates)
        theirs.zero_grad()
        pair.loss(peer).backward()
        theirs.step()
    for name, a, b, before in named(pair.peer(params), peer, pair.peer(pair.params)):
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), atol=1e-4, err_msg=name)
        assert (b - before).abs().max() > 1e-2  # the control: steps a hundred times what is tolerated
