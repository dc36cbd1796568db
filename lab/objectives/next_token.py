"""Next-token prediction: cross-entropy of every token given those before it, and samples drawn token by token."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lab.errors import UserError
from lab.objectives import conditions


class Objective:
    """`label_drop` is the share of examples whose label and text are hidden, for classifier-free guidance (arXiv 2207.12598).

    `z_loss` is the weight of the squared log-normaliser of every token (PaLM, arXiv 2204.02311), which keeps logits from drifting; it
    counts as loss, so the loss of a model with it is no plain cross-entropy.
    """

    dims: ClassVar[dict[str, int]] = {}
    makes = "tokens"

    def __init__(self, label_drop: float, z_loss: float = 0.0):
        self.label_drop, self.z_loss = label_drop, z_loss

    def inputs(self, key: jax.Array, batch: dict) -> dict[str, jax.Array]:
        """Tokens, label and, where the batch has it, text as the model takes them. One draw hides both of an example."""
        return {"tokens": batch["tokens"], **conditions.drop(key, batch, self.label_drop)}

    def loss(self, model: Callable, key: jax.Array, batch: dict) -> jax.Array:
        """Mean cross-entropy of each example in nats per token, [B]."""
        return self.losses(model, self.inputs(key, batch))

    def losses(self, model: Callable, given: dict) -> jax.Array:
        """`loss` of what `inputs` gave, or of some of its examples."""
        return jnp.mean(surprise(model, given, self.z_loss), axis=1)

    def sample(
        self,
        model: Any,
        key: jax.Array,
        cond: dict,
        shape: tuple[int, ...],
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        guidance: float = 1.0,
    ) -> jax.Array:
        """Tokens int32 [B, *shape] for cond, label [B] and text [B, length] or one of them, drawn one after the other.

        `guidance` moves the logits away from those without conditions; then they are divided by `temperature`, and what is
        outside the `top_k` likeliest tokens (0: all) or `top_p` (1: all) is never drawn. With top_k 1 decoding is greedy.
        """
        tokens = decode(model, key, cond, math.prod(shape), lambda i, token, over: (token, over), temperature, top_k, top_p, guidance)
        return tokens.reshape(-1, *shape)


def surprise(model: Callable, given: dict, z_loss: float) -> jax.Array:
    """Cross-entropy of every token in nats, [B, T], and `z_loss` times its squared log-normaliser."""
    logits = model(given).astype(jnp.float32)
    target = given["tokens"].reshape(*logits.shape[:2], 1)
    total = jax.nn.logsumexp(logits, axis=-1)
    said = jnp.take_along_axis(logits, target, axis=-1)[..., 0]
    return total - said + z_loss * jnp.square(total)


def decode(
    model: Any,
    key: jax.Array,
    cond: dict,
    length: int,
    settle: Callable,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    guidance: float = 1.0,
) -> jax.Array:
    """Tokens int32 [B, length] drawn as `Objective.sample` says, of which `settle` has the last word.

    settle(i, tokens [B], over [B]) -> (tokens, over): what stands at place i in place of the tokens drawn, and which sequences have
    ended; `over` is its own, False before the first.
    """
    check(temperature, top_k, top_p)
    n, given, guided = conditions.count(cond), conditions.known(cond), guidance != 1.0
    if guided:  # both halves in one cache
        given = {k: jnp.concatenate([given[k], v]) for k, v in conditions.hidden(given).items()}

    def pick(key, i, logits, over):
        logits = logits[:, 0].astype(jnp.float32)
        if guided:
            conditional, without = jnp.split(logits, 2)
            logits = without + guidance * (conditional - without)
        return settle(i, jax.random.categorical(key, likeliest(logits / temperature, top_k, top_p)).astype(jnp.int32), over)

    def step(carry, given):
        (logits, cache), over = carry
        token, over = pick(*given, logits, over)
        told = jnp.concatenate([token, token]) if guided else token
        return (model({"tokens": told[:, None]}, cache), over), token

    keys, start = jax.random.split(key, length), model(given, model.init_cache(n * (1 + guided)))
    ((logits, _), over), tokens = jax.lax.scan(step, (start, jnp.zeros(n, bool)), (keys[:-1], jnp.arange(length - 1)))
    return jnp.concatenate([tokens, pick(keys[-1], length - 1, logits, over)[0][None]]).T


def likeliest(logits: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """logits [..., V], -inf outside the `top_k` likeliest tokens (0: all) and, of these, the fewest whose shares reach `top_p`.

    The likeliest token is always kept (nucleus sampling, arXiv 1904.09751).
    """
    if not top_k and top_p == 1.0:
        return logits
    order = jnp.argsort(-logits, axis=-1)
    rank = jnp.argsort(order, axis=-1)
    if top_k:
        logits = jnp.where(rank < top_k, logits, -jnp.inf)
    if top_p < 1.0:
        shares = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
        kept = jnp.cumsum(shares, axis=-1) - shares < top_p
        logits = jnp.where(jnp.take_along_axis(kept, rank, axis=-1), logits, -jnp.inf)
    return logits


def check(temperature: float, top_k: int, top_p: float) -> None:
    """UserError for options of the sampler that say nothing."""
    if not temperature > 0:
        raise UserError(f"sampler temperature={temperature!r} must be above 0; top_k=1 draws the likeliest token")
    if not isinstance(top_k, int) or top_k < 0:
        raise UserError(f"sampler top_k={top_k!r} must be a whole number from 0 (all tokens)")
    if not 0 < top_p <= 1:
        raise UserError(f"sampler top_p={top_p!r} must be above 0 and at most 1 (all tokens)")
