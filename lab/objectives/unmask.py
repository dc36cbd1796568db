"""Masked tokens: a model tells them from those shown, and all are drawn in a few parallel steps (MaskGIT, arXiv 2202.04200).

Of T tokens exactly k = ceil(rate T) are masked, every set of k equally likely. By the chain rule averaged over orders, NLL <= sum over k
of E[cross-entropy of one of k masked tokens], so the bound that is an integral over rates where every token is masked by itself, with
weight 1 / rate (MD4, arXiv 2406.04329; MDLM, arXiv 2406.07524), is exactly a sum over counts here, and has less variance.
"""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lab.errors import UserError, unknown
from lab.objectives import conditions

MASK = -1  # what stands in the place of a masked token

# mask rate at u in [0, 1], falling from 1 to 0; and the share of rates below r where u is uniform
SCHEDULES = {
    "cosine": (lambda u: np.cos(np.pi / 2 * u), lambda r: 2 / np.pi * np.arcsin(r)),
    "arccos": (lambda u: 2 / np.pi * np.arccos(u), lambda r: 1 - np.cos(np.pi / 2 * r)),
    "linear": (lambda u: 1 - u, lambda r: r),
}
WEIGHTINGS = ("plain", "elbo")
METHODS = ("confidence", "random")


def counts_left(schedule: str, tokens: int, steps: int) -> np.ndarray:
    """How many of `tokens` are masked before each of the steps and after the last, [steps + 1]: `schedule`, but falling at every step."""
    left = np.floor(tokens * SCHEDULES[schedule][0](np.arange(steps + 1) / steps)).astype(np.int32)
    left[0], left[-1] = tokens, 0
    for k in range(1, steps):
        left[k] = max(min(left[k], left[k - 1] - 1), steps - k)
    return left


class Objective:
    """`schedule` is the density of mask rates: 'cosine', 'arccos' or 'linear', under which all rates are equally likely.

    weighting: 'plain' gives the mean cross-entropy of an example's masked tokens; 'elbo' divides it by T P(k), so that its expectation
      is an upper bound on the negative log-likelihood in nats per token, and equal to it where the model's conditionals are exact.
    label_drop: share of examples whose label and text are hidden, for classifier-free guidance (arXiv 2207.12598).
    """

    dims: ClassVar[dict[str, int]] = {}
    makes = "tokens"

    def __init__(self, schedule: str, weighting: str, label_drop: float):
        if schedule not in SCHEDULES:
            raise unknown("objective.schedule", schedule, SCHEDULES)
        if weighting not in WEIGHTINGS:
            raise unknown("objective.weighting", weighting, WEIGHTINGS)
        self.below, self.weighting, self.label_drop = SCHEDULES[schedule][1], weighting, label_drop

    def _shares(self, tokens: int) -> np.ndarray:
        """Share of examples with at most k masked tokens, [tokens + 1]."""
        return self.below(np.arange(tokens + 1) / tokens)

    def inputs(self, key: jax.Array, batch: dict) -> dict[str, jax.Array]:
        """tokens (masked ones negative), t = share of masked tokens [B], conditions; `target` and bool `masked`, shaped as tokens."""
        k_offset, k_order, k_drop = jax.random.split(key, 3)
        target = batch["tokens"].astype(jnp.int32)
        n, size = target.shape[0], target[0].size
        # one offset for evenly spaced quantiles: the batch covers all rates, each example's rate has the asked density
        u = jnp.mod(jax.random.uniform(k_offset) + (jnp.arange(n) + 0.5) / n, 1.0)
        count = 1 + jnp.searchsorted(jnp.asarray(self._shares(size)[1:-1], jnp.float32), u)
        rank = jax.random.permutation(k_order, jnp.broadcast_to(jnp.arange(size), (n, size)), axis=1, independent=True)
        masked = (rank < count[:, None]).reshape(target.shape)
        given = conditions.drop(k_drop, batch, self.label_drop)
        return {"tokens": jnp.where(masked, MASK, target), "t": count / size, **given, "target": target, "masked": masked}

    def loss(self, model: Callable, key: jax.Array, batch: dict) -> jax.Array:
        """Cross-entropy of each example's masked tokens in nats, [B]; `model` gives logits [B, T, vocabulary]."""
        return self.losses(model, self.inputs(key, batch))

    def losses(self, model: Callable, given: dict) -> jax.Array:
        """`loss` of what `inputs` gave, or of some of its examples."""
        given = {**given}
        target, masked = (given.pop(k).reshape(given["t"].shape[0], -1) for k in ("target", "masked"))
        nats = optax.softmax_cross_entropy_with_integer_labels(model(given).astype(jnp.float32), target)
        count, size = jnp.sum(masked, axis=1), target.shape[1]
        mean = jnp.sum(nats * masked, axis=1) / count
        return mean if self.weighting == "plain" else mean / (size * jnp.asarray(np.diff(self._shares(size)), jnp.float32)[count - 1])

    def sample(
        self,
        model: Callable,
        key: jax.Array,
        cond: dict,
        shape: tuple[int, ...],
        steps: int = 8,
        guidance: float = 1.0,
        method: str = "confidence",
        schedule: str = "cosine",
        temperature: float = 4.5,
    ) -> jax.Array:
        """Tokens int32 [B, *shape] for cond, label [B] and text [B, length] or one of them, all masked at first.

        Each step draws every masked token by itself and keeps some; `schedule` says how many stay masked. 'confidence' keeps those of
        highest log-probability plus Gumbel noise of size `temperature`, which falls linearly to 0 at the last step; 'random' keeps any,
        which with as many steps as tokens draws from the model's own distribution in a random order. `guidance` acts on logits.

        Args:
          steps: beyond one a token there is nothing left to do, and no more are taken.
        """
        if method not in METHODS:
            raise unknown("sampler", method, METHODS)
        if schedule not in SCHEDULES:
            raise unknown("schedule", schedule, SCHEDULES)
        if steps < 1:
            raise UserError(f"steps={steps} must be at least 1")
        n, size, ask = conditions.count(cond), int(np.prod(shape)), conditions.guided(model, cond, guidance)
        left = counts_left(schedule, size, min(steps, size))

        def step(tokens, given):
            key, before, after, heat = given
            k_draw, k_order = jax.random.split(key)
            logits = ask({"tokens": tokens.reshape(n, *shape), "t": jnp.full(n, before / size)})
            drawn = jax.random.categorical(k_draw, logits)
            log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), drawn[..., None], axis=-1)[..., 0]
            noise = jax.random.gumbel(k_order, (n, size))
            score = jnp.where(tokens < 0, log_p + heat * noise if method == "confidence" else noise, jnp.inf)
            stay = jnp.argsort(jnp.argsort(score, axis=1), axis=1) < after
            return jnp.where(stay, MASK, jnp.where(tokens < 0, drawn, tokens)), None

        heats = temperature * (1 - np.arange(1, len(left)) / (len(left) - 1))
        each = (jax.random.split(key, len(heats)), left[:-1], left[1:], jnp.asarray(heats, jnp.float32))
        tokens, _ = jax.lax.scan(step, jnp.full((n, size), MASK, jnp.int32), each)
        return tokens.reshape(n, *shape)
