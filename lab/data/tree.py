"""World of tree-structured token grids: belief propagation gives p(x_i | any revealed cells) exactly, the truth for masked models.

p(x | c) = p(x_root | c) prod_i p(x_i | x_parent(i), c) over a spanning tree of the grid (Chow and Liu, IEEE Trans. Inf. Theory
14(3), 1968); conditionals by the sum-product algorithm (Pearl, AAAI 1982).
"""

from bisect import bisect

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import entr, softmax

from lab.data.causal import STREAMS, Estimate, Field, estimate
from lab.errors import UserError, unknown

KINDS = ("random", "comb", "chain")


def spanning_tree(kind: str, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Parent of every cell of a grid (cell 0 is the root, its parent -1), and the cells with parents before children; [N] each.

    'comb' joins the rows by the first column, 'chain' winds row by row, 'random' is uniform over spanning trees (a random walk's
    first entries: Aldous, SIAM J. Discrete Math. 3(4), 1990; Broder, FOCS 1989).
    """
    grid = np.arange(side * side).reshape(side, side)
    parent = np.full(side * side, -1)
    if kind == "comb":
        parent[grid[1:, 0]], parent[grid[:, 1:]] = grid[:-1, 0], grid[:, :-1]
        return parent, grid.ravel()
    if kind == "chain":
        grid[1::2] = grid[1::2, ::-1]
        parent[grid.ravel()[1:]] = grid.ravel()[:-1]
        return parent, grid.ravel()
    at, order, seen = (0, 0), [0], {(0, 0)}
    while len(order) < side * side:
        axis, way = divmod(int(rng.integers(4)), 2)
        to = (at[0] + 2 * way - 1, at[1]) if axis else (at[0], at[1] + 2 * way - 1)
        if min(to) < 0 or max(to) >= side:
            continue
        if to not in seen:
            parent[grid[to]] = grid[at]
            order.append(int(grid[to]))
            seen.add(to)
        at = to
    return parent, np.array(order)


class Source(Field):
    """Grids with the dependencies of a spanning tree `kind` ('random', 'comb' or 'chain'), its root the first cell.

    All edges of a class share one table, unless `own_edges` gives every edge its own. `info['best_loss']` is the exact entropy
    rate given the label: the best loss of autoregressive models in any order, and of masked ones averaged over all counts of
    masked tokens; at one rate it is `best_masked_loss`.
    """

    def __init__(
        self,
        split: str,
        data_dir: str,
        kind: str = "random",
        side: int = 8,
        vocabulary: int = 32,
        classes: int = 4,
        temperature: float = 0.5,
        own_edges: bool = False,
        seed: int = 0,
        examples: int = 0,
    ):
        if kind not in KINDS:
            raise unknown("config key data.kind", kind, KINDS)
        if not isinstance(own_edges, bool):
            raise UserError(f"config key data.own_edges={own_edges!r} must be True or False")
        super().__init__(split, side, vocabulary, classes, temperature, seed, examples, kind=kind, own_edges=own_edges)
        self.info |= {"best_loss": float(self.entropy_rates().mean()), "best_loss_error": 0.0}

    def _setup(self, kind: str, own_edges: bool) -> None:
        self.parent, self.order = spanning_tree(kind, self.side, self._rng(STREAMS["tables"], 1))
        self._edge = np.arange(self.cells) if own_edges else np.zeros(self.cells, int)
        self._steps = np.stack([self.order, self.parent[self.order], self._edge[self.order]], 1).astype(np.int32)
        # the last row is of a cell without a parent; parent -1 reads the border symbol that stands behind the tokens
        self.tables = self._random_tables(self.classes, self._edge[-1] + 1, self.vocabulary + 1)

    def _draw(self, rows: np.ndarray, u: list[float]) -> list[int]:
        out = [self.vocabulary] * (self.cells + 1)
        for (i, parent, edge), x in zip(self._steps.tolist(), u, strict=True):
            out[i] = bisect(rows[edge, out[parent]].tolist(), x)
        return out[:-1]

    def _scan(self, cumulative: jax.Array, label: jax.Array, u: jax.Array) -> jax.Array:
        def step(tokens, given):
            (i, parent, edge), u_i = given
            token = (u_i[:, None] >= cumulative[label, edge, tokens[:, parent]]).sum(-1, dtype=jnp.int32)
            return tokens.at[:, i].set(token), None

        border = jnp.full((len(label), self.cells + 1), self.vocabulary, jnp.int32)
        return jax.lax.scan(step, border, (jnp.asarray(self._steps), u))[0][:, :-1]

    def _log_cells(self, tokens: np.ndarray) -> np.ndarray:
        """log p(x_i | x_parent(i), c), [C, B, N]."""
        flat = tokens.reshape(len(tokens), -1)
        framed = np.pad(flat, ((0, 0), (0, 1)), constant_values=self.vocabulary)
        return np.log(self.tables[:, self._edge, framed[:, self.parent], flat])

    def entropy_rates(self) -> np.ndarray:
        """Exact entropy of a grid of each class in nats per token, [C]: each edge's H(child | parent) under its parent's marginal."""
        total = np.zeros(self.classes)
        marginal = np.zeros((self.cells + 1, self.classes, self.vocabulary + 1))
        marginal[-1, :, -1] = 1
        for i in self.order:
            table = self.tables[:, self._edge[i]]
            total += np.einsum("cv,cvw->c", marginal[self.parent[i]], entr(table))
            marginal[i, :, :-1] = np.einsum("cv,cvw->cw", marginal[self.parent[i]], table)
        return total / self.cells

    def conditionals(self, tokens: np.ndarray, revealed: np.ndarray, label: np.ndarray | None = None) -> np.ndarray:
        """Exact p(x_i = v | x_revealed, label) at every cell, [B, N, V]; a revealed cell has all mass on its token.

        tokens and the booleans `revealed` are [B, side, side]. Without a label: sum_c p(c | x_revealed) p(v | x_revealed, c).
        """
        evidence = np.ones((len(tokens), self.cells, self.vocabulary))
        shown = revealed.reshape(len(tokens), -1)
        evidence[shown] = np.eye(self.vocabulary)[tokens.reshape(len(tokens), -1)[shown]]
        if label is not None:
            out, label = np.empty_like(evidence), self._known(label)
            for c in np.unique(label):
                out[label == c] = self._beliefs(self.tables[c], evidence[label == c])[0]
            return out
        beliefs, weight = zip(*(self._beliefs(t, evidence) for t in self.tables), strict=True)
        return np.einsum("cb,cbnv->bnv", softmax(np.array(weight), 0), np.array(beliefs))

    def _beliefs(self, tables: np.ndarray, evidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sum-product in one class: p(x_i | evidence) [B, N, V] and log p(evidence) [B].

        Messages are scaled to sum to 1, as products over many cells would underflow; the scales add up to log p(evidence).
        """
        below, to_parent = evidence.copy(), np.empty_like(evidence)
        log_p = np.zeros(len(evidence))
        for i in self.order[:0:-1]:
            message = below[:, i] @ tables[self._edge[i], :-1].T
            scale = message.sum(-1, keepdims=True)
            to_parent[:, i] = message / scale
            below[:, self.parent[i]] *= to_parent[:, i]
            log_p += np.log(scale[:, 0])
        belief = np.empty_like(evidence)
        for i in self.order:
            p = self.parent[i]
            # the parent's belief without what this cell told it
            above = tables[self._edge[i], -1] if p < 0 else (belief[:, p] / to_parent[:, i]) @ tables[self._edge[i], :-1]
            belief[:, i] = above * below[:, i]
            scale = belief[:, i].sum(-1, keepdims=True)
            belief[:, i] /= scale
            if p < 0:
                log_p += np.log(scale[:, 0])
        return belief, log_p

    def best_masked_loss(self, rate: float, n: int = 1024, labelled: bool = True, seed: int = 0) -> Estimate:
        """Best possible mean loss of a masked token in nats, with max(1, round(rate N)) cells masked, any equally likely.

        From `n` grids, each with one mask: the mean entropy of `conditionals` over its masked cells, whose mean is that of
        -log p(x_i | x_revealed) and whose variance is smaller. The standard error counts both grids and masks.
        """
        count = max(1, round(rate * self.cells))
        rng, values = np.random.default_rng([self.seed, seed]), []
        for tokens, label in self.fresh(n):
            rank = rng.permuted(np.broadcast_to(np.arange(self.cells), (len(tokens), self.cells)), axis=1)
            p = self.conditionals(tokens, rank >= count, label if labelled else None)
            values.append((entr(p).sum(-1) * (rank < count)).sum(-1) / count)  # revealed cells have entropy 0
        return estimate(values)
