"""Trials of one shape, trained in one compiled program: learning rates, seeds and parametrizations side by side."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lab import axes, cost, find, parametrization, rates
from lab.axes import Dims, is_weight
from lab.checkpoint import Checkpoints
from lab.data import loader
from lab.errors import UserError, unknown
from lab.judging import Judging, Painter
from lab.log import Progress, Scalars
from lab.optim import Hyper, core, own, schedule
from lab.record import Writer, compact, write_json
from lab.train import Program, State, over_trials
from sharding import mesh as meshes
from sharding import place
from sharding.aot import compile as aot

EVAL_KEY = 20_240_229  # the evaluation's times and noise are the same in every study and for every seed
INFINITE = float("inf")
TRUNK = "trunk"  # where a population leaves its states for longer horizons
# XLA's options for trials that take turns: one with a core of its own loses by splitting its matmuls, and less optimised code
# compiles in 0.7x of the time and runs as fast
IN_TURN = {"xla_cpu_multi_thread_eigen": False, "xla_backend_optimization_level": 1}
IN_TURN = {k: v for k, v in IN_TURN.items() if f"--{k}=" not in os.environ.get("XLA_FLAGS", "")}  # the user's own flags win


class Preempted(Exception):
    """The run was asked to stop and has saved its state."""


@dataclass(frozen=True)
class Trial:
    """One set of hyperparameters and one seed; `config` is complete, `point` is what the sweep set."""

    id: str
    arm: str
    config: dict
    point: dict


def build(config: dict, source_dims: dict[str, int]) -> Program:
    """The program of a config: model described (no numbers), objective, schedule, optimizer. Bad keys and sizes raise UserError."""
    part = dict(config["model"])
    model = find.module("lab.models", part.pop("name")).Model
    what = dict(config["objective"])
    objective = find.make(find.module("lab.objectives", what.pop("name")).Objective, what, "objective")
    dims = _dims(model, part, config["base"], {"data": source_dims, "objective": objective.dims})
    knobs = find.arguments(model.axes)
    options = {k: v for k, v in part.items() if k not in knobs}
    for key in set(options) - set(find.arguments(model.__init__)):
        raise unknown("config key model", key, [*find.arguments(model.__init__), *knobs])
    find.check(model.__init__, options, "model")
    o, t = config["optim"], config["train"]
    dtypes = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
    if t["dtype"] not in dtypes:
        raise unknown("train.dtype", t["dtype"], dtypes)
    rate = schedule(o["schedule"], t["steps"], o["warmup"], o["decay"])
    return Program(model(dims, **options), dims, objective, rate, dtypes[t["dtype"]], core(o))


def _dims(model: Any, part: dict, base: dict, given: dict[str, dict[str, int]]) -> Dims:
    """dims = config | source.dims | objective.dims; a knob set twice with different values is a conflict."""
    knobs = {}
    needed = find.arguments(model.axes)
    for where, sizes in {"model": {k: v for k, v in part.items() if k in needed}, **given}.items():
        for k, v in sizes.items():
            if k in knobs and knobs[k] != v:
                raise UserError(f"size {k!r} is {knobs[k]} in the config but {v} in the {where}; leave it to one of them")
            knobs[k] = v
    if missing := [k for k, required in needed.items() if required and k not in knobs]:
        raise UserError(f"config key model.{missing[0]} is missing; the model's knobs: {', '.join(needed)}")
    for k, v in knobs.items():
        least = 1 if needed.get(k, True) else 0  # what may be left out may be nothing
        if not isinstance(v, int) or isinstance(v, bool) or v < least:
            raise UserError(f"model.{k}={v!r} must be a {'positive ' * least}whole number")
    return Dims.of(model.axes, {k: knobs[k] for k in needed if k in knobs}, base)


def peak(config: dict) -> tuple[float, float]:
    """The peak learning rate at the config's batch and horizon, and the weight decay that it multiplies."""
    o, rule = config["optim"], config["parametrization"]["decay"]
    lr = o["lr"] * rates.factor(config["transfer"], config["train"]["batch"], config["train"]["steps"])
    if rule not in parametrization.INDEPENDENT:
        return lr, o["weight_decay"]
    if lr <= 0:
        raise UserError(f"optim.lr={o['lr']} must be above 0 where parametrization.decay={rule!r}: weight decay is divided by it")
    return lr, o["weight_decay"] / lr


def hyper(program: Program, config: dict, table: parametrization.Table, slot: int = 0) -> Hyper:
    """The traced hyperparameters of one config as plain numbers; `slot` is which seed's batch it reads."""
    o = config["optim"]
    numbers = [*peak(config), *(o[k] for k in ("b1", "b2", "eps")), o["clip"] or INFINITE, o["ema"]]
    return Hyper(*map(float, numbers), config["seed"], slot, axes.scales(program.model, table), own(o)[0], program.rate.horizon)


def stacked(rows: list[Hyper]) -> Hyper:
    """Hyperparameters of several trials along a leading axis of trials, on the device."""
    return jax.tree.map(lambda *xs: jnp.asarray(np.array(xs, np.int32 if isinstance(xs[0], int) else np.float32)), *rows)


def hypers(program: Program, trials: list[Trial], seeds: list[int]) -> Hyper:
    """The traced hyperparameters of trials, stacked along a leading axis of trials."""
    tables = [parametrization.table(**t.config["parametrization"]) for t in trials]
    return stacked([hyper(program, t.config, table, seeds.index(t.config["seed"])) for t, table in zip(trials, tables, strict=True)])


def state_names(state: State) -> Any:
    """Dim names of every leaf of a population's state, for placement."""

    def one(names, x):
        # an optimizer may keep less than a weight of a weight; such dims have no name
        return ("trials", *names) if np.ndim(x) == 1 + len(names) else ("trials", *[""] * (np.ndim(x) - 1))

    def named(x):
        return jax.tree.map(partial(one, x.arrow.names), x) if is_weight(x) else one((), x)

    return jax.tree.map(named, state, is_leaf=is_weight)


def turns(trials: int) -> Mesh | None:
    """The mesh on which trials take turns, one at a time on each core: None for one trial, and where the device is no CPU.

    A batched matmul of small matrices is slow on a CPU and a batch of states leaves its caches: in turn, trials train 1.3-2.6x
    faster than as one batch (docs/performance.md).
    """
    devices = jax.devices()
    if devices[0].platform != "cpu" or trials == 1:
        return None
    rounds = -(-trials // len(devices))
    used = -(-trials // rounds)
    return meshes.mesh({"trials": used}, devices[:used])


class Population:
    """The compiled programs of some trials: init, step, evaluate. `seeds` are the seeds whose batches a step reads.

    Between steps the states of all trials are a `carry`: the flat list of State's arrays, padded to whole rounds of turns.
    Flax's containers flatten in Python, at every call: 4 ms, more than half of a small model's step.
    """

    def __init__(self, trials: list[Trial], source: Any, held_out: dict[str, np.ndarray]):
        self.trials, self.config = trials, trials[0].config
        self.program = build(self.config, source.dims)
        self.seeds = sorted({t.config["seed"] for t in trials})
        self.compile_s, self.bytes = 0.0, 0
        run, t = self.config["run"], self.config["train"]
        jax.config.update("jax_default_matmul_precision", t["precision"])
        self._turns = None if run["mesh"] else turns(len(trials))
        self._mesh = meshes.mesh(run["mesh"]) if run["mesh"] else self._turns
        self._rules = run["rules"] if run["mesh"] else {"trials": "trials"}
        self.hyper = self.place(hypers(self.program, trials, self.seeds))
        # placed once, as the transfer guard of the loop wants
        self.held_out, self._key = self._put((held_out, jax.random.key(EVAL_KEY)), lambda x: ("",) * np.ndim(x))
        self.batch_shape = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(self.seeds), t["batch"], *x.shape[2:]), x.dtype), self.held_out)
        self._init = over_trials(self.program.init, (0,), self._turns)
        self._shapes = jax.eval_shape(self._init, self.hyper)

    def _put(self, tree: Any, names: Callable) -> Any:
        """A tree of arrays on the devices; names(array) are the names of its dims."""
        if self._mesh is None:
            return jax.device_put(tree)
        return jax.device_put(tree, place.shardings(jax.tree.map(names, tree), tree, self._mesh, self._rules))

    def place(self, tree: Any) -> Any:
        """Arrays with a leading axis of trials on the devices, the last trial repeated where a round of turns is not full."""
        if self._turns is not None:
            missing = -len(self.trials) % self._turns.size
            tree = jax.tree.map(lambda x: jnp.concatenate([x, *[x[-1:]] * missing]) if missing else x, tree)
        return self._put(tree, lambda x: ("trials",) + ("",) * (np.ndim(x) - 1))

    def init(self) -> list[jax.Array]:
        """The carry before the first step, created where it will live."""
        where = None
        if self._mesh is not None:
            where = jax.tree.leaves(place.shardings(state_names(self._shapes), self._shapes, self._mesh, self._rules))
        return jax.jit(lambda hyper: jax.tree.leaves(self._init(hyper)), out_shardings=where)(self.hyper)

    def state(self, carry: list[jax.Array]) -> State:
        """The states of the trials in a carry, stacked; of trials in turn, on the host."""
        n = len(self.trials)
        if self._turns is not None:  # cut on the devices they would be gathered, and XLA ends a process whose gathering waits for 40 s
            carry = jax.device_get(carry)
        return jax.tree.unflatten(jax.tree.structure(self._shapes), [x if len(x) == n else x[:n] for x in carry])

    def shapes(self) -> State:
        """The shapes of what `state` gives."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(self.trials), *x.shape[1:]), x.dtype), self._shapes)

    def judging(self, judges: dict[str, Any], real: Any) -> Judging:
        """The judges of these trials; `real` is the held-out split."""
        made = real[0].get(self.program.objective.makes, np.zeros(0)) if judges else np.zeros(0)
        shown = {"clip": made.dtype == np.uint8, "palette": real.info.get("palette")}
        painter = Painter(self.program, made.shape, self.config["sample"]["options"], self._turns, **shown)
        return Judging(judges, self.config["judge"], painter, real, (self._key, self.held_out), len(self.trials))

    def averages(self, carry: list[jax.Array]) -> tuple[Any, jax.Array]:
        """Averaged weights in a carry, padded to whole rounds of turns, and which trials are alive."""
        state = jax.tree.unflatten(jax.tree.structure(self._shapes), carry)
        return state.ema, state.alive

    def carry(self, state: State, like: list[jax.Array]) -> list[jax.Array]:
        """The carry of stacked states, such as a checkpoint's, placed as `like` is."""
        return jax.device_put(self.place(jax.tree.leaves(state)), [x.sharding for x in like])

    def put(self, batch: dict) -> dict:
        """A host batch [seeds, batch, ...] on the devices, along the mesh axis that rules give to 'batch'."""
        return self._put(batch, lambda x: ("seeds", "batch") + ("",) * (np.ndim(x) - 2))

    def compile(self, carry: list[jax.Array]) -> None:
        """Compile step(carry, hyper, batch) and evaluation for a carry's shapes: once a population, and cached between runs."""
        structure = jax.tree.structure(self._shapes)

        def step(leaves, hyper, batch):
            state, values = self.program.step(jax.tree.unflatten(structure, leaves), hyper, jax.tree.map(lambda x: x[hyper.slot], batch))
            return jax.tree.leaves(state), values

        def evaluate(leaves, key, batches):
            return self.program.evaluate(jax.tree.unflatten(structure, leaves), key, batches)

        batch = self.put(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self.batch_shape))
        options = IN_TURN if self._turns is not None else None
        start = time.monotonic()
        with ThreadPoolExecutor(2) as pool:  # XLA compiles outside Python's lock, so the two take the time of the longer
            built = pool.submit(aot, over_trials(step, (0, 0, None), self._turns), carry, self.hyper, batch, donate=(0,), options=options)
            judge = over_trials(evaluate, (0, None, None), self._turns)
            judged = pool.submit(aot, judge, carry, self._key, self.held_out, options=options)
        self.step, self._evaluate = built.result().call, judged.result().call
        self.compile_s, self.bytes = time.monotonic() - start, max(built.result().bytes, judged.result().bytes)

    def example_batch(self) -> dict[str, np.ndarray]:
        """A batch of the right shape made of held-out examples, for timing."""
        n = self.config["train"]["batch"]
        flat = {k: np.asarray(v).reshape(-1, *v.shape[2:]) for k, v in self.held_out.items()}
        return {k: np.stack([np.resize(v, (n, *v.shape[1:]))] * len(self.seeds)) for k, v in flat.items()}

    def evaluate(self, carry: list[jax.Array]) -> dict[str, jax.Array]:
        """eval_loss and eval_ema of every trial."""
        return self._evaluate(carry, self._key, self.held_out)

    def flops(self) -> float:
        """FLOPs of one training example, forward and backward (cost.CONVENTION)."""
        return flops_per_example(self.program, self.batch_shape)


def flops_per_example(program: Program, batch_shape: dict) -> float:
    """FLOPs of one example's loss gradient; `batch_shape` [seeds, batch, ...] gives the example's shape."""
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch_shape)
    params = described(program)
    key = jax.eval_shape(lambda: jax.random.key(0))
    n = jax.tree.leaves(one)[0].shape[0]
    return cost.flops(jax.grad(lambda p, k, b: jnp.mean(program.loss(p, k, b))), params, key, one) / n


def described(program: Program) -> Any:
    """The model's weights as shapes, for tracing without numbers."""
    table = axes.scales(program.model, parametrization.standard)
    return jax.eval_shape(lambda k: axes.draw(k, program.model, table), jax.eval_shape(lambda: jax.random.key(0)))


class Records(Scalars):
    """A clu writer whose values are one number a trial: each call becomes a row a trial."""

    def __init__(self, writer: Writer, trials: list[Trial], batch: int, train: Any, flops: float):
        self.writer, self.trials, self.batch, self.examples, self.flops = writer, trials, batch, len(train), flops
        # an epoch is a permutation, so nothing is seen twice before everything was seen once; a mixture counts for itself
        self.unique = getattr(train, "unique", lambda seen: min(seen, self.examples))
        self.began = time.time()

    def write_scalars(self, step: int, scalars: dict) -> None:
        seen, wall = step * self.batch, round(time.time() - self.began, 3)
        rows = []
        for i, t in enumerate(self.trials):
            row = {"trial": t.id, "arm": t.arm, "seed": t.config["seed"], "step": step, "examples": seen}
            row |= {"epochs": seen / self.examples, "unique": self.unique(seen), "flops": seen * self.flops}
            row |= {"wall": wall, "attempt": self.writer.attempt}
            values = {k: np.asarray(v)[i].item() for k, v in scalars.items()}
            gone = values["diverged"]
            rows.append(row | {k: (None if gone and k != "diverged" else v) for k, v in values.items()})
        self.writer.append(rows)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Interrupt:
    """Turns SIGINT and SIGTERM into a flag that the loop reads between steps; another one, a second or more later, acts at once.

    Within a second it is the same request: schedulers and terminals signal a whole group, in which a parent hands it on.
    """

    def __enter__(self):
        self.asked, self._first = False, 0.0
        self._old = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, number, frame):
        if self.asked and time.monotonic() - self._first >= 1:
            raise KeyboardInterrupt
        self.asked, self._first = True, self._first or time.monotonic()

    def __exit__(self, *exc):
        for s, handler in self._old.items():
            signal.signal(s, handler)


class Span(NamedTuple):
    """The steps that a population trains of its trials' own, from `start`, at which `state()` gives their states, to `until`."""

    start: int
    until: int
    state: Callable[[], State] | None = None  # None: their init
    rows: Callable[[], list[dict]] | None = None  # of their steps before `start`, where these are to be among its own
    leaves: int = 0  # the step at which its states are left for longer horizons; 0: none


def gathered(like: State, step: int, parts: list[tuple[Path, int, list[int]]], lost: str = "choose another --workdir") -> State:
    """States [trials, ...] at a step, on the host, from checkpoints of populations: of each (folder, how many trials it has, which to take).

    `like` is the shape of any population's of that program. UserError where a checkpoint is gone or damaged, with what is then to be done.
    """
    found = []
    for folder, trials, rows in parts:
        store = Checkpoints(folder)
        saved = store.restore(jax.tree.map(lambda x, n=trials: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype), like))
        store.close()
        if saved is None or saved[0] != step:
            raise UserError(f"checkpoints of population {folder.parent.name!r} are gone or damaged; restore {str(folder)!r}, or {lost}")
        found.append(jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], saved[1]))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *found)


def run(
    folder: Path,
    name: str,
    pop: Population,
    train: Any,
    judging: Judging,
    progress: Progress,
    interrupt: Interrupt,
    span: Span | None = None,
) -> None:
    """Train a population to its last step from wherever it was, and leave records, weights of the best trials and done.json.

    One whose `span` ends before its trials' last step leaves its state in the place of weights.

    Raises:
      Preempted: `interrupt` was set; rows and state are saved.
    """
    t, every = pop.config["train"], pop.config["eval"]["every"]
    span = span or Span(0, t["steps"])
    last = span.until
    writer = Writer(folder)
    keep = Checkpoints(folder / "checkpoints")
    progress.stage(name, "compiling")
    carry = pop.init()
    found = keep.restore(pop.shapes())
    start, state = found[:2] if found else (span.start, span.state and span.state())
    if found is None and span.rows is not None:
        writer.append([r | {"attempt": writer.attempt} for r in span.rows()])
    carry = carry if state is None else pop.carry(state, carry)
    pop.compile(carry)
    per_example = pop.flops()
    log = Records(writer, pop.trials, t["batch"], train, per_example)
    host = (jax.process_index(), jax.process_count())
    feed = loader.Loader(train, t["batch"], pop.seeds, start, host, pop.config["run"]["workers"])
    pending, saved, mark, spent = None, time.monotonic(), time.monotonic(), 0.0
    train_s = eval_s = 0.0
    progress.skip(name, "training", start)

    def write(step, values):
        log.write_scalars(step, jax.device_get(values))

    def write_judged(wait=False):
        for step, values in judging.rows(wait):
            log.write_scalars(step, values)

    try:
        for step in range(start, last + 1):
            judged = {}
            if step % every == 0 or step == last:
                begun = time.monotonic()
                judged = jax.block_until_ready(pop.evaluate(carry))
                mark = time.monotonic()  # an evaluation is no part of a step
                eval_s += mark - begun
            if judging.due(step, t["steps"]) and (step < last or last == t["steps"]):  # at a mark, those that go on are judged as they do
                judging.judge(step, *pop.averages(carry))
            if pending is not None:
                # the host reads step k while the device is still busy with step k + 1
                write(*pending)
                pending = None
            if step == span.leaves and step:
                _leave(folder, step, pop.state(carry))
                mark = time.monotonic()  # as below
            if step == last:
                write(step, {**judged, "diverged": ~jax.device_get(pop.averages(carry)[1])})
                if judging.judges:
                    progress.stage(name, "judging")
                write_judged(wait=True)
                break
            batch = pop.put(next(feed))
            with jax.transfer_guard("disallow"):
                carry, values = pop.step(carry, pop.hyper, batch)
            if judged or step % t["log_every"] == 0:
                pending = (step, {**values, **judged})
            jax.block_until_ready(values["loss"]) if step == start else None
            now = time.monotonic()
            spent, mark = now - mark, now
            train_s += spent
            shown = None if pending is None else _best(pending[1])
            progress.step(name, step + 1, shown, spent)
            write_judged()
            due = now - saved > pop.config["run"]["checkpoint_seconds"]
            if interrupt.asked or due:
                if pending is not None:
                    write(*pending)
                    pending = None
                write_judged(wait=True)
                log.flush()  # rows must be on disk before the step that makes them unrepeatable
                keep.save(step + 1, pop.state(carry))
                saved = mark = time.monotonic()  # neither judging nor saving is part of a step
                if interrupt.asked:
                    keep.wait()
                    raise Preempted
        state = pop.state(carry)
        if last < t["steps"] and start < last:  # what goes on begins from it
            log.flush()  # as above
            keep.save(last, state)
            keep.wait()
    finally:
        feed.close()
        judging.close()
        log.flush()
        log.close()
        keep.close()
    kept = last == t["steps"] and keep_best(folder, pop, state, jax.device_get(judged))
    timing = {"compile_s": pop.compile_s, "train_s": train_s, "eval_s": eval_s, "steps_here": last - start}
    write_json(folder / "timing.json", {**{k: round(v, 3) for k, v in timing.items()}, "device_bytes": pop.bytes})
    compact(folder)
    write_json(folder / "done.json", {"trials": [x.id for x in pop.trials], "diverged": _diverged(pop, state), "weights": kept})
    if last == t["steps"]:
        remove_checkpoints(folder)
    progress.finish(name)


def _best(values: dict) -> float | None:
    loss = np.asarray(values["loss"])
    return float(np.nanmin(loss)) if np.isfinite(loss).any() else None


def _diverged(pop: Population, state: State) -> list[str]:
    return [t.id for t, alive in zip(pop.trials, np.asarray(state.alive), strict=True) if not alive]


def _leave(folder: Path, step: int, state: State) -> None:
    """Keep the states of a population's trials for longer horizons; durable when it returns."""
    shutil.rmtree(folder / TRUNK, ignore_errors=True)  # of an attempt that began again from before
    store = Checkpoints(folder / TRUNK, keep=1)
    store.save(step, state)
    store.wait()
    store.close()


def remove_checkpoints(folder: Path) -> None:
    """Free the space of the resume checkpoints of a finished population."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def keep_best(folder: Path, pop: Population, state: State, judged: dict) -> bool:
    """Keep the averaged weights of the best trial of each arm, named by trial, for samples and fine-tuning; whether there is one."""
    loss = np.where(np.asarray(state.alive), np.asarray(judged[pop.config["eval"]["metric"]])[: len(pop.trials)], np.inf)
    best = {}
    for i, t in enumerate(pop.trials):
        if np.isfinite(loss[i]) and (t.arm not in best or loss[i] < loss[best[t.arm]]):
            best[t.arm] = i
    if not best:
        return False
    store = Checkpoints(folder / "weights", keep=1)
    kept = {pop.trials[i].id: jax.tree.map(lambda x: x[i], state.ema) for i in best.values()}  # noqa: B023
    meta = {pop.trials[i].id: {"arm": arm, "loss": float(loss[i])} for arm, i in best.items()}
    store.save(pop.config["train"]["steps"], kept, {"trials": meta, "weights": "average (EMA)"})
    store.wait()
    store.close()
    return True
