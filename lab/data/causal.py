"""World of token grids drawn in raster order from known p(v | up, left, class): a Markov mesh field with exact likelihoods.

Markov mesh: Abend, Harley and Kanal, IEEE Trans. Inf. Theory 11(4), 1965. With x_t the token of cell t in raster order and
log p(x | c) = sum_t log p(x_t | up, left, c), the loss of an autoregressive model less `entropy_rate` is its excess loss.
"""

import hashlib
import json
from bisect import bisect
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import entr, logsumexp, softmax

from lab.data.world import check
from lab.errors import UserError, unknown

# train is too long to be decoded as a whole, whatever the size of an item; eval's permutation is quick to draw
LENGTH = {"train": 1 << 27, "eval": 1 << 20}
STREAMS = {"train": 0, "eval": 1, "estimate": 2, "tables": 3}


class Estimate(NamedTuple):
    """A Monte Carlo mean, and its standard error."""

    value: float
    error: float


class Field:
    """Token grids [side, side] over a vocabulary, classes equally likely, each token drawn given some earlier ones.

    `examples` bounds the training split (0: endless). Tables have standard normal logits divided by `temperature`, drawn from
    `seed`. A subclass sets up `tables` and what a token is drawn given.
    """

    tables: np.ndarray

    def __init__(self, split: str, side: int, vocabulary: int, classes: int, temperature: float, seed: int, examples: int, **more):
        if split not in LENGTH:
            raise unknown("split", split, LENGTH)
        for key, value, low, high in (("side", side, 2, 64), ("vocabulary", vocabulary, 2, 256), ("classes", classes, 1, 1024)):
            check(key, value, low, high)
        check("seed", seed, 0, 2**32 - 1)
        check("examples", examples, 0, LENGTH["train"])
        self.side, self.vocabulary, self.classes, self.seed = side, vocabulary, classes, seed
        if type(temperature) not in (int, float) or not 0.1 <= temperature <= 10:
            raise UserError(f"config key data.temperature={temperature!r} must be a number from 0.1 to 10")
        self.temperature, self.cells, self._stream = temperature, side * side, STREAMS[split]
        self._length = examples if examples and split == "train" else LENGTH[split]
        self._setup(**more)
        self._cumulative = np.cumsum(self.tables, -1)[..., :-1]  # without the last, which may round to less than 1
        self.dims = {"side": side, "tokens": self.cells, "vocabulary": vocabulary, "classes": classes}
        options = {**self.dims, **more, "temperature": float(temperature), "seed": seed, "examples": examples}
        first = [self._item(s, i)["tokens"].tolist() for s in (0, 1) for i in range(4)]
        self.info = {
            **{"tokens": [side, side], "vocabulary": vocabulary, "classes": classes, "class_names": [str(c) for c in range(classes)]},
            "palette": [[round(255 * v / (vocabulary - 1))] for v in range(vocabulary)],
            **{"examples": examples or LENGTH["train"], "origin": f"{type(self).__module__} {json.dumps(options)}"},
            "fingerprint": hashlib.sha256(json.dumps([type(self).__module__, options, first]).encode()).hexdigest()[:32],
        }

    def _random_tables(self, *shape: int) -> np.ndarray:
        """Distributions over the vocabulary, [*shape, V]; UserError where they would need more than 128 MiB."""
        if np.prod(shape) * self.vocabulary > 1 << 24:
            raise UserError(
                f"config key data.vocabulary={self.vocabulary} with data.classes={self.classes} needs tables of "
                f"{np.prod(shape) * self.vocabulary:,} probabilities; expected at most {1 << 24:,}"
            )
        return softmax(self._rng(STREAMS["tables"], 0).normal(size=(*shape, self.vocabulary)) / self.temperature, -1)

    def _rng(self, stream: int, i: int) -> np.random.Generator:
        # counter-based, so that an item costs the same wherever it stands, and streams cannot overlap
        return np.random.Generator(np.random.Philox(key=[self.seed, stream], counter=[0, 0, 0, i]))

    def _item(self, stream: int, i: int) -> dict[str, np.ndarray]:
        u = self._rng(stream, i).random(1 + self.cells).tolist()
        label = int(u[0] * self.classes)
        tokens = np.array(self._draw(self._cumulative[label], u[1:]), np.int32)
        return {"tokens": tokens.reshape(self.side, self.side), "label": np.int32(label)}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if not 0 <= i < self._length:
            raise IndexError(f"example {i} of {self._length}")
        return self._item(self._stream, int(i))

    def fresh(self, n: int, chunk: int = 256) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`n` examples of neither split: tokens [b, side, side] and labels [b], b <= chunk."""
        for start in range(0, n, chunk):
            items = [self._item(STREAMS["estimate"], i) for i in range(start, min(n, start + chunk))]
            yield np.stack([x["tokens"] for x in items]), np.stack([x["label"] for x in items])

    def generate(self, key: jax.Array, n: int) -> dict[str, jax.Array]:
        """`n` examples drawn on the device: tokens int32 [n, side, side], label int32 [n]."""
        k_label, k_tokens = jax.random.split(key)
        label = jax.random.randint(k_label, (n,), 0, self.classes)
        cumulative = jnp.asarray(self._cumulative, jnp.float32)
        tokens = self._scan(cumulative, label, jax.random.uniform(k_tokens, (self.cells, n)))
        return {"tokens": tokens.reshape(n, self.side, self.side), "label": label}

    def log_likelihood(self, tokens: np.ndarray, label: np.ndarray | None = None) -> np.ndarray:
        """Exact log p(tokens | label), or log p(tokens) without one, in nats; tokens [B, side, side], label [B] -> [B]."""
        joint = self._log_cells(tokens).sum(-1)
        return logsumexp(joint, 0) - np.log(self.classes) if label is None else joint[self._known(label), np.arange(len(tokens))]

    def _known(self, label: np.ndarray) -> np.ndarray:
        # -1 is how the lab hides a label, and would index the last class
        if np.min(label) < 0 or np.max(label) >= self.classes:
            raise ValueError(f"labels must lie from 0 to {self.classes - 1}; a hidden label is None")
        return np.asarray(label)

    def nll(self, tokens: np.ndarray, label: np.ndarray | None = None) -> np.ndarray:
        """Exact negative log-likelihood in nats per token, [B]."""
        return -self.log_likelihood(tokens, label) / self.cells


def estimate(values: list[np.ndarray]) -> Estimate:
    """Mean of independent values, given in chunks."""
    flat = np.concatenate(values)
    return Estimate(float(flat.mean()), float(flat.std(ddof=1) / np.sqrt(len(flat))))


class Source(Field):
    """Grids drawn in raster order from p(v | up, left, class); beyond the border lies a symbol of its own.

    `info['best_loss']` is the entropy rate given the label, with its standard error beside it.
    """

    def __init__(
        self,
        split: str,
        data_dir: str,
        side: int = 8,
        vocabulary: int = 32,
        classes: int = 4,
        temperature: float = 0.5,
        seed: int = 0,
        examples: int = 0,
    ):
        super().__init__(split, side, vocabulary, classes, temperature, seed, examples)
        best = self.entropy_rate(4096)
        self.info |= {"best_loss": best.value, "best_loss_error": best.error}

    def _setup(self) -> None:
        self.tables = self._random_tables(self.classes, self.vocabulary + 1, self.vocabulary + 1)

    def _draw(self, rows: np.ndarray, u: list[float]) -> list[int]:
        out = [self.vocabulary] * (self.cells + self.side)  # the row above the first
        for t, x in enumerate(u):
            left = out[t + self.side - 1] if t % self.side else self.vocabulary
            out[t + self.side] = bisect(rows[out[t], left].tolist(), x)
        return out[self.side :]

    def _scan(self, cumulative: jax.Array, label: jax.Array, u: jax.Array) -> jax.Array:
        def step(last, given):  # last: as many tokens as a row has, the oldest is the one above
            u_t, at_border = given
            left = jnp.where(at_border, self.vocabulary, last[:, -1])
            token = (u_t[:, None] >= cumulative[label, last[:, 0], left]).sum(-1, dtype=jnp.int32)
            return jnp.concatenate([last[:, 1:], token[:, None]], 1), token

        border = jnp.full((len(label), self.side), self.vocabulary, jnp.int32)
        return jax.lax.scan(step, border, (u, jnp.arange(self.cells) % self.side == 0))[1].T

    def _given(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens above and to the left of every cell, each [B, N]."""
        framed = np.pad(tokens, ((0, 0), (1, 0), (1, 0)), constant_values=self.vocabulary)
        return framed[:, :-1, 1:].reshape(len(tokens), -1), framed[:, 1:, :-1].reshape(len(tokens), -1)

    def _log_cells(self, tokens: np.ndarray) -> np.ndarray:
        """log p(x_t | up, left, c), [C, B, N]."""
        return np.log(self.tables[:, *self._given(tokens), tokens.reshape(len(tokens), -1)])

    def conditionals(self, tokens: np.ndarray, label: np.ndarray | None = None) -> np.ndarray:
        """Exact p(x_t = v | x_<t, label) at every cell t in raster order, [B, N, V]; without a label
        sum_c p(c | x_<t) p(v | up, left, c)."""
        up, left = self._given(tokens)
        if label is not None:
            return self.tables[self._known(label)[:, None], up, left]
        before = np.pad(self._log_cells(tokens)[..., :-1], ((0, 0), (0, 0), (1, 0)))
        belief = softmax(np.cumsum(before, -1), 0)  # over classes, from the tokens before t
        return np.einsum("cbn,cbnv->bnv", belief, self.tables[:, up, left])

    def entropy_rate(self, n: int, labelled: bool = True) -> Estimate:
        """Best possible loss in nats per token, from `n` grids: the mean entropy of `conditionals`, which has the mean of `nll`
        and a smaller variance."""
        rows = (self.conditionals(x, c if labelled else None) for x, c in self.fresh(n))
        return estimate([entr(p).sum(-1).mean(-1) for p in rows])
