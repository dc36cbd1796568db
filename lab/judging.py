"""Judges a population's trials on a schedule, on a thread of its own, beside the training."""

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lab import find
from lab.data.drawing import drawing
from lab.errors import UserError
from lab.evals.subject import Subject
from lab.log import console
from lab.objectives.conditions import stacked
from lab.train import Program, over_trials

KEY = 20_251_125  # the noise of samples is the same for every trial of every study
CHUNK = 128  # samples drawn at once


def conditions(real: Any, n: int, objective: Any = None) -> dict[str, np.ndarray]:
    """What samples of an objective are drawn by, [n, ...], of random held-out examples, against which they are judged: label, text, ..."""
    rows = np.resize(np.random.default_rng(2).permutation(len(real))[:n], n)
    return stacked(objective, [real[int(i)] for i in rows])


class Painter:
    """Draws samples and errors of stacked weights [trials, ...]; compiled when first used.

    `shape` is that of one drawn thing, of a batch's entry `objective.makes`; `info` is the source's, by which tokens become pictures, and
    `decode` makes pictures of what is drawn, {makes: [trials, n, ...]}, where a tokenizer is behind the data.
    """

    def __init__(
        self,
        program: Program,
        shape: tuple,
        options: dict,
        info: dict,
        turns: Mesh | None = None,
        clip: bool = False,
        decode: Callable | None = None,
    ):
        self._clip, self.objective, self._drawing, self._decode = clip, program.objective, drawing(info), decode

        def drawer(**more):
            find.check(program.objective.sample, more, "the sampler's option", ("model", "key", "cond", "shape"))

            def draw(params, key, cond):
                return program.sample(params, key, cond, shape=tuple(shape), **{**options, **more})

            return jax.jit(over_trials(draw, (0, None, None), turns))

        self._drawer = functools.cache(drawer)
        self._errors = jax.jit(over_trials(program.errors, (0, None, None), turns))

    def samples(self, params: Any, cond: dict[str, np.ndarray], **options: Any) -> dict[str, np.ndarray]:
        """What is drawn, [trials, n, ...], for conditions [n, ...], and under 'image' its pictures: floats as a model sees them.

        `options` stand in place of the sampler's own. A sampler that draws several things gives a dict of them, of which all are kept.
        Pictures are cut to [-1, 1] where the source has bytes (`clip`).
        """
        n = len(next(iter(cond.values())))
        size = min(n, CHUNK)
        padded = {k: np.resize(v, (-(-n // size) * size, *v.shape[1:])).reshape(-1, size, *v.shape[1:]) for k, v in cond.items()}
        keys = jax.random.split(jax.random.key(KEY), -(-n // size))
        chunks = [jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), padded) for i in range(len(keys))]
        draw = self._drawer(**options)
        parts = [jax.device_get(draw(params, k, c)) for k, c in zip(keys, chunks, strict=True)]
        drawn = jax.tree.map(lambda *x: np.concatenate(x, 1)[:, :n], *parts)
        if isinstance(drawn, dict):
            if self._decode is not None and "image" in drawn:
                drawn |= {"latents": drawn["image"], "image": self._decode({"image": drawn["image"]})}
            return drawn | ({"image": np.clip(drawn["image"], -1.0, 1.0)} if self._clip and "image" in drawn else {})
        if self._decode is not None:
            made = self.objective.makes
            return {"latents" if made == "image" else made: drawn, "image": self._decode({made: drawn})}
        if self.objective.makes != "image":
            out = {self.objective.makes: drawn}
            if self._drawing is None:
                return out
            images = self._drawing(drawn.reshape(-1, *drawn.shape[2:]))
            return out | {"image": images.reshape(*drawn.shape[:2], *images.shape[1:]).astype(np.float32) / 127.5 - 1.0}
        return {"image": np.clip(drawn, -1.0, 1.0) if self._clip else drawn}

    def errors(self, params: Any, key: jax.Array, batches: dict) -> dict[str, np.ndarray]:
        """t [trials, M] and error [trials, M, ...] on held-out batches; UserError where the objective knows no errors."""
        if not hasattr(self.objective, "errors"):
            raise UserError("the objective has no function errors(model, key, batch) -> (t, error)")
        return jax.device_get(self._errors(params, key, batches))


class Judging:
    """The judges of one population. `rows()` gives (step, {column: [trials]}) of what has been judged since the last call.

    A judge that fails says why, once, and leaves its columns empty; with `strict` that is a UserError.
    """

    def __init__(self, judges: dict[str, Any], config: dict, painter: Painter, real: Any, held: tuple, trials: int, strict: bool = False):
        self.judges, self.every, self.n = judges, config["every"], config["n"]
        self._painter, self._real, self._held, self._trials, self._strict = painter, real, held, trials, strict
        self._pool, self._waiting, self._told = ThreadPoolExecutor(1), [], set()

    def due(self, step: int, last: int) -> bool:
        """Whether the weights after `step` steps are to be judged."""
        return bool(self.judges) and (step == last or bool(self.every and step and step % self.every == 0))

    def judge(self, step: int, params: Any, alive: jax.Array) -> None:
        """Judge stacked weights, whole rounds of turns of them, while the training goes on; it waits here for the judging before.

        They are copied, as the training gives its own away: one copy at a time is what memory has to hold.
        """
        for _, before in self._waiting:
            before.exception()
        mine = jax.tree.map(jnp.copy, params), np.asarray(alive)[: self._trials]
        self._waiting.append((step, self._pool.submit(self._values, *mine)))

    def _values(self, params: Any, alive: np.ndarray) -> dict[str, np.ndarray]:
        drawn: dict[Any, Any] = {}

        def once(what: Any, call: Callable):
            if what not in drawn:
                drawn[what] = call()
            return drawn[what]

        def samples(i):
            given = once("conditions", lambda: conditions(self._real, self.n, self._painter.objective))
            return {k: v[i] for k, v in once("samples", lambda: self._painter.samples(params, given)).items()} | given

        def asked(i, cond, **options):  # a judge keeps what it asks of every trial, so that all are drawn at once
            what = id(cond), *sorted(options.items())
            return {k: v[i] for k, v in once(what, lambda: self._painter.samples(params, cond, **options)).items()}

        def errors(i):
            return {k: v[i] for k, v in once("errors", lambda: self._painter.errors(params, *self._held)).items()}

        found: list[dict] = []
        for i in range(len(alive)):
            subject = Subject(lambda i=i: samples(i), lambda i=i: errors(i), lambda cond, i=i, **options: asked(i, cond, **options))
            found.append(self._said(subject) if alive[i] else {})
        columns = {k: None for row in found for k in row}
        return {k: np.array([row.get(k, np.nan) for row in found]) for k in columns} | {"diverged": ~alive}

    def _said(self, subject: Subject) -> dict[str, float]:
        """Columns of all judges."""
        columns = {}
        for name, judge in self.judges.items():
            try:
                said = judge(subject)
                if odd := [k for k in said if k != (stem := find.stem(name)) and not k.startswith(f"{stem}_")]:
                    raise UserError(f"its column {odd[0]!r} does not begin with {stem!r}")
                columns |= said
            except Exception as e:  # a judge's mistake, or a lack of memory, must not cost the training
                why = str(e) if isinstance(e, UserError) else f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
                if self._strict:
                    raise UserError(f"judge {name}: {why}") from e
                if (name, why) not in self._told:
                    self._told.add((name, why))
                    console.print(f"judge {name} gives no verdict: {why}", markup=False)
        return columns

    def rows(self, wait: bool = False) -> list[tuple[int, dict]]:
        """What is judged by now, or with `wait` all that was asked for."""
        ready: list[tuple[int, Future]] = [(s, f) for s, f in self._waiting if wait or f.done()]
        self._waiting = [x for x in self._waiting if x not in ready]
        return [(step, f.result()) for step, f in ready]

    def close(self) -> None:
        """Drop what is not begun."""
        self._pool.shutdown(cancel_futures=True)
