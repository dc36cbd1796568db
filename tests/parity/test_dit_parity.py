"""The DiT equals a plain PyTorch DiT with the same weights: outputs, gradients, and AdamW steps."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from lab import axes, parametrization
from lab.axes import weights
from lab.optim import optimizer

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import _peer  # noqa: E402


def random_model(qk_norm):
    """A described DiT and random weights, all of them non-zero."""
    model = small.model(qk_norm=qk_norm)
    drawn = axes.draw(jax.random.key(0), model, axes.scales(model, parametrization.mup))
    rng = np.random.default_rng(0)
    return axes.map_weights(lambda a, x: x if a.fixed else x + 0.1 * rng.normal(size=x.shape).astype(np.float32), drawn)


def peer_of(params, qk_norm):
    peer = _peer.DiT(**small.KNOBS, qk_norm=qk_norm)
    _peer.copy_weights(peer, {n: np.asarray(w.get_value()) for n, w in weights(params).items()})
    return peer


def example():
    rng = np.random.default_rng(1)
    x, target = rng.normal(size=(2, 6, 16, 16, 1)).astype(np.float32)
    return x, target, rng.uniform(size=6).astype(np.float32), np.array([0, 1, 2, 3, -1, 2], np.int32)


def lab_loss(params):
    x, target, t, label = example()
    return jnp.mean((params({"x": x, "t": t, "label": label}) - target) ** 2)


def peer_output(peer):
    x, _, t, label = example()
    return peer(torch.tensor(np.moveaxis(x, -1, 1)), torch.tensor(t), torch.tensor(label, dtype=torch.int64))


def peer_loss(peer):
    return (peer_output(peer) - torch.tensor(np.moveaxis(example()[1], -1, 1))).square().mean()


@pytest.mark.parametrize("qk_norm", [False, True])
def test_outputs_agree(qk_norm):
    params = random_model(qk_norm)
    x, _, t, label = example()
    mine = np.moveaxis(np.asarray(params({"x": x, "t": t, "label": label})), -1, 1)
    theirs = peer_output(peer_of(params, qk_norm)).detach().numpy()
    np.testing.assert_allclose(mine, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("qk_norm", [False, True])
def test_adamw_steps_agree(qk_norm):
    """Five steps: gradients, moments, decoupled decay and update must all agree for the weights to.

    Epsilon is far above the rounding of a gradient and far below a usual one: Adam would make a whole step of rounding alone.
    """
    params = random_model(qk_norm)
    peer = peer_of(params, qk_norm)
    prog = small.program(qk_norm=qk_norm)
    hyper = small.hyper(prog, 2.0**-8, "standard", weight_decay=0.1, eps=1e-5)
    matrices = {"readout", "patch_in", "up", "out", "modulation", "qkv", "down"}
    kept = [p for n, p in peer.named_parameters() if n.endswith("weight") and n.split(".")[-2] in matrices]
    rest = [p for n, p in peer.named_parameters() if not (n.endswith("weight") and n.split(".")[-2] in matrices)]
    groups = [{"params": kept, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=2.0**-8, betas=(0.9, 0.99), eps=1e-5)
    core = optimizer(hyper, prog.rate)
    state = core.init(params)
    for _ in range(5):
        grads = jax.grad(lab_loss)(params)
        grads = axes.map_weights(lambda a, g: jnp.zeros_like(g) if a.fixed else g, grads)
        updates, state = core.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        theirs.zero_grad()
        peer_loss(peer).backward()
        theirs.step()
    again = peer_of(params, qk_norm)
    for model in () if qk_norm else (again, peer):
        for block in model.blocks:  # softmax ignores a shift of all keys: their bias has no gradient, and Adam moves it by rounding
            block.qkv.bias.data.view(3, -1)[1] = 0
    for (name, a), (_, b) in zip(again.named_parameters(), peer.named_parameters(), strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), atol=1e-4, err_msg=name)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_gradients_agree(qk_norm):
    params = random_model(qk_norm)
    peer = peer_of(params, qk_norm)
    peer_loss(peer).backward()
    shown = peer_of(jax.grad(lab_loss)(params), qk_norm)
    for (name, a), (_, b) in zip(shown.named_parameters(), peer.named_parameters(), strict=True):
        theirs = b.grad.numpy()
        np.testing.assert_allclose(a.detach().numpy(), theirs, atol=1e-4 * max(np.abs(theirs).max(), 1e-2), err_msg=name)
