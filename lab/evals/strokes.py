"""Are drawn outlines grammatical, unlike each other and new (IconShop, arXiv 2304.14400), do infills fit, what bits does an icon cost?"""

import math
from collections import Counter
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np

from lab.data._stroke_tokens import END, Grammar
from lab.errors import UserError
from lab.evals._pictures import check, name
from lab.evals.intervals import share
from lab.objectives.conditions import known

SEARCH = 1 << 20  # training sequences that are looked through for copies
OTHERS = 512  # infills by spans of other icons, whose share is the chance


class Judge:
    """Shares of sequences, each with its 95% Wilson interval (_low, _high) and the same of held-out icons (_ceiling); and bits an icon.

    infills: held-out sequences of which a span is drawn anew, where the source has room for it (`infill=True`); 0 for none.
    """

    def __init__(self, real: Any, train: Any, infills: int = 128):
        if real.info.get("drawn", {}).get("name") != "strokes":
            raise UserError(
                f"judge 'strokes' judges outlines, which source {name(real)!r} has not; expected strokes, polygons or text around one"
            )
        check("strokes.infills", infills, 0, 1 << 20)
        self._real, self._train, self._grammar = real, train, Grammar(real.info["drawn"]["grid"])
        self._infills = infills if "sentinels" in real[0] else 0

    def __call__(self, subject: Any) -> dict[str, float]:
        """Columns of one model.

        Returns:
          strokes_valid: share of samples that are grammatical.
          strokes_unique: share that are grammatical and occur once among the samples; of as many held-out icons the ceiling. Without the
            first condition it is strokes_unique_any, which garbage raises.
          strokes_new: share that are grammatical and no sequence of training; `strokes_searched` of these were compared with.
          strokes_infill: share of infills that keep all before and behind the hole and are grammatical; strokes_infill_chance is that of
            the spans of other icons. Left out where the source has no room for spans.
          strokes_bits: what a held-out icon costs, mean and 95% interval over icons, all tokens from START to END; strokes_nats is the same
            a token. Left out where the objective does not tell.
        """
        made = [ended(row) for row in subject.samples["tokens"]]
        n, once, real = len(made), single(made), self._held[: len(made)]
        valid = [self._grammar.valid(s) for s in made]
        new = [s.tobytes() not in self._seen for s in made]
        out = share("strokes_valid", valid) | share("strokes_unique", [a and b for a, b in zip(valid, once, strict=True)])
        out |= share("strokes_new", [a and b for a, b in zip(valid, new, strict=True)])
        out |= {"strokes_unique_any": sum(once) / n, "strokes_searched": float(min(len(self._train), SEARCH))}
        out |= {f"strokes_{k}_ceiling": float(np.mean(v)) for k, v in self._ceilings(real).items()}
        if self._infills and subject.draw is not None:
            out |= share("strokes_infill", [self._fits(row, i) for i, row in enumerate(subject.draw(self._holes)["tokens"])])
            out |= self._infill_bounds
        with suppress(UserError):  # of an objective that knows none
            out |= bits(subject.errors["error"], subject.errors["t"])
        return out

    @cached_property
    def _held(self) -> list[np.ndarray]:
        """Held-out sequences in random order, START to END."""
        rows = np.random.default_rng(0).permutation(min(len(self._real), SEARCH))
        return [ended(self._real[int(i)]["tokens"]) for i in rows]

    @cached_property
    def _seen(self) -> set[bytes]:
        return {ended(self._train[i]["tokens"]).tobytes() for i in range(min(len(self._train), SEARCH))}

    def _ceilings(self, real: list[np.ndarray]) -> dict[str, list[bool]]:
        return {
            "valid": [self._grammar.valid(s) for s in real],
            "unique": single(real),
            "new": [s.tobytes() not in self._seen for s in real],
        }

    @cached_property
    def _holes(self) -> dict[str, np.ndarray]:
        """Held-out sequences with a hole each, and their conditions, as objective `infill` samples by them."""
        rng = np.random.default_rng(0)
        items = [self._real[int(i)] for i in np.resize(rng.permutation(len(self._real))[: self._infills], self._infills)]
        given = [{**known(x), **{k: x[k] for k in ("tokens", "length", "sentinels")}} for x in items]
        out = {k: np.stack([g[k] for g in given]) for k in given[0]}
        cuts = [np.sort(rng.choice(n - 1, 2, replace=False)) + 1 for n in out["length"]]
        return out | {"hole": np.array(cuts, np.int32)}

    def _fits(self, made: np.ndarray, i: int) -> bool:
        """Whether an infill of hole `i` keeps what surrounds it and is grammatical."""
        (low, high), tokens = self._holes["hole"][i], ended(self._holes["tokens"][i])
        before, behind, made = tokens[:low], tokens[high:], ended(made)
        kept = len(made) >= len(before) + len(behind) and (made[:low] == before).all() and (made[-len(behind) :] == behind).all()
        return bool(kept) and self._grammar.valid(made)

    @cached_property
    def _infill_bounds(self) -> dict[str, float]:
        """Shares of holes that their own span fits, and that the span of another hole does."""
        holes, tokens = self._holes["hole"], [ended(row) for row in self._holes["tokens"]]
        pairs = np.random.default_rng(1).integers(len(tokens), size=(OTHERS, 2))

        def filled(i: int, j: int) -> bool:
            span = tokens[j][slice(*holes[j])]
            return self._fits(np.concatenate([tokens[i][: holes[i][0]], span, tokens[i][holes[i][1] :]]), i)

        ceiling = np.mean([filled(i, i) for i in range(len(tokens))])
        others = [filled(i, j) for i, j in pairs.tolist() if i != j]
        return {"strokes_infill_ceiling": float(ceiling)} | ({"strokes_infill_chance": float(np.mean(others))} if others else {})


def ended(tokens: np.ndarray) -> np.ndarray:
    """A sequence [T] up to its first END where all behind it is padding; all of another one."""
    tokens = np.asarray(tokens, np.int32)
    at = np.flatnonzero(tokens == END)
    return tokens[: at[0] + 1] if len(at) and not tokens[at[0] + 1 :].any() else tokens


def single(sequences: list[np.ndarray]) -> list[bool]:
    """Which of the sequences occur once."""
    keys = [s.tobytes() for s in sequences]
    counts = Counter(keys)
    return [counts[k] == 1 for k in keys]


def bits(nats: np.ndarray, length: np.ndarray) -> dict[str, float]:
    """Mean bits of sequences, by the nats [M, T] of their tokens, with an interval over sequences; and nats a token."""
    each = nats.astype(float).sum(1) / math.log(2)
    half = 1.96 * each.std(ddof=1) / math.sqrt(len(each)) if len(each) > 1 else 0.0
    found = {"": each.mean(), "_low": each.mean() - half, "_high": each.mean() + half}
    return {f"strokes_bits{k}": float(v) for k, v in found.items()} | {"strokes_nats": float(nats.sum() / length.sum())}
