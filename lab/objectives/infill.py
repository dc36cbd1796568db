"""Next-token prediction of sequences that end, from left to right and, a span moved to the end, of what is missing in between.

START a MASK c END MASK b EOM: the span b is told last, once both its sides are known (causal masking, arXiv 2201.07520, as in IconShop,
arXiv 2304.14400). Tokens of PAD and MASK are given and never predicted (InCoder, arXiv 2204.05999), so left-to-right predictions are
those of a model that knows no spans.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lab.errors import UserError
from lab.objectives import conditions, next_token

PAD, START, END = range(3)  # as sources number them
ROOM = 3  # tokens that a sequence grows by


class Objective(next_token.Objective):
    """Of a `share` of examples one span is moved, each of the spans between START and END being as likely as another.

    A batch has `length` [B], the tokens of each sequence up to END, and for a `share` above 0 `sentinels` [B, 2], its tokens MASK and
    EOM, and ROOM tokens of padding. `label_drop` and `z_loss` are those of `next_token`.
    """

    def __init__(self, label_drop: float, share: float = 0.5, z_loss: float = 0.0):
        super().__init__(label_drop, z_loss)
        if not 0 <= share <= 1:
            raise UserError(f"config key objective.share={share!r} must be from 0 (no span is moved) to 1")
        self.share = share

    def inputs(self, key: jax.Array, batch: dict) -> dict[str, jax.Array]:
        """What the model takes, and `counted` [B, T], the tokens that are predicted: all of a sequence, and EOM."""
        need(batch, ("length", "sentinels") if self.share else ("length",))
        given = super().inputs(key, batch)
        tokens, length = given["tokens"], batch["length"]
        if not self.share:
            return {**given, "counted": before(length, tokens)}
        chosen, placed = jax.random.split(jax.random.fold_in(key, 1))
        # a sequence of START and END alone has nothing to move
        cut = jax.random.bernoulli(chosen, self.share, length.shape) & (length > 2)
        new = moved(tokens, length, holes(placed, length), batch["sentinels"])
        counted = before(length + ROOM, tokens) & (new != batch["sentinels"][:, :1])
        return {
            **given,
            "tokens": jnp.where(cut[:, None], new, tokens),
            "counted": jnp.where(cut[:, None], counted, before(length, tokens)),
        }

    def losses(self, model: Callable, given: dict) -> jax.Array:
        """Mean over what is `counted` of each example in nats per token, [B]: a long sequence weighs as much as a short one."""
        return jnp.mean(surprise(model, given, self.z_loss), axis=1) / jnp.mean(given["counted"], axis=1)

    def errors(self, model: Callable, key: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
        """Length [B] of each sequence and the surprise of its tokens in nats, [B, T], read from left to right: 0 behind its end."""
        need(batch, ("length",))
        given = {**batch, "counted": before(batch["length"], batch["tokens"])}
        return batch["length"].astype(jnp.float32), surprise(model, given, 0.0)

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
        """Sequences int32 [B, *shape], drawn token by token up to END and padded, with `next_token`'s options.

        Where cond has `hole` [B, 2], and `tokens`, `length` and `sentinels` of as many sequences, tokens [hole[0], hole[1]) of each are
        drawn anew and the others kept: any number of them, up to EOM. One that finds no EOM is cut off behind what was drawn.
        """
        steps = math.prod(shape)
        if "hole" in cond:
            need(cond, ("tokens", "length", "sentinels"))
            mask_eom, hole = cond["sentinels"], cond["hole"]
            told = moved(cond["tokens"], cond["length"], hole, mask_eom)
            known, stop = cond["length"] - (hole[:, 1] - hole[:, 0]) + 2, mask_eom[:, 1]
        else:
            n = conditions.count(cond)
            told, known, stop = jnp.zeros((n, steps), jnp.int32), jnp.zeros(n, jnp.int32), jnp.full(n, END)

        def settle(i, token, over):
            token = jnp.where(i < known, told[:, i], jnp.where(over, PAD, token))
            return token, over | ((i >= known) & (token == stop))

        out = next_token.decode(model, key, cond, steps, settle, temperature, top_k, top_p, guidance)
        if "hole" in cond:
            out = joined(out, hole[:, 0], known - 1, stop)
        return out.reshape(-1, *shape)


def need(batch: dict, keys: tuple[str, ...]) -> None:
    """UserError for a batch that lacks what sequences that end have."""
    if missing := [k for k in keys if k not in batch]:
        wanted = "data.infill=True, or objective.share=0" if missing == ["sentinels"] else "source strokes or polygons, or text around one"
        raise UserError(f"objective 'infill' reads {', '.join(keys)} of the data, which lacks {missing[0]!r}; expected {wanted}")


def surprise(model: Callable, given: dict, z_loss: float) -> jax.Array:
    """Cross-entropy [B, T] of the tokens that are `counted`, 0 elsewhere."""
    return jnp.where(given["counted"], next_token.surprise(model, given, z_loss), 0.0)


def before(length: jax.Array, tokens: jax.Array) -> jax.Array:
    """Which of tokens [B, T] stand before `length` [B]."""
    return jnp.arange(tokens.shape[1]) < length[:, None]


def holes(key: jax.Array, length: jax.Array) -> jax.Array:
    """A span [B, 2] of each sequence, from 1 to length - 1 at most: all that hold a token are equally likely."""
    cuts = jnp.maximum(length - 1, 2)  # places between START and END, of which two are drawn
    first, second = jax.random.split(key)
    one = jax.random.randint(first, length.shape, 0, cuts)
    other = (one + jax.random.randint(second, length.shape, 1, cuts)) % cuts
    return 1 + jnp.sort(jnp.stack([one, other], -1), -1)


def moved(tokens: jax.Array, length: jax.Array, hole: jax.Array, sentinels: jax.Array) -> jax.Array:
    """START a b c END, b the span [hole[0], hole[1]), as START a MASK c END MASK b EOM: tokens [B, T], of which T >= length + ROOM."""
    at, n = jnp.arange(tokens.shape[1]), length[:, None]
    low, high = hole[:, :1], hole[:, 1:]
    second = n - (high - low) + 1  # where the other MASK stands
    behind = jnp.where(at < second, at - 1 + high - low, low + at - second - 1)
    out = jnp.take_along_axis(tokens, jnp.clip(jnp.where(at < low, at, behind), 0, tokens.shape[1] - 1), axis=1)
    out = jnp.where((at == low) | (at == second), sentinels[:, :1], out)
    return jnp.where(at < n + ROOM - 1, out, jnp.where(at == n + ROOM - 1, sentinels[:, 1:], PAD))


def joined(tokens: jax.Array, first: jax.Array, second: jax.Array, eom: jax.Array) -> jax.Array:
    """The inverse of `moved`: MASK stands at `first` and `second` [B], and b ends at the first `eom` [B] behind it.

    Without one b is all that follows, and c is left out.
    """
    at, size = jnp.arange(tokens.shape[1]), tokens.shape[1]
    low, second = first[:, None], second[:, None]
    ends = (tokens == eom[:, None]) & (at > second)
    whole = jnp.any(ends, axis=1, keepdims=True)
    high = low + jnp.where(whole, jnp.argmax(ends, axis=1, keepdims=True), size) - second - 1
    source = jnp.where(at < low, at, jnp.where(at < high, second + 1 + at - low, low + 1 + at - high))
    out = jnp.take_along_axis(tokens, jnp.clip(source, 0, size - 1), axis=1)
    return jnp.where(at < jnp.where(whole, high + second - low - 1, high), out, PAD)
