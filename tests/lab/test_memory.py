"""What trades time for memory changes no numbers: computing a block again for its gradient, and a batch in parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from lab import axes
from lab.data.loader import Loader, held_out
from lab.errors import UserError
from lab.models import shared
from lab.objectives import diffusion, flow, next_token, unmask
from lab.population import Population

KEY = jax.random.key(0)


def run(source, steps, **changes):
    group = small.trials([{"optim.lr": 2.0**-9}], **changes)
    pop = Population(group, source, held_out(group[0].config, source))
    carry, feed, seen = pop.init(), Loader(source, 16, pop.seeds), []
    pop.compile(carry)
    for _ in range(steps):
        carry, values = pop.step(carry, pop.hyper, pop.put(next(feed)))
        seen.append(float(values["loss"][0]))
    feed.close()
    return seen


def test_parts_of_a_batch_train_as_the_whole_does_and_remat_changes_no_gradient():
    source = small.Source()
    whole = run(source, 20)
    np.testing.assert_allclose(run(source, 20, **{"run.accumulate": 4, "run.remat": "block"}), whole, atol=1e-5)


@pytest.mark.parametrize("remat", ["block", "dots"])
def test_remat_keeps_less_and_gives_the_same_gradient(remat):
    model, given = (
        small.drawn(small.model(depth=3)),
        {"x": jnp.ones((4, 16, 16, 1)), "t": jnp.linspace(0.1, 0.9, 4), "label": jnp.arange(4)},
    )

    def loss(m):
        return jnp.mean(jnp.square(m(given)))

    def seen(name):
        with shared.stacks(name):
            grads = jax.jit(jax.grad(loss))(model)
            return jax.eval_shape(lambda m: jax.vjp(loss, m)[1], model), axes.values(grads)

    (plain, want), (less, got) = seen("none"), seen(remat)
    size = [sum(x.size for x in jax.tree.leaves(t)) for t in (plain, less)]
    assert size[1] < (0.5 if remat == "block" else 0.8) * size[0], size
    for a, b in zip(want, got, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "objective, batch",
    [
        (flow.Objective("uniform", 0.3), {"image": np.arange(4 * 12, dtype=np.uint8).reshape(4, 2, 2, 3)}),
        (diffusion.Objective("cosine", "v", 0.3, learned_variance=True), {"image": np.arange(4 * 12, dtype=np.uint8).reshape(4, 2, 2, 3)}),
        (next_token.Objective(0.3), {"tokens": np.arange(16, dtype=np.int32).reshape(4, 2, 2) % 5}),
        (unmask.Objective("cosine", "elbo", 0.3), {"tokens": np.arange(16, dtype=np.int32).reshape(4, 2, 2) % 5}),
    ],
    ids=["flow", "diffusion", "next_token", "unmask"],
)
def test_losses_of_some_examples_are_those_of_the_whole_batch(objective, batch):
    batch |= {"label": np.arange(4, dtype=np.int32)}

    def model(given):
        if "x" in given:
            out = given["x"] * given["t"][:, None, None, None] + given["label"][:, None, None, None]
            return jnp.concatenate([out] * (2 if objective.dims else 1), -1)
        tokens = given["tokens"].reshape(len(given["tokens"]), -1)
        return jnp.sin(jnp.arange(5.0) + tokens[..., None] + given["label"][:, None, None])

    whole = objective.loss(model, KEY, batch)
    drawn = objective.inputs(KEY, batch)
    parts = [objective.losses(model, jax.tree.map(lambda x, i=i: x[i::2], drawn)) for i in range(2)]
    np.testing.assert_allclose(np.stack(parts, 1).reshape(-1), whole, rtol=1e-6)


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("run.accumulate", 3, "run.accumulate=3 must divide train.batch=16"),
        ("run.accumulate", 0, "run.accumulate=0 must divide"),
        ("run.remat", "blocks", "run.remat 'blocks' is unknown.*'block'"),
        ("run.sharding", "fdsp", "config key run.sharding='fdsp' is no set of rules; expected one of: replicated, fsdp"),
        ("run.mesh", {"fsdp": 3}, r"config key run.mesh=\{'fsdp': 3\} does not cover 2 devices"),
        ("run.rules", {"embed": "fsdp"}, "run.sharding='' places nothing, but run.rules="),
    ],
)
def test_what_cannot_be_run_so_is_told(key, value, said):
    group, source = small.trials([{}], **{key: value}), small.Source()
    with pytest.raises(UserError, match=said):
        Population(group, source, held_out(group[0].config, source))
